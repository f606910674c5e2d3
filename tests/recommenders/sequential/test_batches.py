"""Batches against loops over lists."""

import numpy as np
import pytest

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.recommenders.sequential.batches import by_length, masked_items, next_items, orders, padded, shortened

DRAW = np.random.default_rng(3)
LISTS = [DRAW.integers(1, 40, size=n).tolist() for n in DRAW.integers(2, 30, 500)]
SESSIONS = Sessions.build([str(i) for i in range(len(LISTS))], LISTS)
MASK = 40


@pytest.mark.parametrize(("n", "size"), [(500, 64), (500, 500), (500, 1), (3, 64), (65, 64)])
def test_every_session_is_in_one_batch_and_batches_are_of_a_size(n, size):
    found = orders(SESSIONS.lengths[:n], size, np.random.default_rng(0))
    sizes = [len(batch) for batch in found]
    assert sorted(np.concatenate(found).tolist()) == list(range(n))
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-n // size)


def test_batches_are_mixed_anew_but_alike_for_a_seed():
    one, same, other = (orders(SESSIONS.lengths, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(set(a) == set(b) for a, b in zip(one, other, strict=True))


def test_little_is_padded():
    found = orders(SESSIONS.lengths, 20, np.random.default_rng(0))
    cells = sum(len(batch) * SESSIONS.lengths[batch].max() for batch in found)
    assert cells < 1.1 * SESSIONS.lengths.sum()


def test_padding_is_on_the_right():
    grid = padded(SESSIONS, 2)
    assert [row[: len(items)].tolist() for row, items in zip(grid, LISTS, strict=True)] == LISTS
    assert all(not row[len(items) :].any() for row, items in zip(grid, LISTS, strict=True))
    assert grid.shape[1] == SESSIONS.lengths.max() + 2
    assert padded(SESSIONS.take(np.arange(0))).shape == (0, 0)


def test_every_next_item_is_told_once_from_those_before_it():
    batch = next_items(SESSIONS)
    rows, places = np.divmod(batch.asked, batch.inputs.shape[1])
    found = [
        (row, batch.inputs[row, : place + 1].tolist(), target)
        for row, place, target in zip(rows, places, batch.targets.tolist(), strict=True)
    ]
    right = [(row, items[:i], items[i]) for row, items in enumerate(LISTS) for i in range(1, len(items))]
    assert found == right
    assert batch.lengths.tolist() == [len(items) - 1 for items in LISTS]


def test_hidden_items_are_told_and_the_others_shown():
    last = np.arange(len(LISTS)) % 5 == 0
    batch = masked_items(SESSIONS, MASK, 0.3, last, np.random.default_rng(0))
    width = batch.inputs.shape[1]
    rows, places = np.divmod(batch.asked, width)
    told = dict(zip(zip(rows.tolist(), places.tolist(), strict=True), batch.targets.tolist(), strict=True))
    for row, items in enumerate(LISTS):
        for place, item in enumerate(items):
            assert told.get((row, place), item) == item
            assert batch.inputs[row, place] == (MASK if (row, place) in told else item)
        assert not batch.inputs[row, len(items) :].any()
        if last[row]:
            assert np.flatnonzero(batch.inputs[row, : len(items)] == MASK).tolist() == [len(items) - 1]
    assert set(rows.tolist()) == set(range(len(LISTS))), "each session tells something"
    assert len(told) / SESSIONS.lengths.sum() == pytest.approx(0.3 * 0.8, abs=0.04)


def test_shares_of_masks_at_their_ends():
    none, every = np.zeros(len(LISTS), np.bool_), np.ones(len(LISTS), np.bool_)
    last = masked_items(SESSIONS, MASK, 0.9, every, np.random.default_rng(0))
    assert last.targets.tolist() == [items[-1] for items in LISTS]
    all_random = masked_items(SESSIONS, MASK, 0.9, none, np.random.default_rng(0))
    assert len(all_random.asked) / SESSIONS.lengths.sum() == pytest.approx(0.9, abs=0.02)


def test_a_share_of_sessions_ends_with_any_item_but_the_first():
    draw, few = np.random.default_rng(0), SESSIONS.take(np.arange(20))
    ends: list[set[int]] = [set() for _ in range(20)]
    shares = []
    for _ in range(2000):
        cut, drawn = shortened(few, 0.7, draw)
        shares.append(drawn.mean())
        for row, items in enumerate(LISTS[:20]):
            kept = cut[row].tolist()
            assert kept == items[: len(kept)]
            assert drawn[row] or kept == items
            if drawn[row]:
                ends[row].add(len(kept))
    assert np.mean(shares) == pytest.approx(0.7, abs=0.01)
    assert ends == [set(range(2, len(items) + 1)) for items in LISTS[:20]]


def test_sessions_of_like_length_are_read_together():
    blocks = list(by_length(SESSIONS, 64))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(500))
    lengths = np.concatenate([SESSIONS.lengths[block] for block in blocks])
    assert (np.diff(lengths) >= 0).all()
