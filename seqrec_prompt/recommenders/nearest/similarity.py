"""LLMSeqSim: the items whose LLM embeddings are nearest to the session's (Harte et al., RecSys'23)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from seqrec_prompt.config import Config
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.embeddings.reduce import ReduceConfig, Reduction, fit_reduction, from_tensors
from seqrec_prompt.embeddings.table import EmbeddingTable, VectorArray
from seqrec_prompt.ragged import LongArray, TokenLists, offsets_of, places
from seqrec_prompt.recommenders.base import FloatArray, Recommendations
from seqrec_prompt.recommenders.nearest.cells import PROBES, Cells
from seqrec_prompt.recommenders.nearest.decays import decay_weights
from seqrec_prompt.recommenders.nearest.rows import Nearest, Similarity, unit
from seqrec_prompt.recommenders.settings import Decay

Weighting = Literal[Decay, "last"]


class SessionVectorConfig(Config):
    """How items and sessions become vectors; the defaults are the paper's best on Beauty, without its reduction."""

    weighting: Weighting = Field(
        "harmonic",
        description="a session's embedding is the weighted mean of its items': how the weight falls with the distance "
        "from the end; 'last': the last item's alone",
    )
    similarity: Similarity = Field("cosine", description="of two vectors; euclidean is 1/(1 + distance)")
    normalise: bool = Field(False, description="bring items to unit length, after the reduction")
    reduce: ReduceConfig | None = Field(None, description="reduction of the embeddings")


class SimilarityConfig(SessionVectorConfig):
    """Settings of LLMSeqSim."""

    search: Literal["exact", "ivf"] = Field(
        "exact", description="'ivf': only among items around the session, with faiss; for catalogs past a million"
    )
    probes: int | None = Field(
        None, ge=1, description="ivf only: of √items cells so many are looked through, if not given 32; more find more"
    )

    @model_validator(mode="after")
    def _probes_belong_to_ivf(self) -> SimilarityConfig:
        if self.search != "ivf" and self.probes is not None:
            raise ValueError("'probes' is used only by 'search' = 'ivf'")
        return self


