"""What is wrong with the input, all of it, told together with the file, row and column of each finding."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from seqrec_prompt.errors import DataError

EXAMPLES = 5


class Problems:
    """Collects findings. `counts` has the number of bad rows (or sessions) per kind.

    A fatal finding always stops the reading. Other findings stop it unless `drop` is set: then the caller leaves the
    rows out and `counts` says how many.
    """

    def __init__(self, *, drop: bool) -> None:
        self.drop = drop
        self.fatal: list[str] = []
        self.bad_rows: list[str] = []
        self.counts: dict[str, int] = {}
        self.hints: list[str] = []

    def missing_column(self, file: str, column: str, known: Sequence[str], flag: str) -> None:
        """Report a column that a file lacks, with the columns there are and the nearest of them."""
        near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        self.fatal.append(f"{file}: no column '{column}'. It has: {', '.join(known)}.{guess} Name it with {flag}.")

    def rows(
        self, kind: str, file: str, numbers: npt.NDArray[Any], tell: Callable[[int], str], column: str | None = None
    ) -> None:
        """Report bad rows: `numbers` as a spreadsheet counts them, `tell(i)` says what is wrong with the i-th."""
        total = len(numbers)
        if total == 0:
            return
        where = f", column {column}" if column else ""
        lines = [f"{file}: row {numbers[i]}{where}: {tell(i)}" for i in range(min(total, EXAMPLES))]
        if total > EXAMPLES:
            lines[-1] += f"\n  … and {total - EXAMPLES:,} more ({kind})"
        self.note(kind, total, lines)

    def note(self, kind: str, count: int, lines: Sequence[str]) -> None:
        """Report `count` findings of one kind, described by `lines`."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.bad_rows.extend(lines)

    def stop_if_fatal(self) -> None:
        """Raise DataError with everything found so far when a fatal finding is among it."""
        if self.fatal:
            raise DataError([*self.fatal, *([] if self.drop else self.bad_rows)])

    def stop_if_any(self) -> None:
        """Raise DataError with everything found, unless the bad rows are to be dropped."""
        self.stop_if_fatal()
        if self.bad_rows and not self.drop:
            hints = [*self.hints, "Correct the file, or leave out what is affected with --on-bad drop."]
            raise DataError(self.bad_rows, "\n".join(hints))


def as_utf8(file: str, encoding: str) -> str:
    """How to turn a file of text into UTF-8, were it of `encoding`."""
    plain = file.removesuffix(".gz")
    unpack = f"gunzip -k {file}, then " if plain != file else ""
    return (
        f"Spreadsheets on Windows often write {encoding}, then: {unpack}iconv -f {encoding} -t UTF-8 {plain} > "
        f"utf8-{plain}; otherwise give iconv the encoding that {file} was saved in."
    )


def shorten(value: str) -> str:
    """Quote a cell for a message, cut to 60 characters."""
    return repr(value if len(value) <= 60 else value[:57] + "…")


def plural(count: int, noun: str) -> str:
    """Write '1 row', '2 rows'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
