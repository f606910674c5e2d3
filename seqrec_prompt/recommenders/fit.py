"""`seqrec-prompt fit`: fit a recommender that needs no LLM on the train sessions and keep it in a directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import (
    MANIFEST,
    hash_file,
    hash_json,
    is_done,
    manifest,
    peek_manifest,
    read_manifest,
    refuse_inputs_inside,
    staged_directory,
)
from seqrec_prompt.config import Config
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.recommenders.embedding_neighbors import EmbeddingNeighborsConfig, EmbeddingSKNN
from seqrec_prompt.recommenders.settings import SECTIONS, BlendConfig, NeighborsConfig, SwitchConfig
from seqrec_prompt.recommenders.similarity import LLMSeqSim, SessionVectorConfig, SimilarityConfig

FROM_EMBEDDINGS = ("llm-seq-sim", "embedding-sknn")
HYBRIDS = ("blend", "switch")


class FitConfig(Config):
    """Settings of `fit`."""

    data: Path = Field(description="directory made by 'prepare'")
    recommender: Literal[
        "most-popular",
        "transition-counts",
        "sknn",
        "s-sknn",
        "sf-sknn",
        "v-sknn",
        "llm-seq-sim",
        "embedding-sknn",
        "blend",
        "switch",
    ] = Field(description="what to fit")
    embeddings: Path | None = Field(
        None, description="llm-seq-sim and embedding-sknn: directory made by 'embed' of this catalog"
    )
    out: Path = Field(description="directory to write")
    sessions: Literal["train", "before_test"] = Field(
        "train",
        description="sessions to learn from: the train part, or also the validation part with its targets, for the "
        "final test",
    )
    neighbors: NeighborsConfig = Field(NeighborsConfig(), description="sknn, s-sknn, sf-sknn, v-sknn")
    similarity: SimilarityConfig = Field(SimilarityConfig(), description="llm-seq-sim")
    embedding_neighbors: EmbeddingNeighborsConfig = Field(EmbeddingNeighborsConfig(), description="embedding-sknn")
    blend: BlendConfig = Field(BlendConfig(), description="blend")
    switch: SwitchConfig = Field(SwitchConfig(), description="switch")
    overwrite: bool = Field(False, description="replace what was fitted with other settings")

    @model_validator(mode="after")
    def _only_what_is_used(self) -> FitConfig:
        used = SECTIONS.get(self.recommender)
        strange = sorted(set(SECTIONS.values()) & self.model_fields_set - {used})
        if strange:
            raise ValueError(f"'{strange[0]}' holds no settings of '{self.recommender}': leave it out")
        if (self.recommender in FROM_EMBEDDINGS) != (self.embeddings is not None):
            wanted = "needs --embeddings, made by 'embed'" if self.embeddings is None else "knows no 'embeddings'"
            raise ValueError(f"'{self.recommender}' {wanted}")
        if used in HYBRIDS and len(self.parts) != 2:
            raise ValueError(f"'{used}' needs two --{used}.parts, made by 'fit'; {len(self.parts)} given")
        decays = sorted({"decay", "score_decay"} & self.neighbors.model_fields_set)
        if decays and self.recommender != "v-sknn":
            raise ValueError(f"'neighbors.{decays[0]}' is used only by v-sknn, not by {self.recommender}")
        return self

    @property
    def parts(self) -> tuple[Path, ...]:
        """The directories that a hybrid is made of."""
        section = SECTIONS.get(self.recommender)
        return getattr(self, section).parts if section in HYBRIDS else ()

    def used(self) -> dict[str, Any]:
        """Resolved settings without the sections of other recommenders."""
        others = set(SECTIONS.values()) - {SECTIONS.get(self.recommender)}
        return {name: value for name, value in self.resolved().items() if name not in others}


def fit(config: FitConfig) -> Path:
    """Fit `config.recommender` and write it to `config.out`; returns that directory.

    Raises ArtifactError when `out` holds something made with other settings, or not made by `fit`.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.recommenders import fitted
    from seqrec_prompt.recommenders.hybrids import Blend, Switch

    data = Dataset.load(config.data)
    parts_at = {f"{config.recommender}.parts {i}": part for i, part in enumerate(config.parts, 1)}
    refuse_inputs_inside(config.out, {"data": config.data, "embeddings": config.embeddings, **parts_at})
    inputs, table = {"data": data.hash}, None
    if config.embeddings is not None:
        from seqrec_prompt.embeddings.reduce import ARRAYS, load_reduction
        from seqrec_prompt.embeddings.table import VECTORS, EmbeddingTable

        table = EmbeddingTable.load(config.embeddings, data.catalog)
        inputs["embeddings"] = hash_file(config.embeddings / VECTORS)
        settings = getattr(config, section := SECTIONS[config.recommender])
        if isinstance(settings, SessionVectorConfig) and settings.reduce and settings.reduce.source:
            load_reduction(settings.reduce.source)  # which tells what is wrong with it
            inputs[f"{section}.reduce.source"] = hash_file(settings.reduce.source / ARRAYS)
    if config.parts:
        parts, hashes = fitted.load_parts(config.parts, data)
        inputs[f"{config.recommender}.parts"] = hash_json(hashes)
    wanted = manifest("fit", config.used(), inputs)
    if is_done(config.out, peek_manifest(config.out), wanted, overwrite=config.overwrite):
        print(f"already fitted: {config.out}")
        return config.out

    sessions = data.split.train if config.sessions == "train" else data.split.before_test()
    started = time.monotonic()
    recommender: fitted.Kept
    if config.recommender == "blend":
        _require_unseen_validation(config)
        recommender = Blend.fit(parts, config.blend, data.split.validation)
        if config.blend.weight is None:
            print(f"blend.weight: {recommender.weight:.2f} has the best NDCG@10 on the validation part")
    elif config.recommender == "switch":
        recommender = Switch.fit(parts, sessions, len(data.catalog), config.switch)
    elif table is not None and config.recommender == "embedding-sknn":
        recommender = EmbeddingSKNN.fit(table, data.catalog, sessions, config.embedding_neighbors)
    elif table is not None:
        recommender = LLMSeqSim.fit(table, data.catalog, config.similarity)
    else:
        settings = getattr(config, SECTIONS[config.recommender]) if config.recommender in SECTIONS else None
        recommender = fitted.RECOMMENDERS[config.recommender].fit(sessions, len(data.catalog), settings)
    facts = {"sessions": len(sessions), "interactions": len(sessions.items), "seconds": time.monotonic() - started}
    with staged_directory(config.out) as staged:
        fitted.save(staged, recommender, wanted | {"facts": facts}, config.parts)
    print(f"fitted: {config.out}  ({recommender.name} on {len(sessions):,} sessions, {len(sessions.items):,} items)")
    return config.out


def _require_unseen_validation(config: FitConfig) -> None:
    """Refuse to choose the weight of a blend on targets that its parts, or parts of them, have learned from."""
    if config.blend.weight is not None:
        return
    for part in config.parts:
        for file in sorted(part.rglob(MANIFEST)):
            if read_manifest(file.parent, "fit")["config"].get("sessions") == "before_test":
                raise ConfigError(
                    f"{file.parent} was fitted with --sessions before_test, so it knows the validation targets that "
                    "blend.weight would be chosen on. Choose it with parts fitted on train, then give --blend.weight."
                )
