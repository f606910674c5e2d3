"""Six metrics of ranked lists with one target a session, as in Harte et al. (RecSys'23) and the authors' public code.

At cut-off k, with r the rank of the target in the first k places of the list (from 1):

  NDCG          1 / log2(r + 1), 0 on a miss; the ideal list has the target first, so nothing is left to divide by
  hit rate      1 on a hit, else 0
  MRR           1 / r, 0 on a miss
  coverage      distinct items in the first k places of all lists / catalog size
  serendipity   1 on a hit of a target that is not among the k most popular items, else 0 (Ge et al., 2010)
  novelty       mean over the list's first k places of -log2(count(item) / all counts), in bits (Zhou et al., 2010)

All but coverage are means over every session. The authors divide serendipity's sum by min(unexpected targets, list
length); with one target that is 1, or 0 where the numerator is 0 too. An item that was never counted adds 0 to the sum
of novelty, and still one place to its denominator; so does a place lost to something that is no item. An empty list
scores 0 everywhere. A list shorter than k is judged as it is: novelty is the mean over the places it has.

What is counted changes novelty and serendipity. The published tables count every interaction, those of test sessions
too: MostPopular on Beauty (ranked by train counts, seen items kept) then has coverage .001/.002, novelty 9.187/9.408
and, in file order, serendipity .001/.001 at 10/20, digit for digit as printed. With train counts alone novelty is
.230/.204 lower and MostPopular's serendipity is 0 by definition. Leaving out seen items gives novelty 9.189/9.414.
The published accuracy (NDCG .005/.006, hit rate .010/.018, MRR .003/.003) depends on the order of same-day purchases,
which was not published: file order gives .0038/.0048, .0081/.0121, .0026/.0028; 100 random orders give means of
.0049/.0065, .0101/.0163, .0034/.0038 and ranges of .0036–.0062/.0052–.0080, .0083–.0121/.0136–.0195,
.0022–.0045/.0026–.0050, so every printed figure lies within.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.sessions import Split
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray, places
from seqrec_prompt.recommenders.base import FloatArray, Recommendations

METRICS = ("ndcg", "hr", "mrr", "coverage", "serendipity", "novelty")


@dataclass(frozen=True, eq=False)
class ListMetrics:
    """What `evaluate_lists` found.

    ranks: (n,) rank of the target from 1, 0 where it is not within the largest cut-off. lengths: (n,) items of each
    list within the largest cut-off. per_session: cut-off → metric → (n,); coverage is no property of one session and
    is not in it. means: cut-off → metric → value, all six.
    """

    ranks: IntArray
    lengths: IntArray
    per_session: dict[int, dict[str, FloatArray]]
    means: dict[int, dict[str, float]]


def evaluate_lists(
    lists: Recommendations,
    targets: IntArray,
    popularity: npt.NDArray[np.int64],
    n_items: int,
    cutoffs: Sequence[int] = (10, 20),
    interactions: int | None = None,
) -> ListMetrics:
    """Compute all six metrics at every cut-off; the formulas are in the module's docstring.

    lists: n lists of distinct items; n_items itself stands for a place lost to something else. targets: (n,) catalog
    positions, in the same order. popularity: (items,) how often each item was counted, train sessions as a rule.
    n_items: size of the catalog. interactions: "all counts" in the
    formula of novelty, where `popularity` does not sum to it. Raises DataError without sessions.
    """
    n = len(lists)
    if n == 0:
        raise DataError(["there are no sessions to evaluate"], "Give recommendations for at least one session.")
    deepest = max(cutoffs)
    all_lengths = np.diff(lists.offsets)
    rows = np.repeat(np.arange(n), all_lengths)
    place = places(all_lengths)  # (total,) from 0
    items = lists.items
    if all_lengths.max() > deepest:
        shown = place < deepest
        rows, place, items = rows[shown], place[shown], items[shown]
    lengths = np.minimum(all_lengths, deepest).astype(np.int32)

    ranks = np.zeros(n, np.int32)
    hits = np.flatnonzero(items == targets[rows])
    ranks[rows[hits]] = place[hits] + 1

    bits = self_information(popularity, int(popularity.sum()) if interactions is None else interactions)
    bits = np.append(bits, 0.0)  # of a lost place
    by_popularity = np.argsort(-popularity, kind="stable")[: np.count_nonzero(popularity)]
    per_session: dict[int, dict[str, FloatArray]] = {}
    means: dict[int, dict[str, float]] = {}
    for k in cutoffs:
        inside = slice(None) if k == deepest else place < k
        hit = (ranks > 0) & (ranks <= k)
        safe = np.maximum(ranks, 1)
        expected = np.zeros(n_items, np.bool_)
        expected[by_popularity[:k]] = True
        covered = np.zeros(n_items + 1, np.bool_)
        covered[items[inside]] = True
        total_bits = np.bincount(rows[inside], weights=bits[items[inside]], minlength=n)
        per_session[k] = {
            "ndcg": hit / np.log2(safe + 1.0),
            "hr": hit.astype(np.float64),
            "mrr": hit / safe.astype(np.float64),
            "serendipity": (hit & ~expected[targets]).astype(np.float64),
            "novelty": total_bits / np.clip(lengths, 1, k),
        }
        values = {name: float(value.mean()) for name, value in per_session[k].items()}
        values["coverage"] = float(covered[:n_items].sum() / n_items)
        means[k] = {name: values[name] for name in METRICS}
    return ListMetrics(ranks, lengths, per_session, means)


def self_information(popularity: npt.NDArray[np.int64], interactions: int) -> FloatArray:
    """Return -log2(count / interactions) of each item in bits, (items,); 0 for an item that was never counted."""
    bits = np.zeros(len(popularity))
    counted = popularity > 0
    bits[counted] = -np.log2(popularity[counted] / interactions)
    return bits


def count_everything(split: Split, n_items: int) -> npt.NDArray[np.int64]:
    """Count the items of all parts of a split, (items,), targets included, every session once.

    Where a session is in several parts, as in leave-one-out, the later part holds the earlier and alone counts.
    """
    counts = np.zeros(n_items, np.int64)
    counted: set[str] = set()
    for part in (split.test, split.validation):
        if part is not None:
            fresh = np.array([i not in counted for i in part.prompts.ids], np.bool_)
            counts += np.bincount(part.targets[fresh], minlength=n_items)
            counts += np.bincount(part.prompts.take(fresh).items, minlength=n_items)
            counted.update(part.prompts.ids)
    fresh = np.array([i not in counted for i in split.train.ids], np.bool_)
    return counts + np.bincount(split.train.take(fresh).items, minlength=n_items)
