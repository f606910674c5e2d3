"""What sessions may be given: their own allow and deny lists, and what is in stock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.readers import open_source
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.eligible import BoolArray, Filters
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray, TokenLists, offsets_of

Lists = Mapping[str, IntArray]


@dataclass(frozen=True)
class Rules:
    """Filters by session id.

    deny: items that a session is not given. allow: the only items that a session is given; a session without an entry
    may be given all. stock: (items,) True where an item can be had; None: all can.
    """

    deny: Lists = field(default_factory=dict)
    allow: Lists = field(default_factory=dict)
    stock: BoolArray | None = None

    def filters(self, sessions: Sessions, *, exclude_seen: bool) -> Filters:
        """The filters of a batch; `exclude_seen` denies each session its own items, too."""
        none = np.empty(0, np.int32)
        denied = [self.deny.get(name, none) for name in sessions.ids]
        if exclude_seen:
            denied = [np.concatenate([more, items]) for more, items in zip(denied, sessions, strict=True)]
        allowed = [self.allow.get(name, none) for name in sessions.ids] if self.allow else None
        limited = np.array([name in self.allow for name in sessions.ids])
        return Filters(_joined(denied), None if allowed is None else _joined(allowed), limited, self.stock)


def _joined(lists: list[IntArray]) -> TokenLists:
    return TokenLists(np.concatenate([*lists, np.empty(0, np.int32)]), offsets_of([len(items) for items in lists]))


def load_rules(
    catalog: Catalog, deny: Path | None = None, allow: Path | None = None, out_of_stock: Path | None = None
) -> Rules:
    """Read rules from tables: `deny` and `allow` with columns session_id and item_id, `out_of_stock` with item_id.

    Items that the catalog does not have are counted on the screen. Raises DataError when a column is missing or none
    of a table's items is in the catalog.
    """
    stock = None
    if out_of_stock is not None:
        gone = _read(out_of_stock, catalog)[0]
        stock = np.ones(len(catalog), np.bool_)
        stock[gone[gone >= 0]] = False
    return Rules(_lists(deny, catalog), _lists(allow, catalog), stock)


def _lists(path: Path | None, catalog: Catalog) -> dict[str, IntArray]:
    if path is None:
        return {}
    items, names = _read(path, catalog, "session_id")
    found: dict[str, list[int]] = {name: [] for name in names}  # also those of which no item is known
    for name, item in zip(names, items.tolist(), strict=True):
        if item >= 0:
            found[name].append(item)
    return {name: np.array(positions, np.int32) for name, positions in found.items()}


def _read(path: Path, catalog: Catalog, session_column: str | None = None) -> tuple[IntArray, list[str]]:
    """Positions of the items of a table, -1 where the catalog does not have one, and their sessions."""
    wanted = ["item_id"] if session_column is None else [session_column, "item_id"]
    source = open_source(str(path))
    missing = [name for name in wanted if name not in source.columns]
    if missing:
        known = ", ".join(source.columns)
        raise DataError([f"{path}: no column '{name}' (it has: {known})" for name in missing])
    table = source.read(wanted)
    if table.ragged:
        raise DataError([f"{path}: row {row}: {found} cells, not {cells}" for row, cells, found in table.ragged])
    columns = table.columns
    texts = columns["item_id"].to_pylist()
    items = np.array([catalog.index.get(text, -1) for text in texts], np.int32)
    strange = np.flatnonzero(items < 0)
    if len(strange) == len(items):
        raise DataError([f"{path}: column item_id: none of its {len(items):,} items is in the catalog"])
    if len(strange):
        print(f"{path}: {len(strange):,} of {len(items):,} items are not in the catalog, e.g. '{texts[strange[0]]}'")
    return items, [] if session_column is None else columns[session_column].to_pylist()
