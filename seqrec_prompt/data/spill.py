"""Arrays with an entry for every row of a log: worked on a block at a time, and kept in files where memory may not do.

Inside `spilling`, what is large is a mapping of a file without a name: the system writes its pages out and drops them
as it needs memory, and the file is gone with its array or its process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqrec_prompt.ragged import LongArray

BLOCK = 1 << 21  # entries worked on at once
SMALLEST = 1 << 23  # bytes of an array that is worth a file
_directory: ContextVar[Path | None] = ContextVar("directory", default=None)


@contextlib.contextmanager
def spilling(directory: Path) -> Iterator[None]:
    """Let `empty` make large arrays in files of this directory."""
    before = _directory.set(directory)
    try:
        yield
    finally:
        _directory.reset(before)


def empty(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """(n,) an array to fill. Raises OSError when the disk has no room for it."""
    directory, size = _directory.get(), n * np.dtype(dtype).itemsize
    if directory is None or size < max(SMALLEST, 1):
        return np.empty(n, dtype)
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a page that finds no room later would end the process
            else:
                for start in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - start)))
                file.flush()
            return np.memmap(file, dtype, "r+", shape=(n,)).view(np.ndarray)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None


class Growing:
    """An array that is appended to; `values` are its entries so far, to read and to change."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._room = empty(0, dtype)
        self._size = 0

    @property
    def values(self) -> npt.NDArray[Any]:
        """(size,) a view."""
        return self._room[: self._size]

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add entries at the end."""
        end = self._size + len(values)
        if end > len(self._room):
            room = empty(max(end, 2 * self._size), self._room.dtype)
            room[: self._size] = self.values
            self._room = room
        self._room[self._size : end] = values
        self._size = end


def slices(n: int) -> Iterator[slice]:
    """Cut n entries into blocks."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def where(n: int, test: Callable[[slice], npt.NDArray[np.bool_]]) -> LongArray:
    """Positions, of n, at which `test`, given the slice of a block, is True."""
    return np.concatenate([np.empty(0, np.int64), *(rows.start + np.flatnonzero(test(rows)) for rows in slices(n))])


def lookup(table: npt.NDArray[Any], codes: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """(n,) `table[codes]`."""
    found = empty(len(codes), table.dtype)
    for rows in slices(len(codes)):
        found[rows] = table[codes[rows]]
    return found


def count(codes: npt.NDArray[np.integer], n: int) -> LongArray:
    """(n,) how often each of the codes 0..n-1 occurs."""
    counts = np.zeros(n, np.int64)
    for rows in slices(len(codes)):
        counts += np.bincount(codes[rows], minlength=n)
    return counts
