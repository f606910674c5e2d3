"""The search against a score of every title by a plain walk, with a scorer of pure arithmetic."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PlainTrie

from seqrec_prompt.decoding.eligible import Filters
from seqrec_prompt.decoding.search import Found, score_catalog, search
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.ragged import TokenLists

END, VOCABULARY = 5, 7
titles = st.lists(st.integers(0, 4), max_size=7).map(lambda body: [*body, END])
small_catalogs = st.lists(titles, min_size=1, max_size=30)
prompt_lists = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=4)
few_or_many = st.integers(1, 6) | st.integers(1, 35)
# From nearly uniform, where best-first must look at much, to peaked as a tuned model is.
sharpness = st.sampled_from([0.1, 1.0, 3.0, 8.0])


def bushy_catalog(seed: int) -> list[list[int]]:
    """Forty titles over few tokens: many branches, and lists of k that must leave most of them out."""
    draw = np.random.default_rng(seed)
    return [[*draw.integers(0, 4, draw.integers(0, 6)).tolist(), END] for _ in range(40)]


catalogs = small_catalogs | st.integers(0, 10**6).map(bushy_catalog)


@dataclass(frozen=True)
class Mode:
    """How titles are scored: which score, and how far each may be liked for its own sake."""

    scoring: str = "renormalised"
    liking: float = 0.0

    def bonus(self, title: list[int]) -> float:
        return self.liking * (zlib.crc32(bytes(title)) % 1000) / 1000


PLAIN = Mode()
modes = st.builds(Mode, st.sampled_from(["renormalised", "joint"]), st.sampled_from([0.0, 0.5, 6.0]))


class Scorer:
    """Next-token log-probs as a fixed random function of the whole prefix; keeps account of what it is asked."""

    def __init__(self, sharp: float) -> None:
        self.sharp = sharp
        self.prefixes: list[tuple[int, tuple[int, ...]]] = []  # of each slot: session, all tokens
        self.rounds: list[set[int]] = []
        self.read: dict[int, int] = {}

    def row(self, prefix: tuple[int, ...]) -> np.ndarray:
        draw = np.random.default_rng(zlib.crc32(bytes(prefix)))
        logits = self.sharp * draw.normal(size=VOCABULARY)
        return logits - np.log(np.exp(logits).sum())

    def prefill(self, prompts, shared=0, *, keep=False):
        assert len({tuple(prompt[:shared].tolist()) for prompt in prompts}) <= 1, "what is shared is the same in all"
        self.prefixes = [(i, tuple(map(int, prompt))) for i, prompt in enumerate(prompts)]
        self.rounds, self.read = [set(range(len(prompts)))], dict.fromkeys(range(len(prompts)), 0)
        return np.arange(len(prompts))

    def extend(self, session, slot, runs):
        going = set(session.tolist())
        assert going <= self.rounds[-1], "a session that was left out came back"
        self.rounds.append(going)
        first = len(self.prefixes)
        for i, (row, parent) in enumerate(zip(session.tolist(), slot.tolist(), strict=True)):
            owner, prefix = self.prefixes[parent]
            assert owner == row, "a run of one session continues another"
            assert len(runs[i]) > 0
            for token in runs[i].tolist():
                prefix = (*prefix, token)
                self.prefixes.append((row, prefix))
            self.read[row] += len(runs[i])
        return np.arange(first, len(self.prefixes))

    def logprobs(self, slot, tokens, *, relative=False):
        rows = [self.row(self.prefixes[s][1])[tokens[i]] for i, s in enumerate(slot.tolist())]
        if relative:  # any number may stand before a list
            rows = [row + sum(self.prefixes[s][1]) % 8 for row, s in zip(rows, slot.tolist(), strict=True)]
        return np.concatenate(rows)


def oracle(scorer: Scorer, catalog: list[list[int]], prompt: list[int], mode: Mode = PLAIN) -> np.ndarray:
    """(items,) scores, each title walked alone."""

    def after(title):
        return lambda n: scorer.row((*prompt, *title[:n]))

    plain = PlainTrie(catalog)
    if mode.scoring == "joint":
        found = [sum(after(title)(n)[token] for n, token in enumerate(title)) for title in catalog]
    else:
        found = [plain.score(title, after(title)) for title in catalog]
    return np.array(found) + [mode.bonus(title) for title in catalog]


def run(scorer, catalog, prompts, k, excluded=None, mode=PLAIN, filters=None, **limits) -> Found:
    trie = compile_trie(TokenLists.of(catalog))
    arrays = [np.array(prompt, np.int32) for prompt in prompts]
    bonus = np.array([mode.bonus(title.tolist()) for title in trie.sequences]) if mode.liking else None
    filters = filters or Filters(deny=None if excluded is None else TokenLists.of(excluded))
    return search(scorer, trie, arrays, k, scoring=mode.scoring, bonus=bonus, filters=filters, **limits)


def lists(found: Found) -> list[tuple[list[int], np.ndarray]]:
    bounds = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return [(found.items[a:b].tolist(), found.scores[a:b]) for a, b in bounds]


def draw_exclusions(data, catalog, prompts) -> list[list[int]]:
    item = st.integers(0, len(catalog) - 1)
    positions = st.lists(item, max_size=4) | st.lists(item, max_size=60)  # with repeats, as in a real session
    return data.draw(st.lists(positions, min_size=len(prompts), max_size=len(prompts)))


def assert_exact(items: list[int], scores: np.ndarray, every: np.ndarray, allowed: list[int], k: int) -> None:
    assert len(items) == min(k, len(allowed))
    assert len(set(items)) == len(items)
    assert set(items) <= set(allowed)
    np.testing.assert_allclose(scores, every[items], atol=1e-9)
    np.testing.assert_allclose(scores, np.sort(every[allowed])[::-1][:k], atol=1e-9)


@settings(max_examples=200, deadline=None)
@given(catalogs, prompt_lists, sharpness, few_or_many, st.integers(1, 50), modes, st.integers(1, 4), st.data())
def test_certified_lists_are_the_exact_top_k_of_what_is_allowed(catalog, prompts, sharp, k, width, mode, stride, data):
    scorer = Scorer(sharp)
    excluded = draw_exclusions(data, catalog, prompts)
    found = run(scorer, catalog, prompts, k, excluded, mode, width=width, stride=stride, budget=10**6)
    assert found.certified.all(), "without a limit every list is proved"
    assert (found.gap <= 0).all()
    for (items, scores), prompt, out in zip(lists(found), prompts, excluded, strict=True):
        allowed = sorted(set(range(len(catalog))) - set(out))
        assert_exact(items, scores, oracle(scorer, catalog, prompt, mode), allowed, k)


@settings(max_examples=200, deadline=None)
@given(catalogs, prompt_lists, sharpness, few_or_many, st.integers(1, 5), st.integers(0, 25), modes, st.data())
def test_a_spent_budget_gives_true_scores_and_a_true_bound(catalog, prompts, sharp, k, width, budget, mode, data):
    scorer = Scorer(sharp)
    excluded = draw_exclusions(data, catalog, prompts)
    found = run(scorer, catalog, prompts, k, excluded, mode, width=width, budget=budget)
    for i, (items, scores) in enumerate(lists(found)):
        every = oracle(scorer, catalog, prompts[i], mode)
        allowed = sorted(set(range(len(catalog))) - set(excluded[i]))
        if found.certified[i]:
            assert_exact(items, scores, every, allowed, k)
            assert found.gap[i] <= 0
            continue
        assert len(set(items)) == len(items)
        assert set(items) <= set(allowed)
        np.testing.assert_allclose(scores, every[items], atol=1e-9)
        assert (np.diff(scores) <= 0).all()
        missed = every[sorted(set(allowed) - set(items))]
        if len(items) < k:
            assert found.gap[i] == math.inf
        else:
            assert found.gap[i] > 0
            assert found.gap[i] >= missed.max() - scores[-1] - 1e-9


@settings(max_examples=100, deadline=None)
@given(catalogs, prompt_lists, sharpness, st.integers(1, 5), st.integers(1, 25), modes)
def test_no_session_reads_more_than_its_budget(catalog, prompts, sharp, width, budget, mode):
    scorer = Scorer(sharp)
    run(scorer, catalog, prompts, 30, mode=mode, width=width, budget=budget)
    assert max(scorer.read.values()) <= budget


@settings(max_examples=100, deadline=None)
@given(catalogs, prompt_lists, sharpness, modes)
def test_counts_are_what_the_engine_was_asked_to_read(catalog, prompts, sharp, mode):
    scorer = Scorer(sharp)
    found = run(scorer, catalog, prompts, 5, mode=mode, width=3)
    assert found.counts.tokens.tolist() == [scorer.read[i] for i in range(len(prompts))]
    expected = [sum(i in going for going in scorer.rounds[1:]) for i in range(len(prompts))]
    assert found.counts.rounds.tolist() == expected


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 4, 50])
def test_forty_branching_titles_give_the_exact_list_without_reading_all(k, width):
    unread = 0
    for seed in range(12):
        scorer, catalog = Scorer(3.0), bushy_catalog(seed)
        found = run(scorer, catalog, [[seed % 7]], k, width=width)
        assert found.certified[0]
        assert_exact(*lists(found)[0], oracle(scorer, catalog, [seed % 7]), list(range(len(catalog))), k)
        trie = compile_trie(TokenLists.of(catalog))
        inner = np.flatnonzero(trie.n_children[1:]) + 1
        unread += int((trie.depth[inner] - trie.depth[trie.parent[inner]]).sum()) - (len(scorer.prefixes) - 1)
    assert unread > 0, "branches that cannot matter are not read"


def test_a_search_cut_off_at_once_is_not_certified():
    catalog = [[a, b, END] for a in range(3) for b in range(3)]
    found = run(Scorer(1.0), catalog, [[1]], 2, budget=0)
    assert not found.certified[0]
    assert found.gap[0] == math.inf
    assert len(found.items) == 0
    assert found.counts.tokens.tolist() == found.counts.rounds.tolist() == [0]


@settings(max_examples=100, deadline=None)
@given(st.lists(titles, min_size=1, max_size=30, unique_by=tuple), prompt_lists, sharpness)
def test_scores_of_all_titles_are_a_distribution(catalog, prompts, sharp):
    found = run(Scorer(sharp), catalog, prompts, len(catalog), budget=10**6)
    for items, scores in lists(found):
        assert sorted(items) == list(range(len(catalog)))
        assert abs(np.exp(scores).sum() - 1) < 1e-9


@settings(max_examples=100, deadline=None)
@given(catalogs, prompt_lists, sharpness, st.data())
def test_excluding_items_leaves_the_scores_of_the_others(catalog, prompts, sharp, data):
    excluded = draw_exclusions(data, catalog, prompts)
    whole = run(Scorer(sharp), catalog, prompts, len(catalog), budget=10**6)
    part = run(Scorer(sharp), catalog, prompts, len(catalog), excluded, budget=10**6)
    for (items, scores), (kept, kept_scores), out in zip(lists(whole), lists(part), excluded, strict=True):
        score_of = dict(zip(items, scores, strict=True))
        assert set(kept) == set(items) - set(out)
        np.testing.assert_allclose(kept_scores, [score_of[item] for item in kept], atol=1e-12)


@pytest.mark.parametrize("budget", [1, 2000])
def test_sessions_that_have_seen_everything_get_an_empty_certified_list(budget):
    catalog = [[0, 1, END], [0, 2, END], [0, 2, END], [3, END]]
    found = run(Scorer(1.0), catalog, [[1], [2]], 3, [[0, 1, 2, 3], [3]], budget=budget)
    assert found.offsets[1] == 0
    assert found.certified[0]
    assert found.counts.tokens[0] == 0
    if budget == 2000:
        assert set(found.items.tolist()) == {0, 1, 2}


def test_duplicates_of_an_excluded_title_stay_and_keep_their_rank():
    catalog = [[0, END], [1, END], [1, END], [1, END]]
    every = run(Scorer(1.0), catalog, [[1]], 4)
    some = run(Scorer(1.0), catalog, [[1]], 4, [[2]])
    assert some.items.tolist() == [item for item in every.items.tolist() if item != 2]


@settings(max_examples=50, deadline=None)
@given(catalogs, prompt_lists, sharpness)
def test_mass_outside_is_what_no_title_begins_with(catalog, prompts, sharp):
    scorer = Scorer(sharp)
    found = run(scorer, catalog, prompts, 3)
    first = sorted({title[0] for title in catalog})
    expected = [1 - np.exp(scorer.row(tuple(prompt))[first]).sum() for prompt in prompts]
    np.testing.assert_allclose(found.outside, expected, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(catalogs, prompt_lists, sharpness, st.integers(1, 10))
def test_a_session_gets_the_same_list_alone_and_in_a_batch(catalog, prompts, sharp, k):
    together = lists(run(Scorer(sharp), catalog, prompts, k))
    for prompt, (items, scores) in zip(prompts, together, strict=True):
        ((alone, alone_scores),) = lists(run(Scorer(sharp), catalog, [prompt], k))
        assert (items, scores.tolist()) == (alone, alone_scores.tolist())


@settings(max_examples=150, deadline=None)
@given(catalogs, prompt_lists, sharpness, few_or_many, modes, st.data())
def test_filters_together_leave_the_exact_top_k_of_the_rest(catalog, prompts, sharp, k, mode, data):
    n, item = len(prompts), st.integers(0, len(catalog) - 1)
    some = st.lists(st.lists(item, max_size=25), min_size=n, max_size=n)
    deny, allow = data.draw(some | st.none()), data.draw(some | st.none())
    limited = data.draw(st.lists(st.booleans(), min_size=n, max_size=n) | st.none())
    stock = data.draw(st.lists(st.booleans(), min_size=len(catalog), max_size=len(catalog)) | st.none())
    filters = Filters(
        *(None if part is None else TokenLists.of(part) for part in (deny, allow)),
        *(None if part is None else np.array(part) for part in (limited, stock)),
    )
    scorer = Scorer(sharp)
    found = run(scorer, catalog, prompts, k, mode=mode, filters=filters, budget=10**6)
    assert found.certified.all()
    for i, (items, scores) in enumerate(lists(found)):
        may = set(range(len(catalog)))
        if stock is not None:
            may = {item for item in may if stock[item]}
        if deny is not None:
            may -= set(deny[i])
        if allow is not None and (limited is None or limited[i]):
            may &= set(allow[i])
        assert_exact(items, scores, oracle(scorer, catalog, prompts[i], mode), sorted(may), k)


@settings(max_examples=60, deadline=None)
@given(catalogs, st.lists(st.integers(0, 6), min_size=1, max_size=3), sharpness, modes, st.integers(1, 40))
def test_the_whole_catalog_is_scored_block_by_block(catalog, prompt, sharp, mode, block):
    scorer, trie = Scorer(sharp), compile_trie(TokenLists.of(catalog))
    found = score_catalog(scorer, trie, np.array(prompt, np.int32), scoring=mode.scoring, block=block)
    expected = oracle(scorer, catalog, prompt, Mode(mode.scoring))
    np.testing.assert_allclose(found[trie.leaf_of], expected, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(catalogs, modes, st.integers(1, 40))
def test_blocks_of_the_catalog_are_as_many_as_what_is_read_of_it_asks_for(catalog, mode, block):
    """Counted are tokens that are read: under renormalised scores none past a title's last decision."""
    reads = []

    class Counted(Scorer):
        def extend(self, session, slot, runs):
            reads[-1] += len(runs.tokens)
            return super().extend(session, slot, runs)

        def prefill(self, prompts, shared=0, *, keep=False):
            reads.append(0)
            return super().prefill(prompts, shared, keep=keep)

    trie, prompt = compile_trie(TokenLists.of(catalog)), np.array([1], np.int32)
    score_catalog(Counted(1.0), trie, prompt, scoring=mode.scoring, block=10**9)
    (whole,) = reads
    reads.clear()
    score_catalog(Counted(1.0), trie, prompt, scoring=mode.scoring, block=block)
    ends = trie.n_leaves if mode.scoring == "joint" else 0  # last tokens of titles are counted, though not read
    assert len(reads) <= (whole + ends) // block + 1
    assert max(reads) <= block + 2 * max(map(len, catalog)), "its own tokens, and the way to the first of them"


def test_complete_lists_come_first_under_joint_scores():
    """Where no title is likely, best first alone would spend its budget on the beginnings of all of them."""
    draw = np.random.default_rng(3)
    catalog = [[*draw.integers(0, 5, 12).tolist(), END] for _ in range(300)]
    found = run(Scorer(0.5), catalog, [[1]], 5, mode=Mode("joint"), width=5, stride=3, budget=250)
    assert not found.certified[0]
    assert len(found.items) == 5
    assert 0 < found.gap[0] < math.inf
