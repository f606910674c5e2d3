"""Sessions as flat arrays, and the parts of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seqrec_prompt.artifacts import atomic_file
from seqrec_prompt.data import spill
from seqrec_prompt.ragged import IntArray, LongArray, blocks, offsets_of, ranges

IdArray = npt.NDArray[np.object_]
TimeArray = npt.NDArray[np.float64]
GROUP = 1 << 22  # entries of a row group of a file: a group is held in memory to be written


@dataclass(frozen=True, eq=False)
class Sessions:
    """Item sequences, oldest first, stored columnar.

    ids: (n,) session ids. offsets: (n+1,) session i is `items[offsets[i]:offsets[i+1]]`. items: (total,) catalog
    positions. times: (total,) Unix seconds (or any order given by the user), or None when the data has no times.
    """

    ids: IdArray
    offsets: LongArray
    items: IntArray
    times: TimeArray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> IntArray:
        return self.items[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[IntArray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> LongArray:
        """(n,) number of items of each session."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(total,) position of the session each entry of `items` belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def blocks(self) -> Iterator[tuple[slice, slice, LongArray]]:
        """Runs of sessions of a bounded number of entries: the sessions, the entries, and of which session each is.

        The last counts from the run's first session.
        """
        for first, end in blocks(self.offsets, spill.BLOCK):
            rows = np.repeat(np.arange(end - first), self.lengths[first:end])
            yield slice(first, end), slice(self.offsets[first], self.offsets[end]), rows

    @classmethod
    def build(cls, ids: Sequence[str], items: Sequence[Sequence[int]]) -> Sessions:
        """Build sessions from Python lists (for tests and small data)."""
        offsets = offsets_of([len(s) for s in items])
        flat = np.array([i for session in items for i in session], dtype=np.int32)
        return cls(np.array(ids, dtype=object), offsets, flat)

    def take(self, which: npt.NDArray[Any]) -> Sessions:
        """Select sessions by position or by a boolean (n,) mask, in the order given."""
        positions = np.flatnonzero(which) if which.dtype == np.bool_ else which
        return self._gather(positions, self.offsets[positions], self.lengths[positions])

    def slice_items(self, start: LongArray, stop: LongArray) -> Sessions:
        """Keep items start[i]..stop[i]-1 of each session i; both (n,), counted from its first item."""
        return self._gather(np.arange(len(self)), self.offsets[:-1] + start, stop - start)

    def prefixes(self) -> Sessions:
        """Every beginning of two items or more, as a session of the same id."""
        first = self.offsets[:-1][self.rows]
        stop = np.flatnonzero(np.arange(len(self.items)) > first) + 1
        return self._gather(self.rows[stop - 1], first[stop - 1], stop - first[stop - 1])

    def last(self, n: int) -> Sessions:
        """Keep the last `n` items of each session."""
        return self.slice_items(np.maximum(self.lengths - n, 0), self.lengths)

    def select_items(self, keep: npt.NDArray[np.bool_]) -> Sessions:
        """Keep the entries marked in `keep` (total,); sessions stay, if need be empty."""
        lengths = np.empty(len(self), np.int64)
        items = spill.empty(int(keep.sum()), self.items.dtype)
        times = None if self.times is None else spill.empty(len(items), np.float64)
        end = 0
        for which, entries, rows in self.blocks():
            kept = keep[entries]
            lengths[which] = np.bincount(rows[kept], minlength=which.stop - which.start)
            to = slice(end, end := end + int(kept.sum()))
            items[to] = self.items[entries][kept]
            if times is not None and self.times is not None:
                times[to] = self.times[entries][kept]
        return Sessions(self.ids, offsets_of(lengths), items, times)

    def _gather(self, ids: npt.NDArray[Any], starts: LongArray, lengths: LongArray) -> Sessions:
        offsets = offsets_of(lengths)
        items = spill.empty(offsets[-1], self.items.dtype)
        times = None if self.times is None else spill.empty(offsets[-1], np.float64)
        for first, end in blocks(offsets, spill.BLOCK):
            entries, to = ranges(starts[first:end], lengths[first:end]), slice(offsets[first], offsets[end])
            items[to] = self.items[entries]
            if times is not None and self.times is not None:
                times[to] = self.times[entries]
        return Sessions(self.ids[ids], offsets, items, times)

    @classmethod
    def concatenate(cls, parts: Sequence[Sessions]) -> Sessions:
        """Join sessions, in order; there are times if all parts have them."""
        times = [part.times for part in parts if part.times is not None]
        return cls(
            np.concatenate([part.ids for part in parts]),
            offsets_of(np.concatenate([part.lengths for part in parts])),
            np.concatenate([part.items for part in parts]),
            np.concatenate(times) if len(times) == len(parts) else None,
        )

    def to_table(self) -> pa.Table:
        """Arrow table: session_id, items (list of catalog positions) and, if there are times, times."""
        columns = {
            "session_id": pa.array(self.ids, pa.string()),
            "items": pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.items)),
        }
        if self.times is not None:
            columns["times"] = pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.times))
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> Sessions:
        """Read what `to_table` wrote."""
        items = table["items"].combine_chunks()
        lengths = items.value_lengths().to_numpy(zero_copy_only=False)
        offsets = offsets_of(lengths)
        times = table["times"].combine_chunks().flatten().to_numpy() if "times" in table.column_names else None
        ids = np.array(table["session_id"].to_pylist(), dtype=object)
        return cls(ids, offsets, items.flatten().to_numpy().astype(np.int32), times)


