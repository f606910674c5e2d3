"""Session-based nearest neighbours: items of the train sessions that are most like the prompt.

SKNN (Jannach & Ludewig, RecSys'17), S-SKNN, SF-SKNN and V-SKNN (Ludewig & Jannach, UMUAI 2018, and their session-rec).
S is the prompt, a set of items (an item that comes again stands where it came last); w_j the weight of item j ∈ S; N
a train session, as a set; places count from the end of the prompt, the last item is 1.

  similarity of S and N, with x = Σ w_j over the shared items j ∈ S ∩ N:
    cosine  x / (√Σ w_j² · √|N|)        dot  x        binary  2a / (2a + |S| + |N|), a = |S ∩ N|, whatever the weights

  score of item i, over the k most similar train sessions N that share an item with S:
    score(i) = Σ_N similarity(S, N) · v(S, N) · [i ∈ N] · (1 + λ·idf_i),   idf_i = log(sessions / sessions with i)

             w_j                      v(S, N), m = place of the newest item of S that N shares, n = |prompt|
    SKNN     1                        1
    S-SKNN   1                        (n - m + 1) / n
    SF-SKNN  1                        1, and only items that directly followed the prompt's last item in train
    V-SKNN   decay(place of j, n)     score_decay(m, n)

Ties between train sessions go to the more recent one, ties between items to the catalog's order; similarities and
scores are compared as 32-bit numbers, so that the order of a sum does not break a tie. With `sample`, only so many of
the train sessions that share an item are compared: the most recent ones, or random ones (drawn anew for every prompt
from the seed and the prompt's own items, so a prompt's list does not depend on the others).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.ragged import IntArray, LongArray, offsets_of, places
from seqrec_prompt.recommenders.base import Arrays, FloatArray, Recommendations
from seqrec_prompt.recommenders.nearest.decays import decay_weights
from seqrec_prompt.recommenders.nearest.sparse import best, mixed, rows_of
from seqrec_prompt.recommenders.settings import NeighborsConfig

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Prompts are answered BLOCK at a time, fewer where their items occur in more than PAIRS train sessions in all (repeats
# counted); a pair takes about 60 bytes while it is worked on. The items of their neighbours come on top.
BLOCK, PAIRS = 1024, 2**21


@dataclass(frozen=True, eq=False)
class SKNN:
    """Items of the nearest train sessions; the other variants change a prompt's weights or a neighbour's.

    offsets, items: the train sessions, most recent first (by their last time; without times, the last in the data),
    each oldest item first: session j is `items[offsets[j]:offsets[j+1]]`. A list holds what has a score and no more:
    unlike one of TransitionCounts it is not filled up with popular items, but shorter than k, if need be empty.
    """

    offsets: LongArray
    items: IntArray
    n_items: int
    config: NeighborsConfig
    name = "SKNN"

    @classmethod
    def fit(cls, train: Sessions, n_items: int, config: NeighborsConfig | None = None) -> Self:
        """Keep `train`, most recent session first; `n_items` is the size of the catalog."""
        position = np.arange(len(train))
        newest = np.full(len(train), -np.inf)
        if train.times is not None:
            filled = train.lengths > 0
            newest[filled] = train.times[train.offsets[1:][filled] - 1]
        ordered = train.take(np.lexsort((-position, -newest)))
        return cls(ordered.offsets, ordered.items, n_items, config or NeighborsConfig())

    def arrays(self) -> Arrays:
        """What has to be kept to build it again."""
        return {"offsets": self.offsets, "items": self.items}

    @classmethod
    def from_arrays(cls, arrays: Arrays, n_items: int, config: NeighborsConfig) -> Self:
        """Build it from what `arrays` gave."""
        return cls(arrays["offsets"], arrays["items"], n_items, config)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return at most `k` items a session, those that the neighbours give a score."""
        known = sessions.last(self.config.max_items)
        pairs = np.bincount(known.rows, np.diff(self._sessions_of.indptr)[known.items], minlength=len(known))
        parts = [
            self._recommend(sessions.take(np.arange(start, stop)), k, exclude_seen=exclude_seen)
            for start, stop in pairwise(block_bounds(pairs))
        ]
        return Recommendations.concatenate(parts)

    def _recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        scores = self._scores(Prompts.of(sessions.last(self.config.max_items)))
        return ranked(scores, sessions, k, exclude_seen=exclude_seen)

    def _scores(self, prompts: Prompts) -> csr_array:
        """(prompts, items) the scores of the module's docstring; an item that no neighbour has is not stored."""
        from scipy.sparse import csr_array

        weights = self._weights(prompts)
        # One product gives two sums over the shared items: of their weights, and of 4^-place. Places differ, so the
        # newest shared item alone decides the magnitude of the second sum.
        shared = prompts.matrix(weights + 1j * 0.25**prompts.places, self.n_items) @ self._sessions_of
        if self.config.sample is not None:
            shared = self._sampled(shared, prompts, self.config.sample)
        similarity = self._similarity(shared, prompts, weights)
        nearest = best(similarity, np.full(len(prompts), self.config.k_neighbors))
        rows = rows_of(shared)[nearest]
        newest = (1 - np.frexp(shared.data.imag[nearest])[1]) // 2
        values = similarity.data[nearest] * self._neighbor_weights(newest, prompts.lengths[rows])
        offsets = offsets_of(np.bincount(rows, minlength=len(prompts)))
        return self.counted(csr_array((values, shared.indices[nearest], offsets), shape=shared.shape))

    def counted(self, neighbors: csr_array) -> csr_array:
        """(prompts, items) scores from the (prompts, train sessions) worth of each prompt's neighbours."""
        scores = neighbors @ self._items_of
        if self.config.idf:
            scores.data *= 1 + self.config.idf * self._idf[scores.indices]
        return scores

    def _weights(self, prompts: Prompts) -> FloatArray:
        """(entries,) w of each item of the prompts."""
        return np.ones(len(prompts.items))

    def _neighbor_weights(self, newest: LongArray, lengths: LongArray) -> FloatArray:
        """(neighbours,) v, from the place of the newest shared item and the length of the prompt."""
        return np.ones(len(newest))

    def _similarity(self, shared: csr_array, prompts: Prompts, weights: FloatArray) -> csr_array:
        """(prompts, train sessions) the similarities, stored as `shared` is."""
        from scipy.sparse import csr_array

        rows, x = rows_of(shared), shared.data.real
        sizes = np.diff(self._items_of.indptr)[shared.indices]
        if self.config.similarity == "cosine":
            norms = np.sqrt(np.bincount(prompts.rows, weights**2, minlength=len(prompts)))
            x = x / (norms[rows] * np.sqrt(sizes))
        elif self.config.similarity == "binary":
            own = np.bincount(prompts.rows, minlength=len(prompts))[rows]
            x = 2 * shared.data.real / (2 * shared.data.real + own + sizes)
        return csr_array((x, shared.indices, shared.indptr), shape=shared.shape)

    def _sampled(self, shared: csr_array, prompts: Prompts, sample: int) -> csr_array:
        """Keep `sample` entries of each row: the first columns (the most recent sessions), or random ones."""
        from scipy.sparse import csr_array

        rows = rows_of(shared)
        draw = shared.indices.astype(np.uint64)
        if self.config.sampling == "random":
            prompt = np.zeros(len(prompts), np.uint64)
            np.add.at(prompt, prompts.rows, mixed((prompts.items * 512 + prompts.places).astype(np.uint64)))
            draw = mixed(mixed(draw + mixed(np.array([self.config.seed], np.uint64))) ^ prompt[rows]) >> np.uint64(11)
        order = np.lexsort((draw, rows))
        keep = np.sort(order[places(np.diff(shared.indptr)) < sample])
        offsets = offsets_of(np.bincount(rows[keep], minlength=len(prompts)))
        return csr_array((shared.data[keep], shared.indices[keep], offsets), shape=shared.shape)

    @cached_property
    def _items_of(self) -> csr_array:
        """(train sessions, items) 1 where a session has an item."""
        from scipy.sparse import csr_array

        ones = np.ones(len(self.items))
        shape = (len(self.offsets) - 1, self.n_items)
        matrix = csr_array((ones, self.items, self.offsets), shape=shape, copy=True)  # merging writes into its arrays
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix

    @cached_property
    def _sessions_of(self) -> csr_array:
        """(items, train sessions) the same, complex as what it is multiplied with: else each product would copy it."""
        return self._items_of.T.tocsr().astype(np.complex128)

    @cached_property
    def _idf(self) -> FloatArray:
        """(items,) log(train sessions / train sessions with the item); items that train lacks are never looked up."""
        with_item: LongArray = np.diff(self._sessions_of.indptr)
        return np.log(max(len(self.offsets) - 1, 1) / np.maximum(with_item, 1))


