"""The six metrics: worked by hand, against ranx, against a plain reimplementation, against the published row."""

import csv
import gzip
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.errors import DataError
from seqrec_prompt.evaluation.metrics import METRICS, count_everything, evaluate_lists
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.popularity import MostPopular

BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "beauty_2014_5core"


def lists_of(lists: list[list[int]]) -> Recommendations:
    ids = np.array([f"s{i}" for i in range(len(lists))], dtype=object)
    scores = [np.arange(len(items), 0, -1, dtype=float) for items in lists]
    return Recommendations.build(ids, [np.array(items, np.int32) for items in lists], scores)


def test_worked_by_hand():
    # Counts 8 4 2 2 0 of 16: self-information 1, 2, 3, 3 bits, and 0 for the uncounted item 4.
    popularity = np.array([8, 4, 2, 2, 0])
    lists = lists_of([[2, 0, 1], [0, 1], [], [4, 3]])
    targets = np.array([1, 1, 0, 3], np.int32)
    found = evaluate_lists(lists, targets, popularity, 5, (1, 3))
    assert found.ranks.tolist() == [3, 2, 0, 2]
    assert found.lengths.tolist() == [3, 2, 0, 2]
    # @1: the first places are 2, 0, none, 4; no target is there. Novelty of the lists: 3, 1, 0, 0.
    assert found.means[1] == {"ndcg": 0, "hr": 0, "mrr": 0, "coverage": 3 / 5, "serendipity": 0, "novelty": 1}
    # @3: ranks 3, 2, miss, 2. The 3 most popular are 0, 1 and 2 (before 3: catalog order), so only the last hit,
    # on item 3, is serendipitous. Novelty: (3+1+2)/3, (1+2)/2, 0, (0+3)/2.
    second = 1 / math.log2(3)
    assert found.means[3] == pytest.approx(
        {
            "ndcg": (1 / 2 + second + 0 + second) / 4,
            "hr": 3 / 4,
            "mrr": (1 / 3 + 1 / 2 + 0 + 1 / 2) / 4,
            "coverage": 5 / 5,
            "serendipity": 1 / 4,
            "novelty": (2 + 1.5 + 0 + 1.5) / 4,
        }
    )
    assert found.per_session[3]["novelty"].tolist() == pytest.approx([2, 1.5, 0, 1.5])
    assert tuple(found.means[3]) == METRICS


def test_items_never_counted_are_not_expected_ones():
    # Only item 0 was ever counted: a hit on item 1 is serendipitous although two items are "the 2 most popular".
    found = evaluate_lists(lists_of([[1]]), np.array([1], np.int32), np.array([5, 0]), 2, (2,))
    assert found.means[2]["serendipity"] == 1


def test_without_sessions_there_is_nothing_to_evaluate():
    with pytest.raises(DataError, match="no sessions"):
        evaluate_lists(lists_of([]), np.empty(0, np.int32), np.array([1]), 1)


def oracle(lists, targets, popularity, n_items, k, total):
    """All six metrics by their definitions, in plain Python, a session and a place at a time."""
    expected = set(sorted((i for i in range(n_items) if popularity[i]), key=lambda i: (-popularity[i], i))[:k])
    sums = dict.fromkeys(METRICS, 0.0)
    shown = set()
    for items, target in zip(lists, targets, strict=True):
        bits = 0.0
        for place, item in enumerate(items[:k], start=1):
            if item == n_items:  # a place lost
                continue
            shown.add(item)
            if popularity[item]:
                bits += math.log2(total / popularity[item])
            if item == target:
                sums["ndcg"] += 1 / math.log2(place + 1)
                sums["hr"] += 1
                sums["mrr"] += 1 / place
        sums["novelty"] += bits / len(items[:k]) if items else 0.0
        unexpected = {target} - expected
        possible = min(len(unexpected), len(items))
        sums["serendipity"] += len(unexpected & set(items[:k])) / possible if possible else 0.0
    return {name: value / len(lists) for name, value in sums.items()} | {"coverage": len(shown) / n_items}


@given(st.data())
def test_all_metrics_are_their_definitions(data):
    """Random lists, short, empty and with lost places; equal popularities, items never counted."""
    n_items = data.draw(st.integers(1, 8))
    item = st.integers(0, n_items - 1)
    real = st.lists(item, unique=True)
    lists = data.draw(st.lists(real, min_size=1, max_size=8))
    lists = [[*items[:at], n_items, *items[at:]] if lost else items
             for items in lists for lost, at in [(data.draw(st.booleans()), data.draw(st.integers(0, 3)))]]  # fmt: skip
    targets = data.draw(st.lists(item, min_size=len(lists), max_size=len(lists)))
    popularity = data.draw(st.lists(st.integers(0, 4), min_size=n_items, max_size=n_items))
    total = sum(popularity) + data.draw(st.integers(0, 5))
    cutoffs = tuple(data.draw(st.sets(st.integers(1, 10), min_size=1, max_size=3)))
    counts = np.array(popularity, np.int64)
    found = evaluate_lists(lists_of(lists), np.array(targets, np.int32), counts, n_items, cutoffs, total)
    for k in cutoffs:
        assert found.means[k] == pytest.approx(oracle(lists, targets, popularity, n_items, k, total), abs=1e-9)


