"""`embed`: turn every item of the catalog into a vector.

The verb stands here and not among the embeddings because it loads models: imports run one way, and the table, its
filling and its reduction know no engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import hash_json, is_done, manifest, peek_manifest, refuse_inputs_inside
from seqrec_prompt.embeddings.encode import ITEM
from seqrec_prompt.engines.pricing import HOSTED_FIELDS, HostedConfig
from seqrec_prompt.errors import ModelError
from seqrec_prompt.journal import Journal
from seqrec_prompt.locks import locked

if TYPE_CHECKING:
    from seqrec_prompt.data.catalog import Catalog
    from seqrec_prompt.embeddings.encode import Embedder

VLLM_TOKENS = 65_536  # handed to vLLM at once, which plans itself what it reads together


class EmbedConfig(HostedConfig):
    """Settings of `embed`."""

    data: Path = Field(description="directory made by 'prepare'")
    out: Path = Field(description="directory for the embeddings")
    engine: Literal["transformers", "vllm", "openai"] = Field(
        "transformers",
        description="what runs the model: 'transformers' also for sentence-transformers models, 'vllm' (extra [vllm]) "
        "for causal ones; 'openai': a hosted model, at OpenAI or at a service that speaks its protocol; see 'hosted'",
    )
    model: str = Field("smollm2", description="hub name, directory, or 'smollm2' (bundled); hosted: the service's name")
    revision: str | None = Field(None, description="revision of a hub model")
    adapter: Path | None = Field(None, description="adapter made by 'finetune'; without it the model is used as it is")
    pooling: Literal["mean", "weighted-mean", "last", "own"] = Field(
        "weighted-mean",
        description="how a causal model's hidden states become one vector: mean of all tokens, later tokens weighing "
        "more, the last token's; 'own': a sentence-transformers model's own way",
    )
    attributes: tuple[str, ...] = Field((), description="catalog attributes written after the title")
    prompt: str | None = Field(
        None,
        description=f'text around the item, with {ITEM} in its place, e.g. \'This product: "{ITEM}" means in one '
        "word: \"' with pooling 'last'",
    )
    max_tokens: int = Field(512, ge=1, description="tokens read of an item at most; what an item has more is cut")
    batch_tokens: int = Field(
        4096,
        ge=1,
        description=f"tokens read together, padding included; unset with vllm: {VLLM_TOKENS}; changes no vector",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="of the model; in half precision a vector depends a little on what is read beside it"
    )
    overwrite: bool = Field(False, description="begin again although the output holds another run")
    dimensions: int | None = Field(None, ge=1, description="of a hosted model's vectors, where it can shorten them")

    @model_validator(mode="before")
    @classmethod
    def _engines_have_their_own(cls, values: Any) -> Any:
        own: dict[Any, dict[str, Any]] = {"openai": {"pooling": "own"}, "vllm": {"batch_tokens": VLLM_TOKENS}}
        return own.get(values.get("engine"), {}) | values if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _engine_takes_it(self) -> EmbedConfig:
        if self.engine == "openai":
            strange = [name for name in ("adapter", "revision") if getattr(self, name) is not None]
            strange += ["pooling"] if self.pooling != "own" else []
        else:
            strange = [name for name in ("dimensions", *HOSTED_FIELDS) if name in self.model_fields_set]
        if strange:
            raise ValueError(f"'engine' {self.engine} has no use for {', '.join(map(repr, strange))}: leave it out")
        return self

    @model_validator(mode="after")
    def _belongs_together(self) -> EmbedConfig:
        if self.prompt is not None and self.prompt.count(ITEM) != 1:
            raise ValueError(f"'prompt' = {self.prompt!r} must hold {ITEM} once, where the item's text goes")
        if self.pooling == "own" and self.adapter is not None:
            raise ValueError("'adapter' is for causal language models: leave it out, or choose another pooling")
        if self.pooling == "own" and self.engine == "vllm":
            raise ValueError("'engine' vllm is for causal language models: leave it out, or choose another pooling")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is made."""
        # It does not matter how many are read together: a run that met the end of the memory goes on with fewer.
        unused = {"batch_tokens"} | (set() if self.engine == "openai" else {"dimensions", "base_url"})
        unused |= {"engine"} if self.engine == "transformers" else set()
        return {name: value for name, value in super().identity().items() if name not in unused}