class SSKNN(SKNN):
    """SKNN whose neighbours count more the newer the newest item they share."""

    name = "S-SKNN"

    def _neighbor_weights(self, newest: LongArray, lengths: LongArray) -> FloatArray:
        return decay_weights("scaling_linear", newest, lengths)


class SFSKNN(SKNN):
    """SKNN that only gives items which directly followed the prompt's last item in some train session."""

    name = "SF-SKNN"

    def _scores(self, prompts: Prompts) -> csr_array:
        scores = super()._scores(prompts)
        last = prompts.matrix((prompts.places == 1).astype(np.float64), self.n_items)
        last.eliminate_zeros()
        return (scores * (last @ self._followers)).tocsr()

    @cached_property
    def _followers(self) -> csr_array:
        """(items, items) 1 where the second directly followed the first."""
        from scipy.sparse import csr_array

        inner = np.ones(len(self.items), np.bool_)
        inner[self.offsets[1:][np.diff(self.offsets) > 0] - 1] = False  # the last item of a session has no follower
        first = np.flatnonzero(inner)
        matrix = csr_array(
            (np.ones(len(first)), (self.items[first], self.items[first + 1])), shape=(self.n_items, self.n_items)
        )
        matrix.data[:] = 1
        return matrix


class VSKNN(SKNN):
    """SKNN with weights that decay towards the start of the prompt, in the similarity and in the score."""

    name = "V-SKNN"

    def _weights(self, prompts: Prompts) -> FloatArray:
        if self.config.similarity == "binary":
            return super()._weights(prompts)
        return decay_weights(self.config.decay, prompts.places, prompts.lengths[prompts.rows])

    def _neighbor_weights(self, newest: LongArray, lengths: LongArray) -> FloatArray:
        return decay_weights(self.config.score_decay, newest, lengths)


