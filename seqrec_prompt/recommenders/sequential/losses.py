"""Losses over a catalog: full softmax in chunks, sampled softmax, gBCE. All return sums over positions, in nats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Logits that exist at once: 16 MB in float32.
CHUNK_ELEMENTS = 1 << 22
# Entries of the vectors of drawn items that exist at once: 256 MB in float32.
GATHERED_ELEMENTS = 1 << 26


def chunk(width: int) -> int:
    """Rows of `width` that are computed at once; enough of them to keep a matrix product busy."""
    return max(32, CHUNK_ELEMENTS // width)


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk in the forward pass, so that each logit is computed once and none is kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        h, w = hidden.float(), weight.float()
        narrow = w.to(dtype)
        d_hidden, d_weight = torch.empty_like(h), torch.zeros_like(w)
        total = h.new_zeros(())
        size = chunk(len(w))
        for start in range(0, len(h), size):
            at = slice(start, start + size)
            rows, target = h[at], targets[at]
            logits = (rows.to(dtype) @ narrow.T).float()
            highest = logits.amax(dim=1, keepdim=True)
            powers = logits.sub_(highest).exp_()
            sums = powers.sum(dim=1, keepdim=True)
            of_target = (rows * w[target]).sum(dim=1)
            total += (highest + sums.log()).sum() - of_target.sum()
            powers = powers.to(dtype)
            d_hidden[at] = (powers @ narrow).float() / sums
            d_weight += powers.T @ (rows / sums).to(dtype)
        d_hidden -= w[targets]
        d_weight.index_add_(0, targets, h, alpha=-1)
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grads[0], d_weight * grads[0], None, None


def softmax_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Cross-entropy of the softmax over all items.

    hidden: (positions, dim). weight: (items, dim). targets: (positions,) rows of `weight`. The matrix products are
    computed in `dtype`, all else in float32; the (positions, items) logits never exist whole.
    """
    total: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, dtype)  # type: ignore[no-untyped-call]
    return total


def _of_draws(
    loss: Loss, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, negatives: int
) -> torch.Tensor:
    """Sum `loss` over positions, each with the scores of its target and of its own uniform draws.

    The vectors of the draws, (positions, negatives, dim), are gathered a chunk at a time and again when gradients are
    computed: kept whole they would outgrow all else.
    """

    def part(h: torch.Tensor, w: torch.Tensor, target: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        positive = (h * F.embedding(target, w)).sum(dim=1)
        negative = torch.einsum("pd,pnd->pn", h, F.embedding(drawn, w))
        return loss(positive, negative, drawn == target[:, None])

    drawn = torch.randint(len(weight), (len(hidden), negatives), device=hidden.device)
    size = max(1, GATHERED_ELEMENTS // (negatives * hidden.shape[1]))
    if len(hidden) <= size:
        return part(hidden, weight, targets, drawn)
    total = hidden.new_zeros(())
    for h, target, some in zip(*(torch.split(each, size) for each in (hidden, targets, drawn)), strict=True):
        total = total + checkpoint(part, h, weight, target, some, use_reentrant=False, preserve_rng_state=False)
    return total


def sampled_softmax_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, negatives: int
) -> torch.Tensor:
    """Cross-entropy of the softmax over the target and `negatives` uniform draws, each target its own.

    A draw that hits the target is left out. Uniform draws make the usual correction by log Q a constant.
    """

    def loss(positive: torch.Tensor, negative: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([positive[:, None], negative.masked_fill(hit, -torch.inf)], dim=1)
        return (logits.logsumexp(dim=1) - positive).sum()

    return _of_draws(loss, hidden, weight, targets, negatives)


def gbce_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, negatives: int, calibration: float
) -> torch.Tensor:
    """Generalised binary cross-entropy of gSASRec (Petrov & Macdonald, RecSys'23).

    −β·log σ(s⁺) − Σ log(1 − σ(s⁻)) with β = α·(t·(1 − 1/α) + 1/α), α = negatives / (items − 1), t = `calibration`.
    A draw that hits the target is left out.
    """
    alpha = negatives / max(len(weight) - 1, 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)

    def loss(positive: torch.Tensor, negative: torch.Tensor, hit: torch.Tensor) -> torch.Tensor:
        return F.softplus(-positive).sum() * beta + F.softplus(negative).masked_fill(hit, 0).sum()

    return _of_draws(loss, hidden, weight, targets, negatives)
