"""Why an item stands in a list: the items of the session that are nearest to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.ragged import IntArray

Similarities = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Nearness:
    """Cosines of items: of their vectors (items, dim), or else of the train sessions that hold them."""

    train: Sessions
    n_items: int
    vectors: npt.NDArray[np.float32] | None = None

    def nearest(self, item: int, session: IntArray, n: int = 2) -> list[tuple[int, float]]:
        """The at most `n` items of a session nearest to `item`, other than itself, with cosines above 0."""
        others = np.unique(session[session != item])
        if not len(others):
            return []
        found = self._cosines(np.array([item]), others)[0]
        order = np.argsort(-found, kind="stable")[:n]
        return [(int(others[i]), float(found[i])) for i in order if found[i] > 0]

    def _cosines(self, items: IntArray, others: IntArray) -> Similarities:
        if self.vectors is not None:
            one, other = self.vectors[items].astype(np.float64), self.vectors[others].astype(np.float64)
            lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
            products = one @ other.T
        else:
            held = self._sessions
            products = (held[:, items].T @ held[:, others]).toarray()
            count = np.diff(held.indptr)
            lengths = np.sqrt(count[items][:, None] * count[others])
        cosines: Similarities = np.divide(products, lengths, out=np.zeros(products.shape), where=lengths > 0)
        return cosines

    @cached_property
    def _sessions(self) -> csc_array:
        """(sessions, items) 1 where a train session holds an item."""
        pairs = np.unique(self.train.rows * self.n_items + self.train.items)
        rows, items = np.divmod(pairs, self.n_items)
        return csc_array((np.ones(len(pairs)), (rows, items)), (len(self.train), self.n_items))
