"""Tables of text → Catalog and Sessions, every row checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqrec_prompt.data import spill
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.checks import CheckedTable, is_blank
from seqrec_prompt.data.problems import Problems
from seqrec_prompt.data.sessions import Sessions, TimeArray
from seqrec_prompt.data.tables import Source
from seqrec_prompt.data.times import TimeColumn, TimeUnit
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray, LongArray, blocks, offsets_of, ranges


@dataclass(frozen=True)
class Columns:
    """Which columns to read. title and attributes are in the items file, or else in the interactions.

    title_is_required: without an items file, a missing title column is an error rather than a note.
    split: name of the split column; None looks for it; wants_split: whether one is needed at all.
    """

    session: str
    item: str
    time: str | None = None
    title: str = "title"
    title_is_required: bool = False
    attributes: tuple[str, ...] = ()
    split: str | None = None
    wants_split: bool = False


@dataclass(frozen=True, eq=False)
class Log:
    """What was read. Sessions stand in order of first appearance, their items by time, equal times in file order.

    labels: split value of each session id, lower case, where a split column was read. dropped: how many bad rows (or
    sessions) of each kind were left out. notes: what the reader decided by itself.
    """

    catalog: Catalog
    sessions: Sessions
    labels: dict[str, str]
    dropped: dict[str, int]
    notes: list[str]


def read_log(
    interactions: Source,
    items: Source | None,
    sessions: Source | None,
    columns: Columns,
    *,
    time_unit: TimeUnit = "auto",
    on_bad: Literal["error", "drop"] = "error",
) -> Log:
    """Read and check up to three tables.

    Raises DataError with every problem found, in all of them. With `on_bad="drop"` only a missing column or an empty
    table is an error; rows and sessions with a problem are left out and counted.
    """
    problems = Problems(drop=on_bad == "drop")
    notes: list[str] = []
    split = _find_split_column(sessions or interactions, columns, problems, notes) if columns.wants_split else None
    flags = _log_flags(columns, interactions, items is not None, None if sessions else split, notes)
    times = {columns.time: TimeColumn(time_unit)} if columns.time else {}
    log = CheckedTable.read(interactions, flags, problems, times)
    item_flags = {columns.item: "--item-column", columns.title: "--title-column"}
    item_flags |= dict.fromkeys(columns.attributes, "--attribute-columns")
    catalog_rows = CheckedTable.read(items, item_flags, problems) if items else None
    session_flags = {columns.session: "--session-column"} | ({split: "--split-column"} if split else {})
    session_rows = CheckedTable.read(sessions, session_flags, problems) if sessions else None

    log.require_text(columns.session, "session id")
    log.require_text(columns.item, "item id")
    for name, cells in times.items():
        log.require_times(name, cells)
    if catalog_rows:
        catalog_rows.require_text(columns.item, "item id")
        catalog_rows.require_unique(columns.item, "item id")
    if session_rows:
        session_rows.require_text(columns.session, "session id")
        session_rows.require_unique(columns.session, "session id")
    problems.stop_if_fatal()

    position = np.arange(len(log.texts(columns.item)), dtype=np.int32)  # of each distinct item id in the catalog
    if catalog_rows:
        position = log.require_known(columns.item, catalog_rows, columns.item, "unknown item id")
    if session_rows:
        log.require_known(columns.session, session_rows, columns.session, "session not in the sessions file")
        session_rows.require_used(columns.session, log)
    labels: dict[str, str] = {}
    if split and session_rows:
        labels = _labels(session_rows.good_texts(columns.session), session_rows.good_texts(split))
    elif split:
        labels = log.require_constant(split, columns.session)
    problems.stop_if_any()

    if not log.good.any():
        raise DataError([f"{log.table.name}: no interaction is left after dropping bad rows: {problems.counts}"])
    if catalog_rows:
        catalog = Catalog(
            catalog_rows.good_texts(columns.item),
            catalog_rows.good_texts(columns.title),
            {name: catalog_rows.good_texts(name) for name in columns.attributes},
        )
    else:
        present = _counts(log, columns.item) > 0
        position[present] = np.arange(present.sum())
        catalog = _catalog_from_log(log, present, position, columns)
    _count_blank_rows(problems, log, catalog_rows, session_rows)
    del catalog_rows, session_rows
    seconds = next((column.seconds for column in times.values()), None)
    built = _build_sessions(log, columns, position, seconds)
    return Log(catalog, built, labels, problems.counts, notes)


def _log_flags(
    columns: Columns, interactions: Source, has_items: bool, split: str | None, notes: list[str]
) -> dict[str, str]:
    """Return the columns to read from the interactions, with the flag that names each."""
    flags = {columns.session: "--session-column", columns.item: "--item-column"}
    if split:
        flags[split] = "--split-column"
    if has_items:
        return flags
    flags |= dict.fromkeys(columns.attributes, "--attribute-columns")
    if columns.title_is_required or columns.title in interactions.columns:
        flags[columns.title] = "--title-column"
    else:
        notes.append(
            f"Titles are the item ids: there is no items file, and {interactions.name} has no column "
            f"'{columns.title}'. An LLM knows little about bare ids: give --items or --title-column."
        )
    return flags


def _count_blank_rows(problems: Problems, *tables: CheckedTable | None) -> None:
    for checked in filter(None, tables):
        if checked.table.blank:
            problems.counts["blank row"] = problems.counts.get("blank row", 0) + checked.table.blank


def _find_split_column(source: Source, columns: Columns, problems: Problems, notes: list[str]) -> str | None:
    """Return the column asked for, or else `split`, or else the only one whose name ends in `split`."""
    if columns.split:
        return columns.split
    if "split" in source.columns:
        return "split"
    candidates = [name for name in source.columns if name.lower().endswith("split")]
    if len(candidates) == 1:
        notes.append(f"Split column: '{candidates[0]}' of {source.name}.")
        return candidates[0]
    if candidates:
        problems.fatal.append(
            f"{source.name}: several columns could be the split: {', '.join(candidates)}. Name one with --split-column."
        )
    else:
        problems.missing_column(source.name, "split", source.columns, "--split-column")
    return None


def _catalog_from_log(
    log: CheckedTable, present: npt.NDArray[np.bool_], position: IntArray, columns: Columns
) -> Catalog:
    """Make a catalog of the items seen in the good rows of the interactions."""
    ids: list[str] = log.texts(columns.item).filter(pa.array(present)).to_pylist()

    def column(name: str) -> list[str]:
        return _most_frequent(log, name, log.codes(columns.item), position, len(ids))

    titles = column(columns.title) if columns.title in log.table.columns else list(ids)
    return Catalog(ids, titles, {name: column(name) for name in columns.attributes})


def _most_frequent(log: CheckedTable, column: str, items: IntArray, position: IntArray, n_items: int) -> list[str]:
    """Return the most frequent non-empty cell of each item, the first seen among equals; "" where there is none."""
    codes, texts = log.codes(column), log.texts(column)
    filled, width = ~is_blank(texts), max(len(texts), 1)
    pairs = first = counts = np.empty(0, np.int64)
    for block in spill.slices(len(codes)):
        rows = block.start + np.flatnonzero(log.good[block] & filled[codes[block]])
        pairs = np.concatenate([pairs, position[items[rows]].astype(np.int64) * width + codes[rows]])
        pairs, at, inverse = np.unique(pairs, return_index=True, return_inverse=True)
        first = np.concatenate([first, rows])[at]
        counts = np.bincount(inverse, np.concatenate([counts, np.ones(len(rows))]))
    best_first = np.lexsort((first, -counts, pairs // width))
    found, best = np.unique(pairs[best_first] // width, return_index=True)
    chosen = [""] * n_items
    for item, text in zip(found, texts.take(pairs[best_first][best] % width).to_pylist(), strict=True):
        chosen[item] = text
    return chosen


def _build_sessions(log: CheckedTable, columns: Columns, position: IntArray, seconds: TimeArray | None) -> Sessions:
    """Sort the good rows by session and time: dealt out to runs of sessions in one pass, then sorted run by run."""
    session_of, item_of = log.codes(columns.session), log.codes(columns.item)
    counts = _counts(log, columns.session)
    offsets = offsets_of(counts)
    runs = list(blocks(offsets, spill.BLOCK))
    run_of = np.repeat(np.arange(len(runs), dtype=np.min_scalar_type(len(runs))), [end - first for first, end in runs])
    filled = offsets[[first for first, _ in runs]]
    sessions, items = spill.empty(offsets[-1], np.int32), spill.empty(offsets[-1], np.int32)
    times = None if seconds is None else spill.empty(offsets[-1], np.float64)
    for block in spill.slices(len(session_of)):
        rows = block.start + np.flatnonzero(log.good[block])
        run = run_of[session_of[rows]]
        rows, more = rows[np.argsort(run, kind="stable")], np.bincount(run, minlength=len(runs))
        to = ranges(filled, more)
        filled += more
        sessions[to], items[to] = session_of[rows], position[item_of[rows]]
        if times is not None and seconds is not None:
            times[to] = seconds[rows]
    for first, end in runs:
        run = slice(offsets[first], offsets[end])
        order = np.lexsort((sessions[run],) if times is None else (times[run], sessions[run]))
        items[run] = items[run][order]
        if times is not None:
            times[run] = times[run][order]
    present = counts > 0
    ids = log.texts(columns.session).filter(pa.array(present)).to_numpy(zero_copy_only=False)
    return Sessions(ids, offsets_of(counts[present]), items, times)


def _counts(log: CheckedTable, column: str) -> LongArray:
    """(distinct,) in how many good rows each text of a column stands."""
    codes, counts = log.codes(column), np.zeros(len(log.texts(column)), np.int64)
    for block in spill.slices(len(codes)):
        counts += np.bincount(codes[block][log.good[block]], minlength=len(counts))
    return counts


def _labels(session_ids: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    return {name: value.strip().lower() for name, value in zip(session_ids, values, strict=True)}
