"""Which column of somebody's table is what: told by its name, checked by what is in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_prompt.data.tables import Source
from seqrec_prompt.data.times import FORMS, parse_times
from seqrec_prompt.errors import DataError

# Names that tables of interactions have, letters and digits only, the likelier first.
NAMES: Mapping[str, Sequence[str]] = {
    "session": (
        "sessionid", "session", "visitid", "basketid", "invoiceno", "invoice", "orderid", "order", "transactionid",
        "userid", "user", "customerid", "customer", "visitorid", "reviewerid", "memberid", "uid",
    ),
    "item": (
        "itemid", "item", "parentasin", "asin", "productid", "product", "sku", "stockcode", "articleid", "movieid",
        "trackid", "songid", "bookid", "newsid", "contentid", "iid",
    ),
    "time": (
        "timestamp", "time", "datetime", "date", "eventtime", "createdat", "invoicedate", "unixreviewtime",
        "reviewtime", "transactiondate", "orderdate", "ts",
    ),
    "title": (
        "title", "name", "itemname", "productname", "producttitle", "itemtitle", "movietitle", "description", "label",
    ),
}  # fmt: skip
MOST_BAD = 0.05  # share of cells that may be no times in a column of times
TIMES = "seconds (to nanoseconds) since 1970, order numbers, or ISO 8601 text such as 2026-01-31 10:00"


@dataclass(frozen=True)
class Found:
    """What `find_columns` settled on. time and title are None where nothing fits; split where no column splits."""

    session: str
    item: str
    time: str | None
    title: str | None
    split: str | None


@dataclass(frozen=True)
class Facts:
    """What the settings of a first run depend on; shares are of 1."""

    rows: int
    sessions: int
    items: int
    median_length: int
    longest: int
    repeats: float
    ties: float
    time_form: str | None
    capitals: float
    no_title: float


def find_columns(interactions: Source, items: Source | None, given: Mapping[str, str | None]) -> Found:
    """Find session, item, time and title; what `given` names under these keys is taken as it is.

    Raises DataError naming the columns there are, and the flag, when session or item cannot be told, and for a given
    time that holds none.
    """
    log, catalog = interactions.columns, items.columns if items else interactions.columns
    known = {"session": log, "item": log, "time": log, "title": catalog}
    problems = [
        f"{(items or interactions).name if key == 'title' else interactions.name}: no column '{name}'. "
        f"It has: {', '.join(known[key])}."
        for key, name in given.items()
        if name is not None and name not in known[key]
    ]
    if problems:
        raise DataError(problems)
    shared = [name for name in log if name in catalog]
    # A 'product name' is no id of a product.
    item = given.get("item") or _named("item", [name for name in shared if not _contains(name, "title")])
    if item is None and items and len(shared) == 1:
        item = shared[0]
    session = given.get("session") or _named("session", [name for name in log if name != item])
    if item is None or session is None:
        raise DataError(_untold(interactions, items, shared, item, session))
    rest = [name for name in log if name not in (item, session)]
    time = given.get("time") or _time(interactions, rest)
    if chosen := given.get("time"):
        _refuse_no_times(interactions, chosen)
    others = [name for name in catalog if name not in (item, session, time)]
    title = given.get("title") or _named("title", others)
    return Found(session, item, time, title, _split(interactions, rest))


def look(interactions: Source, items: Source | None, found: Found) -> Facts:
    """Read the found columns and measure what the settings depend on. Raises DataError when there is no row."""
    wanted = [found.session, found.item, *([found.time] if found.time else [])]
    if items is None and found.title:
        wanted.append(found.title)
    table = interactions.read(wanted)
    if not len(table):
        raise DataError([f"{interactions.name}: the file has a header but no rows."])
    sessions = table.columns[found.session].dictionary_encode().indices.to_numpy(zero_copy_only=False)
    codes = table.columns[found.item].dictionary_encode().indices.to_numpy(zero_copy_only=False)
    lengths = np.bincount(sessions)
    pairs = np.unique(sessions.astype(np.int64) * (int(codes.max()) + 1) + codes)
    ties, form = 0.0, None
    if found.time:
        times = parse_times(table.columns[found.time])
        form = FORMS[times.main]
        order = np.lexsort((times.seconds, sessions))
        same_session = np.diff(sessions[order]) == 0
        tied = (np.diff(times.seconds[order]) == 0) & same_session
        ties = float(tied.sum() / max(same_session.sum(), 1))
    capitals, no_title, n_items = 0.0, 1.0, len(np.unique(codes))
    if found.title:
        titles = (items.read([found.title]) if items else table).columns[found.title].dictionary_decode()
        filled = titles.filter(pc.not_equal(pc.utf8_trim_whitespace(titles), ""))
        no_title = 1 - len(filled) / max(len(titles), 1)
        capitals = _share(pc.equal(filled, pc.utf8_upper(filled)))
    return Facts(
        rows=len(table),
        sessions=len(lengths),
        items=n_items,
        median_length=int(np.median(lengths)),
        longest=int(lengths.max()),
        repeats=1 - len(pairs) / len(table),
        ties=ties,
        time_form=form,
        capitals=capitals,
        no_title=no_title,
    )


def _named(key: str, columns: Sequence[str]) -> str | None:
    """The column with the likeliest name, or the only one whose name contains one."""
    for likely in NAMES[key]:
        for name in columns:
            if _folded(name) == likely:
                return name
    containing = [name for name in columns if _contains(name, key)]
    return containing[0] if len(containing) == 1 else None


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _contains(name: str, key: str) -> bool:
    return any(word in _folded(name) for word in NAMES[key] if len(word) > 3)


def _time(source: Source, columns: Sequence[str]) -> str | None:
    """The column named like a time if its cells are times, else the only column of dates or clock readings."""
    named = _named("time", columns)
    tried = {name: parse_times(source.read([name]).columns[name]) for name in ([named] if named else columns)}
    good = {name: times for name, times in tried.items() if len(times.bad) and times.bad.mean() <= MOST_BAD}
    if named is not None:
        return named if named in good else None
    dates = [name for name, times in good.items() if FORMS[times.main] != "order numbers"]
    return dates[0] if len(dates) == 1 else None


def _refuse_no_times(source: Source, column: str) -> None:
    table = source.read([column])
    bad = np.flatnonzero(parse_times(table.columns[column]).bad)
    if len(bad) > MOST_BAD * len(table):
        cell, row = table.columns[column][int(bad[0])].as_py(), table.numbers[bad[0]]
        raise DataError(
            [f"{source.name}: row {row}, column {column}: '{cell}' is no time, like {len(bad):,} of {len(table):,}."],
            f"Times are {TIMES}.",
        )


def _split(source: Source, columns: Sequence[str]) -> str | None:
    """A column that says train and test, when there is one."""
    named = [name for name in columns if name.lower().endswith("split")]
    if len(named) != 1:
        return None
    values = {value.strip().lower() for value in pc.unique(source.read(named).columns[named[0]]).to_pylist()}
    return named[0] if {"train", "test"} <= values else None


def _share(mask: pa.Array) -> float:
    return float(np.mean(mask.to_numpy(zero_copy_only=False))) if len(mask) else 0.0


def _untold(
    interactions: Source, items: Source | None, shared: Sequence[str], item: str | None, session: str | None
) -> list[str]:
    has = f"It has: {', '.join(interactions.columns)}."
    problems = []
    if item is None and items is not None and not shared:
        problems.append(
            f"{interactions.name} and {items.name} share no column, and the item id must have one name in both. "
            f"{has} {items.name} has: {', '.join(items.columns)}. Rename one."
        )
    elif item is None:
        problems.append(f"{interactions.name}: cannot tell which column is the item id. {has} Name it: --item-column.")
    if session is None:
        problems.append(
            f"{interactions.name}: cannot tell which column is the session or user id. {has} Name it: --session-column."
        )
    return problems