@locked
def embed(config: EmbedConfig) -> Path:
    """Write one vector an item; returns the directory, which `EmbeddingTable.load` reads.

    Vectors go into a journal beside it as they are made; a stopped run goes on there.
    """
    from seqrec_prompt.data.dataset import Dataset

    refuse_inputs_inside(config.out, {"data": config.data, "model": config.model, "adapter": config.adapter})
    catalog = Dataset.load(config.data).catalog
    items = catalog.texts(config.attributes)  # before the heavy imports: what is wrong is told at once

    # Of the data only the catalog goes in: another split has the same vectors.
    inputs = {"data": catalog.hash} | model_inputs(config)
    wanted = manifest("embed", config.identity(), inputs)
    journal_file = config.out.with_name(config.out.name + ".journal")
    if is_done(config.out, peek_manifest(config.out), wanted, overwrite=config.overwrite):
        print(f"already embedded: {config.out}")
        journal_file.unlink(missing_ok=True)
        return config.out
    journal = Journal(journal_file, wanted, overwrite=config.overwrite)
    try:
        facts = _fill(journal, config, items, catalog, wanted)
    finally:
        journal.close(remove=not journal.count)  # with nothing done there is nothing to go on from
    journal.close(remove=True)
    cut = f", {facts['cut']:,} of them cut to {facts['max_tokens']} tokens" if facts["cut"] else ""
    print(f"embeddings: {config.out}  ({facts['items']:,} items{cut}; {facts['dimension']} dimensions)")
    return config.out


def model_inputs(config: EmbedConfig) -> dict[str, str]:
    """Hashes of the model and, if there is one, of the adapter trained on it."""
    if config.engine == "openai":
        return {"model": hash_json([config.base_url, config.model, config.dimensions])}

    from seqrec_prompt.engines.models import model_hash, trained_adapter

    inputs = {"model": model_hash(config.model, config.revision)}
    if config.adapter is not None:
        _, inputs["adapter"] = trained_adapter(config.adapter, config.model, inputs["model"])
    return inputs


def _fill(
    journal: Journal, config: EmbedConfig, items: list[str], catalog: Catalog, wanted: dict[str, Any]
) -> dict[str, Any]:
    from seqrec_prompt.embeddings.encode import encode, fit_texts
    from seqrec_prompt.embeddings.table import EmbeddingTable

    hosted = None
    if config.engine == "openai":
        from seqrec_prompt.engines.hosted_embedder import HostedEmbedder

        embedder: Embedder = (hosted := HostedEmbedder(config, config.model, config.dimensions))
    else:
        embedder = load_embedder(config)
    most = min(config.max_tokens, embedder.context)
    texts, lengths, cut = fit_texts(embedder, items, config.prompt, most)
    if hosted is not None:
        hosted.agree(texts, lengths, journal)
    vectors, seconds = encode(
        embedder, texts, lengths, catalog, journal, config.batch_tokens, hosted.spent if hosted else dict
    )
    facts = {
        "items": len(items),
        "dimension": embedder.dimension,
        "tokens": int(lengths.sum()),
        "max_tokens": most,
        "cut": cut,
        "batch_tokens": config.batch_tokens,
        "seconds": round(seconds, 1),
    }
    if hosted is not None:
        facts |= hosted.facts()
    EmbeddingTable(vectors, wanted | {"facts": facts}).save(config.out)
    return facts


def load_embedder(config: EmbedConfig) -> Embedder:
    """Load the model, and the adapter, that reads texts as `config` says; ModelError when it is a hosted one."""
    if config.engine == "openai":
        raise ModelError("a hosted model reads no text without a quote: use embeddings of a local model here.")
    from seqrec_prompt.engines.embedder import CausalEmbedder, SentenceEmbedder

    if config.pooling == "own":
        return SentenceEmbedder.load(config.model, config.dtype, config.revision)
    if config.engine == "vllm":
        from seqrec_prompt.engines.vllm import VLLMEmbedder

        return VLLMEmbedder.load(
            config.model, config.adapter, config.pooling, config.dtype, config.revision, context=config.max_tokens
        )
    return CausalEmbedder.load(config.model, config.adapter, config.pooling, config.dtype, config.revision)
