"""Lists of different lengths in flat arrays: how sessions, titles and recommendation lists are stored here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]
AT_ONCE = 2**22  # tokens that `take` moves: the places of all tokens of a large catalog are four times its tokens


def offsets_of(lengths: npt.NDArray[np.integer] | Sequence[int]) -> LongArray:
    """(n+1,) where lists of these lengths begin and end when they are laid end to end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]) -> LongArray:
    """starts[0], starts[0]+1, … lengths[0] of them, then the next; flat (sum of lengths,)."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


def places(lengths: npt.NDArray[np.integer]) -> LongArray:
    """0, 1, … within each list of these lengths; flat (sum of lengths,)."""
    return ranges(np.zeros(len(lengths), np.int64), lengths)


def blocks(offsets: LongArray, most: int) -> Iterator[tuple[int, int]]:
    """Cut lists into runs from..to-1 of at most `most` entries together; a longer list stands alone."""
    start, end = 0, len(offsets) - 1
    while start < end:
        within = int(np.searchsorted(offsets, offsets[start] + most, side="right")) - 1
        stop = min(max(within, start + 1), end)
        yield start, stop
        start = stop


@dataclass(frozen=True, eq=False)
class TokenLists:
    """Integers of many lists, flat: list i is `tokens[offsets[i]:offsets[i+1]]`."""

    tokens: IntArray
    offsets: LongArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> IntArray:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[IntArray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> LongArray:
        """(lists,) number of tokens of each."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> LongArray:
        """(tokens,) the list that each token is of."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @classmethod
    def by_row(cls, rows: npt.NDArray[np.integer], tokens: IntArray, n: int) -> TokenLists:
        """Make n lists: list i holds the tokens (total,) whose row is i, in the order given."""
        return cls(tokens[np.argsort(rows, kind="stable")], offsets_of(np.bincount(rows, minlength=n)))

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> TokenLists:
        """Flatten Python lists."""
        flat = np.fromiter((token for ids in lists for token in ids), np.int32)
        return cls(flat, offsets_of([len(ids) for ids in lists]))

    @classmethod
    def join(cls, parts: Sequence[TokenLists]) -> TokenLists:
        """All lists of all parts, in order."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(np.concatenate([part.tokens for part in parts]), offsets_of(lengths))

    def take(self, which: npt.NDArray[np.integer]) -> TokenLists:
        """Select lists by position, in the order given."""
        starts, lengths = self.offsets[which], self.lengths[which]
        offsets = offsets_of(lengths)
        tokens = np.empty(offsets[-1], self.tokens.dtype)
        for a, b in blocks(offsets, AT_ONCE):
            tokens[offsets[a] : offsets[b]] = self.tokens[ranges(starts[a:b], lengths[a:b])]
        return TokenLists(tokens, offsets)
