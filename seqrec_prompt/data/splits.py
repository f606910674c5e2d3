"""Filters over sessions, and the protocols that split them into train, validation and test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data import spill
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.errors import DataError

_TRAIN, _TEST = ("train", "training"), ("test",)
_VALIDATION = ("valid", "validation", "val", "dev")


@dataclass(frozen=True, eq=False)
class Fold:
    """One fold of a cross-validation."""

    train: Sessions
    validation: Holdout


def k_core(sessions: Sessions, k: int) -> Sessions:
    """Drop sessions and items with fewer than k interactions, again and again until none is left to drop.

    The k-core of the session–item graph (Seidman, 1983), repeated interactions counted each time. What remains does
    not depend on the order of dropping. Items keep their catalog positions.
    """
    items, keep = sessions.items, spill.empty(len(sessions.items), np.bool_)
    keep[:] = True
    of_session, of_item = sessions.lengths, spill.count(items, _size(sessions))
    left, before = len(items), -1
    while left != before:
        before, left = left, 0
        still_of_session, still_of_item = np.zeros_like(of_session), np.zeros_like(of_item)
        for which, entries, rows in sessions.blocks():
            still = keep[entries] & (of_session[which][rows] >= k) & (of_item[items[entries]] >= k)
            keep[entries] = still
            left += int(still.sum())
            still_of_session[which] = np.bincount(rows[still], minlength=which.stop - which.start)
            still_of_item += np.bincount(items[entries][still], minlength=len(of_item))
        of_session, of_item = still_of_session, still_of_item
    kept = sessions.select_items(keep)
    return kept.take(kept.lengths > 0)


def first_occurrences(sessions: Sessions) -> Sessions:
    """Keep each item only where it first stands in its session."""
    keep = spill.empty(len(sessions.items), np.bool_)
    for _, entries, rows in sessions.blocks():
        _, first = np.unique(rows * _size(sessions) + sessions.items[entries], return_index=True)
        keep[entries] = False
        keep[entries.start + first] = True
    return sessions.select_items(keep)


def shuffle_ties(sessions: Sessions, seed: int) -> Sessions:
    """Put items of one session with equal times in random order; all else stays.

    Files often list tied rows by item id, which a model can learn; that order is no behaviour of anybody. Sessions
    without times are returned as they are.
    """
    if sessions.times is None:
        return sessions
    draw = np.random.default_rng(seed)
    items, times = spill.empty(len(sessions.items), np.int32), spill.empty(len(sessions.items), np.float64)
    for _, part, rows in sessions.blocks():
        chance = draw.random(len(rows))  # in runs, the numbers that one call gives
        order = part.start + np.lexsort((chance, sessions.times[part], rows))
        items[part], times[part] = sessions.items[order], sessions.times[order]
    return replace(sessions, items=items, times=times)


def temporal(sessions: Sessions, test_fraction: float = 0.2, seed: int | None = 0) -> Split:
    """Split by time, as Harte et al. (RecSys 2023) do: the latest sessions are the test set.

    The time of a session is that of its last item; the latest ceil(test_fraction · n) sessions test, the others train.
    Items not seen in train are taken out of the test sessions, test sessions then shorter than two items are dropped,
    and the last item is the target. Sessions of equal time fall on either side of the boundary at random (`seed`), or
    in the order given (`None`). Ties inside a session are the matter of `shuffle_ties`, before.

    Raises DataError when there are no times, or no train or test session remains.
    """
    times = _last_times(sessions, "the temporal split")
    # The product is rounded first: 0.07 · 100 is a little more than 7 in floating point.
    n_test = math.ceil(round(test_fraction * len(sessions), 6))
    test = np.zeros(len(sessions), np.bool_)
    test[_by_time(times, seed)[len(sessions) - n_test :]] = True
    train = sessions.take(~test)
    return _checked(Split(train, hold_out(sessions.take(test), train)))


def leave_one_out(sessions: Sessions) -> Split:
    """Hold out the last two items of every session, as SASRec (Kang & McAuley, 2018) and S3-Rec (2020) do.

    Train: all but the last two items. Validation: the second-to-last item is the target, what precedes it the prompt.
    Test: the last item is the target, everything before it, the validation item included, the prompt. Sessions of
    fewer than three items go wholly to train. Items unseen in train are kept, as in those papers.

    Raises DataError when no session has three items.
    """
    lengths = sessions.lengths
    long = lengths >= 3
    start = np.zeros_like(lengths)
    train = sessions.slice_items(start, np.where(long, lengths - 2, lengths))
    whole = sessions.take(long)
    begin = np.zeros_like(whole.lengths)
    validation = Holdout.of_last_items(whole.slice_items(begin, whole.lengths - 1))
    return _checked(Split(train, Holdout.of_last_items(whole), validation))


def column(sessions: Sessions, labels: Mapping[str, str]) -> tuple[Split, dict[str, int]]:
    """Split as a column of the data says. `labels` has the lower-case value of each session id.

    `train` and `test`; `valid`, `validation`, `val` or `dev` is the validation holdout. Sessions with another value
    are left out: the second result counts them per value. Held-out sessions are treated as in `temporal`: items
    unseen in train removed, sessions shorter than two dropped, the last item is the target.

    Raises DataError when no train or test session remains.
    """
    values = np.array([labels[name] for name in sessions.ids], dtype=object)
    train = sessions.take(np.isin(values, _TRAIN))
    test, validation = sessions.take(np.isin(values, _TEST)), sessions.take(np.isin(values, _VALIDATION))
    if not len(train) or not len(test):
        found = ", ".join(f"'{value}' ({count:,})" for value, count in _count(values).items())
        lacking = "train" if not len(train) else "test"
        raise DataError([f"the split column has no '{lacking}' session. Its values: {found}."])
    others = values[~np.isin(values, (*_TRAIN, *_TEST, *_VALIDATION))]
    split = Split(train, hold_out(test, train), hold_out(validation, train) if len(validation) else None)
    return _checked(split), _count(others)


def validation_part(split: Split, most: int, seed: int) -> tuple[Sessions, Holdout | None]:
    """Return the sessions to train on and at most `most` to validate on, drawn with `seed`.

    Without a validation part of the data's own, a tenth of the train sessions is held out, as in Harte et al.
    (RecSys'23): the last item is the target, and nothing of the session is trained on. None: there are fewer than ten.
    """
    draw = np.random.default_rng(seed)
    if split.validation is not None:
        n = min(most, len(split.validation))
        return split.train, split.validation.take(np.sort(draw.choice(len(split.validation), n, replace=False)))
    able = np.flatnonzero(split.train.lengths >= 2)
    n = min(most, len(able) // 10)
    out = np.zeros(len(split.train), np.bool_)
    out[draw.choice(able, n, replace=False)] = True
    return split.train.take(~out), Holdout.of_last_items(split.train.take(out)) if n else None


def forward_chaining(train: Sessions, bins: int = 4, seed: int | None = 0) -> Iterator[Fold]:
    """Yield `bins - 1` folds that go forward in time, for choosing settings without the test set (Harte et al., 2023).

    Sessions, ordered by the time of their last item, are cut into bins of equal size (sizes differ by one at most, the
    larger first). Fold i trains on bins 1..i and validates on bin i+1, held-out sessions treated as in `temporal`.

    Raises DataError when there are no times or fewer sessions than bins.
    """
    times = _last_times(train, "forward chaining")
    if len(train) < bins:
        raise DataError([f"forward chaining into {bins} bins needs at least {bins} sessions; there are {len(train)}."])
    parts = np.array_split(_by_time(times, seed), bins)
    for i in range(1, bins):
        past = train.take(np.sort(np.concatenate(parts[:i])))
        yield Fold(past, hold_out(train.take(np.sort(parts[i])), past))


def hold_out(sessions: Sessions, train: Sessions) -> Holdout:
    """Remove items unseen in `train`, drop sessions then shorter than two items, and hold out the last item."""
    seen = spill.count(train.items, max(_size(train), _size(sessions))) > 0
    known = sessions.select_items(spill.lookup(seen, sessions.items))
    return Holdout.of_last_items(known.take(known.lengths >= 2))


def latest(sessions: Sessions, count: int) -> Sessions:
    """The `count` sessions whose last items are the latest, in the order given; all, if there are no more.

    Raises DataError when there are no times.
    """
    newest = _by_time(_last_times(sessions, "taking the latest sessions"), None)[-count:]
    return sessions.take(np.sort(newest))


def _last_times(sessions: Sessions, purpose: str) -> npt.NDArray[np.float64]:
    if sessions.times is None:
        raise DataError([f"{purpose} needs the time of each interaction. Name its column with --time-column."])
    return sessions.times[sessions.offsets[1:] - 1]


def _by_time(times: npt.NDArray[np.float64], seed: int | None) -> npt.NDArray[np.int64]:
    """(n,) positions, oldest first; equal times at random, or in the order given when `seed` is None."""
    tie_break = np.arange(len(times)) if seed is None else np.random.default_rng(seed).random(len(times))
    return np.lexsort((tie_break, times))


def _checked(split: Split) -> Split:
    if not len(split.train) or not len(split.test):
        part = "train" if not len(split.train) else "test"
        raise DataError([f"no {part} session is left after the split (items unseen in train do not count)."])
    return split


def _size(sessions: Sessions) -> int:
    return int(sessions.items.max(initial=-1)) + 1


def _count(values: npt.NDArray[np.object_]) -> dict[str, int]:
    distinct, counts = np.unique(values.astype(str), return_counts=True)
    return {str(value): int(count) for value, count in zip(distinct, counts, strict=True)}
