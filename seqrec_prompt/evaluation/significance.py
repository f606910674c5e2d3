"""How sure a number is: bootstrap intervals, paired tests of two recommenders, Holm's correction.

Every test session is judged by every recommender, so recommenders are compared session by session. All that resampling
needs of the sessions is how often each value occurs: a resample of n sessions is one multinomial draw over the distinct
values, n coin flips of one value's sign are one binomial draw. A million sessions cost what a thousand do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln, ndtri, stdtr

from seqrec_prompt.ragged import IntArray, LongArray
from seqrec_prompt.recommenders.base import FloatArray

# A metric of ranks has some dozens of values. Where there are more than these, as for novelty, values in the same 256th
# (for sign flips, which cost most, the same 64th) of their range count as their mean.
CELLS, FLIPPED_CELLS = 256, 64
BLOCK = 4_000_000  # numbers held at a time


def bootstrap_interval(
    values: FloatArray, resamples: int, confidence: float, draw: np.random.Generator
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (Efron, 1979) of the mean of `values` (n,), one a session."""
    distinct, counts = _cells(values)
    drawn = draw.multinomial(len(values), counts / len(values), resamples)
    low, high = np.quantile(drawn @ distinct / len(values), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def coverage_interval(rows: LongArray, items: IntArray, n: int, n_items: int, confidence: float) -> tuple[float, float]:
    """Return an interval of the share of `n_items` items that the lists of n sessions show.

    rows, items: (total,) the session and the item of each place of the lists. A bootstrap would not do: a resample
    leaves out a third of the sessions, so it always covers less. The jackknife's variance of such a count is not too
    small on average (Efron & Stein, 1981): leaving out a session loses the items that it alone shows.
    """
    shown, where, sessions = np.unique(items, return_index=True, return_counts=True)
    alone = np.bincount(rows[where[sessions == 1]], minlength=n)
    error = math.sqrt((n - 1) / n * float(((alone - alone.mean()) ** 2).sum())) / n_items
    value, reach = len(shown) / n_items, float(ndtri((1 + confidence) / 2)) * error
    return max(0.0, value - reach), min(1.0, value + reach)


def randomisation_test(differences: FloatArray, flips: int, draw: np.random.Generator) -> FloatArray:
    """Two-sided p-values (metrics,) of paired differences (n, metrics), by flipping their signs (Fisher, 1935).

    Were two recommenders alike, each session's difference could as well have the other sign. p is the share of sign
    patterns whose sum is as far from 0 as the one seen; of all patterns where these are few, else of `flips` drawn ones
    and the one seen, so it is never 0 (Phipson & Smyth, 2010). A flip turns all metrics of a session.
    """
    observed = np.abs(differences.sum(axis=0))
    differing = differences[np.any(differences != 0, axis=1)]
    if not len(differing):
        return np.ones(differences.shape[1])
    leading = differing[np.arange(len(differing)), (differing != 0).argmax(axis=1)]
    values, counts = _distinct_rows(differing * np.sign(leading)[:, None])
    least = observed - 1e-9 * (1 + np.abs(differing).sum(axis=0))  # sums that are equal but for rounding
    if math.prod((counts + 1).tolist()) <= flips:
        sums, shares = _every_pattern(values, counts)
        exact: FloatArray = np.minimum(1.0, shares @ (np.abs(sums) >= least))
        return exact
    as_far = np.zeros(differences.shape[1])
    block = max(1, BLOCK // len(values))
    for first in range(0, flips, block):
        turned = draw.binomial(counts, 0.5, (min(block, flips - first), len(values)))
        as_far += (np.abs((2 * turned - counts) @ values) >= least).sum(axis=0)
    return np.asarray((1 + as_far) / (1 + flips))


def t_test(differences: FloatArray) -> FloatArray:
    """Two-sided p-values (metrics,) of Student's paired t-test on differences (n, metrics); 1 where all are 0."""
    n = len(differences)
    mean = differences.mean(axis=0)
    error = differences.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.zeros_like(mean)
    p = np.ones(len(mean))
    varies = error > 0
    p[varies] = 2 * stdtr(n - 1, -np.abs(mean[varies] / error[varies]))
    return p


def holm(p: Sequence[float] | FloatArray) -> FloatArray:
    """Adjust the p-values of one family so that those below α may all be called significant at α (Holm, 1979)."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def _cells(values: FloatArray, most: int = CELLS) -> tuple[FloatArray, LongArray]:
    """Distinct values and how often each occurs; many are brought together in cells of equal width."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= most:
        return distinct, counts
    cell = ((values - distinct[0]) * (most / (distinct[-1] - distinct[0]))).astype(np.int64).clip(max=most - 1)
    counts = np.bincount(cell, minlength=most)
    held = counts > 0
    return (np.bincount(cell, values, most)[held] / counts[held]), counts[held]


def _distinct_rows(rows: FloatArray) -> tuple[FloatArray, LongArray]:
    if rows.shape[1] == 1:
        values, counts = _cells(rows[:, 0], FLIPPED_CELLS)
        return values[:, None], counts
    return np.unique(rows, axis=0, return_counts=True)


def _every_pattern(values: FloatArray, counts: LongArray) -> tuple[FloatArray, FloatArray]:
    """Sums (patterns, metrics) of all ways to turn `counts` sessions of each value, and the share of each way."""
    sums, shares = np.zeros((1, values.shape[1])), np.ones(1)
    for value, count in zip(values, counts, strict=True):
        turned = np.arange(count + 1)
        sums = (sums[:, None, :] + (2 * turned - count)[:, None] * value).reshape(-1, values.shape[1])
        ways = gammaln(count + 1) - gammaln(turned + 1) - gammaln(count - turned + 1)
        shares = np.outer(shares, np.exp(ways - count * math.log(2))).ravel()
    return sums, shares
