"""The checks a table goes through. Each reports what it finds and marks the rows that have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_prompt.data import spill
from seqrec_prompt.data.problems import Problems, as_utf8, plural, shorten
from seqrec_prompt.data.tables import NO_TIMES, RowNumbers, Source, Table
from seqrec_prompt.data.times import FORMS, TimeColumn
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray, LongArray

Mask = npt.NDArray[np.bool_]
TEXT = (".csv", ".tsv", ".inter", ".item", ".user")


class CheckedTable:
    """A table, and which of its rows are good so far.

    good: (n,) no problem found yet. named: per id column, for each distinct text, whether it is an id. A check of a
    column that the table lacks finds nothing: that is reported when the table is read.
    """

    def __init__(self, table: Table, problems: Problems) -> None:
        self.table = table
        self.problems = problems
        self.good: Mask = spill.empty(len(table), np.bool_)
        self.good[:] = True
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
        if table.illegible and table.name.removesuffix(".gz").endswith(TEXT):
            problems.hints.append(as_utf8(table.name, "CP1252"))

    @classmethod
    def read(
        cls,
        source: Source,
        flags: Mapping[str, str],
        problems: Problems,
        times: Mapping[str, TimeColumn] = NO_TIMES,
    ) -> CheckedTable:
        """Read the columns named in `flags` as text, and fill `times`, by column.

        Those that are missing are reported with their flag and read as "".
        """
        wanted = list(flags)
        flags = {**flags, **dict.fromkeys(times, "--time-column")}
        for name in flags:
            if name not in source.columns:
                problems.missing_column(source.name, name, source.columns, flags[name])
        texts = [name for name in wanted if name in source.columns]
        found = {name: cells for name, cells in times.items() if name in source.columns}
        try:
            return cls(source.read(texts or source.columns[:1], found), problems)
        except DataError as error:
            problems.fatal.extend(error.problems)
            return cls(Table(source.name, {}, RowNumbers(0, np.empty(0, np.int64))), problems)

    def cells(self, column: str) -> pa.DictionaryArray:
        """(n,) the cells of a column, good rows or not."""
        return self.table.columns[column]

    def texts(self, column: str) -> pa.Array:
        """The distinct texts of a column, by first appearance."""
        return self.cells(column).dictionary

    def codes(self, column: str) -> IntArray:
        """(n,) position of each cell among `texts`."""
        codes: IntArray = self.cells(column).indices.to_numpy()
        return codes

    def good_texts(self, column: str) -> list[str]:
        """The cells of a column in the good rows."""
        texts: list[str] = self.cells(column).filter(pa.array(self.good)).to_pylist()
        return texts

    def require_text(self, column: str, what: str) -> None:
        """An id must not be empty."""
        if column not in self.table.columns:
            return
        self.named[column] = ~is_blank(self.texts(column))
        empty = self._rows(column, ~self.named[column])
        legible = np.setdiff1d(empty, self.table.illegible.get(column, []), assume_unique=True)
        self._report(f"empty {what}", legible, lambda i: f"the {what} is empty", column)

    def require_unique(self, column: str, what: str) -> None:
        """An id must not repeat; the first row with it stays good."""
        if column not in self.table.columns:
            return
        codes, texts = self.codes(column), self.texts(column)
        rows = np.flatnonzero(self.named[column][codes] & self.good)
        _, first, inverse = np.unique(codes[rows], return_index=True, return_inverse=True)
        again = rows[first[inverse] != np.arange(len(rows))]
        first_row = dict(zip(codes[rows[first]], self.table.numbers[rows[first]], strict=True))
        self._report(
            f"duplicate {what}",
            again,
            lambda i: f"{shorten(texts[codes[again[i]]].as_py())} is already in row {first_row[codes[again[i]]]}",
            column,
        )

    def require_times(self, column: str, times: TimeColumn) -> None:
        """Every cell must be a time, and written as most of the others are."""
        form, main, quote = times.form, times.main, times.quote
        bad = spill.where(len(form), lambda rows: form[rows] < 0)
        odd = spill.where(len(form), lambda rows: (form[rows] >= 0) & (form[rows] != main))
        bad = np.setdiff1d(bad, self.table.illegible.get(column, []), assume_unique=True)
        self._report("bad time", bad, lambda i: f"{shorten(quote(bad[i]))} is not a time", column)
        if len(odd):
            usual = int(np.argmax(form == main))
            told = [f"{FORMS[main]} (row {self.table.numbers[usual]}: {shorten(quote(usual))})"]
            for other in np.unique(form[odd]):
                rows = odd[form[odd] == other]
                example = f"row {self.table.numbers[rows[0]]}: {shorten(quote(rows[0]))}"
                told.append(f"{FORMS[other]} ({example}; {plural(len(rows), 'row')})")
            line = (
                f"{self.table.name}: column {column}: mixed time units: {' and '.join(told)}. "
                "--time-unit reads every number in one unit."
            )
            self.problems.note("mixed time units", len(odd), [line])
            self.good[odd] = False

    def require_known(self, column: str, other: CheckedTable, key: str, kind: str) -> IntArray:
        """Every id must be in the other table. Returns for each distinct text its position among those, -1: none."""
        # When rows are dropped, an id of a dropped row is unknown too; otherwise that row's own problem is enough.
        accepted = other.good if self.problems.drop else other.named[key][other.codes(key)]
        ids = other.cells(key).filter(pa.array(accepted)).dictionary_decode()
        position: IntArray = pc.index_in(self.texts(column), value_set=ids).fill_null(-1).to_numpy(zero_copy_only=False)
        unknown = self._rows(column, (position < 0) & self.named[column])
        self._report_cells(kind, unknown, lambda text: f"{text} is not in {other.table.name}", column)
        return position

    def require_used(self, column: str, log: CheckedTable) -> None:
        """Every session must have an interaction."""
        used = pc.is_in(self.texts(column), value_set=log.texts(column)).to_numpy(zero_copy_only=False)
        unused = self._rows(column, ~used & self.named[column])
        unused = unused[self.good[unused]]
        self._report_cells(
            "session with no item",
            unused,
            lambda text: f"session {text} has no interaction in {log.table.name}",
            column,
        )

    def require_constant(self, column: str, key: str) -> dict[str, str]:
        """A session must have one split value; otherwise the whole session is bad, reported at its first odd row.

        Returns the value of each of the other sessions, lower case.
        """
        codes, sessions, names = self.codes(column), self.codes(key), self.texts(key)
        folded = pc.utf8_lower(pc.utf8_trim_whitespace(self.texts(column))).dictionary_encode()
        value = folded.indices.to_numpy()
        usual, odd = np.full(len(names), -1), np.full(len(names), -1)  # the row of each session that came first
        for block in spill.slices(len(codes)):
            rows = block.start + np.flatnonzero(self.good[block])
            _keep_first(usual, sessions[rows], rows)
            rows = rows[value[codes[rows]] != value[codes[usual[sessions[rows]]]]]
            _keep_first(odd, sessions[rows], rows)
        torn = odd >= 0
        rows, first = odd[torn], usual[torn]

        def told(row: int) -> str:
            return shorten(folded[codes[row]].as_py())

        self._report(
            "session in two parts of the split",
            rows,
            lambda i: (
                f"session {shorten(names[sessions[rows[i]]].as_py())} is {told(rows[i])} here and {told(first[i])} in "
                f"row {self.table.numbers[first[i]]}"
            ),
            column,
        )
        self.good[self._rows(key, torn)] = False
        whole = (usual >= 0) & ~torn
        labels = [text.strip().lower() for text in self.texts(column).to_pylist()]
        values = (labels[code] for code in codes[usual[whole]])
        return dict(zip(names.filter(pa.array(whole)).to_pylist(), values, strict=True))

    def _rows(self, column: str, which: Mask) -> LongArray:
        """Positions of the cells whose text is one of `which`, of the distinct ones."""
        if not which.any():
            return np.empty(0, np.int64)
        codes = self.codes(column)
        return spill.where(len(codes), lambda rows: which[codes[rows]])

    def _report_cells(self, kind: str, rows: LongArray, tell: Callable[[str], str], column: str) -> None:
        self._report(kind, rows, lambda i: tell(shorten(self.cells(column)[rows[i]].as_py())), column)

    def _report(self, kind: str, positions: npt.NDArray[np.int64], tell: Callable[[int], str], column: str) -> None:
        self.problems.rows(kind, self.table.name, self.table.numbers[positions], tell, column)
        self.good[positions] = False


def is_blank(texts: pa.Array) -> Mask:
    """(n,) True where a text has nothing but white space."""
    blank: Mask = pc.equal(pc.utf8_trim_whitespace(texts), "").to_numpy(zero_copy_only=False)
    return blank


def _keep_first(row_of: LongArray, codes: IntArray, rows: LongArray) -> None:
    """Write down the first of `rows` with each code, unless an earlier block had one (-1: none)."""
    found, first = np.unique(codes, return_index=True)
    new = row_of[found] < 0
    row_of[found[new]] = rows[first[new]]
