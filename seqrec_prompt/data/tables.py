"""A table of text as every reader gives it: columns, row numbers for messages, and what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_prompt.errors import DataError


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text, each (n,), read from one file; dictionary-encoded, so a row costs a code and not its text.

    numbers: (n,) row numbers as a spreadsheet counts them (the header is row 1). ragged: (row number, cells expected,
    cells found) of rows left out because their cells do not match the header. illegible: per column the positions of
    cells that are not UTF-8; they read as "". blank: how many rows had nothing in any of the columns.
    """

    name: str
    columns: dict[str, pa.DictionaryArray]
    numbers: npt.NDArray[np.int64]
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


def as_text_table(name: str, table: pa.Table) -> Table:
    """Turn typed columns into text; missing values become "". Raises DataError for nested columns."""
    columns = {column: _as_bytes(name, column, table[column].combine_chunks()) for column in table.column_names}
    return legible(name, columns, np.arange(2, table.num_rows + 2), [])


def _as_bytes(name: str, column: str, cells: pa.Array) -> pa.Array:
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
    name: str, raw: dict[str, pa.DictionaryArray], numbers: npt.NDArray[np.int64], ragged: list[tuple[int, int, int]]
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
