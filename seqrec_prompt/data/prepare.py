"""The verb `prepare`: raw interactions → a checked, split, prepared data directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import hash_json, is_done, manifest, peek_manifest, refuse_inputs_inside, staged_directory
from seqrec_prompt.config import Config
from seqrec_prompt.console import Progress, progress
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.locks import locked

# numpy and pyarrow are imported where they are used: `--help` imports this module.
if TYPE_CHECKING:
    from seqrec_prompt.data.catalog import Catalog
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Holdout, Sessions, Split
    from seqrec_prompt.data.tables import Source

STEPS = ("opened", "read", "filtered", "split", "written")  # as progress tells them
_FILES = ("interactions", "items", "sessions")


class PrepareConfig(Config):
    """Settings of `prepare`."""

    interactions: str = Field(
        description="one row an interaction: CSV, TSV, Parquet, RecBole .inter, or a Hugging Face dataset "
        "(folder or owner/name[:config][:split])"
    )
    items: str | None = Field(None, description="one row an item, with its title; without it, see title_column")
    sessions: str | None = Field(None, description="one row a session, with its split value (for split column)")
    session_column: str = Field("session_id", description="column of the session id (or user id)")
    item_column: str = Field("item_id", description="column of the item id")
    time_column: str | None = Field(None, description="column of the time; unset: sessions are in file order")
    title_column: str = Field(
        "title",
        description="column of the item's title in the items file, or else in the interactions (the most frequent "
        "one of each item)",
    )
    attribute_columns: tuple[str, ...] = Field((), description="further columns of the items to keep, like brand")
    split: Literal["temporal", "leave_one_out", "column"] = Field(
        "temporal",
        description="temporal: the latest sessions test; leave_one_out: the last item of every session tests, the one "
        "before validates; column: as a column of the data says",
    )
    split_column: str | None = Field(
        None, description="column with train, test and perhaps validation; unset: 'split', or the only *split"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of sessions that test in the temporal split")
    k_core: int = Field(0, ge=0, description="drop sessions and items with fewer interactions, repeatedly; 0: off")
    min_session: int = Field(2, ge=1, description="drop sessions with fewer items than this")
    ties: Literal["shuffle", "file"] = Field(
        "shuffle",
        description="order of a session's items with equal times: random, or as in the file (right only where the "
        "file keeps the order of events)",
    )
    repeats: Literal["keep", "first"] = Field(
        "keep", description="an item again in the same session: keep it, or only the first occurrence"
    )
    title_case: Literal["keep", "sentence"] = Field(
        "keep", description="sentence: write titles that are all upper case like a sentence (far fewer tokens)"
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field("auto", description="unit of numbers in time_column")
    on_bad: Literal["error", "drop"] = Field(
        "error", description="bad rows: stop and list them, or leave out exactly what is affected and count it"
    )
    seed: int = Field(0, ge=0, description="seed of the order of ties")
    out: Path = Field(description="directory to write")
    overwrite: bool = Field(False, description="replace what is in 'out'")

    @model_validator(mode="after")
    def _fits_together(self) -> PrepareConfig:
        if self.split == "temporal" and self.time_column is None:
            raise ValueError("split 'temporal' needs --time-column (or choose --split leave_one_out or column)")
        if {"item_id", "title"} & set(self.attribute_columns):
            raise ValueError("'attribute_columns' cannot be named item_id or title: every item has these already")
        if self.split_column and self.split != "column":
            raise ValueError(f"'split_column' is used only by split 'column', not by '{self.split}'")
        return self


@locked
def prepare(config: PrepareConfig) -> Dataset:
    """Read, check, filter and split the data; write it to `config.out`; print a summary.

    A second run with the same settings and files reads back what is there. Raises DataError naming every problem of
    the input, and ArtifactError when `out` holds something made with other settings. Nothing is left behind on error.
    """
    from seqrec_prompt.data.dataset import Dataset, summary
    from seqrec_prompt.data.spill import spilling

    places = {"interactions": config.interactions, "items": config.items, "sessions": config.sessions}
    named = {name: place for name, place in places.items() if place is not None}
    _refuse_unsafe_out(config.out, named)
    sources = _open_all(named)
    with progress(len(STEPS), "prepare", "steps") as bar:
        inputs = {name: source.digest() for name, source in sources.items()}
        bar.update(note=STEPS[0])
        wanted = manifest("prepare", config.resolved(), inputs)
        already = is_done(config.out, peek_manifest(config.out), wanted, overwrite=config.overwrite)
        if already:
            dataset = Dataset.load(config.out)
        else:
            with spilling(config.out.resolve().parent):
                dataset = _make(config, sources, inputs, bar)
                with staged_directory(config.out) as staged:
                    dataset.save(staged)
            bar.update(note=STEPS[-1])
    print(f"{config.out}: {'already ' if already else ''}prepared.\n{summary(dataset.manifest)}")
    return dataset


def _make(config: PrepareConfig, sources: dict[str, Source], inputs: dict[str, str], bar: Progress) -> Dataset:
    from dataclasses import replace

    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.ingest import Columns, read_log
    from seqrec_prompt.errors import DataError

    columns = Columns(
        config.session_column,
        config.item_column,
        config.time_column,
        config.title_column,
        "title_column" in config.model_fields_set,
        config.attribute_columns,
        config.split_column,
        config.split == "column",
    )
    log = read_log(
        sources["interactions"],
        sources.get("items"),
        sources.get("sessions"),
        columns,
        time_unit=config.time_unit,
        on_bad=config.on_bad,
    )
    bar.update(note=STEPS[1])
    catalog, sessions, labels = log.catalog, log.sessions, log.labels
    told = {"dropped": log.dropped, "notes": log.notes}
    read = len(sessions), len(sessions.items), len(catalog)
    del log  # so that each step's sessions go when the next has made its own
    for step in (_without_repeats, _k_core, _long_enough, _ties):
        catalog, sessions = step(config, catalog, sessions)
    if not len(sessions):
        raise DataError(
            [f"no session is left after k_core = {config.k_core} and min_session = {config.min_session}."],
            f"The data has {read[0]:,} sessions, {read[1]:,} interactions. Is --session-column the right one?",
        )
    if config.title_case == "sentence":
        catalog = replace(catalog, titles=[sentence_case(title) for title in catalog.titles])
    n_sessions, n_interactions = len(sessions), len(sessions.items)
    bar.update(note=STEPS[2])
    split, left_out = _split(config, sessions, labels)
    del sessions
    bar.update(note=STEPS[3])
    settings = config.resolved()
    # What the data is, wherever its files lie and wherever it is written to.
    identity = {k: v for k, v in settings.items() if k not in (*_FILES, "out", "overwrite")}
    facts = {
        "hash": hash_json([identity, inputs]),
        "sessions": n_sessions,
        "items": len(catalog),
        "interactions": n_interactions,
        "train_sessions": len(split.train),
        "validation_sessions": len(split.validation) if split.validation else 0,
        "test_sessions": len(split.test),
        "filtered_sessions": read[0] - n_sessions,
        "filtered_items": read[2] - len(catalog),
        "dropped": told["dropped"],
        "left_out": left_out,
        "items_sharing_a_title": _sharing(catalog),
        "empty_titles": sum(not title.strip() for title in catalog.titles),
        "tied_test_share": _tied_share(split.test),
        "notes": told["notes"],
    }
    return Dataset(catalog, split, manifest("prepare", settings, inputs, facts))


def _without_repeats(config: PrepareConfig, catalog: Catalog, sessions: Sessions) -> tuple[Catalog, Sessions]:
    from seqrec_prompt.data.splits import first_occurrences

    return catalog, first_occurrences(sessions) if config.repeats == "first" else sessions


def _k_core(config: PrepareConfig, catalog: Catalog, sessions: Sessions) -> tuple[Catalog, Sessions]:
    from dataclasses import replace

    import numpy as np

    from seqrec_prompt.data import spill
    from seqrec_prompt.data.splits import k_core

    if not config.k_core:
        return catalog, sessions
    sessions = k_core(sessions, config.k_core)
    present = spill.count(sessions.items, len(catalog)) > 0
    items = spill.lookup((np.cumsum(present) - 1).astype(np.int32), sessions.items)
    return catalog.take(np.flatnonzero(present)), replace(sessions, items=items)


def _long_enough(config: PrepareConfig, catalog: Catalog, sessions: Sessions) -> tuple[Catalog, Sessions]:
    return catalog, sessions.take(sessions.lengths >= config.min_session)


def _ties(config: PrepareConfig, catalog: Catalog, sessions: Sessions) -> tuple[Catalog, Sessions]:
    from seqrec_prompt.data.splits import shuffle_ties

    return catalog, shuffle_ties(sessions, config.seed) if config.ties == "shuffle" else sessions


def _split(config: PrepareConfig, sessions: Sessions, labels: dict[str, str]) -> tuple[Split, dict[str, int]]:
    from seqrec_prompt.data import splits

    if config.split == "column":
        return splits.column(sessions, labels)
    if config.split == "leave_one_out":
        return splits.leave_one_out(sessions), {}
    return splits.temporal(sessions, config.test_fraction, config.seed if config.ties == "shuffle" else None), {}


def sentence_case(title: str) -> str:
    """Rewrite 'WHITE HANGING HEART T-LIGHT HOLDER' as 'White hanging heart t-light holder'; leave others alone."""
    return title.capitalize() if title == title.upper() else title


def _sharing(catalog: Catalog) -> int:
    """Count the items whose title another item has too; items without a title do not count."""
    from collections import Counter

    from seqrec_prompt.data.catalog import one_line

    titles = Counter(text for title in catalog.titles if (text := one_line(title)))
    return sum(count for count in titles.values() if count > 1)


def _tied_share(test: Holdout) -> float:
    """Return the share of test sessions whose last two items have the same time."""
    prompts = test.prompts
    if prompts.times is None or test.target_times is None:
        return 0.0
    return float((prompts.times[prompts.offsets[1:] - 1] == test.target_times).mean())


def _refuse_unsafe_out(out: Path, places: dict[str, str]) -> None:
    """Refuse to write over a file, or where an input lies: the directory is replaced as a whole."""
    if out.is_file():
        raise ArtifactError(f"'out' = {out} is a file; name a directory.")
    refuse_inputs_inside(out, places)


def _open_all(places: dict[str, str]) -> dict[str, Source]:
    from seqrec_prompt.data.readers import open_source
    from seqrec_prompt.errors import DataError

    sources: dict[str, Source] = {}
    errors: list[DataError] = []
    for name, place in places.items():
        try:
            sources[name] = open_source(place)
        except DataError as error:
            errors.append(error)
    if len(errors) > 1:
        raise DataError([problem for error in errors for problem in error.problems])
    if errors:
        raise errors[0]
    return sources
