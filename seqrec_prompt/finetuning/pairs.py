"""`pairs`: write prompt–completion pairs as JSON lines, in the columns that TRL's trainers read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import atomic_file, is_done, manifest, peek_manifest, write_json
from seqrec_prompt.config import Config
from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.locks import locked
from seqrec_prompt.prompting.cases import Cases, check_needs, input_hashes, lessons, load_clusters, questions
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig, completion, messages, text

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Holdout
    from seqrec_prompt.embeddings.clusters import Clusters


class PairsConfig(Config):
    """Settings of `pairs`."""

    data: Path = Field(description="directory made by 'prepare'")
    out: Path = Field(description="JSON lines file to write")
    part: Literal["train", "test"] = Field("train", description="sessions to write")
    targets: Literal["last", "all"] = Field(
        "last", description="'last': one pair a session; 'all': one for every item after a session's first"
    )
    conversational: bool = Field(False, description="chat messages instead of plain text")
    model: str = Field("smollm2", description="whose tokens are counted: hub name, directory, or 'smollm2'")
    context: int = Field(2048, ge=16, description="longest prompt with its completion, in tokens")
    overwrite: bool = Field(False, description="replace pairs made with other settings")
    template: TemplateConfig = TemplateConfig(layout="ask")
    candidates: Path | None = Field(
        None,
        description="GenList and Rank only: lists for the sessions of 'part', made by 'recommend' for that part",
    )
    embeddings: Path | None = Field(None, description="Classify only: directory made by 'embed' of this catalog")

    @model_validator(mode="after")
    def _variant_is_possible(self) -> PairsConfig:
        if self.part == "train" or self.template.name != "GenList":  # a test prompt of GenList needs no list
            check_needs(self.template, self.candidates, self.embeddings)
        elif self.candidates or self.embeddings:
            raise ValueError("test prompts of GenList need neither 'candidates' nor 'embeddings': leave them out")
        if self.template.title_tokens is not None:
            raise ValueError("template.title_tokens cuts tokens, and pairs are text: leave it out")
        if self.targets == "all" and self.template.lists:
            raise ValueError(f"{self.template.name} knows one list a session: set 'targets' to 'last'")
        return self

    @model_validator(mode="after")
    def _messages_alternate(self) -> PairsConfig:
        if self.template.chat and not self.conversational:
            raise ValueError("'template.chat' writes a model's own marks, and pairs are for any: set 'conversational'")
        if self.conversational and self.template.layout != "ask":
            raise ValueError(
                "conversational pairs need template.layout 'ask': a session in one message, then the answer"
            )
        return self


@locked
def pairs(config: PairsConfig) -> Path:
    """Write one JSON object a line with `prompt` and `completion`, and a manifest beside it; returns the file.

    Load it with `datasets.load_dataset("json", data_files=…)` and give it to TRL's SFTTrainer, which ends each
    completion with the end token and trains on completions only.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.models import load_tokenizer

    data = Dataset.load(config.data)
    sidecar = config.out.with_name(config.out.name + ".manifest.json")
    inputs = {"data": data.hash, **input_hashes(config.candidates, config.embeddings)}
    wanted = manifest("pairs", config.resolved(), inputs)
    found = peek_manifest(sidecar.parent, sidecar.name) if config.out.exists() else None
    if is_done(config.out, found, wanted, overwrite=config.overwrite):
        print(f"already written: {config.out}")
        return config.out
    template = config.template.model_copy(update={"chat": config.conversational})
    candidates = Candidates.load(config.candidates, data, config.part) if config.candidates else None
    clusters = load_clusters(template, config.embeddings, data)
    written = build_pairs(
        data, _cases(data, config), template, load_tokenizer(config.model), config.context,
        make=lessons if config.part == "train" else questions, candidates=candidates, clusters=clusters,
    )  # fmt: skip
    count = 0
    with atomic_file(config.out) as partial, partial.open("w", encoding="utf-8") as stream:
        for pair in written:
            stream.write(json.dumps(pair, ensure_ascii=False) + "\n")
            count += 1
        stream.flush()
        write_json(sidecar, wanted | {"facts": {"pairs": count}})  # before the file appears: it never lacks one
    print(f"{count:,} pairs: {config.out}")
    return config.out


def build_pairs(
    data: Dataset,
    holdout: Holdout,
    template: TemplateConfig,
    tokenizer: Any,
    context: int,
    *,
    make: Callable[..., Cases] = questions,
    candidates: Candidates | None = None,
    clusters: Clusters | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield {"prompt", "completion"} for each case, as text or, where `template.chat`, as chat messages.

    make: `lessons` or `questions`. When a prompt with its longest possible answer would pass `context` tokens, the
    oldest items go first; a completion is never cut. Whoever tokenises this text may read special tokens in it, so
    those inside titles are broken up by a space. Raises TemplateError when nothing fits.
    """
    if template.companions:
        raise TemplateError("template.companions: not in text. Leave it out of pairs and of a hosted model's prompts.")
    names = clusters.names(data.catalog) if clusters else ()
    prompter = compile_template(template, data.catalog, tokenizer, names)
    cases = make(prompter, holdout, context, candidates, clusters)
    lines = [_harmless(line, tokenizer) for line in data.catalog.texts(template.attributes)]
    answers = lines
    if template.layout == "ask":
        answers = [_harmless(title, tokenizer) for title in names or data.catalog.texts()]
    for i, items in enumerate(cases.shown):
        history = [lines[item] for item in items.tolist()]
        offered = [] if cases.candidates is None else [lines[item] for item in cases.candidates[i].tolist()]
        answer = completion(template, [answers[number] for number in cases.answers[i].tolist()])
        if template.chat:
            reply = [{"role": "assistant", "content": answer}]
            yield {"prompt": messages(template, history, offered), "completion": reply}
        else:
            yield {"prompt": text(template, history, offered), "completion": answer}


def _cases(data: Dataset, config: PairsConfig) -> Holdout:
    from seqrec_prompt.data.sessions import Holdout

    if config.part == "test" or config.targets == "last":
        return data.split.cases(config.part)
    return Holdout.of_last_items(data.split.train.prefixes())


def _harmless(line: str, tokenizer: Any) -> str:
    for token in tokenizer.all_special_tokens:
        if token in line:
            line = line.replace(token, f"{token[0]} {token[1:]}")
    return line
