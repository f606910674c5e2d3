"""LLMSeqSim: the items whose LLM embeddings are nearest to the session's (Harte et al., RecSys'23)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from seqrec_prompt.config import Config
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.embeddings.reduce import ReduceConfig, fit_reduction
from seqrec_prompt.embeddings.table import EmbeddingTable, VectorArray
from seqrec_prompt.ragged import IntArray, LongArray, places
from seqrec_prompt.recommenders.base import FloatArray, Recommendations
from seqrec_prompt.recommenders.decays import decay_weights
from seqrec_prompt.recommenders.popularity import lists_from_grid
from seqrec_prompt.recommenders.settings import Decay
from seqrec_prompt.recommenders.topk import first

if TYPE_CHECKING:
    import torch

Weighting = Literal[Decay, "last"]
# Similarities computed at once, (sessions, items): 64 MB in float32, twice that in float64, and a few copies of it.
BLOCK_ELEMENTS = 1 << 24


class SimilarityConfig(Config):
    """Settings of LLMSeqSim; the defaults are the paper's best on Beauty, without its reduction."""

    weighting: Weighting = Field(
        "harmonic",
        description="a session's embedding is the weighted mean of its items': how the weight falls with the distance "
        "from the end; 'last': the last item's alone",
    )
    similarity: Literal["cosine", "dot", "euclidean"] = Field(
        "cosine", description="of session and item; euclidean is 1/(1 + distance)"
    )
    normalise: bool = Field(False, description="bring items to unit length, after the reduction")
    reduce: ReduceConfig | None = Field(None, description="reduction of the embeddings")


@dataclass(frozen=True, eq=False)
class LLMSeqSim:
    """Recommends the items nearest to the session in embedding space; it learns nothing from train.

    vectors: (distinct, dim) float32, place: (items,) each item's row in them: items of one text share a row, so that
    their scores are equal to the last bit and such ties are in catalog order on every machine. A session without
    items has no embedding and gets an empty list.
    """

    vectors: VectorArray
    place: LongArray
    config: SimilarityConfig
    name = "LLMSeqSim"

    @classmethod
    def fit(cls, table: EmbeddingTable, catalog: Catalog, config: SimilarityConfig) -> Self:
        """Reduce and normalise the catalog's embeddings as `config` says."""
        distinct, place = _distinct(table.vectors)
        if config.reduce is not None:
            distinct = fit_reduction(config.reduce, table.vectors, catalog)(distinct)
        if config.normalise:
            distinct = distinct / np.maximum(np.linalg.norm(distinct, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return cls(distinct, place, config)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What has to be kept to build it again, the reduction's work included."""
        return {"vectors": self.vectors, "place": self.place}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], n_items: int, config: SimilarityConfig) -> Self:
        """Build it from what `arrays` gave; `n_items` is the size of the catalog."""
        return cls(arrays["vectors"], arrays["place"], config)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return the `k` nearest items a session, ties in catalog order."""
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        search = _Nearest(self.vectors, self.place, self.config.similarity, device)
        size = max(1, BLOCK_ELEMENTS // len(self.place))
        parts = []
        for start in range(0, max(len(sessions), 1), size):
            block = sessions.take(np.arange(start, min(start + size, len(sessions))))
            grid, scores = search(self._weights(block), block, k, exclude_seen=exclude_seen)
            grid[block.lengths == 0] = -1
            parts.append(lists_from_grid(block.ids, grid, scores))
        return replace(Recommendations.concatenate(parts), provenance="embedding")

    def _weights(self, sessions: Sessions) -> FloatArray:
        """(entries,) weight of every item in its session; those of a session sum to one."""
        length = np.repeat(sessions.lengths, sessions.lengths)
        from_end = length - places(sessions.lengths)
        weighting = self.config.weighting
        found = (
            (from_end == 1).astype(np.float64) if weighting == "last" else decay_weights(weighting, from_end, length)
        )
        return found / np.bincount(sessions.rows, found, len(sessions))[sessions.rows]


def _distinct(vectors: VectorArray) -> tuple[VectorArray, LongArray]:
    """The different rows in the order in which they first occur, and (items,) which of them each item has."""
    _, first, same = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return vectors[first[order]], rank[same.reshape(-1)]


class _Nearest:
    """Exact top-k over all items by one matrix product a block of sessions."""

    def __init__(self, vectors: VectorArray, place: LongArray, similarity: str, device: torch.device) -> None:
        import torch

        # |q|² + |x|² − 2q·x cancels where q is near x; float32 would leave a distance of 0.001 nothing but rounding.
        dtype = torch.float64 if similarity == "euclidean" else torch.float32
        self.items = torch.from_numpy(vectors).to(device, dtype)  # (distinct, dim)
        self.keys = torch.nn.functional.normalize(self.items) if similarity == "cosine" else self.items
        self.place = torch.from_numpy(place).to(device)
        self.shared = len(place) != len(vectors)
        self.similarity = similarity

    def __call__(
        self, weight: FloatArray, sessions: Sessions, k: int, *, exclude_seen: bool
    ) -> tuple[IntArray, FloatArray]:
        """Return (n, k) items and scores, best first; an item of -1 where no other is left."""
        import torch

        device = self.items.device
        rows = torch.from_numpy(sessions.rows).to(device)
        items = torch.from_numpy(sessions.items.astype(np.int64)).to(device)
        queries = torch.nn.functional.embedding_bag(  # (n, dim)
            self.place[items],
            self.items,
            torch.from_numpy(sessions.offsets[:-1]).to(device),
            mode="sum",
            per_sample_weights=torch.from_numpy(weight).to(self.items),
        )
        scores = self._similarities(queries)
        if exclude_seen:
            scores[rows, items] = -torch.inf
        best, found = first(scores, min(k, len(self.place)))
        values = best.double()
        if self.similarity == "euclidean":
            values = 1 / (1 + (-values).clamp(min=0).sqrt())
        found[best == -torch.inf] = -1
        return found.cpu().numpy().astype(np.int32), values.cpu().numpy()

    def _similarities(self, queries: torch.Tensor) -> torch.Tensor:
        """(n, items) higher is nearer; for euclidean minus the squared distance, which ranks alike."""
        import torch

        if self.similarity == "cosine":
            queries = torch.nn.functional.normalize(queries)
        scores = queries @ self.keys.T
        if self.similarity == "euclidean":
            scores = 2 * scores - self.keys.square().sum(dim=1) - queries.square().sum(dim=1, keepdim=True)
        return scores[:, self.place] if self.shared else scores
