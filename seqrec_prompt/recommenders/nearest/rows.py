"""The rows of a matrix that are nearest to queries: exactly, block by block, so that memory has a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.ragged import LongArray
from seqrec_prompt.recommenders.base import FloatArray
from seqrec_prompt.recommenders.nearest.topk import first

if TYPE_CHECKING:
    import torch

Similarity = Literal["cosine", "dot", "euclidean"]
# At once ROWS rows are compared with as many queries as make BLOCK similarities: 64 MB in float32, twice that in
# float64, and a few copies of it, however many rows there are.
BLOCK, ROWS = 1 << 24, 1 << 16


class Nearest:
    """Exact top-k: a matrix product a block, and what each block has of the best.

    vectors: (rows, dim). Cosine and dot compute in float32, euclidean in float64: |q|² + |x|² − 2q·x cancels where q
    is near x, and float32 would leave a distance of 0.001 nothing but rounding. Runs on a GPU if there is one.
    """

    def __init__(self, vectors: VectorArray, similarity: Similarity) -> None:
        import torch

        self.similarity = similarity
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float64 if similarity == "euclidean" else torch.float32
        self.rows = torch.from_numpy(vectors).to(self.device, dtype)
        self.norms = torch.linalg.vector_norm(self.rows, dim=1).clamp(min=torch.finfo(dtype).tiny)
        self.queries_at_once = max(1, BLOCK // max(1, min(len(vectors), ROWS)))

    def __call__(
        self, queries: VectorArray, k: int, left_out: tuple[LongArray, LongArray] | None = None
    ) -> tuple[LongArray, FloatArray]:
        """Return (queries, k) rows and similarities, best first, ties the lower row first; -1 where no row is left.

        left_out: (pairs,) queries and (pairs,) the rows that each is not given. Give at most `queries_at_once` queries
        to stay within a block.
        """
        import torch

        asked = torch.from_numpy(queries).to(self.device, self.rows.dtype)
        if self.similarity == "cosine":
            asked = torch.nn.functional.normalize(asked)
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
        if self.similarity == "euclidean":
            values = 1 / (1 + (-values).clamp(min=0).sqrt())
        found[best == -torch.inf] = -1
        return found.cpu().numpy(), values.cpu().numpy()

    def _similarities(self, asked: torch.Tensor, start: int) -> torch.Tensor:
        """(queries, rows of the block) higher is nearer; for euclidean minus the squared distance: it ranks alike."""
        rows, norms = self.rows[start : start + ROWS], self.norms[start : start + ROWS]
        scores = product(asked, rows)
        if self.similarity == "cosine":
            scores /= norms
        elif self.similarity == "euclidean":
            scores.mul_(2).sub_(norms.square()).sub_(asked.square().sum(dim=1, keepdim=True))
        return scores


def unit(vectors: VectorArray) -> VectorArray:
    """(n, dim) rows of length one; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: VectorArray = (vectors / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled


def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """One · otherᵀ. On a CPU by numpy's BLAS: the one that torch brings takes 1.6 times as long on an AMD EPYC."""
    import torch

    return torch.from_numpy(one.numpy() @ other.numpy().T) if one.device.type == "cpu" else one @ other.T
