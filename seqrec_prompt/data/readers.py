"""Files → tables of text columns: CSV, TSV, RecBole atomic files, Parquet; Hugging Face datasets through hub.py.

Every cell is read as text exactly as it stands: an id keeps its leading zeros, and '17850' never becomes '17850.0'.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from seqrec_prompt.artifacts import hash_file
from seqrec_prompt.console import progress
from seqrec_prompt.data.problems import as_utf8
from seqrec_prompt.data.tables import NO_TIMES, RowNumbers, Source, Table, TableReading, as_text_table
from seqrec_prompt.data.times import TimeColumn
from seqrec_prompt.errors import DataError

KNOWN = ".csv, .tsv, .inter, .item, .user (each also .gz), .parquet, or a Hugging Face dataset"
# One row of a CSV must fit into a block. Arrow reads up to 32 of them ahead.
_BLOCK_BYTES = 4 << 20
_CELLS = pa.dictionary(pa.int32(), pa.large_binary())


def open_source(location: str) -> Source:
    """Find out what `location` is and read its column names.

    A file (by its ending), a folder that `datasets` can load, or a name on the Hugging Face hub. Raises DataError
    when there is no such thing or it cannot be read.
    """
    path = Path(location)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    known = kind in ("csv", "tsv", "inter", "item", "user", "parquet")
    if path.is_file() and known:
        return ParquetFile(path) if kind == "parquet" else DelimitedFile(path, kind)
    if path.is_file():
        raise DataError([f"{location}: cannot tell what kind of file this is. Known: {KNOWN}."])
    if known and not path.is_dir():
        raise DataError([f"{location}: no such file."])
    from seqrec_prompt.data.hub import HuggingFaceData

    return HuggingFaceData(location)


class _Atomic(csv.excel_tab):
    quoting = csv.QUOTE_NONE


class DelimitedFile:
    """CSV, TSV or a RecBole atomic file, plain or gzipped.

    A header that its ending's delimiter leaves whole is parted, as the file then is, by one of `, ; tab |` in it.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.name = path.name
        self._is_atomic = kind in ("inter", "item", "user")
        self._delimiter = "," if kind == "csv" else "\t"
        self._header = self._read_header()
        if len(self._header) == 1 and not self._is_atomic:
            # Spreadsheets write semicolons where decimals have commas, and call the file .csv all the same.
            self._delimiter = next((other for other in ",;\t|" if other in self._header[0]), self._delimiter)
            self._header = self._read_header()
        # RecBole writes `name:type`.
        self.columns = [name.rpartition(":")[0] or name for name in self._header] if self._is_atomic else self._header

    def read(self, wanted: Sequence[str], times: Mapping[str, TimeColumn] = NO_TIMES) -> Table:
        """Read the wanted columns. Raises DataError for a repeated column name or a file that cannot be parsed."""
        reading = TableReading(self.name, wanted, times)
        repeated = [name for name in reading.columns if self.columns.count(name) > 1]
        if repeated:
            raise DataError([f"{self.name}: row 1: column '{name}' appears more than once" for name in repeated])
        skipped: list[tuple[int, int, int]] = []
        broken: list[int] = []

        def skip(row: Any) -> str:
            if "\n" in row.text:  # one quote too many made a cell of several lines
                broken.append(row.number)
            skipped.append((row.number, row.expected_columns, row.actual_columns))
            return "skip"

        names = {name: self._header[self.columns.index(name)] for name in reading.columns}
        last = b""
        with progress(None, f"read {self.name}", "rows") as bar:
            for batch in self._parse(list(dict.fromkeys([*names.values(), self._header[-1]])), skip):
                reading.append({name: batch[column] for name, column in names.items()})
                if batch.num_rows:
                    last = batch[self._header[-1]][-1].as_py()
                bar.update(batch.num_rows)
        if broken:
            raise DataError([f'{self.name}: row {broken[0]}: a quote (") opened in this row is not closed in it.'])
        if b"\n" in last and not self._is_atomic:
            self._refuse_open_quote(reading.rows, [row for row, _, _ in skipped])
        return reading.table(skipped)

    def digest(self) -> str:
        """SHA-256 of the file."""
        return hash_file(self.path)

    def _parse(self, include: Sequence[str], skip: Any) -> Iterator[pa.RecordBatch]:
        try:
            yield from pacsv.open_csv(
                self.path,
                # Only a single thread counts rows.
                read_options=pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char=False if self._is_atomic else '"',
                    newlines_in_values=not self._is_atomic,
                    ignore_empty_lines=False,
                    invalid_row_handler=skip,
                ),
                convert_options=pacsv.ConvertOptions(
                    include_columns=include, column_types=dict.fromkeys(include, _CELLS)
                ),
            )
        except (pa.ArrowInvalid, OSError) as error:
            if "straddling object" in str(error):  # of two blocks
                size = f"{_BLOCK_BYTES >> 20} MB"
                told = f"a row of more than {size}. Cut its longest cell, or close its quote."
                raise DataError([f"{self.name}: {told}"]) from None
            raise DataError([f"{self.name}: cannot be read: {error}"]) from None

    def _read_header(self) -> list[str]:
        # Undecodable bytes pass here: whether they matter is known only when their column is read.
        try:
            with pa.input_stream(self.path) as raw:
                text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
                dialect = _Atomic if self._is_atomic else csv.excel
                header = next(csv.reader(text, dialect, delimiter=self._delimiter), [])
        except (OSError, csv.Error) as error:
            raise DataError([f"{self.name}: cannot be read: {error}"]) from None
        if not header:
            raise DataError([f"{self.name}: the file is empty, or its first line is (it should name the columns)."])
        if any("\udc80" <= c <= "\udcff" or c == "\x00" for name in header for c in name):
            with pa.input_stream(self.path) as raw:
                encoding = "UTF-16" if raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "CP1252"
            raise DataError([f"{self.name}: row 1 is not UTF-8 text. {as_utf8(self.name, encoding)}"])
        return header

    def _refuse_open_quote(self, rows: int, skipped: Sequence[int]) -> None:
        """A quote that is never closed swallows the rest of the file into one cell, without a word from the parser."""
        tail = b""
        with pa.input_stream(self.path) as raw:
            while chunk := raw.read(_BLOCK_BYTES):
                tail = (tail + chunk)[-1024:]
        if not tail.rstrip(b"\r\n").endswith(b'"'):
            number = RowNumbers(rows, np.array(skipped, np.int64))[rows - 1]
            raise DataError([f'{self.name}: row {number}: a quote (") opened in this row is never closed.'])


class ParquetFile:
    """A Parquet file; numbers, dates and times are read as text."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        try:
            self.columns: list[str] = pq.read_schema(path).names
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError([f"{self.name}: cannot be read as Parquet: {error}"]) from None

    def read(self, wanted: Sequence[str], times: Mapping[str, TimeColumn] = NO_TIMES) -> Table:
        """Read the wanted columns."""
        try:
            with pq.ParquetFile(self.path) as file:
                return as_text_table(self.name, wanted, times, lambda columns: file.iter_batches(columns=columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError([f"{self.name}: cannot be read as Parquet: {error}"]) from None

    def digest(self) -> str:
        """SHA-256 of the file."""
        return hash_file(self.path)
