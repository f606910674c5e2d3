"""MostPopular, LastItemRepeat and TransitionCounts against plain loops."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.recommenders import popularity
from seqrec_prompt.recommenders.base import Recommendations, Recommender
from seqrec_prompt.recommenders.markov import TransitionCounts
from seqrec_prompt.recommenders.popularity import LastItemRepeat, MostPopular

N_ITEMS = 7
item_lists = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=9), max_size=12)


def sessions_of(lists: list[list[int]]) -> Sessions:
    return Sessions.build([f"s{i}" for i in range(len(lists))], lists)


def as_lists(lists: Recommendations) -> list[list[int]]:
    return [items.tolist() for items in lists]


def popular_order(train: list[list[int]]) -> list[int]:
    counts = Counter(item for session in train for item in session)
    return sorted(range(N_ITEMS), key=lambda item: (-counts[item], item))


def naive_popular(train: list[list[int]], prompt: list[int], k: int, exclude_seen: bool) -> list[int]:
    return [item for item in popular_order(train) if not (exclude_seen and item in prompt)][:k]


def naive_transitions(train: list[list[int]], prompt: list[int], k: int, exclude_seen: bool) -> list[int]:
    followers = Counter(b for session in train for a, b in pairwise(session) if prompt and a == prompt[-1])
    ranked = sorted(followers, key=lambda item: (-followers[item], item))
    ranked += [item for item in popular_order(train) if item not in ranked]
    return [item for item in ranked if not (exclude_seen and item in prompt)][:k]


@given(item_lists, item_lists, st.integers(1, 9), st.booleans())
def test_most_popular_is_the_plain_loop(train, prompts, k, exclude_seen):
    found = MostPopular.fit(sessions_of(train), N_ITEMS).recommend(sessions_of(prompts), k, exclude_seen=exclude_seen)
    assert as_lists(found) == [naive_popular(train, prompt, k, exclude_seen) for prompt in prompts]


@given(item_lists, item_lists, st.integers(1, 9), st.booleans())
def test_transition_counts_is_the_plain_loop(train, prompts, k, exclude_seen):
    fitted = TransitionCounts.fit(sessions_of(train), N_ITEMS)
    found = fitted.recommend(sessions_of(prompts), k, exclude_seen=exclude_seen)
    assert as_lists(found) == [naive_transitions(train, prompt, k, exclude_seen) for prompt in prompts]


@given(item_lists, st.integers(1, 9), st.booleans())
def test_last_item_repeat_is_the_plain_loop(prompts, k, exclude_seen):
    fitted = LastItemRepeat.fit(sessions_of([]), N_ITEMS)
    found = fitted.recommend(sessions_of(prompts), k, exclude_seen=exclude_seen)
    assert as_lists(found) == [list(dict.fromkeys(reversed(prompt)))[:k] for prompt in prompts]


@pytest.mark.parametrize("kind", [MostPopular, TransitionCounts, LastItemRepeat])
@given(train=item_lists, prompts=item_lists)
def test_scores_never_increase_and_lists_are_certified(kind, train, prompts):
    recommender: Recommender = kind.fit(sessions_of(train), N_ITEMS)
    found = recommender.recommend(sessions_of(prompts), 5, exclude_seen=False)
    assert found.session_ids.tolist() == [f"s{i}" for i in range(len(prompts))]
    assert found.certified.all()
    for start, stop in pairwise(found.offsets):
        assert (np.diff(found.scores[start:stop]) <= 0).all()


@pytest.mark.parametrize("kind", [MostPopular, TransitionCounts])
def test_blocks_make_no_difference(kind, monkeypatch):
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, N_ITEMS, rng.integers(0, 9)).tolist() for _ in range(40)]
    fitted = kind.fit(sessions_of(lists), N_ITEMS)
    whole = fitted.recommend(sessions_of(lists), 4, exclude_seen=True)
    monkeypatch.setattr(popularity, "BLOCK", 7)
    cut = fitted.recommend(sessions_of(lists), 4, exclude_seen=True)
    assert as_lists(cut) == as_lists(whole)
    assert cut.session_ids.tolist() == whole.session_ids.tolist()


def test_scores_are_the_counts():
    # Items 0 and 1 occur three times each, 2 twice, 3 never. After 0 came 1 twice and 2 once.
    train = sessions_of([[0, 1], [0, 1, 2], [0, 2, 1]])
    prompt = sessions_of([[1, 0]])
    popular = MostPopular.fit(train, 4).recommend(prompt, 4, exclude_seen=False)
    assert (popular[0].tolist(), popular.scores.tolist()) == ([0, 1, 2, 3], [3, 3, 2, 0])
    chain = TransitionCounts.fit(train, 4).recommend(prompt, 4, exclude_seen=False)
    # Successors by count, then popular items by their share of the 8 train interactions.
    assert (chain[0].tolist(), chain.scores.tolist()) == ([1, 2, 0, 3], [2, 1, 3 / 8, 0])
    repeat = LastItemRepeat.fit(train, 4).recommend(sessions_of([[2, 0, 2, 1]]), 4, exclude_seen=True)
    assert (repeat[0].tolist(), repeat.scores.tolist()) == ([1, 2, 0], [4, 3, 2])


def test_pairs_do_not_cross_the_border_of_sessions():
    chain = TransitionCounts.fit(sessions_of([[0, 1], [2, 3]]), 4)
    assert chain.offsets.tolist() == [0, 1, 1, 2, 2]
    assert chain.successors.tolist() == [1, 3]
