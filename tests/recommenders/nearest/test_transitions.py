"""Weighted transitions against a plain loop written from the formula."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_neighbors import DECAYS, N_ITEMS, item_lists, sessions_of

from seqrec_prompt.recommenders.markov import TransitionCounts
from seqrec_prompt.recommenders.nearest import transitions
from seqrec_prompt.recommenders.nearest.transitions import Transitions
from seqrec_prompt.recommenders.settings import TransitionsConfig

configs = st.builds(
    TransitionsConfig,
    max_items=st.integers(1, 6),
    decay=st.sampled_from(list(DECAYS)),
    backwards=st.sampled_from([0, 0.5, 2]),
)


def oracle(train, prompt, k, exclude_seen, config):
    """[(item, score)], best first."""
    pairs = [pair for session in train for pair in pairwise(session)]

    def share(item, beside, forwards):
        near = [b if forwards else a for a, b in pairs if (a if forwards else b) == beside]
        return near.count(item) / len(near) if near else 0.0

    known = prompt[-config.max_items :]
    place = {item: i for i, item in reversed(list(enumerate(reversed(known), 1)))}
    scores = {
        item: sum(
            DECAYS[config.decay](i, len(known))
            * (share(item, other, True) + config.backwards * share(item, other, False))
            for other, i in place.items()
        )
        for item in range(N_ITEMS)
    }
    given = [(item, score) for item, score in scores.items() if score and not (exclude_seen and item in prompt)]
    return sorted(given, key=lambda pair: (-np.float32(pair[1]), pair[0]))[:k]


@given(item_lists, item_lists, st.integers(1, 9), st.booleans(), configs)
@settings(deadline=None)
def test_it_is_the_plain_loop(train, prompts, k, exclude_seen, config):
    fitted = Transitions.fit(sessions_of(train), N_ITEMS, config)
    found = fitted.recommend(sessions_of(prompts), k, exclude_seen=exclude_seen)
    again = Transitions.from_arrays(fitted.arrays(), N_ITEMS, config)
    repeated = again.recommend(sessions_of(prompts), k, exclude_seen=exclude_seen)
    assert len(found) == len(prompts)
    for i, prompt in enumerate(prompts):
        expected = oracle(train, prompt, k, exclude_seen, config)
        part = slice(found.offsets[i], found.offsets[i + 1])
        # Sums of shares in another order may swap what is equal but for rounding: scores decide.
        assert found.scores[part] == pytest.approx([score for _, score in expected], rel=1e-6)
        scores = dict(oracle(train, prompt, N_ITEMS, exclude_seen, config))
        assert found.scores[part] == pytest.approx([scores[item] for item in found[i].tolist()], rel=1e-6)
        assert len(set(found[i].tolist())) == len(found[i])
    assert np.array_equal(repeated.items, found.items)
    assert np.array_equal(repeated.scores, found.scores)


def test_the_last_item_alone_and_forwards_is_the_first_order_markov_chain():
    draw = np.random.default_rng(0)
    train = sessions_of([draw.integers(N_ITEMS, size=n).tolist() for n in draw.integers(1, 9, size=40)])
    prompts = sessions_of([draw.integers(N_ITEMS, size=n).tolist() for n in draw.integers(1, 9, size=40)])
    chain = Transitions.fit(train, N_ITEMS, TransitionsConfig(max_items=1, backwards=0))
    counted = TransitionCounts.fit(train, N_ITEMS)
    ours, theirs = (one.recommend(prompts, 3, exclude_seen=False) for one in (chain, counted))
    assert np.diff(ours.offsets).min() == 3  # so that nothing popular fills the lists of counts
    assert np.array_equal(ours.items, theirs.items)


def test_blocks_change_nothing(monkeypatch):
    draw = np.random.default_rng(1)
    lists = [draw.integers(N_ITEMS, size=n).tolist() for n in draw.integers(0, 9, size=25)]
    fitted = Transitions.fit(sessions_of(lists), N_ITEMS)
    whole = fitted.recommend(sessions_of(lists), 5, exclude_seen=True)
    monkeypatch.setattr(transitions, "BLOCK", 4)
    parts = fitted.recommend(sessions_of(lists), 5, exclude_seen=True)
    assert np.array_equal(parts.items, whole.items)
    assert np.array_equal(parts.offsets, whole.offsets)
