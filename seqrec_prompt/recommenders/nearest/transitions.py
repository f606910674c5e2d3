"""Weighted transitions: what stood next to the session's newest items in train, on either side.

P(i|j) is the share of i among what directly followed j in the train sessions, Q(i|j) that among what directly went
before it. Of the newest items j of a prompt, each where it stands last, the last one at place 1:

  score(i) = Σ_j decay(place of j) · (P(i|j) + backwards · Q(i|j))

With the last item alone and backwards 0 this is the first-order Markov chain. Sequential rules (Kamehkhosh, Jannach &
Ludewig, 2017) weight pairs that lie apart in train; here items that lie apart in the prompt count, in the same shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.data.successors import successors
from seqrec_prompt.ragged import IntArray, LongArray
from seqrec_prompt.recommenders.base import Arrays, Recommendations
from seqrec_prompt.recommenders.nearest.decays import decay_weights
from seqrec_prompt.recommenders.nearest.neighbors import Prompts, ranked
from seqrec_prompt.recommenders.settings import TransitionsConfig

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK = 1024  # prompts answered at once


@dataclass(frozen=True, eq=False)
class Transitions:
    """Items that stood next to those of the prompt.

    offsets, following, counts: what followed item j is `following[offsets[j]:offsets[j+1]]`, in catalog order, so often
    as `counts` says. A list holds what has a score and no more; it may be empty. Scores are positive.
    """

    offsets: LongArray
    following: IntArray
    counts: LongArray
    config: TransitionsConfig
    name = "Transitions"

    @classmethod
    def fit(cls, train: Sessions, n_items: int, config: TransitionsConfig | None = None) -> Self:
        """Count the consecutive pairs of `train`; `n_items` is the size of the catalog."""
        return cls(*successors(train, n_items), config or TransitionsConfig())

    def arrays(self) -> Arrays:
        """What has to be kept to build it again."""
        return {"offsets": self.offsets, "following": self.following, "counts": self.counts}

    @classmethod
    def from_arrays(cls, arrays: Arrays, n_items: int, config: TransitionsConfig) -> Self:
        """Build it from what `arrays` gave."""
        return cls(arrays["offsets"], arrays["following"], arrays["counts"], config)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return at most `k` items a session, those that stood next to one of its items."""
        parts = [
            self._recommend(sessions.take(np.arange(start, min(start + BLOCK, len(sessions)))), k, exclude_seen)
            for start in range(0, max(len(sessions), 1), BLOCK)
        ]
        return Recommendations.concatenate(parts)

    def _recommend(self, sessions: Sessions, k: int, exclude_seen: bool) -> Recommendations:
        prompts = Prompts.of(sessions.last(self.config.max_items))
        weights = decay_weights(self.config.decay, prompts.places, prompts.lengths[prompts.rows])
        scores = (prompts.matrix(weights, len(self.offsets) - 1) @ self._beside).tocsr()
        return ranked(scores, sessions, k, exclude_seen=exclude_seen)

    @cached_property
    def _beside(self) -> csr_array:
        """(items, items) P + backwards · Q of the module's docstring."""
        from scipy.sparse import csr_array

        n = len(self.offsets) - 1
        counts = csr_array((self.counts.astype(np.float64), self.following, self.offsets), shape=(n, n))
        beside = _shares(counts)
        if self.config.backwards:
            beside = beside + self.config.backwards * _shares(counts.T.tocsr())
        return beside.tocsr()


def _shares(counts: csr_array) -> csr_array:
    from scipy.sparse import csr_array

    totals = np.asarray(counts.sum(axis=1)).ravel()
    values = counts.data / np.repeat(totals, np.diff(counts.indptr))
    return csr_array((values, counts.indices, counts.indptr), shape=counts.shape)
