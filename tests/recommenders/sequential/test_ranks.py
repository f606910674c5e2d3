"""Lists against a brute-force scorer in float64 numpy that reads one session at a time and knows no padding."""

import math

import numpy as np
import pytest
import torch

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.recommenders.sequential.embedding import Learned
from seqrec_prompt.recommenders.sequential.model import SequentialModel
from seqrec_prompt.recommenders.sequential.recommender import BERT4Rec, GRU4Rec, SASRec
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig

N, DIM, LONGEST = 60, 12, 9
DRAW = np.random.default_rng(5)
LISTS = [DRAW.integers(N, size=n).tolist() for n in [*DRAW.integers(1, 15, 60), 1, 40]]
SESSIONS = Sessions.build([f"s{i}" for i in range(len(LISTS))], LISTS)
KINDS = {"sasrec": SASRec, "bert4rec": BERT4Rec, "gru4rec": GRU4Rec}
ERF = np.vectorize(math.erf)


def build(kind, **changes):
    config = SequentialConfig(dim=DIM, heads=3, layers=2, dropout=0.5, max_items=LONGEST, **changes)
    torch.manual_seed(1)
    model = SequentialModel(kind, config, Learned(torch.randn(N, DIM)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.4)
    return KINDS[kind](model.eval(), config)


def normed(x, w, name):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def transformer(x, w, config, causal):
    n, size = len(x), config.dim // config.heads
    x = x * math.sqrt(config.dim) + w["encoder.positions.weight"][:n][::-1]
    for i in range(config.layers):
        name = f"encoder.blocks.{i}"
        q, k, v = np.split(linear(normed(x, w, f"{name}.before_attention"), w, f"{name}.qkv"), 3, axis=1)
        mixed = np.zeros_like(x)
        for h in range(config.heads):
            part = slice(h * size, (h + 1) * size)
            for place in range(n):
                reach = place + 1 if causal else n
                scores = q[place, part] @ k[:reach, part].T / math.sqrt(size)
                share = np.exp(scores - scores.max())
                mixed[place, part] = share / share.sum() @ v[:reach, part]
        x = x + linear(mixed, w, f"{name}.out")
        inner = linear(normed(x, w, f"{name}.before_layers"), w, f"{name}.layers.0")
        inner = inner * 0.5 * (1 + ERF(inner / math.sqrt(2)))
        x = x + linear(inner, w, f"{name}.layers.3")
    return normed(x, w, "encoder.norm")


def gru(x, w, config):
    x = x * math.sqrt(config.dim)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for i in range(config.layers):
        state, states = np.zeros(config.dim), []
        for row in x:
            inputs = row @ w[f"encoder.gru.weight_ih_l{i}"].T + w[f"encoder.gru.bias_ih_l{i}"]
            past = state @ w[f"encoder.gru.weight_hh_l{i}"].T + w[f"encoder.gru.bias_hh_l{i}"]
            (ri, zi, ni), (rp, zp, np_) = np.split(inputs, 3), np.split(past, 3)
            update = sigmoid(zi + zp)
            state = (1 - update) * np.tanh(ni + sigmoid(ri + rp) * np_) + update * state
            states.append(state)
        x = np.array(states)
    return normed(x, w, "encoder.norm")


def brute_force(recommender, items, exclude_seen):
    """(items,) float64 scores of one session."""
    w = {name: array.astype(np.float64) for name, array in recommender.arrays().items()}
    matrix, kind = w["items.weight"], recommender.kind
    read = matrix[items[-LONGEST:]]
    if kind == "bert4rec":
        read = np.concatenate([read, w["mask"]])
    state = (gru(read, w, recommender.config) if kind == "gru4rec" else transformer(
        read, w, recommender.config, causal=kind == "sasrec"))[-1]  # fmt: skip
    scores = matrix @ state
    if recommender.config.temperature is not None:
        scores /= np.linalg.norm(matrix, axis=1) * np.linalg.norm(state) * recommender.config.temperature
    if exclude_seen:
        scores[items] = -np.inf
    return scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_lists_are_those_of_brute_force(kind, temperature, exclude_seen):
    recommender = build(kind, temperature=temperature)
    lists = recommender.recommend(SESSIONS, N, exclude_seen=exclude_seen)
    for i, items in enumerate(LISTS):
        right = brute_force(recommender, items, exclude_seen)
        order = [item for item in np.argsort(-right, kind="stable") if right[item] > -np.inf]
        found = lists[i].tolist()
        assert len(found) == N - (len(set(items)) if exclude_seen else 0)
        scores = lists.scores[lists.offsets[i] : lists.offsets[i + 1]]
        assert np.allclose(scores, right[found], rtol=1e-4, atol=1e-4)
        # Two items may change places only where float32 cannot tell their scores apart.
        assert np.allclose(right[order], right[found], rtol=0, atol=2e-5)
        assert np.mean(np.array(order) == found) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_does_not_depend_on_the_other_sessions(kind):
    recommender = build(kind)
    together = recommender.recommend(SESSIONS, 10, exclude_seen=True)
    for i in (0, 5, 61):
        alone = recommender.recommend(SESSIONS.take(np.array([i])), 10, exclude_seen=True)
        assert alone.items.tolist() == together[i].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_that_say_nothing_get_nothing_and_short_catalogs_short_lists(kind):
    recommender = build(kind)
    sessions = Sessions.build(["empty", "all", "one"], [[], list(range(N)), [3]])
    lists = recommender.recommend(sessions, N + 5, exclude_seen=True)
    assert np.diff(lists.offsets).tolist() == [0, 0, N - 1]
    assert 3 not in lists[2]
    none = recommender.recommend(sessions.take(np.arange(0)), 5, exclude_seen=False)
    assert len(none) == 0
    assert len(none.items) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_built_from_arrays_recommends_the_same(kind):
    before = build(kind)
    after = KINDS[kind].from_arrays(before.arrays(), N, before.config)
    one, other = (r.recommend(SESSIONS, 20, exclude_seen=True) for r in (before, after))
    assert np.array_equal(one.items, other.items)
    assert np.array_equal(one.scores, other.scores)
    assert (before.name, after.name) == (KINDS[kind].__name__,) * 2
