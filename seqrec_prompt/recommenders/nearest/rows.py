"""The rows of a matrix that are nearest to queries: exactly, block by block, so that memory has a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.ragged import LongArray
from seqrec_prompt.recommenders.base import FloatArray
from seqrec_prompt.recommenders.nearest.topk import first

if TYPE_CHECKING:
    import torch

Similarity = Literal["cosine", "dot", "euclidean"]
# At once ROWS rows are compared with as many queries as make BLOCK similarities: 64 MB in float32, twice that in
# float64, and a few copies of it, however many rows there are and however many threads share them.
BLOCK, ROWS = 1 << 24, 1 << 14
FEW = 64  # queries a thread: with fewer, all threads work on one product


class Nearest:
    """Exact top-k: a matrix product a block, and what each block has of the best.

    vectors: (rows, dim). Cosine and dot compute in float32, euclidean in float64: |q|² + |x|² − 2q·x cancels where q
    is near x, and float32 would leave a distance of 0.001 nothing but rounding. Runs on a GPU if there is one, and on
    a CPU with a block a thread: threads that share one product wait for one another, these do not.
    """

    queries_at_once = 1 << 13  # give no more at once: they stand in memory, too

    def __init__(self, vectors: VectorArray, similarity: Similarity) -> None:
        import torch

        self.similarity = similarity
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float64 if similarity == "euclidean" else torch.float32
        self.rows = torch.from_numpy(vectors).to(self.device, dtype)
        self.norms = torch.linalg.vector_norm(self.rows, dim=1).clamp(min=torch.finfo(dtype).tiny)

    def __call__(
        self, queries: VectorArray, k: int, left_out: tuple[LongArray, LongArray] | None = None
    ) -> tuple[LongArray, FloatArray]:
        """Return (queries, k) rows and similarities, best first, ties the lower row first; -1 where no row is left.

        left_out: (pairs,) queries and (pairs,) the rows that each is not given.
        """
        import torch

        n, threads = len(queries), torch.get_num_threads() if self.device.type == "cpu" else 1
        threads = threads if n >= FEW * threads else 1
        most = max(1, BLOCK // threads // max(1, min(len(self.rows), ROWS)))
        rounds = max(1, ceil(n / (threads * most)))
        height = max(1, ceil(n / (threads * rounds)))  # every thread has as many blocks, all of one height

        def answer(start: int) -> tuple[LongArray, FloatArray]:
            own = None
            if left_out is not None:
                here = (left_out[0] >= start) & (left_out[0] < start + height)
                own = left_out[0][here] - start, left_out[1][here]
            return self._answer(queries[start : start + height], k, own)

        with _each_on_its_own(threads) as run:
            parts = list(run(answer, range(0, max(n, 1), height)))
        rows, similarities = zip(*parts, strict=True)
        return np.concatenate(rows), np.concatenate(similarities)

    def _answer(
        self, queries: VectorArray, k: int, left_out: tuple[LongArray, LongArray] | None
    ) -> tuple[LongArray, FloatArray]:
        """What __call__ returns, for queries of one block."""
        import torch

        asked = torch.from_numpy(queries).to(self.device, self.rows.dtype)
        n, k = len(queries), min(k, len(self.rows))
        best, found = asked.new_full((n, k), -torch.inf), torch.full((n, k), -1, device=self.device)
        for start in range(0, len(self.rows), ROWS):
            scores = self._similarities(asked, start)
            if left_out is not None:
                here = (left_out[1] >= start) & (left_out[1] < start + ROWS)
                query, row = (torch.from_numpy(part[here]).to(self.device) for part in left_out)
                scores[query, row - start] = -torch.inf
            # What was found before has lower rows and stands first: its ties come first, too.
            values, columns = first(scores, min(k, scores.shape[1]))
            best, place = first(torch.cat([best, values], dim=1), k)
            found = torch.cat([found, columns + start], dim=1).gather(1, place)
        values = best.double()
        if self.similarity == "cosine":  # here and not before: a query's length changes no order
            values /= torch.linalg.vector_norm(asked, dim=1, keepdim=True).clamp(min=torch.finfo(asked.dtype).tiny)
        elif self.similarity == "euclidean":
            values = 1 / (1 + (-values).clamp(min=0).sqrt())
        found[best == -torch.inf] = -1
        return found.cpu().numpy(), values.cpu().numpy()

    def _similarities(self, asked: torch.Tensor, start: int) -> torch.Tensor:
        """(queries, rows of the block) what ranks them, higher is nearer.

        For cosine without the query's length, for euclidean minus the squared distance.
        """
        rows, norms = self.rows[start : start + ROWS], self.norms[start : start + ROWS]
        scores = product(asked, rows)
        if self.similarity == "cosine":
            scores /= norms
        elif self.similarity == "euclidean":
            scores.mul_(2).sub_(norms.square()).sub_(asked.square().sum(dim=1, keepdim=True))
        return scores


@contextmanager
def _each_on_its_own(threads: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a `map` whose calls run in so many threads, in each of which torch and BLAS use no further ones."""
    import torch
    from threadpoolctl import threadpool_limits

    if threads == 1:
        yield map
        return
    try:
        with (
            threadpool_limits(1, "blas"),
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def unit(vectors: VectorArray) -> VectorArray:
    """(n, dim) rows of length one; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: VectorArray = (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """One · otherᵀ. On a CPU by numpy's BLAS: the one that torch brings takes 1.6 times as long on an AMD EPYC."""
    import torch

    return torch.from_numpy(one.numpy() @ other.numpy().T) if one.device.type == "cpu" else one @ other.T
