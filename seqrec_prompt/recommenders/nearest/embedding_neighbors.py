"""SKNN over embeddings: the train sessions whose vectors are nearest to the prompt's, common items or not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import Field

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.ragged import offsets_of
from seqrec_prompt.recommenders.base import Arrays, Recommendations
from seqrec_prompt.recommenders.nearest.neighbors import SKNN, ranked
from seqrec_prompt.recommenders.nearest.rows import Nearest
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SessionVectorConfig, SimilarityConfig
from seqrec_prompt.recommenders.settings import NeighborsConfig

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class EmbeddingNeighborsConfig(SessionVectorConfig):
    """Settings of SKNN over embeddings."""

    k_neighbors: int = Field(100, ge=1, description="train sessions whose items are counted")
    idf: float = Field(0, ge=0, description="λ: multiply an item's score by 1 + λ·log(train sessions / those with it)")


@dataclass(frozen=True, eq=False)
class EmbeddingSKNN:
    """SKNN whose similarity of prompt and train session is that of their vectors, as LLMSeqSim makes them.

    score(i) = Σ_N similarity(S, N) · [i ∈ N] · (1 + λ·idf_i) over the k nearest train sessions N with a similarity
    above 0. Ties between train sessions go to the more recent one, ties between items to the catalog's order. A list
    holds what has a score and no more; a prompt without items gets an empty one.
    """

    items: LLMSeqSim
    sessions: SKNN
    config: EmbeddingNeighborsConfig
    name = "EmbeddingSKNN"

    @classmethod
    def fit(cls, table: EmbeddingTable, catalog: Catalog, train: Sessions, config: EmbeddingNeighborsConfig) -> Self:
        """Reduce the embeddings as `config` says and keep `train`, but for sessions without items."""
        items = LLMSeqSim.fit(table, catalog, _of_items(config))
        known = train.take(np.flatnonzero(train.lengths))
        return cls(items, SKNN.fit(known, len(catalog), _of_sessions(config)), config)

    def arrays(self) -> Arrays:
        """What has to be kept to build it again."""
        return {**self.items.arrays(), **self.sessions.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Arrays, n_items: int, config: EmbeddingNeighborsConfig) -> Self:
        """Build it from what `arrays` gave."""
        items = LLMSeqSim.from_arrays(arrays, n_items, _of_items(config))
        return cls(items, SKNN.from_arrays(arrays, n_items, _of_sessions(config)), config)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return at most `k` items a session, those that the neighbours give a score."""
        size = self._search.queries_at_once
        parts = []
        for start in range(0, max(len(sessions), 1), size):
            block = sessions.take(np.arange(start, min(start + size, len(sessions))))
            scores = self.sessions.counted(self._neighbors(block))
            parts.append(ranked(scores, block, k, exclude_seen=exclude_seen))
        return Recommendations.concatenate(parts)

    def _neighbors(self, sessions: Sessions) -> csr_array:
        """(sessions, train sessions) the similarities of each session's neighbours."""
        from scipy.sparse import csr_array

        rows, similarity = self._search(self.items.session_vectors(sessions), self.config.k_neighbors)
        near = (similarity > 0) & (rows >= 0) & (sessions.lengths > 0)[:, None]
        shape = (len(sessions), len(self.sessions.offsets) - 1)
        return csr_array((similarity[near], rows[near], offsets_of(near.sum(axis=1))), shape=shape)

    @cached_property
    def _search(self) -> Nearest:
        known = self.sessions
        names = np.arange(len(known.offsets) - 1).astype(str).astype(object)
        train = Sessions(names, known.offsets, known.items)
        return Nearest(self.items.session_vectors(train), self.config.similarity)


def _of_items(config: EmbeddingNeighborsConfig) -> SimilarityConfig:
    return SimilarityConfig(**{name: getattr(config, name) for name in SessionVectorConfig.model_fields})


def _of_sessions(config: EmbeddingNeighborsConfig) -> NeighborsConfig:
    return NeighborsConfig(k_neighbors=config.k_neighbors, idf=config.idf)
