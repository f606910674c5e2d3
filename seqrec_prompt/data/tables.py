"""A table of text as every reader gives it: columns, row numbers for messages, and what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_prompt.console import progress
from seqrec_prompt.data import spill
from seqrec_prompt.data.times import TimeColumn
from seqrec_prompt.errors import DataError

NO_TIMES: Mapping[str, TimeColumn] = {}


class RowNumbers:
    """Numbers of n rows as a spreadsheet counts them, from 2 below the header on, without those in `missing`."""

    def __init__(self, n: int, missing: npt.NDArray[np.integer]) -> None:
        self._n = n
        self._rows_before = np.sort(missing) - np.arange(2, len(missing) + 2)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, positions: Any) -> Any:
        return positions + 2 + np.searchsorted(self._rows_before, positions, side="right")


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text, each (n,), read from one file; dictionary-encoded, so a row costs a code and not its text.

    ragged: (row number, cells expected, cells found) of rows left out because their cells do not match the header.
    illegible: per column the positions of cells that are not UTF-8; they read as "". blank: how many rows had nothing
    in any of the columns; they are left out too.
    """

    name: str
    columns: dict[str, pa.DictionaryArray]
    numbers: RowNumbers
    ragged: list[tuple[int, int, int]] = field(default_factory=list)
    illegible: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    blank: int = 0

    def __len__(self) -> int:
        return len(self.numbers)


class Source(Protocol):
    """Something tabular: its name in messages, its columns, and how to read some of them."""

    name: str
    columns: list[str]

    def read(self, wanted: Sequence[str], times: Mapping[str, TimeColumn] = NO_TIMES) -> Table:
        """Read the `wanted` columns as text, and fill `times`, by column; all of them are in `columns`."""
        ...

    def digest(self) -> str:
        """SHA-256 of the content."""
        ...


class TextColumn:
    """A column of text that is read batch by batch and never stands whole: codes, and each distinct text once.

    Codes number the texts by first appearance. Batches are joined like the runs of a merge sort, so that n texts are
    looked up log(n) times and not once a batch.
    """

    def __init__(self) -> None:
        self._codes = spill.Growing(np.int32)
        self._runs: list[tuple[pa.Array, int]] = []  # texts, and where their codes begin

    def append(self, cells: pa.DictionaryArray) -> None:
        """Add the cells of the next batch, their dictionary in order of first appearance."""
        self._runs.append((cells.dictionary, len(self._codes.values)))
        self._codes.append(cells.indices.to_numpy(zero_copy_only=False))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            self._join()

    def column(self) -> pa.DictionaryArray:
        """The whole column; call it once, at the end."""
        while len(self._runs) > 1:
            self._join()
        texts = self._runs[0][0] if self._runs else pa.array([], pa.large_string())
        return pa.DictionaryArray.from_arrays(self._codes.values, texts)

    def _join(self) -> None:
        (known, start), (others, later) = self._runs[-2:]
        found = pc.index_in(others, value_set=known)
        new = found.is_null()
        code = found.fill_null(0).to_numpy(zero_copy_only=False).copy()
        is_new = new.to_numpy(zero_copy_only=False)
        code[is_new] = len(known) + np.arange(is_new.sum())
        codes = self._codes.values[later:]
        for rows in spill.slices(len(codes)):
            codes[rows] = code[codes[rows]]
        self._runs[-2:] = [(pa.concat_arrays([known, others.filter(new)]), start)]


class TableReading:
    """A table read batch by batch. Rows with nothing in any of the columns (blank lines) are left out."""

    def __init__(self, name: str, wanted: Sequence[str], times: Mapping[str, TimeColumn] = NO_TIMES) -> None:
        self.name = name
        self.rows = 0  # read so far, blank ones too
        self._texts = {column: TextColumn() for column in wanted}
        self._times = times
        self._blank: list[npt.NDArray[np.int64]] = []
        self._kept = 0
        self._illegible: dict[str, list[npt.NDArray[np.int64]]] = {column: [] for column in self.columns}

    @property
    def columns(self) -> list[str]:
        """Columns that each batch needs."""
        return list(dict.fromkeys([*self._texts, *self._times]))

    def append(self, batch: Mapping[str, pa.DictionaryArray]) -> None:
        """Add the next batch: columns of bytes, dictionaries in order of first appearance."""
        n = len(next(iter(batch.values())))
        something = np.zeros(n, np.bool_)
        for cells in batch.values():
            filled = per_value(cells, lambda texts: pc.not_equal(pc.binary_length(texts), 0))
            something |= filled.to_numpy(zero_copy_only=False)
        self._blank.append(self.rows + np.flatnonzero(~something))
        place = self._kept + np.cumsum(something) - 1
        for column, raw in batch.items():
            cells, illegible = _decode(raw)
            if not something.all():
                cells = cells.filter(pa.array(something))
            self._illegible[column].append(place[illegible])
            if column in self._texts:
                self._texts[column].append(cells)
            if column in self._times:
                self._times[column].append(cells)
        self.rows += n
        self._kept += int(something.sum())

    def table(self, ragged: Sequence[tuple[int, int, int]] = ()) -> Table:
        """The whole table; call it once, at the end."""
        skipped = np.array([row for row, _, _ in ragged], np.int64)
        blank = np.concatenate([np.empty(0, np.int64), *self._blank])
        missing = np.concatenate([skipped, RowNumbers(self.rows, skipped)[blank]])
        illegible = {column: np.concatenate(found) for column, found in self._illegible.items() if found}
        return Table(
            self.name,
            {column: cells.column() for column, cells in self._texts.items()},
            RowNumbers(self._kept, missing),
            list(ragged),
            {column: positions for column, positions in illegible.items() if len(positions)},
            len(blank),
        )


def as_text_table(
    name: str,
    wanted: Sequence[str],
    times: Mapping[str, TimeColumn],
    batches: Callable[[list[str]], Iterable[pa.RecordBatch | pa.Table]],
) -> Table:
    """Turn typed columns into text; missing values become "". Raises DataError for nested columns."""
    reading = TableReading(name, wanted, times)
    with progress(None, f"read {name}", "rows") as bar:
        for batch in batches(reading.columns):
            reading.append({column: _as_bytes(name, column, batch[column]) for column in reading.columns})
            bar.update(batch.num_rows)
    return reading.table()


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
