"""Tables of text → Catalog and Sessions, every row checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.checks import CheckedTable, encode, is_blank
from seqrec_prompt.data.problems import Problems
from seqrec_prompt.data.sessions import BLOCK, Sessions, TimeArray
from seqrec_prompt.data.tables import Source, per_value
from seqrec_prompt.data.times import TimeUnit
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray, LongArray, blocks, offsets_of


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
    log = CheckedTable.read(
        interactions, _log_flags(columns, interactions, items is not None, None if sessions else split, notes), problems
    )
    item_flags = {columns.item: "--item-column", columns.title: "--title-column"}
    item_flags |= dict.fromkeys(columns.attributes, "--attribute-columns")
    catalog_rows = CheckedTable.read(items, item_flags, problems) if items else None
    session_flags = {columns.session: "--session-column"} | ({split: "--split-column"} if split else {})
    session_rows = CheckedTable.read(sessions, session_flags, problems) if sessions else None

    log.require_text(columns.session, "session id")
    log.require_text(columns.item, "item id")
    seconds = _seconds(log, columns, split, time_unit) if columns.time else None
    if catalog_rows:
        catalog_rows.require_text(columns.item, "item id")
        catalog_rows.require_unique(columns.item, "item id")
    if session_rows:
        session_rows.require_text(columns.session, "session id")
        session_rows.require_unique(columns.session, "session id")
    problems.stop_if_fatal()

    if catalog_rows:
        item_of_row = log.require_known(columns.item, catalog_rows, columns.item, "unknown item id")
    else:
        item_of_row, item_ids = encode(log.cells(columns.item))
    if session_rows:
        log.require_known(columns.session, session_rows, columns.session, "session not in the sessions file")
        session_rows.require_used(columns.session, log)
    session_of_row, session_ids = encode(log.cells(columns.session))
    labels: dict[str, str] = {}
    if split and session_rows:
        labels = _labels(session_rows.good_texts(columns.session), session_rows.good_texts(split))
    elif split:
        log.require_constant(split, session_of_row, session_ids)
        labels = _labels(log.good_texts(columns.session), log.good_texts(split))
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
        present = np.flatnonzero(_counts(item_of_row, log.good, len(item_ids)))
        place = np.full(len(item_ids), -1, np.int32)
        place[present] = np.arange(len(present))
        item_of_row = place[item_of_row]
        catalog = _catalog_from_log(log, [item_ids[i] for i in present], item_of_row, columns)
    _count_blank_rows(problems, log, catalog_rows, session_rows)
    good = log.good
    del log, catalog_rows, session_rows  # the tables' texts, before the rows are sorted
    built = _build_sessions(session_of_row, session_ids, item_of_row, seconds, good)
    return Log(catalog, built, labels, problems.counts, notes)


def _log_flags(
    columns: Columns, interactions: Source, has_items: bool, split: str | None, notes: list[str]
) -> dict[str, str]:
    """Return the columns to read from the interactions, with the flag that names each."""
    flags = {columns.session: "--session-column", columns.item: "--item-column"}
    if columns.time:
        flags[columns.time] = "--time-column"
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


def _seconds(log: CheckedTable, columns: Columns, split: str | None, unit: TimeUnit) -> TimeArray | None:
    """(n,) the times; their text is given back, as in large logs nearly every row has one of its own."""
    times = log.read_times(columns.time or "", unit)
    if times and columns.time not in {columns.session, columns.item, columns.title, split, *columns.attributes}:
        log.table.columns.pop(columns.time or "")
    return times.seconds if times else None


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


def _most_frequent(cells: pa.Array, item_of_row: IntArray, n_items: int) -> list[str]:
    """Return the most frequent non-empty cell of each item, the first seen among equals; "" where there is none."""
    codes, texts = encode(cells)
    filled = ~per_value(cells, is_blank).to_numpy(zero_copy_only=False)
    width = max(len(texts), 1)
    pairs = item_of_row[filled].astype(np.int64) * width + codes[filled]
    distinct, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    best_first = np.lexsort((first, -counts, distinct // width))
    items, best = np.unique(distinct[best_first] // width, return_index=True)
    chosen = [""] * n_items
    for item, pair in zip(items, distinct[best_first][best], strict=True):
        chosen[item] = texts[pair % width]
    return chosen


def _catalog_from_log(log: CheckedTable, item_ids: list[str], item_of_row: IntArray, columns: Columns) -> Catalog:
    """Make a catalog of the items seen in the good rows of the interactions."""
    good = pa.array(log.good)

    def column(name: str) -> list[str]:
        return _most_frequent(log.cells(name).filter(good), item_of_row[log.good], len(item_ids))

    titles = column(columns.title) if columns.title in log.table.columns else list(item_ids)
    return Catalog(item_ids, titles, {name: column(name) for name in columns.attributes})


def _build_sessions(
    session_of_row: IntArray,
    session_ids: list[str],
    item_of_row: IntArray,
    seconds: TimeArray | None,
    good: npt.NDArray[np.bool_],
) -> Sessions:
    counts = _counts(session_of_row, good, len(session_ids))
    offsets = offsets_of(counts)
    items = np.empty(offsets[-1], np.int32)
    times = None if seconds is None else np.empty(offsets[-1])
    for first, end in blocks(offsets, BLOCK):
        rows = np.flatnonzero(good & (session_of_row >= first) & (session_of_row < end))
        keys = (session_of_row[rows],) if seconds is None else (seconds[rows], session_of_row[rows])
        rows = rows[np.lexsort(keys)]
        items[offsets[first] : offsets[end]] = item_of_row[rows]
        if times is not None and seconds is not None:
            times[offsets[first] : offsets[end]] = seconds[rows]
    present = np.flatnonzero(counts)
    ids = np.array([session_ids[i] for i in present], dtype=object)
    return Sessions(ids, offsets_of(counts[present]), items, times)


def _counts(codes: IntArray, good: npt.NDArray[np.bool_], n: int) -> LongArray:
    """(n,) how often each code stands in a good row."""
    counts = np.zeros(n, np.int64)
    for start in range(0, len(codes), BLOCK):
        rows = slice(start, start + BLOCK)
        counts += np.bincount(codes[rows][good[rows]], minlength=n)
    return counts


def _labels(session_ids: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    return {name: value.strip().lower() for name, value in zip(session_ids, values, strict=True)}
