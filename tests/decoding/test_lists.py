"""Lists title after title, against a greedy choice among the scores of all titles, each walked alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import Mode, Scorer, catalogs, oracle, prompt_lists, sharpness

from seqrec_prompt.decoding.eligible import Eligible, Filters, one_of_each_title
from seqrec_prompt.decoding.lists import decode_lists
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.ragged import TokenLists

PLENTY = 10**6


class ListScorer(Scorer):
    """Remembers all sessions when it is asked to: they may be left out and come back."""

    def prefill(self, prompts, shared=0, *, keep=False):
        assert keep
        return super().prefill(prompts, shared)

    def extend(self, session, slot, runs):
        self.rounds = [set(range(len(self.read)))]
        return super().extend(session, slot, runs)


def greedy(scorer, catalog, prompt, k, length, admitted, mode, room=PLENTY):
    """Items and scores of one list, by brute force."""
    longest = max(map(len, catalog))
    items, scores, listed, total = [], [], [], 0.0
    while len(items) < k:
        left = [item for item in range(len(catalog)) if item in admitted and item not in items]
        step = oracle(scorer, catalog, [*prompt, *listed], mode)
        ranked = sorted(left, key=lambda item: (-step[item], catalog[item], item))
        if len(items) == length - 1 or room - len(listed) < 2 * longest:
            ranked = ranked[: k - len(items)]
            return items + ranked, scores + [total + step[item] for item in ranked]
        if not ranked:
            break
        total += step[ranked[0]]
        items.append(ranked[0])
        scores.append(total)
        listed += catalog[ranked[0]]
    return items, scores


@st.composite
def cases(draw):
    catalog, prompts = draw(catalogs), draw(prompt_lists)
    some = st.lists(st.integers(0, len(catalog) - 1), max_size=8)
    per_session = st.lists(some, min_size=len(prompts), max_size=len(prompts))
    deny, allow = draw(st.none() | per_session), draw(st.none() | per_session)
    limited = draw(st.none() | st.lists(st.booleans(), min_size=len(prompts), max_size=len(prompts)))
    return catalog, prompts, deny, allow, limited


@given(case=cases(), k=st.integers(1, 9), length=st.integers(1, 9), sharp=sharpness, joint=st.booleans())
@settings(max_examples=120, deadline=None)
def test_each_title_is_the_best_of_those_left_after_the_list_so_far(case, k, length, sharp, joint):
    catalog, prompts, deny, allow, limited = case
    mode, scorer, trie = (
        Mode("joint" if joint else "renormalised"),
        ListScorer(sharp),
        compile_trie(TokenLists.of(catalog)),
    )
    filters = Filters(
        None if deny is None else TokenLists.of(deny),
        None if allow is None else TokenLists.of(allow),
        None if limited is None else np.array(limited),
    )
    found = decode_lists(
        scorer, trie, [np.array(p, np.int32) for p in prompts], k,
        length=length, context=PLENTY, filters=filters, scoring=mode.scoring, budget=PLENTY,
    )  # fmt: skip
    assert found.certified.all()
    assert (found.gap <= 0).all()
    for i, prompt in enumerate(prompts):
        admitted = set(range(len(catalog))) - set(deny[i] if deny else ())
        if allow is not None and (limited is None or limited[i]):
            admitted &= set(allow[i])
        items, scores = greedy(scorer, catalog, prompt, k, length, admitted, mode)
        part = slice(found.offsets[i], found.offsets[i + 1])
        assert found.scores[part] == pytest.approx(scores)
        assert found.items[part].tolist() == items
        assert (np.diff(found.scores[part]) <= 1e-12).all()
    assert (found.counts.tokens == [scorer.read[i] for i in range(len(prompts))]).all()


@given(prompts=prompt_lists, context=st.integers(14, 60), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_where_the_room_ends_the_rest_is_ranked_at_once(prompts, context, seed):
    draw = np.random.default_rng(seed)
    catalog = [[*draw.integers(0, 4, draw.integers(0, 6)).tolist(), 5] for _ in range(12)]
    scorer = ListScorer(1.0)
    found = decode_lists(
        scorer, compile_trie(TokenLists.of(catalog)), [np.array(p, np.int32) for p in prompts], 10,
        length=10, context=context, budget=PLENTY,
    )  # fmt: skip
    for i, prompt in enumerate(prompts):
        items, scores = greedy(scorer, catalog, prompt, 10, 10, set(range(12)), Mode(), context - len(prompt))
        part = slice(found.offsets[i], found.offsets[i + 1])
        assert found.items[part].tolist() == items
        assert found.scores[part] == pytest.approx(scores)
    assert all(len(prefix) < context for _, prefix in scorer.prefixes)


def test_a_spent_budget_leaves_a_list_uncertified():
    catalog = [[a, b, c, d, 5] for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
    found = decode_lists(
        ListScorer(0.1), compile_trie(TokenLists.of(catalog)), [np.array([1], np.int32)], 3,
        length=3, context=PLENTY, budget=1,
    )  # fmt: skip
    assert found.items.size == 0
    assert not found.certified[0]
    assert found.gap[0] == np.inf


@given(case=cases(), stock=st.none() | st.integers(0, 2**12 - 1), order=st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_of_items_with_one_title_a_session_is_given_the_first_that_it_may_have(case, stock, order):
    catalog, prompts, deny, allow, limited = case
    popularity = order.choices(range(5), k=len(catalog))
    trie = compile_trie(TokenLists.of(catalog), np.array(popularity))
    had = None if stock is None else [bool(stock >> (item % 12) & 1) for item in range(len(catalog))]
    filters = Filters(
        None if deny is None else TokenLists.of(deny),
        None if allow is None else TokenLists.of(allow),
        None if limited is None else np.array(limited),
        None if had is None else np.array(had),
    )
    found = Eligible(trie, len(prompts), one_of_each_title(trie, len(prompts), filters))
    for i in range(len(prompts)):
        able = [
            item
            for item in range(len(catalog))
            if (had is None or had[item])
            and not (deny and item in deny[i])
            and (allow is None or not (limited is None or limited[i]) or item in allow[i])
        ]
        best = {}
        for item in sorted(able, key=lambda item: (-popularity[item], item)):
            best.setdefault(tuple(catalog[item]), item)
        every = np.arange(len(catalog), dtype=np.int32)
        given_to = np.flatnonzero(found.items(np.full(len(catalog), i), every))
        assert given_to.tolist() == sorted(best.values())
