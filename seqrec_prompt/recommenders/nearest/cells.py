"""Nearest rows among millions: only those of the cells around a query are looked at, with faiss.

An inverted file (Sivic & Zisserman, ICCV'03; Jégou, Douze & Schmid, TPAMI 2011): k-means cuts the rows into cells, and
a query is compared with all rows of the `probes` cells whose centres are nearest to it. What it finds is compared
exactly; what lies in other cells is missed, so lists are not certified.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.errors import MissingExtraError
from seqrec_prompt.ragged import LongArray, places
from seqrec_prompt.recommenders.base import FloatArray
from seqrec_prompt.recommenders.nearest.rows import Similarity, unit

PROBES = 32  # cells looked through unless another number is given
POINTS = 64  # rows a cell that k-means learns from at most: more move its centres little and take their time


class Cells:
    """Approximate top-k with the interface of `nearest.Nearest`."""

    queries_at_once = 1024

    def __init__(self, index: Any, similarity: Similarity, probes: int) -> None:
        self.index = index
        self.index.nprobe = probes
        self.similarity = similarity

    @classmethod
    def build(cls, vectors: VectorArray, similarity: Similarity, probes: int) -> Cells:
        """Cut (rows, dim) vectors into √rows cells. Raises MissingExtraError without faiss."""
        faiss = _faiss()
        rows, dimension = vectors.shape
        metric = faiss.METRIC_L2 if similarity == "euclidean" else faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(dimension, f"IVF{max(1, int(rows**0.5))},Flat", metric)
        index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = POINTS, 1
        data = unit(vectors) if similarity == "cosine" else vectors
        index.train(data)
        index.add(data)
        return cls(index, similarity, probes)

    @classmethod
    def unpack(cls, packed: npt.NDArray[np.uint8], similarity: Similarity, probes: int) -> Cells:
        """Read what `pack` gave. Raises MissingExtraError without faiss."""
        return cls(_faiss().deserialize_index(packed), similarity, probes)

    def pack(self) -> npt.NDArray[np.uint8]:
        """The index as bytes."""
        packed: npt.NDArray[np.uint8] = _faiss().serialize_index(self.index)
        return packed

    def __call__(
        self, queries: VectorArray, k: int, left_out: tuple[LongArray, LongArray] | None = None
    ) -> tuple[LongArray, FloatArray]:
        """Return (queries, k) rows and similarities, best first; -1 where the cells looked at hold no other."""
        asked = unit(queries) if self.similarity == "cosine" else queries
        query, row = left_out if left_out is not None else (np.empty(0, np.int64), np.empty(0, np.int64))
        more = np.bincount(query, minlength=1).max()
        values, found = self.index.search(asked, int(min(k + more, self.index.ntotal)))
        if self.similarity == "euclidean":
            values = 1 / (1 + np.sqrt(np.maximum(values, 0)))
        n = len(queries)
        keep = (found >= 0) & ~np.isin(
            np.arange(n)[:, None] * self.index.ntotal + found, query * self.index.ntotal + row
        )
        kept = keep.sum(axis=1)
        column, owner = places(kept), np.repeat(np.arange(n), kept)
        rows, scores = np.full((n, k), -1), np.full((n, k), -np.inf)
        within = column < k
        rows[owner[within], column[within]] = found[keep][within]
        scores[owner[within], column[within]] = values[keep][within]
        return rows, scores


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError(
            "faiss, which similarity.search 'ivf' needs,", 'pip install "seqrec_prompt[faiss]"'
        ) from None
    return faiss
