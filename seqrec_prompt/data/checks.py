"""The checks a table goes through. Each reports what it finds and marks the rows that have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_prompt.data.problems import Problems, mask_of, plural, shorten
from seqrec_prompt.data.tables import Source, Table, per_value
from seqrec_prompt.data.times import FORMS, Times, TimeUnit, parse_times
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray

Mask = npt.NDArray[np.bool_]


class CheckedTable:
    """A table, and which of its rows are good so far.

    good: (n,) no problem found yet. named: per id column, (n,) the id can be read, whatever else is wrong with the row.
    A check of a column that the table lacks finds nothing: that is reported when the table is read.
    """

    def __init__(self, table: Table, problems: Problems) -> None:
        self.table = table
        self.problems = problems
        self.good: Mask = np.ones(len(table), np.bool_)
        self.named: dict[str, Mask] = {}
        if table.columns and len(table) == 0 and not table.ragged:
            problems.fatal.append(f"{table.name}: the file has a header but no rows.")
        problems.rows(
            "ragged rows",
            table.name,
            np.array([row for row, _, _ in table.ragged]),
            lambda i: f"{plural(table.ragged[i][2], 'cell')} where the header has {table.ragged[i][1]}",
        )
        for column, positions in table.illegible.items():
            self._report("not UTF-8", positions, lambda i: "the cell is not UTF-8 text", column)

    @classmethod
    def read(cls, source: Source, flags: Mapping[str, str], problems: Problems) -> CheckedTable:
        """Read the columns named in `flags`; those that are missing are reported with their flag and read as ""."""
        known = [name for name in flags if name in source.columns]
        for name in flags:
            if name not in known:
                problems.missing_column(source.name, name, source.columns, flags[name])
        try:
            return cls(source.read(known or source.columns[:1]), problems)
        except DataError as error:
            problems.fatal.extend(error.problems)
            return cls(Table(source.name, {}, np.empty(0, np.int64)), problems)

    def cells(self, column: str) -> pa.Array:
        """(n,) the cells of a column, good rows or not; nothing when the column is missing."""
        return self.table.columns[column]

    def good_texts(self, column: str) -> list[str]:
        """The cells of a column in the good rows."""
        texts: list[str] = self.cells(column).filter(pa.array(self.good)).to_pylist()
        return texts

    def require_text(self, column: str, what: str) -> None:
        """An id must not be empty."""
        if column not in self.table.columns:
            return
        empty = per_value(self.cells(column), is_blank).to_numpy(zero_copy_only=False)
        legible = ~mask_of(self.table.illegible.get(column, np.empty(0, np.int64)), len(self.table))
        self.named[column] = ~empty
        self._report(f"empty {what}", np.flatnonzero(empty & legible), lambda i: f"the {what} is empty", column)

    def require_unique(self, column: str, what: str) -> None:
        """An id must not repeat; the first row with it stays good."""
        if column not in self.table.columns:
            return
        codes, texts = encode(self.cells(column))
        rows = np.flatnonzero(self.named[column] & self.good)
        _, first, inverse = np.unique(codes[rows], return_index=True, return_inverse=True)
        again = rows[first[inverse] != np.arange(len(rows))]
        first_row = dict(zip(codes[rows[first]], self.table.numbers[rows[first]], strict=True))
        self._report(
            f"duplicate {what}",
            again,
            lambda i: f"{shorten(texts[codes[again[i]]])} is already in row {first_row[codes[again[i]]]}",
            column,
        )

    def read_times(self, column: str, unit: TimeUnit) -> Times | None:
        """Every cell must be a time, and written as most of the others are."""
        if column not in self.table.columns:
            return None
        cells = self.cells(column)
        times = parse_times(cells, unit)
        legible = ~mask_of(self.table.illegible.get(column, np.empty(0, np.int64)), len(self.table))
        bad, odd = np.flatnonzero(times.bad & legible), np.flatnonzero(times.odd)
        self._report("bad time", bad, lambda i: f"{shorten(cells[bad[i]].as_py())} is not a time", column)
        if len(odd):
            usual = int(np.argmax(times.form == times.main))
            told = [f"{FORMS[times.main]} (row {self.table.numbers[usual]}: {shorten(cells[usual].as_py())})"]
            for form in np.unique(times.form[odd]):
                rows = odd[times.form[odd] == form]
                example = f"row {self.table.numbers[rows[0]]}: {shorten(cells[rows[0]].as_py())}"
                told.append(f"{FORMS[form]} ({example}; {plural(len(rows), 'row')})")
            line = (
                f"{self.table.name}: column {column}: mixed time units: {' and '.join(told)}. "
                "--time-unit reads every number in one unit."
            )
            self.problems.note("mixed time units", len(odd), [line])
            self.good[odd] = False
        return times

    def require_known(self, column: str, other: CheckedTable, key: str, kind: str) -> IntArray:
        """Every id must be in the other table. Returns the position of each among its good rows, -1 where none."""
        # When rows are dropped, an id of a dropped row is unknown too; otherwise that row's own problem is enough.
        accepted = other.good if self.problems.drop else other.named[key]
        ids = other.cells(key).filter(pa.array(accepted)).dictionary_decode()
        found = per_value(self.cells(column), lambda texts: pc.index_in(texts, value_set=ids).fill_null(-1))
        position = found.to_numpy(zero_copy_only=False)
        unknown = np.flatnonzero((position < 0) & self.named[column])
        cells = self.cells(column)
        self._report(
            kind, unknown, lambda i: f"{shorten(cells[unknown[i]].as_py())} is not in {other.table.name}", column
        )
        return np.asarray(position, np.int32)

    def require_used(self, column: str, log: CheckedTable) -> None:
        """Every session must have an interaction."""
        ids = pc.unique(log.cells(column)).dictionary_decode()
        used = per_value(self.cells(column), lambda texts: pc.is_in(texts, value_set=ids)).to_numpy(
            zero_copy_only=False
        )
        unused = np.flatnonzero(~used & self.named[column] & self.good)
        cells = self.cells(column)
        self._report(
            "session with no item",
            unused,
            lambda i: f"session {shorten(cells[unused[i]].as_py())} has no interaction in {log.table.name}",
            column,
        )

    def require_constant(self, column: str, session_of_row: IntArray, session_ids: Sequence[str]) -> None:
        """A session must have one split value; otherwise the whole session is bad, reported at its first odd row."""
        codes, values = encode(
            per_value(self.cells(column), lambda texts: pc.utf8_lower(pc.utf8_trim_whitespace(texts)))
        )
        rows = np.flatnonzero(self.good)
        sessions, first, inverse = np.unique(session_of_row[rows], return_index=True, return_inverse=True)
        differs = codes[rows] != codes[rows[first[inverse]]]
        torn, where = np.unique(inverse[differs], return_index=True)
        odd = rows[np.flatnonzero(differs)[where]]
        usual = rows[first[torn]]
        self._report(
            "session in two parts of the split",
            odd,
            lambda i: (
                f"session {shorten(session_ids[session_of_row[odd[i]]])} is {shorten(values[codes[odd[i]]])} here "
                f"and {shorten(values[codes[usual[i]]])} in row {self.table.numbers[usual[i]]}"
            ),
            column,
        )
        self.good &= ~np.isin(session_of_row, sessions[torn])

    def _report(self, kind: str, positions: npt.NDArray[np.int64], tell: Callable[[int], str], column: str) -> None:
        self.problems.rows(kind, self.table.name, self.table.numbers[positions], tell, column)
        self.good[positions] = False


def is_blank(texts: pa.Array) -> pa.Array:
    """(n,) True where a text has nothing but white space."""
    return pc.equal(pc.utf8_trim_whitespace(texts), "")


def encode(cells: pa.Array) -> tuple[IntArray, list[str]]:
    """Return (n,) the code of each cell, numbered by first appearance, and the distinct cells."""
    encoded = cells.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), encoded.dictionary.to_pylist()
