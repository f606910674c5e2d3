"""Intervals and tests: against scipy, against every sign pattern and every resample, and for the promises they make."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seqrec_prompt.evaluation.significance import (
    CELLS,
    bootstrap_interval,
    coverage_interval,
    holm,
    randomisation_test,
    t_test,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ranks_to_gain(ranks: np.ndarray) -> np.ndarray:
    return np.where(ranks > 0, 1 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)


def every_sign_pattern(differences: np.ndarray) -> np.ndarray:
    """p-values by writing down all 2^n patterns, a session's metrics turned together."""
    patterns = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    sums = np.abs(patterns @ differences)
    return (sums >= np.abs(differences.sum(axis=0)) - 1e-12).mean(axis=0)


@given(st.data())
@settings(max_examples=60)
def test_of_few_sessions_every_sign_pattern_is_counted(data):
    n = data.draw(st.integers(1, 9))
    values = st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, 1 / math.log2(3), -1 / math.log2(3)])
    rows = data.draw(st.lists(st.tuples(values, values), min_size=n, max_size=n))
    differences = np.array(rows)
    found = randomisation_test(differences, 10_000, rng())
    assert found == pytest.approx(every_sign_pattern(differences), abs=1e-12)


def test_hits_against_hits_is_the_exact_sign_test():
    # 300 sessions that only the first hits, 250 that only the second hits: binomial, without drawing anything.
    differences = np.concatenate([np.ones(300), -np.ones(250), np.zeros(10_000)])[:, None]
    expected = stats.binomtest(300, 550, 0.5).pvalue
    assert randomisation_test(differences, 10_000, rng()) == pytest.approx([expected], abs=1e-12)


def test_drawn_patterns_agree_with_scipys_permutation_test():
    gains = ranks_to_gain(rng(1).integers(0, 21, (400, 2)))
    gains[:, 0] += ranks_to_gain(rng(2).integers(0, 8, 400)) / 12
    differences = gains[:, :1] - gains[:, 1:]
    theirs = stats.permutation_test(
        (gains[:, 0], gains[:, 1]),
        lambda a, b: (a - b).mean(),
        permutation_type="samples",
        n_resamples=4000,
        rng=rng(3),
    ).pvalue
    ours = randomisation_test(differences, 20_000, rng())[0]
    assert 0.01 < ours < 0.5  # a value where agreement means something
    # Both are drawn: four standard errors of the rarer drawing.
    assert ours == pytest.approx(theirs, abs=4 * math.sqrt(ours * (1 - ours) / 4000))


def test_values_in_cells_give_the_p_of_the_values_themselves():
    differences = rng(4).normal(0.08, 1, 800)  # all distinct, far more than there are cells
    assert len(np.unique(differences)) > CELLS
    signs = rng(6).choice([-1.0, 1.0], (20_000, 800))
    plain = (np.abs(signs @ differences) >= abs(differences.sum())).mean()
    assert randomisation_test(differences[:, None], 20_000, rng())[0] == pytest.approx(plain, abs=0.01)


def test_alike_recommenders_are_called_different_as_often_as_promised():
    below = 0
    for seed in range(400):
        ranks = rng(seed).integers(0, 30, (60, 2))
        gains = ranks_to_gain(np.where(ranks > 20, 0, ranks))
        below += int(randomisation_test(gains[:, :1] - gains[:, 1:], 500, rng(seed))[0] < 0.1)
    assert below / 400 == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / 400))


def test_nothing_differs():
    same = np.zeros((5, 2))
    assert randomisation_test(same, 100, rng()).tolist() == [1, 1]
    assert t_test(same).tolist() == [1, 1]


def test_a_drawn_p_is_never_0():
    assert randomisation_test(np.ones((200, 1)) + rng().normal(0, 0.01, (200, 1)), 999, rng())[0] == 1 / 1000


def test_t_test_is_scipys():
    one, other = rng(1).normal(size=(2, 50, 3))
    expected = stats.ttest_rel(one, other).pvalue
    assert t_test(one - other) == pytest.approx(expected, abs=1e-12)


def test_one_session_proves_nothing():
    one = np.array([[0.5]])
    assert t_test(one).tolist() == [1]
    assert randomisation_test(one, 100, rng()).tolist() == [1]


def test_holm_worked_by_hand():
    # Ascending .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04; none below the one before: .04 .06 .06 .06.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1, 1]
    assert holm([]).tolist() == []


def test_interval_of_three_sessions_is_that_of_all_27_resamples():
    values = np.array([0.0, 1.0, 0.5])
    resamples = [np.mean(values[list(one)]) for one in itertools.product(range(3), repeat=3)]
    expected = np.quantile(resamples, [0.1, 0.9])
    assert bootstrap_interval(values, 200_000, 0.8, rng()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["gains", "continuous"])
def test_interval_is_scipys_percentile_bootstrap(kind):
    draw = rng(7)
    values = ranks_to_gain(draw.integers(0, 21, 900)) if kind == "gains" else draw.gamma(2.0, 3.0, 900)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=rng(8)).confidence_interval
    ours = bootstrap_interval(values, 20_000, 0.95, rng())
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


def test_coverage_interval_holds_what_other_sessions_of_the_kind_show():
    """Lists of the same recommender for other sessions: the interval holds their expected coverage, 95% or more."""
    n, n_items, k = 150, 400, 5
    weights = 1 / np.arange(1, n_items + 1)

    def lists(seed: int) -> np.ndarray:
        return rng(seed).choice(n_items, (n, k), p=weights / weights.sum())

    expected = np.mean([len(np.unique(lists(seed))) / n_items for seed in range(1000, 1400)])
    rows = np.repeat(np.arange(n), k)
    held = widths = 0.0
    for seed in range(200):
        low, high = coverage_interval(rows, lists(seed).ravel().astype(np.int32), n, n_items, 0.95)
        held += low <= expected <= high
        widths += high - low
    assert held / 200 >= 0.93
    assert widths / 200 < 0.2 * expected


def test_coverage_interval_is_the_jackknife_done_plainly():
    draw = rng(3)
    lists = [np.unique(draw.integers(0, 30, draw.integers(0, 6))) for _ in range(12)]
    rows = np.repeat(np.arange(12), [len(items) for items in lists])
    items = np.concatenate(lists).astype(np.int32)
    left_out = np.array([len(np.unique(items[rows != i])) / 30 for i in range(12)])
    error = math.sqrt(11 / 12 * ((left_out - left_out.mean()) ** 2).sum())
    value = len(np.unique(items)) / 30
    reach = stats.norm.ppf(0.95) * error
    found = coverage_interval(rows, items, 12, 30, 0.9)
    assert found == pytest.approx((max(0, value - reach), min(1, value + reach)), abs=1e-12)
