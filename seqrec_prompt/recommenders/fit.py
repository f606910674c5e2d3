"""`seqrec-prompt fit`: fit a recommender that needs no LLM on the train sessions and keep it in a directory."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from seqrec_prompt.data.sessions import Split
from seqrec_prompt.data.splits import validation_part
from seqrec_prompt.errors import ConfigError, DataError
from seqrec_prompt.locks import locked
from seqrec_prompt.recommenders.nearest.embedding_neighbors import EmbeddingNeighborsConfig
from seqrec_prompt.recommenders.nearest.similarity import SessionVectorConfig, SimilarityConfig
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig
from seqrec_prompt.recommenders.settings import (
    SECTIONS,
    BlendConfig,
    Embeddings,
    NeighborsConfig,
    SwitchConfig,
    TransitionsConfig,
)

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.embeddings.table import EmbeddingTable
    from seqrec_prompt.recommenders.fitted import Kept

FROM_EMBEDDINGS = ("llm-seq-sim", "embedding-sknn")
HYBRIDS = ("blend", "switch")


class FitConfig(Config):
    """Settings of `fit`."""

    data: Path = Field(description="directory made by 'prepare'")
    recommender: Literal[
        "most-popular",
        "transition-counts",
        "transitions",
        "sknn",
        "s-sknn",
        "sf-sknn",
        "v-sknn",
        "llm-seq-sim",
        "embedding-sknn",
        "sasrec",
        "bert4rec",
        "gru4rec",
        "blend",
        "switch",
    ] = Field(description="what to fit")
    embeddings: Embeddings = Field(
        None,
        description="directories made by 'embed' of this catalog, several side by side: for llm-seq-sim, "
        "embedding-sknn, and where sequential.items.start is not random",
    )
    out: Path = Field(description="directory to write")
    sessions: Literal["train", "before_test"] = Field(
        "train",
        description="sessions to learn from: the train part, or also the validation part with its targets, for the "
        "final test",
    )
    transitions: TransitionsConfig = Field(TransitionsConfig(), description="transitions")
    neighbors: NeighborsConfig = Field(NeighborsConfig(), description="sknn, s-sknn, sf-sknn, v-sknn")
    similarity: SimilarityConfig = Field(SimilarityConfig(), description="llm-seq-sim")
    embedding_neighbors: EmbeddingNeighborsConfig = Field(EmbeddingNeighborsConfig(), description="embedding-sknn")
    sequential: SequentialConfig = Field(SequentialConfig(), description="sasrec, bert4rec, gru4rec")
    blend: BlendConfig = Field(BlendConfig(), description="blend")
    switch: SwitchConfig = Field(SwitchConfig(), description="switch")
    overwrite: bool = Field(False, description="replace what was fitted with other settings")

    @model_validator(mode="before")
    @classmethod
    def _embeddings_are_the_start(cls, values: Any) -> Any:
        """A sequential model that is given embeddings starts from them if nothing else is said."""
        given = values.get("sequential", {})
        given = given.model_dump(exclude_unset=True) if isinstance(given, SequentialConfig) else given
        sequential = SECTIONS.get(str(values.get("recommender"))) == "sequential"
        items = given.get("items", {}) if isinstance(given, dict) else None
        if not values.get("embeddings") or not sequential or not isinstance(items, dict):
            return values
        return values | {"sequential": given | {"items": {"start": "llm_init"} | items}}

    @model_validator(mode="after")
    def _only_what_is_used(self) -> FitConfig:
        used = SECTIONS.get(self.recommender)
        strange = sorted(set(SECTIONS.values()) & self.model_fields_set - {used})
        if strange:
            raise ValueError(f"'{strange[0]}' holds no settings of '{self.recommender}': leave it out")
        needs = self.recommender in FROM_EMBEDDINGS or self.sequential.items.start != "random"
        if needs != bool(self.embeddings):
            wanted = "needs --embeddings, made by 'embed'" if needs else "knows no 'embeddings'"
            what = f" with sequential.items.start '{self.sequential.items.start}'" if used == "sequential" else ""
            raise ValueError(f"'{self.recommender}'{what} {wanted}")
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


@locked
def fit(config: FitConfig) -> Path:
    """Fit `config.recommender` and write it to `config.out`; returns that directory.

    Raises ArtifactError when `out` holds something made with other settings, or not made by `fit`.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.recommenders import fitted

    data = Dataset.load(config.data)
    parts_at = {f"{config.recommender}.parts {i}": part for i, part in enumerate(config.parts, 1)}
    embeddings_at = {f"embeddings {i}": place for i, place in enumerate(config.embeddings or (), 1)}
    refuse_inputs_inside(config.out, {"data": config.data, **embeddings_at, **parts_at})
    inputs, table = {"data": data.hash}, None
    if config.embeddings:
        from seqrec_prompt.embeddings.reduce import ARRAYS, load_reduction
        from seqrec_prompt.embeddings.table import load_tables

        table, inputs["embeddings"] = load_tables(config.embeddings, data.catalog)
        settings = getattr(config, section := SECTIONS[config.recommender])
        if isinstance(settings, SessionVectorConfig) and settings.reduce and settings.reduce.source:
            load_reduction(settings.reduce.source)  # which tells what is wrong with it
            inputs[f"{section}.reduce.source"] = hash_file(settings.reduce.source / ARRAYS)
    if config.parts:
        _, hashes = fitted.load_parts(config.parts, data)
        inputs[f"{config.recommender}.parts"] = hash_json(hashes)
    wanted = manifest("fit", config.used(), inputs)
    if is_done(config.out, peek_manifest(config.out), wanted, overwrite=config.overwrite):
        _checkpoint(config.out).unlink(missing_ok=True)
        print(f"already fitted: {config.out}")
        return config.out

    from seqrec_prompt.recommenders.hybrids import Blend
    from seqrec_prompt.recommenders.sequential.recommender import Sequential

    if config.sessions == "before_test":
        data = replace(data, split=Split(data.split.before_test(), data.split.test))
    started, sessions = time.monotonic(), data.split.train
    recommender = build(config, data, table, wanted)
    if isinstance(recommender, Sequential) and not _is_main_process():
        return config.out
    facts: dict[str, Any] = {"sessions": len(sessions), "interactions": len(sessions.items)}
    if isinstance(recommender, Sequential):
        facts["history"] = recommender.history
    if isinstance(recommender, Blend) and config.blend.weight is None:
        print(f"blend.weight: {recommender.weight:.2f} has the best NDCG@10 on the validation part")
    facts["seconds"] = time.monotonic() - started
    with staged_directory(config.out) as staged:
        fitted.save(staged, recommender, wanted | {"facts": facts}, config.parts)
    _checkpoint(config.out).unlink(missing_ok=True)
    print(f"fitted: {config.out}  ({recommender.name} on {len(sessions):,} sessions, {len(sessions.items):,} items)")
    return config.out


