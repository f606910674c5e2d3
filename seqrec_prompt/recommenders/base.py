"""The recommender's contract and the lists it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.sessions import IdArray, Sessions
from seqrec_prompt.ragged import IntArray, LongArray, offsets_of, ranges

FloatArray = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Recommendations:
    """Ranked lists, one a session, best first, stored columnar.

    session_ids: (n,). offsets: (n+1,) the list of session i is `items[offsets[i]:offsets[i+1]]`, at most k long.
    items: (total,) catalog positions, distinct within a list. scores: (total,) higher is better, not increasing.
    certified: (n,) True where the list is proven to be the exact top-k under the scorer.
    gap: (n,) best score anything unseen could still reach minus the last score of the list; ≤ 0 when certified.
    provenance: how items were found (constrained | exact | normalised | fuzzy | embedding | neighbour), one for all or
        (total,).
    outside: (n,) probability that the model would name something that is no item; None when nothing was generated.
    """

    session_ids: IdArray
    offsets: LongArray
    items: IntArray
    scores: FloatArray
    certified: npt.NDArray[np.bool_]
    gap: FloatArray
    provenance: str | IdArray = "exact"
    outside: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.session_ids)

    def __getitem__(self, i: int) -> IntArray:
        return self.items[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[IntArray]:
        return (self[i] for i in range(len(self)))

    @property
    def provenances(self) -> IdArray:
        """(total,) how each item was found."""
        if isinstance(self.provenance, str):
            return np.full(len(self.items), self.provenance, dtype=object)
        return self.provenance

    @classmethod
    def build(
        cls, session_ids: IdArray, lists: Sequence[IntArray], scores: Sequence[FloatArray], provenance: str = "exact"
    ) -> Recommendations:
        """Build certified lists from one array of items and one of scores a session."""
        n = len(session_ids)
        offsets = offsets_of([len(items) for items in lists])
        return cls(
            session_ids,
            offsets,
            np.concatenate([*lists, np.empty(0, np.int32)]).astype(np.int32),
            np.concatenate([*scores, np.empty(0)]).astype(np.float64),
            np.ones(n, np.bool_),
            np.zeros(n),
            provenance,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Recommendations]) -> Recommendations:
        """Join lists of different sessions, in order."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        outside = [part.outside for part in parts if part.outside is not None]
        return cls(
            np.concatenate([part.session_ids for part in parts]),
            offsets_of(lengths),
            np.concatenate([part.items for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.certified for part in parts]),
            np.concatenate([part.gap for part in parts]),
            np.concatenate([part.provenances for part in parts]),
            np.concatenate(outside) if outside else None,
        )

    def take(self, which: LongArray) -> Recommendations:
        """Select lists by position, in the order given."""
        lengths = np.diff(self.offsets)[which]
        entries = ranges(self.offsets[which], lengths)
        return Recommendations(
            self.session_ids[which],
            offsets_of(lengths),
            self.items[entries],
            self.scores[entries],
            self.certified[which],
            self.gap[which],
            self.provenances[entries],
            None if self.outside is None else self.outside[which],
        )


class Recommender(Protocol):
    """What every recommender offers."""

    name: str

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return at most `k` distinct items a session; `exclude_seen` leaves out the session's own items."""
        ...


class Fitted(Recommender, Protocol):
    """A recommender that learns from train sessions and is rebuilt from arrays.

    Its `config` holds the settings that `settings.SECTIONS` names for it; one without settings ignores it.
    """

    @classmethod
    def fit(cls, train: Sessions, n_items: int, config: Any = None) -> Self:
        """Learn from `train`; `n_items` is the size of the catalog."""
        ...

    def arrays(self) -> Arrays:
        """What has to be kept to build it again."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays, n_items: int, config: Any) -> Self:
        """Build it from what `arrays` gave, exactly as it was."""
        ...


def mean_ndcg(lists: Recommendations, targets: IntArray) -> float:
    """Mean NDCG over all places of the lists, one target a session: 1 / log2(rank + 1), 0 where it is not listed."""
    rows = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    hits = np.flatnonzero(lists.items == targets[rows])
    places = hits - lists.offsets[rows[hits]]
    return float((1 / np.log2(places + 2.0)).sum() / len(targets))
