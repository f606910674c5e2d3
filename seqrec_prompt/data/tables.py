"""A table of text as every reader gives it: columns, row numbers for messages, and what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text, each (n,), read from one file; dictionary-encoded, so a row costs a code and not its text.

    numbers: (n,) row numbers as a spreadsheet counts them (the header is row 1). ragged: (row number, cells expected,
    cells found) of rows left out because their cells do not match the header. illegible: per column the positions of
    cells that are not UTF-8; they read as "". blank: how many rows had nothing in any of the columns.
    """

    name: str
    columns: dict[str, pa.DictionaryArray]
    numbers: npt.NDArray[np.integer]
    ragged: list[tuple[int, int, int]] = field(default_factory=list)
    illegible: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    blank: int = 0

    def __len__(self) -> int:
        return len(self.numbers)


class Source(Protocol):
    """Something tabular: its name in messages, its columns, and how to read some of them."""

    name: str
    columns: list[str]

    def read(self, wanted: Sequence[str]) -> Table:
        """Read the `wanted` columns, all of which are in `columns`."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content."""
        ...


class Growing:
    """A column of text that is read batch by batch and never stands whole: codes, and each distinct text once.

    Codes number the texts by first appearance. Batches are joined like the runs of a merge sort, so that n texts are
    looked up log(n) times and not once a batch.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[pa.Array, list[IntArray]]] = []

    def append(self, cells: pa.DictionaryArray) -> None:
        """Add the cells of the next batch, their dictionary in order of first appearance."""
        self._runs.append((cells.dictionary, [cells.indices.to_numpy(zero_copy_only=False).astype(np.int32)]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            self._join()

    def column(self) -> pa.DictionaryArray:
        """The whole column; call it once, at the end."""
        while len(self._runs) > 1:
            self._join()
        texts, parts = self._runs.pop() if self._runs else (pa.array([], pa.large_binary()), [])
        codes = np.empty(sum(map(len, parts)), np.int32)
        end = len(codes)
        while parts:  # from the last, each given back once it is copied
            part = parts.pop()
            codes[end - len(part) : end] = part
            end -= len(part)
        return pa.DictionaryArray.from_arrays(codes, texts)

    def _join(self) -> None:
        (known, parts), (others, later) = self._runs[-2:]
        found = pc.index_in(others, value_set=known)
        new = found.is_null()
        code = found.fill_null(0).to_numpy(zero_copy_only=False).copy()
        is_new = new.to_numpy(zero_copy_only=False)
        code[is_new] = len(known) + np.arange(is_new.sum())
        for codes in later:
            codes[:] = code[codes]
        self._runs[-2:] = [(pa.concat_arrays([known, others.filter(new)]), parts + later)]


def as_text_table(name: str, columns: Sequence[str], batches: Iterable[pa.RecordBatch | pa.Table]) -> Table:
    """Turn typed columns into text; missing values become "". Raises DataError for nested columns."""
    growing = {column: Growing() for column in columns}
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        for column, cells in growing.items():
            cells.append(_as_bytes(name, column, batch[column]))
    return legible(name, {column: cells.column() for column, cells in growing.items()}, row_numbers(rows), [])


def row_numbers(rows: int, ragged: Sequence[int] = ()) -> npt.NDArray[np.integer]:
    """(rows - len(ragged),) 2, 3 … as a spreadsheet counts below the header, without the numbers in `ragged`."""
    numbers = np.arange(2, rows + 2, dtype=np.min_scalar_type(rows + 2))
    return np.delete(numbers, np.array(ragged, np.int64) - 2) if ragged else numbers


def _as_bytes(name: str, column: str, cells: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    try:
        if pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type):
            cells = pc.binary_join(cells.cast(pa.list_(pa.string())), ", ")
        elif not pa.types.is_binary(cells.type) and not pa.types.is_large_binary(cells.type):
            cells = cells.cast(pa.large_string())
        return cells.cast(pa.large_binary()).fill_null(b"").dictionary_encode()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise DataError([f"{name}: column {column} holds {cells.type}; expected text, numbers or times."]) from None


def per_value(cells: pa.DictionaryArray, function: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """(n,) what `function` makes of each cell; it is applied to each distinct one."""
    return function(cells.dictionary).take(cells.indices)


def legible(
    name: str, raw: dict[str, pa.DictionaryArray], numbers: npt.NDArray[np.integer], ragged: list[tuple[int, int, int]]
) -> Table:
    """Decode the columns, and leave out rows with nothing in any of them (blank lines)."""
    columns, illegible = {}, {}
    for column, cells in raw.items():
        columns[column], illegible[column] = _decode(cells)
    something = np.zeros(len(numbers), np.bool_)
    for cells in raw.values():
        filled = per_value(cells, lambda texts: pc.not_equal(pc.binary_length(texts), 0))
        something |= filled.to_numpy(zero_copy_only=False)
    blank = int((~something).sum())
    if blank:
        keep = pa.array(something)
        columns = {column: cells.filter(keep) for column, cells in columns.items()}
        shifted = np.cumsum(something) - 1
        illegible = {column: shifted[positions] for column, positions in illegible.items()}
        numbers = numbers[something]
    return Table(name, columns, numbers, ragged, {c: p for c, p in illegible.items() if len(p)}, blank)


def _decode(cells: pa.DictionaryArray) -> tuple[pa.DictionaryArray, npt.NDArray[np.int64]]:
    """Return a text column and the positions of the cells that are not UTF-8."""
    try:
        texts, positions = cells.dictionary.cast(pa.large_string()), np.empty(0, np.int64)
    except pa.ArrowInvalid:
        values: list[bytes] = cells.dictionary.to_pylist()
        bad = []
        for code, value in enumerate(values):
            try:
                value.decode()
            except UnicodeDecodeError:
                values[code] = b""
                bad.append(code)
        texts = pa.array(values, pa.large_binary()).cast(pa.large_string())
        positions = np.flatnonzero(np.isin(cells.indices.to_numpy(zero_copy_only=False), bad))
    return pa.DictionaryArray.from_arrays(cells.indices, texts), positions