def build(
    config: FitConfig, data: Dataset, table: EmbeddingTable | None, identity: dict[str, Any] | None = None
) -> Kept:
    """Fit the recommender of `config` on the train sessions of `data`, in memory.

    table: of `config.embeddings`. identity: manifest of the run; with it a sequential model that was stopped goes on
    after its last whole epoch. Raises DataError when validation needs more sessions than there are.
    """
    from seqrec_prompt.recommenders import fitted

    cls, vectors = fitted.RECOMMENDERS[config.recommender], None if table is None else table.vectors
    recommender: Kept
    if SECTIONS.get(config.recommender) == "sequential":
        from seqrec_prompt.recommenders.sequential.training import Checkpoint

        settings, train, holdout = config.sequential, data.split.train, None
        if settings.patience is not None:
            train, holdout = validation_part(data.split, settings.validation_sessions, settings.seed)
            if holdout is None:
                raise DataError(
                    ["no train session can be held out for validation: there are fewer than ten of two items"],
                    "Set sequential.patience to none: then all sequential.epochs are trained.",
                )
        checkpoint = identity and Checkpoint(_checkpoint(config.out), identity, config.overwrite)
        recommender = cls.fit(train, data.catalog, settings, holdout, vectors, checkpoint)
    elif config.parts:
        parts, _ = fitted.load_parts(config.parts, data)
        if config.recommender == "blend":
            _require_unseen_validation(config)
            recommender = cls.fit(parts, config.blend, data.split.validation)
        else:
            recommender = cls.fit(parts, data.split.train, len(data.catalog), config.switch)
    elif table is not None and config.recommender == "embedding-sknn":
        recommender = cls.fit(table, data.catalog, data.split.train, config.embedding_neighbors)
    elif table is not None:
        recommender = cls.fit(table, data.catalog, config.similarity)
    else:
        section = SECTIONS.get(config.recommender)
        recommender = cls.fit(data.split.train, len(data.catalog), getattr(config, section) if section else None)
    return recommender


def _checkpoint(out: Path) -> Path:
    """Where a sequential model stands while it trains."""
    return out.with_name(out.name + ".checkpoint")


def _is_main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


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
