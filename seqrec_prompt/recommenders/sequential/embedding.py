"""The vectors of the items, by which a session is read and by which items are scored: the same ones.

`build_items` makes one of three modules; each gives the whole (items, dim) matrix when called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.reduce import ReduceConfig, fit_reduction
from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig

# Strength of the ridge regression that places cold items, as a share of the mean variance of the LLM embeddings.
RIDGE = 0.1


def default_scale(n_items: int, dim: int) -> float:
    """Standard deviation of an item vector's entries at a random start: Xavier's."""
    return float((2 / (n_items + dim)) ** 0.5)


class Learned(nn.Module):
    """Every entry is learned. start: (items, dim)."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start)

    def forward(self) -> torch.Tensor:
        """(items, dim)."""
        return self.weight


class Adapted(nn.Module):
    """Frozen LLM embeddings, (items, LLM dim), under a two-layer adapter."""

    def __init__(self, vectors: torch.Tensor, dim: int) -> None:
        super().__init__()
        self.frozen: torch.Tensor
        self.register_buffer("frozen", vectors)
        last = nn.Linear(dim, dim)
        self.adapter = nn.Sequential(nn.Linear(vectors.shape[1], dim), nn.GELU(), last)
        with torch.no_grad():
            last.bias.zero_()
            last.weight.mul_(default_scale(len(vectors), dim) / self().std().clamp(min=1e-12))

    def forward(self) -> torch.Tensor:
        """(items, dim)."""
        adapted: torch.Tensor = self.adapter(self.frozen)
        return adapted


class Fused(nn.Module):
    """AlphaFuse: frozen leading directions of the LLM embeddings, and learned entries in place of the trailing ones.

    frozen: (items, f). start: (items, dim − f).
    """

    def __init__(self, frozen: torch.Tensor, start: torch.Tensor) -> None:
        super().__init__()
        self.frozen: torch.Tensor
        self.register_buffer("frozen", frozen)
        self.weight = nn.Parameter(start)

    def forward(self) -> torch.Tensor:
        """(items, dim)."""
        return torch.cat([self.frozen, self.weight], dim=1)


def build_items(config: SequentialConfig, catalog: Catalog, vectors: VectorArray | None) -> nn.Module:
    """The items at the start of training. vectors: (items, LLM dim), None for a random start.

    All starts have the scale of the random one, times `items.scale`. Raises ConfigError when the LLM embeddings are too
    narrow for 'dim'.
    """
    n, dim, how = len(catalog), config.dim, config.items
    scale = default_scale(n, dim)
    random = torch.randn(n, dim) * scale
    if vectors is None:
        return Learned(random)
    if how.permuted:
        vectors = vectors[np.random.default_rng(config.seed).permutation(n)]
    if how.start == "adapter":
        return Adapted(torch.from_numpy(_standardised(vectors)), dim)
    kept = dim if how.start == "llm_init" else min(max(1, round(how.frozen * dim)), dim - 1)
    if kept > vectors.shape[1]:
        raise ConfigError(
            f"'sequential.dim' {dim} wants {kept} directions of the embeddings, which have {vectors.shape[1]}. "
            "Lower it."
        )
    method = how.reduction if how.start == "llm_init" else "whiten_pca"
    reduce = ReduceConfig(method=method, dimensions=kept, attribute=how.attribute)
    reduced = torch.from_numpy(fit_reduction(reduce, vectors, catalog)(vectors))
    reduced = reduced * (how.scale * scale / reduced.std().clamp(min=1e-12))
    return Learned(reduced) if how.start == "llm_init" else Fused(reduced, random[:, kept:].clone())


def _standardised(vectors: VectorArray) -> VectorArray:
    spread = vectors.std() or 1
    standard: Any = (vectors - vectors.mean(axis=0)) / spread
    return np.ascontiguousarray(standard, np.float32)


@torch.no_grad()
def place_cold_items(items: nn.Module, vectors: VectorArray, warm: torch.Tensor) -> None:
    """Give items that training never saw a place among those it moved. warm: (items,) bool.

    What is learned an item (llm_init: all of it, alphafuse: its part) is told from the LLM embeddings by the ridge
    regression that fits the warm items. With an adapter cold items went through it all along.
    """
    if isinstance(items, Adapted) or bool(warm.all()):
        return
    learned = items.get_parameter("weight")
    x = torch.from_numpy(vectors).to(learned.device).double()
    seen, rows = x[warm] - x[warm].mean(dim=0), learned[warm].double()
    gram = seen.T @ seen
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    slopes = torch.linalg.solve(gram, seen.T @ (rows - rows.mean(dim=0)))
    learned[~warm] = ((x[~warm] - x[warm].mean(dim=0)) @ slopes + rows.mean(dim=0)).to(learned)
