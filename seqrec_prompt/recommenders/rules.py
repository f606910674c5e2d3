"""What sessions may be given: their own allow and deny lists, and what is in stock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.lists import item_lists, read_items
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.eligible import BoolArray, Filters
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
        gone = read_items(out_of_stock, catalog)[0]
        stock = np.ones(len(catalog), np.bool_)
        stock[gone[gone >= 0]] = False
    denied, allowed = (item_lists(table, catalog) if table else {} for table in (deny, allow))
    return Rules(denied, allowed, stock)
