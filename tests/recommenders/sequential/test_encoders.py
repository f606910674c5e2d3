"""Encoders as they start, before any training."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from seqrec_prompt.recommenders.sequential.embedding import Learned
from seqrec_prompt.recommenders.sequential.encoders import Transformer
from seqrec_prompt.recommenders.sequential.model import SequentialModel
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig

ITEMS, DIM, LENGTH = 200, 32, 5


def nearness_to_the_mean(kind, **settings):
    """Mean cosine of 300 sessions' states and the means of their items' vectors, each at unit length."""
    torch.manual_seed(1)
    matrix = torch.randn(ITEMS, DIM) * 0.1
    model = SequentialModel(kind, SequentialConfig(dim=DIM, **settings), Learned(matrix)).eval()
    inputs = torch.randint(0, ITEMS, (300, LENGTH))
    mean = F.normalize(matrix, dim=1)[inputs].mean(dim=1)
    if kind == "bert4rec":
        inputs = torch.cat([inputs, torch.full((300, 1), ITEMS)], dim=1)
    with torch.no_grad():
        states = model.states(matrix, inputs, torch.full((300,), inputs.shape[1]))[:, -1]
    return float(F.cosine_similarity(states, mean, dim=1).mean())


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec", "gru4rec"])
@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 2), (2, 4)])
def test_sessions_start_near_the_mean_of_their_items_only_if_told(kind, layers, heads):
    random = nearness_to_the_mean(kind, layers=layers, heads=heads)
    average = nearness_to_the_mean(kind, layers=layers, heads=heads, layers_start="average")
    assert average > 0.5
    assert random < 0.5
    assert average > random + 0.3


def test_gru4rec_reads_llm_embeddings_at_the_length_of_a_random_start():
    states = []
    for scale in (1, 8):
        torch.manual_seed(6)
        matrix = torch.randn(ITEMS, DIM) * scale
        config = SequentialConfig(dim=DIM, items={"start": "llm_init", "scale": scale})
        model = SequentialModel("gru4rec", config, Learned(matrix)).eval()
        inputs = torch.arange(20).reshape(4, LENGTH)
        with torch.no_grad():
            states.append(model.states(matrix, inputs, torch.full((4,), LENGTH)))
    assert torch.allclose(states[0], states[1], atol=1e-5)


@pytest.mark.parametrize("attend", [True, False])
def test_hidden_items_are_read_by_others_only_if_told(attend):
    torch.manual_seed(2)
    matrix = torch.randn(ITEMS, DIM)
    config = SequentialConfig(dim=DIM, heads=2, attend_hidden=attend)
    model = SequentialModel("bert4rec", config, Learned(matrix)).eval()
    inputs = torch.randint(0, ITEMS, (40, LENGTH))
    inputs[:, [1, 3]] = ITEMS
    lengths = torch.tensor([LENGTH, LENGTH - 1] * 20)
    shown = (inputs < ITEMS) & (torch.arange(LENGTH) < lengths[:, None])
    before = []
    with torch.no_grad():
        for value in (0.0, 1.0):
            model.mask.fill_(value)
            before.append(model.states(matrix, inputs, lengths))
    # What stands for a hidden item moves the states of others, or not; its own it always moves.
    assert torch.equal(before[0][shown], before[1][shown]) is not attend
    assert not torch.allclose(before[0][:, 1], before[1][:, 1])


def test_slopes_are_taken_from_the_logits_by_distance_head_by_head():
    encoder = Transformer(SequentialConfig(dim=DIM, heads=2, attention_slopes=(0.5, 2)), causal=False)
    hidden = torch.zeros(1, 3, dtype=torch.bool)
    half, two = encoder.mask(torch.tensor([3]), hidden)[0]
    assert half.tolist() == [[0, -0.5, -1], [-0.5, 0, -0.5], [-1, -0.5, 0]]
    assert two.tolist() == [[0, -2, -4], [-2, 0, -2], [-4, -2, 0]]


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("attend", [True, False])
def test_slopes_of_0_change_nothing(kind, attend):
    torch.manual_seed(3)
    matrix = torch.randn(ITEMS, DIM)
    inputs = torch.randint(0, ITEMS, (40, LENGTH))
    lengths = torch.randint(1, LENGTH + 1, (40,))
    if kind == "bert4rec":
        inputs[:, 2] = ITEMS
    states = []
    for slopes in ((), (0, 0)):
        torch.manual_seed(4)
        config = SequentialConfig(dim=DIM, heads=2, attention_slopes=slopes, attend_hidden=attend)
        with torch.no_grad():
            states.append(SequentialModel(kind, config, Learned(matrix)).eval().states(matrix, inputs, lengths))
    real = torch.arange(LENGTH) < lengths[:, None]
    assert torch.allclose(states[0][real], states[1][real], atol=1e-5)


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("slope", [0.0, 1000.0])
def test_steep_slopes_leave_each_item_to_itself(kind, slope):
    torch.manual_seed(5)
    matrix = torch.randn(ITEMS, DIM)
    config = SequentialConfig(dim=DIM, heads=2, attention_slopes=(slope, slope))
    model = SequentialModel(kind, config, Learned(matrix)).eval()
    inputs, lengths = torch.randint(0, ITEMS, (40, LENGTH)), torch.full((40,), LENGTH)
    other = inputs.clone()
    other[:, 0] = (other[:, 0] + 1) % ITEMS
    with torch.no_grad():
        before, after = (model.states(matrix, read, lengths)[:, -1] for read in (inputs, other))
    assert torch.allclose(before, after, atol=1e-6) is (slope > 0)


def test_slopes_are_one_a_head_and_finite():
    with pytest.raises(ValueError, match="1 numbers for 2 'heads'"):
        SequentialConfig(dim=DIM, heads=2, attention_slopes=(0.5,))
    with pytest.raises(ValueError, match="finite"):
        SequentialConfig(dim=DIM, attention_slopes=(float("inf"),))
