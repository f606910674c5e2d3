"""The losses against plain float64 formulas, their gradients against autograd, and what never exists whole."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from seqrec_prompt.recommenders.sequential import losses

POSITIONS, ITEMS, DIM = 101, 70, 8


@pytest.fixture
def parts():
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, DIM, requires_grad=True)
    weight = (torch.randn(ITEMS, DIM) * 2).requires_grad_()
    return hidden, weight, torch.randint(ITEMS, (POSITIONS,))


def with_gradients(loss, hidden, weight):
    grads = torch.autograd.grad(3 * loss, (hidden, weight))
    return [loss.detach().double(), *(grad.double() for grad in grads)]


@pytest.mark.parametrize("elements", [1, 40 * ITEMS, 1 << 22])
def test_softmax_is_cross_entropy_whatever_the_chunk(parts, monkeypatch, elements):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", elements)
    hidden, weight, targets = parts
    h, w = (part.detach().double().requires_grad_() for part in (hidden, weight))
    right = with_gradients(F.cross_entropy(h @ w.T, targets, reduction="sum"), h, w)
    found = with_gradients(losses.softmax_loss(hidden, weight, targets), hidden, weight)
    for one, other in zip(found, right, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_softmax_in_bfloat16_is_near(parts):
    hidden, weight, targets = parts
    right = with_gradients(losses.softmax_loss(hidden, weight, targets), hidden, weight)
    found = with_gradients(losses.softmax_loss(hidden, weight, targets, torch.bfloat16), hidden, weight)
    for one, other in zip(found, right, strict=True):
        assert 0 < (one - other).norm() / other.norm() < 0.02


def test_large_logits_do_not_overflow():
    hidden, weight = torch.full((1, 2), 100.0), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    found = [float(losses.softmax_loss(hidden, weight, torch.tensor([target]))) for target in (0, 1)]
    assert found == pytest.approx([0, 400], abs=1e-3)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, list | tuple) else [out]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return out


def test_the_logits_never_exist_whole(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 1)
    hidden, weight = torch.randn(1000, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    with Largest() as largest:
        losses.softmax_loss(hidden, weight, torch.zeros(1000, dtype=torch.long)).backward()
    assert largest.elements == 32 * 500


def drawn(negatives):
    torch.manual_seed(7)
    return torch.randint(ITEMS, (POSITIONS, negatives)).tolist()


def dots(hidden, weight, rows):
    return [math.fsum(h * w for h, w in zip(hidden, weight[row], strict=True)) for row in rows]


def test_sampled_softmax_against_a_loop(parts):
    hidden, weight, targets = (part.detach() for part in parts)
    torch.manual_seed(7)
    found = float(losses.sampled_softmax_loss(hidden, weight, targets, 30))
    right, hits = 0.0, 0
    for h, target, negatives in zip(hidden.tolist(), targets.tolist(), drawn(30), strict=True):
        others = [n for n in negatives if n != target]
        hits += 30 - len(others)
        first, *rest = dots(h, weight.tolist(), [target, *others])
        right += math.log(math.fsum(math.exp(score) for score in [first, *rest])) - first
    assert hits > 10
    assert found == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("t", [0, 0.75, 1])
def test_gbce_against_a_loop(parts, t):
    hidden, weight, targets = (part.detach() for part in parts)
    torch.manual_seed(7)
    found = float(losses.gbce_loss(hidden, weight, targets, 30, t))
    alpha = 30 / (ITEMS - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    right = 0.0
    for h, target, negatives in zip(hidden.tolist(), targets.tolist(), drawn(30), strict=True):
        first, *rest = dots(h, weight.tolist(), [target, *(n for n in negatives if n != target)])
        right += beta * math.log1p(math.exp(-first)) + math.fsum(math.log1p(math.exp(score)) for score in rest)
    assert found == pytest.approx(right, rel=1e-5)
    assert beta == pytest.approx({0: 1, 1: alpha}.get(t, beta)), "the two ends of the paper's calibration"


@pytest.mark.parametrize("loss", [losses.sampled_softmax_loss, lambda *given: losses.gbce_loss(*given, 0.75)])
def test_draws_in_chunks_are_draws_at_once(parts, monkeypatch, loss):
    hidden, weight, targets = parts
    found = []
    for elements in (1 << 26, 7 * 30 * DIM):
        monkeypatch.setattr(losses, "GATHERED_ELEMENTS", elements)
        torch.manual_seed(7)
        with Largest() as largest:
            found.append(with_gradients(loss(hidden, weight, targets, 30), hidden, weight))
        assert largest.elements == (POSITIONS * 30 * DIM if elements > 10**6 else POSITIONS * 30)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
