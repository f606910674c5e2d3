"""`seqrec-prompt fit`: fit a recommender that needs no LLM on the train sessions and keep it in a directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import (
    hash_file,
    is_done,
    manifest,
    peek_manifest,
    refuse_inputs_inside,
    staged_directory,
)
from seqrec_prompt.config import Config
from seqrec_prompt.locks import locked
from seqrec_prompt.recommenders.settings import SECTIONS, NeighborsConfig
from seqrec_prompt.recommenders.similarity import LLMSeqSim, SimilarityConfig


class FitConfig(Config):
    """Settings of `fit`."""

    data: Path = Field(description="directory made by 'prepare'")
    recommender: Literal["most-popular", "transition-counts", "sknn", "s-sknn", "sf-sknn", "v-sknn", "llm-seq-sim"] = (
        Field(description="what to fit")
    )
    embeddings: Path | None = Field(None, description="llm-seq-sim only: directory made by 'embed' of this catalog")
    out: Path = Field(description="directory to write")
    sessions: Literal["train", "before_test"] = Field(
        "train",
        description="sessions to learn from: the train part, or also the validation part with its targets, for the "
        "final test",
    )
    neighbors: NeighborsConfig = Field(NeighborsConfig(), description="sknn, s-sknn, sf-sknn, v-sknn")
    similarity: SimilarityConfig = Field(SimilarityConfig(), description="llm-seq-sim")
    overwrite: bool = Field(False, description="replace what was fitted with other settings")

    @model_validator(mode="after")
    def _only_what_is_used(self) -> FitConfig:
        used = SECTIONS.get(self.recommender)
        strange = sorted(set(SECTIONS.values()) & self.model_fields_set - {used})
        if strange:
            raise ValueError(f"'{strange[0]}' holds no settings of '{self.recommender}': leave it out")
        if (self.recommender == "llm-seq-sim") != (self.embeddings is not None):
            wanted = "needs --embeddings, made by 'embed'" if self.embeddings is None else "knows no 'embeddings'"
            raise ValueError(f"'{self.recommender}' {wanted}")
        decays = sorted({"decay", "score_decay"} & self.neighbors.model_fields_set)
        if decays and self.recommender != "v-sknn":
            raise ValueError(f"'neighbors.{decays[0]}' is used only by v-sknn, not by {self.recommender}")
        return self

    def used(self) -> dict[str, Any]:
        """Resolved settings without the sections of other recommenders."""
        others = set(SECTIONS.values()) - {SECTIONS.get(self.recommender)}
        return {name: value for name, value in self.resolved().items() if name not in others}


@locked
def fit(config: FitConfig) -> Path:
    """Fit `config.recommender` and write it to `config.out`; returns that directory.

    Raises ArtifactError when `out` holds something made with other settings, or not made by `fit`.
    """
    from seqrec_prompt.data.dataset import Dataset

    data = Dataset.load(config.data)
    refuse_inputs_inside(config.out, {"data": config.data, "embeddings": config.embeddings})
    inputs, table = {"data": data.hash}, None
    if config.embeddings is not None:
        from seqrec_prompt.embeddings.table import VECTORS, EmbeddingTable

        table = EmbeddingTable.load(config.embeddings, data.catalog)
        inputs["embeddings"] = hash_file(config.embeddings / VECTORS)
    wanted = manifest("fit", config.used(), inputs)
    if is_done(config.out, peek_manifest(config.out), wanted, overwrite=config.overwrite):
        print(f"already fitted: {config.out}")
        return config.out

    from seqrec_prompt.recommenders import fitted

    sessions = data.split.train if config.sessions == "train" else data.split.before_test()
    section = SECTIONS.get(config.recommender)
    started = time.monotonic()
    if table is not None:
        recommender: fitted.Kept = LLMSeqSim.fit(table, data.catalog, config.similarity)
    else:
        settings = getattr(config, section) if section else None
        recommender = fitted.RECOMMENDERS[config.recommender].fit(sessions, len(data.catalog), settings)
    facts = {"sessions": len(sessions), "interactions": len(sessions.items), "seconds": time.monotonic() - started}
    with staged_directory(config.out) as staged:
        fitted.save(staged, recommender, wanted | {"facts": facts})
    print(f"fitted: {config.out}  ({recommender.name} on {len(sessions):,} sessions, {len(sessions.items):,} items)")
    return config.out