@dataclass(frozen=True, eq=False)
class Holdout:
    """Sessions to be continued and the item that came next.

    prompts: n sessions. targets: (n,) catalog positions. target_times: (n,) when the targets came, or None.
    """

    prompts: Sessions
    targets: IntArray
    target_times: TimeArray | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, which: npt.NDArray[Any]) -> Holdout:
        """Select sessions by position or boolean mask."""
        times = None if self.target_times is None else self.target_times[which]
        return Holdout(self.prompts.take(which), self.targets[which], times)

    def continued(self) -> Sessions:
        """The prompts with their targets at the end."""
        prompts, ends = self.prompts, self.prompts.offsets[1:]
        times = None
        if prompts.times is not None and self.target_times is not None:
            times = np.insert(prompts.times, ends, self.target_times)
        return Sessions(
            prompts.ids, offsets_of(prompts.lengths + 1), np.insert(prompts.items, ends, self.targets), times
        )

    @classmethod
    def of_last_items(cls, sessions: Sessions) -> Holdout:
        """Hold out the last item of each session; every session needs two items."""
        lengths = sessions.lengths
        last = sessions.offsets[1:] - 1
        times = None if sessions.times is None else sessions.times[last]
        return cls(sessions.slice_items(np.zeros_like(lengths), lengths - 1), sessions.items[last], times)


@dataclass(frozen=True, eq=False)
class Split:
    """Train sessions, the test holdout, and a validation holdout where the protocol defines one."""

    train: Sessions
    test: Holdout
    validation: Holdout | None = None

    def cases(self, part: Literal["train", "test"]) -> Holdout:
        """The test holdout, or the train sessions of two items and more with their last item held out."""
        return self.test if part == "test" else Holdout.of_last_items(self.train.take(self.train.lengths >= 2))

    def before_test(self) -> Sessions:
        """Train sessions and validation sessions with their targets; one of both (leave-one-out) is there once, whole.

        Without a validation part, just the train sessions.
        """
        if self.validation is None:
            return self.train
        longer = self.validation.continued()
        only_train = self.train.take(~np.isin(self.train.ids.astype(str), longer.ids.astype(str)))
        return Sessions.concatenate([only_train, longer])


def save_sessions(path: Path, part: Sessions | Holdout) -> None:
    """Write sessions, or a holdout with its `target` (and `target_time`) columns, as Parquet."""
    if isinstance(part, Holdout):
        sessions = part.prompts
        table = sessions.to_table().append_column("target", pa.array(part.targets))
        if part.target_times is not None:
            table = table.append_column("target_time", pa.array(part.target_times))
    else:
        sessions = part
        table = part.to_table()
    group = min(GROUP * len(sessions) // max(len(sessions.items), 1), 1 << 20)
    with atomic_file(path) as partial:
        pq.write_table(table, partial, row_group_size=max(group, 1))


def load_sessions(path: Path) -> Sessions:
    """Read train sessions."""
    return Sessions.from_table(pq.read_table(path))


def load_holdout(path: Path) -> Holdout:
    """Read a holdout: prompts and targets."""
    table = pq.read_table(path)
    times = table["target_time"].to_numpy() if "target_time" in table.column_names else None
    return Holdout(Sessions.from_table(table), table["target"].to_numpy().astype(np.int32), times)