@dataclass(frozen=True, eq=False)
class Prompts:
    """The distinct items of a block of prompts, by prompt and item.

    lengths: (n,) items of each prompt, repeats counted. rows, items, places: (entries,) prompt, item, and where it
    last stands, from the end (the last item of a prompt is 1).
    """

    lengths: LongArray
    rows: LongArray
    items: LongArray
    places: LongArray

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, sessions: Sessions) -> Prompts:
        """Find the distinct items of `sessions`."""
        lengths, rows = sessions.lengths, sessions.rows
        place = lengths[rows] - places(lengths)
        order = np.lexsort((place, sessions.items, rows))
        rows, items, place = rows[order], sessions.items[order], place[order]
        newest = np.ones(len(rows), np.bool_)
        newest[1:] = (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])
        return cls(lengths, rows[newest], items[newest].astype(np.int64), place[newest])

    def matrix(self, values: npt.NDArray[Any], n_items: int) -> csr_array:
        """(n, n_items) with a value for each entry."""
        from scipy.sparse import csr_array

        offsets = offsets_of(np.bincount(self.rows, minlength=len(self)))
        return csr_array((values, self.items, offsets), shape=(len(self), n_items))


def ranked(scores: csr_array, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
    """Return at most `k` items a session, best first, of (sessions, items) positive scores."""
    n, n_items = scores.shape
    # At most `length` items can fall to the seen filter, so k + length of them always suffice.
    entries = best(scores, k + (sessions.lengths if exclude_seen else np.zeros(n, np.int64)))
    rows, items = rows_of(scores)[entries], scores.indices[entries]
    if exclude_seen:
        seen = np.isin(rows * n_items + items, sessions.rows * n_items + sessions.items)
        entries, rows = entries[~seen], rows[~seen]
    within = places(np.bincount(rows, minlength=n))
    entries, rows = entries[within < k], rows[within < k]
    return Recommendations(
        sessions.ids,
        offsets_of(np.bincount(rows, minlength=n)),
        scores.indices[entries].astype(np.int32),
        scores.data[entries].astype(np.float32).astype(np.float64),  # as they were compared
        np.ones(n, np.bool_),
        np.zeros(n),
    )


def block_bounds(pairs: npt.NDArray[np.number]) -> list[int]:
    """Cut prompts that meet so many train sessions each into blocks: 0, …, len(pairs); 0, 0 when there are none."""
    before = np.concatenate([[0], np.cumsum(pairs)])
    bounds = [0]
    while bounds[-1] < len(pairs) or len(bounds) == 1:
        start = bounds[-1]
        within = int(np.searchsorted(before, before[start] + PAIRS, "right")) - 1
        bounds.append(min(max(within, start + 1), start + BLOCK, len(pairs)))
    return bounds
