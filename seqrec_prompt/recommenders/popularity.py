"""Two floors every recommender must beat: what is popular, and what the session already holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.sessions import IdArray, Sessions
from seqrec_prompt.ragged import IntArray, offsets_of
from seqrec_prompt.recommenders.base import Arrays, FloatArray, Recommendations

CountArray = npt.NDArray[np.int64]

# Sessions ranked at once. Work arrays are (BLOCK, k), never (sessions, items).
BLOCK = 32_768


def blocks(sessions: Sessions) -> Iterator[Sessions]:
    """Cut sessions into runs of at most BLOCK; yields one empty run when there are none."""
    for start in range(0, max(len(sessions), 1), BLOCK):
        yield sessions.take(np.arange(start, min(start + BLOCK, len(sessions))))


def lists_from_grid(session_ids: IdArray, items: IntArray, scores: FloatArray) -> Recommendations:
    """Build certified lists from two (n, k) grids, best first; an item of -1 marks a place that stays empty."""
    filled = items >= 0
    offsets = offsets_of(filled.sum(axis=1))
    n = len(session_ids)
    return Recommendations(
        session_ids, offsets, items[filled].astype(np.int32), scores[filled], np.ones(n, np.bool_), np.zeros(n)
    )


@dataclass(frozen=True, eq=False)
class MostPopular:
    """The same list for every session: items by their number of occurrences in train, ties in catalog order.

    counts: (items,) occurrences, which are also the scores. With `exclude_seen` the session's own items are left out
    and the next popular ones move up. Items that train never saw come last, so a list is only shorter than k when
    the catalog has no more items.
    """

    counts: CountArray
    name = "MostPopular"

    @classmethod
    def fit(cls, train: Sessions, n_items: int, config: None = None) -> Self:
        """Count the items of `train`; `n_items` is the size of the catalog."""
        return cls(np.bincount(train.items, minlength=n_items).astype(np.int64))

    def arrays(self) -> Arrays:
        """What has to be kept to build it again."""
        return {"counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Arrays, n_items: int, config: None) -> Self:
        """Build it from what `arrays` gave."""
        return cls(arrays["counts"])

    @cached_property
    def order(self) -> CountArray:
        """(items,) the catalog from most to least popular."""
        return np.argsort(-self.counts, kind="stable")

    @cached_property
    def place(self) -> CountArray:
        """(items,) where each item stands in `order`, from 0."""
        place = np.empty_like(self.order)
        place[self.order] = np.arange(len(place))
        return place

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return the `k` most popular items a session."""
        nothing = np.empty(0, np.int64)
        parts = []
        for block in blocks(sessions):
            rows, items = (block.rows, block.items) if exclude_seen else (nothing, nothing)
            grid = self.top_without(len(block), rows, items, k)
            parts.append(lists_from_grid(block.ids, grid, self.counts[grid].astype(np.float64)))
        return Recommendations.concatenate(parts)

    def top_without(self, n: int, rows: CountArray, items: npt.NDArray[np.integer], k: int) -> IntArray:
        """Return an (n, k) grid of the most popular items of each of n rows; -1 where the catalog has no more.

        rows, items: (m,) pairs, repeats allowed: row `rows[j]` must not hold `items[j]`. Of one row, let p_0 < p_1 < …
        be the places of its left-out items: then p_i - i allowed items stand before p_i, so the j-th allowed item is
        at place j + #{i : p_i - i ≤ j}. That needs no row of the catalog's width.
        """
        n_items = len(self.counts)
        row, place = np.divmod(np.unique(rows * n_items + self.place[items]), n_items)
        allowed_before = place - (np.arange(len(row)) - np.searchsorted(row, np.arange(n))[row])
        near = allowed_before < k
        steps = np.bincount(row[near] * k + allowed_before[near], minlength=n * k).reshape(n, k)
        places = np.arange(k) + np.cumsum(steps, axis=1)
        return np.where(places < n_items, self.order[np.minimum(places, n_items - 1)], -1).astype(np.int32)


@dataclass(frozen=True, eq=False)
class LastItemRepeat:
    """Recommends the session's own items, the most recent first, each once.

    It ignores `exclude_seen`: without seen items it would have nothing to say. A list is as long as the session has
    distinct items, so often shorter than k. The score is the place (from 1) of the item's last occurrence.
    """

    name = "LastItemRepeat"

    @classmethod
    def fit(cls, train: Sessions, n_items: int) -> Self:
        """Learn nothing; here so that every baseline is made the same way."""
        return cls()

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return at most `k` of each session's own items, whatever `exclude_seen` says."""
        newest_first = np.arange(len(sessions.items))[::-1]
        rows = sessions.rows
        width = int(sessions.items.max(initial=0)) + 1
        _, first = np.unique(rows[newest_first] * width + sessions.items[newest_first], return_index=True)
        entries = newest_first[first]
        entries = entries[np.lexsort((-entries, rows[entries]))]
        row = rows[entries]
        within = np.arange(len(row)) - np.searchsorted(row, np.arange(len(sessions)))[row]
        entries, row = entries[within < k], row[within < k]
        n = len(sessions)
        return Recommendations(
            sessions.ids,
            offsets_of(np.bincount(row, minlength=n)),
            sessions.items[entries],
            (entries - sessions.offsets[row] + 1).astype(np.float64),
            np.ones(n, np.bool_),
            np.zeros(n),
        )
