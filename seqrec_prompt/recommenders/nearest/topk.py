"""The k best of a row of scores, in an order that does not depend on the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def first(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and columns of the k best of each row, ties by column; `topk` alone leaves their order open."""
    best, found = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # Where one more is as good as the k-th, which of them stand in the list is for the columns to say.
    tied = best[:, k:].eq(best[:, k - 1 : k]).any(dim=1)
    best, found = best[:, :k].contiguous(), found[:, :k].contiguous()
    if tied.any():
        best[tied], found[tied] = (part[:, :k] for part in scores[tied].sort(dim=1, descending=True, stable=True))
    by_column = found.argsort(dim=1)
    order = best.gather(1, by_column).argsort(dim=1, descending=True, stable=True)
    order = by_column.gather(1, order)
    return best.gather(1, order), found.gather(1, order)