@dataclass(frozen=True, eq=False)
class LLMSeqSim:
    """Recommends the items nearest to the session in embedding space; it learns nothing from train.

    vectors: (distinct, dim) float32, place: (items,) each item's row in them: items of one text share a row, so that
    their scores are equal to the last bit and they follow one another, in catalog order, on every machine. A session
    without items has no embedding and gets an empty list. cells: the packed index where `search` is 'ivf'; such lists
    are not certified. reduction: the fitted one, through which other vectors of the same model become comparable.
    """

    vectors: VectorArray
    place: LongArray
    config: SimilarityConfig
    cells: npt.NDArray[np.uint8] | None = None
    reduction: Reduction | None = None
    name = "LLMSeqSim"

    @classmethod
    def fit(cls, table: EmbeddingTable, catalog: Catalog, config: SimilarityConfig) -> Self:
        """Reduce and normalise the catalog's embeddings as `config` says."""
        distinct, place = _distinct(table.vectors)
        reduction = None
        if config.reduce is not None:
            reduction = fit_reduction(config.reduce, table.vectors, catalog)
            distinct = reduction(distinct)
        if config.normalise:
            distinct = unit(distinct)
        cells = (
            Cells.build(distinct, config.similarity, config.probes or PROBES).pack() if config.search == "ivf" else None
        )
        return cls(distinct, place, config, cells, reduction)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What has to be kept to build it again, the reduction's work included."""
        arrays: dict[str, npt.NDArray[Any]] = {"vectors": self.vectors, "place": self.place}
        arrays |= {} if self.cells is None else {"cells": self.cells}
        return arrays | ({} if self.reduction is None else self.reduction.tensors())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], n_items: int, config: SimilarityConfig) -> Self:
        """Build it from what `arrays` gave; `n_items` is the size of the catalog."""
        return cls(arrays["vectors"], arrays["place"], config, arrays.get("cells"), from_tensors(arrays))

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return the `k` nearest items a session; equally near are in catalog order, items of one text together."""
        search = self._search
        parts = []
        for start in range(0, max(len(sessions), 1), search.queries_at_once):
            block = sessions.take(np.arange(start, min(start + search.queries_at_once, len(sessions))))
            seen = self._seen(block) if exclude_seen else None
            rows, scores = search(self.session_vectors(block), k, seen)
            rows[block.lengths == 0] = -1
            parts.append(self._lists(rows, scores, block, k, exclude_seen=exclude_seen))
        return replace(Recommendations.concatenate(parts), provenance="embedding")

    @cached_property
    def _search(self) -> Nearest | Cells:
        if self.cells is None:
            return Nearest(self.vectors, self.config.similarity)
        return Cells.unpack(self.cells, self.config.similarity, self.config.probes or PROBES)

    def session_vectors(self, sessions: Sessions) -> VectorArray:
        """(sessions, dim) float32 weighted mean of each session's items; zeros for one without items."""
        import torch

        bags = torch.nn.functional.embedding_bag(
            torch.from_numpy(self.place[sessions.items]),
            torch.from_numpy(self.vectors),
            torch.from_numpy(sessions.offsets[:-1]),
            mode="sum",
            per_sample_weights=torch.from_numpy(self._weights(sessions).astype(np.float32)),
        )
        return bags.numpy()

    def _weights(self, sessions: Sessions) -> FloatArray:
        """(entries,) weight of every item in its session; those of a session sum to one."""
        length = np.repeat(sessions.lengths, sessions.lengths)
        from_end = length - places(sessions.lengths)
        weighting = self.config.weighting
        found = (
            (from_end == 1).astype(np.float64) if weighting == "last" else decay_weights(weighting, from_end, length)
        )
        return found / np.bincount(sessions.rows, found, len(sessions))[sessions.rows]

    def _seen(self, sessions: Sessions) -> tuple[LongArray, LongArray]:
        """Sessions and, of each, the rows of `vectors` all of whose items it holds."""
        session, item = np.divmod(np.unique(sessions.rows * len(self.place) + sessions.items), len(self.place))
        pairs, counts = np.unique(session * len(self.vectors) + self.place[item], return_counts=True)
        session, row = np.divmod(pairs, len(self.vectors))
        whole = counts == np.diff(self._items_of.offsets)[row]
        return session[whole], row[whole]

    def _lists(
        self, rows: LongArray, scores: FloatArray, sessions: Sessions, k: int, *, exclude_seen: bool
    ) -> Recommendations:
        """Lists of at most k items from (sessions, k) grids of rows, -1 where there is none, and of their scores."""
        filled = rows >= 0
        items = self._items_of.take(rows[filled])
        session = np.repeat(np.nonzero(filled)[0], items.lengths)
        score, item = np.repeat(scores[filled], items.lengths), items.tokens
        if exclude_seen:
            new = ~np.isin(session * len(self.place) + item, sessions.rows * len(self.place) + sessions.items)
            session, score, item = session[new], score[new], item[new]
        keep = places(np.bincount(session, minlength=len(sessions))) < k
        offsets = offsets_of(np.bincount(session[keep], minlength=len(sessions)))
        exact = self.cells is None  # else nothing is known of what was not looked at
        certified, gap = np.full(len(sessions), exact), np.full(len(sessions), 0 if exact else np.nan)
        return Recommendations(sessions.ids, offsets, item[keep], score[keep], certified, gap)

    @cached_property
    def _items_of(self) -> TokenLists:
        """The items of each row of `vectors`, in catalog order."""
        order = np.argsort(self.place, kind="stable").astype(np.int32)
        return TokenLists(order, offsets_of(np.bincount(self.place, minlength=len(self.vectors))))


def _distinct(vectors: VectorArray) -> tuple[VectorArray, LongArray]:
    """The different rows in the order in which they first occur, and (items,) which of them each item has."""
    _, first, same = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return vectors[first[order]], rank[same.reshape(-1)]