def test_accuracy_is_that_of_ranx():
    ranx = pytest.importorskip("ranx", reason="ranx is not installed; it comes with the extra 'test'")
    rng = np.random.default_rng(0)
    n, n_items = 500, 60
    # Lists of 0 to 25 items; ranx has no empty lists, so there a list holds one item that is nobody's target.
    lists = [rng.permutation(n_items)[: rng.integers(0, 26)].tolist() for _ in range(n)]
    targets = rng.integers(0, n_items, n).astype(np.int32)
    found = evaluate_lists(lists_of(lists), targets, np.ones(n_items, np.int64), n_items, (5, 20))
    # ranx ranks by score: strictly falling scores are our order.
    run = {
        f"s{i}": {f"i{item}": 100.0 - place for place, item in enumerate(items)} or {"none": 1.0}
        for i, items in enumerate(lists)
    }
    qrels = {f"s{i}": {f"i{target}": 1} for i, target in enumerate(targets)}
    names = {f"{theirs}@{k}": (k, ours) for k in (5, 20) for theirs, ours in _RANX_NAMES.items()}
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(names))
    for name, (k, ours) in names.items():
        assert found.means[k][ours] == pytest.approx(float(theirs[name]), abs=1e-9), name


_RANX_NAMES = {"ndcg": "ndcg", "hit_rate": "hr", "mrr": "mrr"}


def test_five_metrics_are_those_of_rectools():
    rectools = pytest.importorskip(
        "rectools.metrics", reason="rectools is not installed: pip install --no-deps rectools implicit attrs typeguard"
    )
    import pandas as pd

    rng = np.random.default_rng(1)
    n, n_items = 400, 50
    lists = [rng.permutation(n_items)[: rng.integers(1, 26)].tolist() for _ in range(n)]
    targets = rng.integers(0, n_items, n).astype(np.int32)
    # Train: 30 users, each item by at least one, many by equally many; rectools counts users, as we count here.
    train = pd.DataFrame([(u, i) for i in range(n_items) for u in range(1 + i % 7)], columns=["user_id", "item_id"])
    popularity = np.bincount(train.item_id, minlength=n_items)
    rows = [(s, item, place) for s, items in enumerate(lists) for place, item in enumerate(items, start=1)]
    shown = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])
    truth = pd.DataFrame({"user_id": range(n), "item_id": targets})
    users = train.user_id.nunique()
    for k in (5, 20):
        found = evaluate_lists(lists_of(lists), targets, popularity, n_items, (k,), users).means[k]
        theirs = {
            "ndcg": rectools.NDCG(k, divide_by_achievable=True).calc(shown, truth),
            "hr": rectools.HitRate(k).calc(shown, truth),
            "mrr": rectools.MRR(k).calc(shown, truth),
            "novelty": rectools.MeanInvUserFreq(k).calc(shown, train),
            "coverage": rectools.CatalogCoverage(k, normalize=True).calc(shown, range(n_items)),
        }
        assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)


def test_every_interaction_is_counted_once():
    ids = ["a", "b"]
    whole = Sessions.build(ids, [[0, 1, 2, 3], [3, 3, 1]])
    start = np.zeros(2, np.int64)
    short = Sessions.build(["c"], [[2]])
    train = Sessions.build([*ids, "c"], [[0, 1], [3], [2]])
    validation = Holdout.of_last_items(whole.slice_items(start, whole.lengths - 1))
    split = Split(train, Holdout.of_last_items(whole), validation)
    expected = np.bincount(np.concatenate([whole.items, short.items]))
    assert count_everything(split, 4).tolist() == expected.tolist()


def read_rows(name: str):
    with gzip.open(BEAUTY / name, "rt", encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


@pytest.mark.skipif(not BEAUTY.exists(), reason="the Amazon Beauty files are not beside the repository")
def test_most_popular_on_beauty_is_the_published_row():
    index = {row["item_id"]: i for i, row in enumerate(read_rows("items.csv.gz"))}
    part = {row["user_id"]: row["recsys23_split"] for row in read_rows("users.csv.gz")}
    by_user = defaultdict(list)
    for row in read_rows("interactions.csv.gz"):
        by_user[row["user_id"]].append(index[row["item_id"]])
    n_items = len(index)
    everything = np.bincount([item for items in by_user.values() for item in items], minlength=n_items)
    train_users = [user for user in by_user if part[user] == "train"]
    train = Sessions.build(train_users, [by_user[user] for user in train_users])
    popular = MostPopular.fit(train, n_items)
    seen = {user: [i for i in by_user[user] if popular.counts[i]] for user in by_user if part[user] == "test"}
    test = Holdout.of_last_items(Sessions.build(list(seen), list(seen.values())))
    assert (len(train), len(test)) == (17_890, 4_469)

    lists = popular.recommend(test.prompts, 20, exclude_seen=False)
    found = evaluate_lists(lists, test.targets, everything, n_items, (10, 20)).means
    # Harte et al. (RecSys'23), MostPopular. Accuracy depends on the unpublished order of same-day purchases.
    printed = {10: (0.001, 0.001, 9.187), 20: (0.002, 0.001, 9.408)}
    for k, row in printed.items():
        assert tuple(round(found[k][name], 3) for name in ("coverage", "serendipity", "novelty")) == row
    assert found[10]["hr"] == pytest.approx(0.0081, abs=5e-5)
    assert found[20]["ndcg"] == pytest.approx(0.0048, abs=5e-5)
