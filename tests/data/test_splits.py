"""Filters and splits against plain re-implementations over lists."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data import splits
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import offsets_of

# Sessions as lists of (time, item), oldest first; few distinct values, so that ties and repeats abound.
logs = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=8).map(
        lambda s: sorted(s, key=lambda e: e[0])
    ),
    min_size=1,
    max_size=25,
)
sequences = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=8), min_size=1, max_size=25)


def columnar(log):
    flat = Sessions.build([f"s{i}" for i in range(len(log))], [[item for _, item in s] for s in log])
    return Sessions(flat.ids, flat.offsets, flat.items, np.array([float(t) for s in log for t, _ in s]))


def as_dict(sessions):
    return {name: s.tolist() for name, s in zip(sessions.ids, sessions, strict=True)}


def held_out(holdout: Holdout):
    return {
        name: (prompt.tolist(), int(target))
        for name, prompt, target in zip(holdout.prompts.ids, holdout.prompts, holdout.targets, strict=True)
    }


def naive_hold_out(test, train):
    seen = {item for items in train.values() for item in items}
    known = {name: [i for i in items if i in seen] for name, items in test.items()}
    return {name: (items[:-1], items[-1]) for name, items in known.items() if len(items) >= 2}


def naive_temporal(log, fraction):
    order = sorted(range(len(log)), key=lambda i: log[i][-1][0])  # stable: ties as given
    late = set(order[len(log) - math.ceil(fraction * len(log)) :])
    items = {f"s{i}": [item for _, item in s] for i, s in enumerate(log)}
    train = {f"s{i}": items[f"s{i}"] for i in range(len(log)) if i not in late}
    return train, naive_hold_out({f"s{i}": items[f"s{i}"] for i in sorted(late)}, train)


def naive_k_core(log, k):
    log = dict(log)
    while True:
        counts = Counter(item for items in log.values() for item in items)
        smaller = {n: [i for i in items if counts[i] >= k] for n, items in log.items() if len(items) >= k}
        smaller = {n: items for n, items in smaller.items() if items}
        if smaller == log:
            return log
        log = smaller


@given(logs, st.sampled_from([0.2, 0.25, 0.5]))
def test_temporal_agrees_with_the_protocol_written_out(log, fraction):
    train, test = naive_temporal(log, fraction)
    if not train or not test:
        with pytest.raises(DataError, match="session is left after the split"):
            splits.temporal(columnar(log), fraction, seed=None)
        return
    split = splits.temporal(columnar(log), fraction, seed=None)
    assert as_dict(split.train) == train
    assert held_out(split.test) == test
    assert split.validation is None


@given(logs, st.integers(1, 8))
def test_the_latest_sessions_are_those_that_end_last(log, count):
    last = {f"s{i}": s[-1][0] for i, s in enumerate(log)}
    taken = splits.latest(columnar(log), count)
    assert len(taken) == min(count, len(log))
    assert list(taken.ids) == [name for name in last if name in set(taken.ids)]  # in the order given
    others = [time for name, time in last.items() if name not in set(taken.ids)]
    assert not others or max(others) <= min(last[name] for name in taken.ids)
    assert as_dict(taken) == {name: [item for _, item in log[int(name[1:])]] for name in taken.ids}


def test_the_latest_sessions_need_times():
    with pytest.raises(DataError, match="taking the latest sessions needs the time of each interaction"):
        splits.latest(Sessions.build(["a"], [[1, 2]]), 1)


@given(logs, st.integers(0, 3))
def test_temporal_with_a_seed_only_moves_sessions_of_the_boundary_time(log, seed):
    try:
        split = splits.temporal(columnar(log), 0.5, seed)
    except DataError:
        return
    last = {f"s{i}": s[-1][0] for i, s in enumerate(log)}
    assert len(split.train) == len(log) - math.ceil(0.5 * len(log))
    latest_train = max(last[name] for name in split.train.ids)
    assert all(last[name] >= latest_train for name in split.test.prompts.ids)
    again = splits.temporal(columnar(log), 0.5, seed)
    assert as_dict(again.train) == as_dict(split.train)


def test_temporal_boundary_ties_depend_on_the_seed():
    sessions = columnar([[(0, 1), (1, 2)]] * 40)
    trains = {tuple(splits.temporal(sessions, 0.5, seed).train.ids) for seed in range(5)}
    assert len(trains) == 5
    assert splits.temporal(sessions, 0.5, None).train.ids.tolist() == [f"s{i}" for i in range(20)]


@pytest.mark.parametrize(
    ("n", "fraction", "expected"), [(100, 0.07, 7), (5, 0.2, 1), (6, 0.2, 2), (22_363, 0.2, 4_473)]
)
def test_temporal_test_size_is_the_ceiling(n, fraction, expected):
    sessions = columnar([[(i, 1), (i, 2)] for i in range(n)])
    assert len(splits.temporal(sessions, fraction).test) == expected


def test_temporal_needs_times():
    with pytest.raises(DataError, match="--time-column"):
        splits.temporal(Sessions.build(["a", "b"], [[0, 1], [1, 0]]))


def test_a_holdout_knows_when_its_target_came():
    split = splits.temporal(columnar([[(0, 1), (1, 2)], [(2, 1), (3, 2), (4, 9)], [(5, 2), (6, 1)]]), 0.5)
    assert held_out(split.test) == {"s1": ([1], 2), "s2": ([2], 1)}
    assert split.test.target_times.tolist() == [3.0, 6.0]
    assert split.test.take(np.array([False, True])).target_times.tolist() == [6.0]


@given(sequences)
def test_leave_one_out(log):
    sessions = Sessions.build([f"s{i}" for i in range(len(log))], log)
    long = {f"s{i}": s for i, s in enumerate(log) if len(s) >= 3}
    if not long:
        with pytest.raises(DataError, match="no test session"):
            splits.leave_one_out(sessions)
        return
    split = splits.leave_one_out(sessions)
    assert as_dict(split.train) == {f"s{i}": s[:-2] if len(s) >= 3 else s for i, s in enumerate(log)}
    assert held_out(split.validation) == {name: (s[:-2], s[-2]) for name, s in long.items()}
    assert held_out(split.test) == {name: (s[:-1], s[-1]) for name, s in long.items()}


values = ["train", "training", "test", "valid", "dev", "val", "validation", "test_dropped", ""]


@given(sequences, st.data())
def test_column(log, data):
    labels = {f"s{i}": data.draw(st.sampled_from(values)) for i in range(len(log))}
    parts = {
        part: {name: log[int(name[1:])] for name, label in labels.items() if label in names}
        for part, names in {"train": values[:2], "test": ["test"], "validation": values[3:7]}.items()
    }
    test = naive_hold_out(parts["test"], parts["train"])
    sessions = Sessions.build([f"s{i}" for i in range(len(log))], log)
    if not parts["train"] or not test:
        with pytest.raises(DataError):
            splits.column(sessions, labels)
        return
    split, left_out = splits.column(sessions, labels)
    assert as_dict(split.train) == parts["train"]
    assert held_out(split.test) == test
    if parts["validation"]:
        assert held_out(split.validation) == naive_hold_out(parts["validation"], parts["train"])
    else:
        assert split.validation is None
    assert left_out == Counter(label for label in labels.values() if label in ("test_dropped", ""))


def test_column_names_the_values_there_are():
    sessions = Sessions.build(["a", "b"], [[0, 1], [0, 1]])
    with pytest.raises(DataError, match=r"no 'test' session. Its values: 'hold' \(1\), 'train' \(1\)"):
        splits.column(sessions, {"a": "train", "b": "hold"})


@given(logs, st.integers(2, 5))
def test_forward_chaining(log, bins):
    if len(log) < bins:
        with pytest.raises(DataError, match="at least"):
            list(splits.forward_chaining(columnar(log), bins))
        return
    order = sorted(range(len(log)), key=lambda i: log[i][-1][0])
    size, extra = divmod(len(log), bins)
    parts = []
    for b in range(bins):
        parts.append([order.pop(0) for _ in range(size + (b < extra))])
    folds = list(splits.forward_chaining(columnar(log), bins, seed=None))
    assert len(folds) == bins - 1
    for i, fold in enumerate(folds):
        train = {f"s{j}": [item for _, item in log[j]] for part in parts[: i + 1] for j in part}
        validation = {f"s{j}": [item for _, item in log[j]] for j in parts[i + 1]}
        assert as_dict(fold.train) == train
        assert held_out(fold.validation) == naive_hold_out(validation, train)


@given(sequences, st.integers(1, 4))
def test_k_core(log, k):
    named = {f"s{i}": s for i, s in enumerate(log)}
    assert as_dict(splits.k_core(Sessions.build(list(named), log), k)) == naive_k_core(named, k)


def test_k_core_goes_on_until_nothing_changes():
    # Item 9 goes, then session c is too short, then item 2 is too rare, then session b.
    log = {"a": [0, 1, 0], "b": [2, 1], "c": [2, 9], "d": [0, 1, 0, 1]}
    assert as_dict(splits.k_core(Sessions.build(list(log), list(log.values())), 2)) == {
        "a": [0, 1, 0],
        "d": [0, 1, 0, 1],
    }


@given(sequences)
def test_first_occurrences(log):
    kept = splits.first_occurrences(Sessions.build([f"s{i}" for i in range(len(log))], log))
    assert [s.tolist() for s in kept] == [list(dict.fromkeys(s)) for s in log]


@given(logs, st.integers(0, 5))
def test_shuffle_ties_moves_only_tied_items(log, seed):
    shuffled = splits.shuffle_ties(columnar(log), seed)
    for i, session in enumerate(log):
        times = shuffled.times[shuffled.offsets[i] : shuffled.offsets[i + 1]].tolist()
        assert times == [t for t, _ in session]
        assert Counter(zip(times, shuffled[i].tolist(), strict=True)) == Counter(session)


def test_shuffle_ties_is_uniform_and_seeded():
    sessions = columnar([[(0, 0), (0, 1), (0, 2)]] * 6000)
    orders = Counter(tuple(s.tolist()) for s in splits.shuffle_ties(sessions, 1))
    assert len(orders) == 6
    assert all(850 < count < 1150 for count in orders.values())  # 1000 expected, standard deviation 29
    assert as_dict(splits.shuffle_ties(sessions, 1)) == as_dict(splits.shuffle_ties(sessions, 1))
    assert as_dict(splits.shuffle_ties(sessions, 1)) != as_dict(splits.shuffle_ties(sessions, 2))


def test_prefixes_are_every_beginning_of_two_items_or_more():
    lists = [[7, 8, 9], [5], [], [1, 2], [3, 3, 3, 4]]
    items = np.concatenate(lists).astype(np.int32)
    times = np.arange(len(items), dtype=np.float64)
    whole = Sessions(np.array(list("abcde")), offsets_of([len(one) for one in lists]), items, times)
    found = whole.prefixes()
    wanted = [("a", [7, 8]), ("a", [7, 8, 9]), ("d", [1, 2]), ("e", [3, 3]), ("e", [3, 3, 3]), ("e", [3, 3, 3, 4])]
    assert list(zip(found.ids.tolist(), (one.tolist() for one in found), strict=True)) == wanted
    assert found.times[:5].tolist() == [0, 1, 0, 1, 2]
