"""First-order Markov chain by counting: what came next after the session's last item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.data.successors import most_frequent, successors
from seqrec_prompt.ragged import IntArray, LongArray, places
from seqrec_prompt.recommenders.base import Arrays, Recommendations
from seqrec_prompt.recommenders.popularity import CountArray, MostPopular, blocks, lists_from_grid


@dataclass(frozen=True, eq=False)
class TransitionCounts:
    """Successors of the prompt's last item by how often they followed it in train, then the most popular items.

    offsets: (items+1,) the successors of item i are `successors[offsets[i]:offsets[i+1]]`, most frequent first, ties
    in catalog order; counts: (pairs,) how often each pair occurred. The score of a successor is its count (≥ 1), that
    of a popular item that fills up the list its share of the train interactions (≤ 1), so scores never increase.
    """

    popular: MostPopular
    offsets: LongArray
    successors: IntArray
    counts: CountArray
    name = "TransitionCounts"

    @classmethod
    def fit(cls, train: Sessions, n_items: int, config: None = None) -> Self:
        """Count the consecutive pairs of `train`; `n_items` is the size of the catalog."""
        offsets, following, counts = successors(train, n_items)
        return cls(MostPopular.fit(train, n_items), offsets, *most_frequent(offsets, following, counts))

    def arrays(self) -> Arrays:
        """What has to be kept to build it again."""
        return {
            "popular": self.popular.counts,
            "offsets": self.offsets,
            "successors": self.successors,
            "counts": self.counts,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, n_items: int, config: None) -> Self:
        """Build it from what `arrays` gave."""
        return cls(MostPopular(arrays["popular"]), arrays["offsets"], arrays["successors"], arrays["counts"])

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return `k` items a session; a session without items gets the most popular ones."""
        parts = [self._recommend(block, k, exclude_seen=exclude_seen) for block in blocks(sessions)]
        return Recommendations.concatenate(parts)

    def _recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        n = len(sessions)
        rows, items, counts = self._top_successors(sessions, k, exclude_seen=exclude_seen)
        found = np.bincount(rows, minlength=n)
        column = np.arange(len(rows)) - (np.cumsum(found) - found)[rows]

        left_out_rows, left_out = rows, items
        if exclude_seen:
            left_out_rows = np.concatenate([rows, sessions.rows])
            left_out = np.concatenate([items, sessions.items])
        fill = self.popular.top_without(n, left_out_rows, left_out, k)
        # Row r has found[r] successors: its popular items start in that column.
        shift = np.maximum(np.arange(k) - found[:, None], 0)  # (n, k)
        grid = np.take_along_axis(fill, shift, axis=1)
        share = self.popular.counts / max(int(self.popular.counts.sum()), 1)
        scores = share[grid]
        grid[rows, column] = items
        scores[rows, column] = counts
        return lists_from_grid(sessions.ids, grid, scores)

    def _top_successors(
        self, sessions: Sessions, k: int, *, exclude_seen: bool
    ) -> tuple[CountArray, IntArray, CountArray]:
        """Return flat arrays (row, item, count) of at most k successors a session, grouped by row, best first."""
        n, n_items = len(sessions), len(self.popular.counts)
        lengths = sessions.lengths
        asked = np.flatnonzero(lengths)
        last = sessions.items[sessions.offsets[1:][asked] - 1]
        # At most `length` successors can fall to the seen filter, so k + length of them always suffice.
        enough = k + (lengths[asked] if exclude_seen else 0)
        take = np.zeros(n, np.int64)
        take[asked] = np.minimum(np.diff(self.offsets)[last], enough)
        start = np.zeros(n, np.int64)
        start[asked] = self.offsets[last]

        rows = np.repeat(np.arange(n), take)
        within = places(take)
        entries = start[rows] + within
        if exclude_seen:
            pairs = rows * n_items + self.successors[entries]
            unseen = ~np.isin(pairs, sessions.rows * n_items + sessions.items)
            rows, entries = rows[unseen], entries[unseen]
            found = np.bincount(rows, minlength=n)
            within = np.arange(len(rows)) - (np.cumsum(found) - found)[rows]
        rows, entries = rows[within < k], entries[within < k]
        return rows, self.successors[entries], self.counts[entries]
