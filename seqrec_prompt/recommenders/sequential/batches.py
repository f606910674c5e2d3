"""Sessions as padded batches: of like length, so that little is padded, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.ragged import LongArray

# Batches whose sessions are sorted by length together: enough to pad little, few enough that batches stay mixed.
POOL = 50


@dataclass(frozen=True, eq=False)
class Batch:
    """inputs: (B, L) catalog positions, right-padded with 0; the number of items stands for the mask.

    lengths: (B,). asked: (positions,) places in the flat (B·L) inputs at which an item is to be told. targets:
    (positions,) those items.
    """

    inputs: LongArray
    lengths: LongArray
    asked: LongArray
    targets: LongArray


def orders(lengths: LongArray, batch_size: int, draw: np.random.Generator) -> list[LongArray]:
    """Cut all sessions into batches of at most `batch_size`, sizes one apart at most, of like length, shuffled."""
    order = draw.permutation(len(lengths))
    pool = POOL * batch_size
    runs = [order[start : start + pool] for start in range(0, len(order), pool)]
    order = np.concatenate([run[np.argsort(lengths[run], kind="stable")] for run in runs])
    parts = np.array_split(order, -(-len(order) // batch_size))
    return [parts[i] for i in draw.permutation(len(parts))]


def padded(sessions: Sessions, more: int = 0) -> LongArray:
    """(B, L + more) items of each session from the left, then 0."""
    lengths = sessions.lengths
    grid = np.zeros((len(sessions), int(lengths.max(initial=0)) + more), np.int64)
    grid[np.arange(grid.shape[1]) < lengths[:, None]] = sessions.items
    return grid


def next_items(sessions: Sessions) -> Batch:
    """Every item but the last is read, every item but the first is to be told: SASRec, GRU4Rec."""
    whole, lengths = padded(sessions), sessions.lengths - 1
    inputs = np.where(np.arange(whole.shape[1] - 1) < lengths[:, None], whole[:, :-1], 0)
    asked = np.flatnonzero(np.arange(inputs.shape[1]) < lengths[:, None])
    return Batch(inputs, lengths, asked, whole[:, 1:].reshape(-1)[asked])


def shortened(sessions: Sessions, share: float, draw: np.random.Generator) -> tuple[Sessions, npt.NDArray[np.bool_]]:
    """Let a `share` of the sessions, each of two items or more, end with an item drawn from those after its first.

    Returns all sessions and which of them were drawn, (sessions,): those that end where they did are drawn, too.
    """
    lengths = sessions.lengths
    drawn = draw.random(len(sessions)) < share
    ends = 2 + (draw.random(len(sessions)) * (lengths - 1)).astype(np.int64)
    return sessions.slice_items(np.zeros_like(lengths), np.where(drawn, ends, lengths)), drawn


def masked_items(
    sessions: Sessions, mask: int, probability: float, last: npt.NDArray[np.bool_], draw: np.random.Generator
) -> Batch:
    """Some items are hidden and to be told (BERT4Rec): each with `probability`; of sessions `last`, (B,), the last one.

    A session with no item hidden gets its last one hidden.
    """
    whole, lengths = padded(sessions), sessions.lengths
    place = np.arange(whole.shape[1])
    hidden: npt.NDArray[np.bool_] = draw.random(whole.shape) < probability
    hidden[last] = False
    hidden &= place < lengths[:, None]
    hidden |= (place == lengths[:, None] - 1) & ~hidden.any(axis=1, keepdims=True)
    asked = np.flatnonzero(hidden)
    return Batch(np.where(hidden, mask, whole), lengths, asked, whole.reshape(-1)[asked])


def by_length(sessions: Sessions, size: int) -> Iterator[LongArray]:
    """Positions of the sessions, shortest first, `size` at a time."""
    order = np.argsort(sessions.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
