"""SASRec, BERT4Rec and GRU4Rec as recommenders; with LLM embeddings of the items LLM2SASRec, LLM2BERT4Rec, LLM2GRU4Rec.

Kang & McAuley (ICDM 2018), Sun et al. (CIKM 2019), Hidasi et al. (ICLR 2016); Harte et al. (RecSys'23) for the LLM's
part. torch is loaded when a model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.recommenders.base import Arrays, Recommendations, mean_ndcg
from seqrec_prompt.recommenders.popularity import lists_from_grid
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig

if TYPE_CHECKING:
    from seqrec_prompt.recommenders.sequential.model import SequentialModel
    from seqrec_prompt.recommenders.sequential.training import Checkpoint

CUTOFF = 20


@dataclass(frozen=True, eq=False)
class Sequential:
    """A trained model. A session without items says nothing and gets an empty list. history: an entry an epoch."""

    model: SequentialModel
    config: SequentialConfig
    history: list[dict[str, float]] = field(default_factory=list)
    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """The name of the field, with LLM2 before it where the items came from an LLM."""
        plain = {"sasrec": "SASRec", "bert4rec": "BERT4Rec", "gru4rec": "GRU4Rec"}[self.kind]
        return plain if self.config.items.start == "random" else f"LLM2{plain}"

    @classmethod
    def fit(
        cls,
        train: Sessions,
        catalog: Catalog,
        config: SequentialConfig,
        validation: Holdout | None = None,
        vectors: VectorArray | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Self:
        """Train on `train` until NDCG@20 on `validation` no longer rises.

        vectors: (items, LLM dim) embeddings of the catalog, for all starts but 'random'; then items that `train` lacks
        are no wrong answers to learn from, and stay rankable.
        """
        import torch

        from seqrec_prompt.recommenders.sequential.embedding import build_items, place_cold_items
        from seqrec_prompt.recommenders.sequential.model import SequentialModel
        from seqrec_prompt.recommenders.sequential.training import train as run

        torch.manual_seed(config.seed)
        warm = torch.from_numpy(np.bincount(train.items, minlength=len(catalog)) > 0)
        some = None if vectors is None or bool(warm.all()) else warm.nonzero()[:, 0]
        model = SequentialModel(cls.kind, config, build_items(config, catalog, vectors), some)

        def placed() -> None:
            if vectors is not None:
                place_cold_items(model.items, vectors, warm)

        def judge(held_out: Holdout) -> float:
            placed()  # where they started they would rank among the first
            return ndcg(cls(model, config), held_out, exclude_seen=config.exclude_seen)

        progress = run(model, train, None if validation is None else lambda: judge(validation), checkpoint)
        placed()
        return cls(model, config, progress.history)

    def arrays(self) -> Arrays:
        """What has to be kept to build it again."""
        return {name: tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], n_items: int, config: SequentialConfig) -> Self:
        """Build it from what `arrays` gave, exactly as it was."""
        import torch

        from seqrec_prompt.recommenders.sequential.model import SequentialModel

        model = SequentialModel.from_arrays(cls.kind, config, arrays).eval()
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), config)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return the `k` items of the highest scores a session, ties in catalog order."""
        told = sessions.lengths > 0
        grid = np.full((len(sessions), k), -1, np.int32)
        scores = np.zeros((len(sessions), k))
        if told.any():
            items, values = self.model.best(sessions.take(told), k, exclude_seen=exclude_seen)
            grid[told, : items.shape[1]], scores[told, : items.shape[1]] = items, values
        return lists_from_grid(sessions.ids, grid, scores)


class SASRec(Sequential):
    """Causal self-attention: each item of a session is told from those before it."""

    kind = "sasrec"


class BERT4Rec(Sequential):
    """Self-attention both ways: hidden items are told from those around them."""

    kind = "bert4rec"


class GRU4Rec(Sequential):
    """A gated recurrent network."""

    kind = "gru4rec"


def ndcg(recommender: Sequential, holdout: Holdout, *, exclude_seen: bool) -> float:
    """Mean NDCG@20 of the recommended lists."""
    return mean_ndcg(recommender.recommend(holdout.prompts, CUTOFF, exclude_seen=exclude_seen), holdout.targets)
