"""Times of interactions: numbers in some unit, or ISO 8601 text, → Unix seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seqrec_prompt.data import spill
from seqrec_prompt.data.problems import EXAMPLES

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]

# A number is a plausible time in a unit when it lies between these two dates in it. The windows do not overlap.
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
_LATEST = datetime(2100, 1, 1, tzinfo=UTC).timestamp()

FORMS = ("seconds", "milliseconds", "microseconds", "nanoseconds", "dates", "order numbers")
_FACTORS = (1.0, 1e3, 1e6, 1e9)
_DATES, _NUMBERS, _BAD = 4, 5, -1


@dataclass(frozen=True, eq=False)
class Times:
    """Parsed times. seconds: (n,) Unix seconds, NaN where bad. form: (n,) position in FORMS, -1 where bad.

    main: the form most cells have; odd: (n,) True where a cell is readable but in another form.
    """

    seconds: npt.NDArray[np.float64]
    form: npt.NDArray[np.int8]
    main: int

    @property
    def bad(self) -> npt.NDArray[np.bool_]:
        """(n,) True where the cell is empty, not a time, not a number or infinite."""
        return np.equal(self.form, _BAD)

    @property
    def odd(self) -> npt.NDArray[np.bool_]:
        """(n,) True where the cell is a time, but not written as most of the column is."""
        return np.not_equal(self.form, _BAD) & np.not_equal(self.form, self.main)


class TimeColumn:
    """A column of times that is read batch by batch: of its text, only what a message may quote is kept."""

    def __init__(self, unit: TimeUnit = "auto") -> None:
        self._unit = unit
        self._seconds, self._form = spill.Growing(np.float64), spill.Growing(np.int8)
        self._counts = np.zeros(len(FORMS), np.int64)
        self._quotes: dict[int, str] = {}
        self._bad_quotes = 0

    def append(self, cells: pa.DictionaryArray) -> None:
        """Parse the cells of the next batch."""
        times, start = parse_times(cells, self._unit), len(self.form)
        for form in range(len(FORMS)):
            rows = np.flatnonzero(times.form == form)
            if len(rows) and not self._counts[form]:
                self._quotes[start + int(rows[0])] = cells[rows[0]].as_py()
            self._counts[form] += len(rows)
        if self._bad_quotes < EXAMPLES and times.bad.any():
            filled = pc.not_equal(pc.binary_length(cells.dictionary), 0).take(cells.indices)
            rows = np.flatnonzero(times.bad & filled.to_numpy(zero_copy_only=False))[: EXAMPLES - self._bad_quotes]
            self._quotes |= {start + int(row): cells[row].as_py() for row in rows}
            self._bad_quotes += len(rows)
        self._seconds.append(times.seconds)
        self._form.append(times.form)

    @property
    def seconds(self) -> npt.NDArray[np.float64]:
        """(n,) Unix seconds, NaN where bad."""
        return self._seconds.values

    @property
    def form(self) -> npt.NDArray[np.int8]:
        """(n,) position in FORMS, -1 where bad."""
        return self._form.values

    @property
    def main(self) -> int:
        """The form most cells have."""
        return int(np.argmax(self._counts))

    def quote(self, row: int) -> str:
        """Text of the cell in a row that is the first of its form, or among the first bad ones."""
        return self._quotes.get(row, "")


def parse_times(cells: pa.Array, unit: TimeUnit = "auto") -> Times:
    """Read a column of text, shape (n,).

    With `auto`, a number that is a date of 1990–2100 in s, ms, µs or ns has that unit; numbers outside every window
    (0, 1, 2 …) are order numbers and are kept. With a unit given, every number has it. ISO 8601 text without a zone is
    taken as UTC.
    """
    encoded = cells.dictionary_encode()
    values, forms = _parse_all(encoded.dictionary)
    numeric = forms == _NUMBERS
    if unit == "auto":
        for form, factor in enumerate(_FACTORS):
            forms[numeric & (values >= _EARLIEST * factor) & (values < _LATEST * factor)] = form
    else:
        forms[numeric] = ("s", "ms", "us", "ns").index(unit)
    for form, factor in enumerate(_FACTORS):
        values[forms == form] /= factor
    if unit != "auto":
        # The unit is settled, so dates and numbers can stand side by side.
        forms[forms == _DATES] = ("s", "ms", "us", "ns").index(unit)
    where = encoded.indices.to_numpy(zero_copy_only=False)
    form_of_row = forms[where]
    counts = [np.count_nonzero(form_of_row == form) for form in range(len(FORMS))]
    return Times(values[where], form_of_row, int(np.argmax(counts)))


def _parse_all(texts: pa.Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int8]]:
    try:  # numbers alone, as most logs have them: read without a Python object a cell
        values = texts.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        parsed = [_parse(cell) for cell in texts.to_pylist()]
        return np.array([v for v, _ in parsed], np.float64), np.array([form for _, form in parsed], np.int8)
    finite = np.isfinite(values)
    return np.where(finite, values, np.nan), np.where(finite, _NUMBERS, _BAD).astype(np.int8)


def _parse(cell: str) -> tuple[float, int]:
    text = cell.strip()
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return math.nan, _BAD
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), _DATES
    return (value, _NUMBERS) if math.isfinite(value) else (math.nan, _BAD)
