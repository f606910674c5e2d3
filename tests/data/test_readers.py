"""Every format gives the same text."""

import gzip
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from seqrec_prompt import console
from seqrec_prompt.data.readers import open_source
from seqrec_prompt.errors import DataError

COUNTING = pa.proxy_memory_pool(pa.default_memory_pool())  # must outlive what was made in it
HEADER = ("session_id", "item_id", "timestamp", "title")
ROWS = [
    ("17850", "007", "1318896000", "Rose"),
    ("0017850", "85123A", "1318896001", "Café, été"),
    ("b", "1e5", "1318896002", "日本 'tea'"),
    ("b", "NA", "1318896003", ""),
]


def numbers(table):
    return table.numbers[np.arange(len(table))].tolist()


def write(path, separator=",", header=HEADER, quote='"', bom=False, newline="\n"):
    cell = (lambda c: f"{quote}{c}{quote}" if separator in c else c) if quote else str
    lines = [separator.join(map(cell, row)) for row in (header, *ROWS)]
    data = (b"\xef\xbb\xbf" if bom else b"") + newline.join([*lines, ""]).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_parquet(path, types=None):
    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    table = pa.table({k: pa.array(v) for k, v in columns.items()})
    if types:
        table = table.set_column(2, "timestamp", pa.array([1318896000 + i for i in range(4)], types))
    pq.write_table(table.append_column("unused", pa.array([[{"a": 1}]] * 4)), path)
    return str(path)


def save_dataset(folder, as_dict=False):
    import datasets

    data = datasets.Dataset.from_dict(dict(zip(HEADER, zip(*ROWS, strict=True), strict=True)))
    (datasets.DatasetDict({"train": data}) if as_dict else data).save_to_disk(str(folder))
    return str(folder)


def dataset_folder(folder):
    folder.mkdir()
    write_parquet(folder / "train.parquet")
    return str(folder)


typed = tuple(f"{name}:{kind}" for name, kind in zip(HEADER, ("token", "token", "float", "token_seq"), strict=True))
FORMATS = {
    "csv": lambda d: write(d / "x.csv"),
    "csv.gz": lambda d: write(d / "x.csv.gz"),
    "csv with BOM": lambda d: write(d / "x.csv", bom=True),
    "csv of Windows": lambda d: write(d / "x.CSV", newline="\r\n"),
    "csv with semicolons": lambda d: write(d / "x.csv", ";", bom=True),
    "csv with tabs": lambda d: write(d / "x.csv.gz", "\t"),
    "tsv with commas": lambda d: write(d / "x.tsv", ","),
    "csv with bars": lambda d: write(d / "x.csv", "|"),
    "tsv": lambda d: write(d / "x.tsv", "\t"),
    "tsv.gz": lambda d: write(d / "x.tsv.gz", "\t"),
    "RecBole": lambda d: write(d / "x.inter", "\t", header=typed, quote=None),
    "RecBole gz": lambda d: write(d / "x.item.gz", "\t", header=typed, quote=None),
    "parquet": lambda d: write_parquet(d / "x.parquet"),
    "parquet, integer time": lambda d: write_parquet(d / "x.parquet", pa.int64()),
    "save_to_disk": lambda d: save_dataset(d / "saved"),
    "save_to_disk, one split": lambda d: save_dataset(d / "saved", as_dict=True),
    "save_to_disk, named split": lambda d: save_dataset(d / "saved", as_dict=True) + ":train",
    "dataset folder": lambda d: dataset_folder(d / "folder"),
    "dataset folder, named split": lambda d: dataset_folder(d / "folder") + ":train",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_reads_the_same_text(tmp_path, form):
    source = open_source(FORMATS[form](tmp_path))
    assert source.columns[:4] == list(HEADER)
    table = source.read(["item_id", "session_id", "title", "timestamp"])
    assert list(zip(*(table.columns[name].to_pylist() for name in HEADER), strict=True)) == ROWS
    assert numbers(table) == [2, 3, 4, 5]
    assert len(source.digest()) == 64


def test_the_digest_follows_the_content(tmp_path):
    first = open_source(write(tmp_path / "x.csv")).digest()
    assert open_source(write(tmp_path / "y.csv")).digest() == first
    assert open_source(write(tmp_path / "y.csv", newline="\r\n")).digest() != first


def test_quotes_stay_in_atomic_files_and_go_in_csv(tmp_path):
    (tmp_path / "x.item").write_text('item_id:token\ttitle:token_seq\n1\t"A" 5" nail\n')
    (tmp_path / "x.csv").write_text('item_id,title\n1,"A ""big"" 5"" nail,\nlong"\n')
    assert open_source(str(tmp_path / "x.item")).read(["title"]).columns["title"].to_pylist() == ['"A" 5" nail']
    assert open_source(str(tmp_path / "x.csv")).read(["title"]).columns["title"].to_pylist() == [
        'A "big" 5" nail,\nlong'
    ]


def test_rows_are_counted_as_a_spreadsheet_does(tmp_path):
    (tmp_path / "x.csv").write_text('a,b,c\n1,"two\nlines",\n\n,,\n2\n3,x,\n4,x,y,z\n5,x,\n\n')
    table = open_source(str(tmp_path / "x.csv")).read(["a", "b"])
    assert dict(zip(table.columns["a"].to_pylist(), numbers(table), strict=True)) == {
        "1": 2,
        "3": 6,
        "5": 8,
    }
    assert table.ragged == [(5, 3, 1), (7, 3, 4)]
    assert table.blank == 3


def test_illegible_cells_are_found_by_position(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\n\n1,caf\xe9\n2,x\n\xff,y\n")
    table = open_source(str(tmp_path / "x.csv")).read(["a", "b"])
    assert {c: table.numbers[p].tolist() for c, p in table.illegible.items()} == {"a": [5], "b": [3]}
    assert table.columns["b"].to_pylist() == ["", "x", "y"]


def test_an_illegible_cell_of_a_column_that_is_not_read_does_not_matter(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,caf\xe9\n")
    assert not open_source(str(tmp_path / "x.csv")).read(["a"]).illegible


def test_typed_parquet_columns_become_text(tmp_path):
    moment = np.datetime64("2011-10-18T00:00:00")
    table = pa.table(
        {
            "number": pa.array([7, None]),
            "when": pa.array([moment, None]),
            "tags": pa.array([["a", "b"], None]),
            "coded": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    read = open_source(str(tmp_path / "x.parquet")).read(table.column_names).columns
    assert {name: cells.to_pylist() for name, cells in read.items()} == {
        "number": ["7", ""],
        "when": ["2011-10-18 00:00:00.000", ""],
        "tags": ["a, b", ""],
        "coded": ["x", "y"],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "gone.csv: no such file"),
        ("x.xlsx", b"PK", "cannot tell what kind of file"),
        ("x.csv", b"", "the file is empty"),
        (
            "x.csv",
            "a,b\n1,2\n".encode("utf-16"),
            "row 1 is not UTF-8 text.*iconv -f UTF-16 -t UTF-8 x.csv > utf8-x.csv",
        ),
        ("x.csv.gz", gzip.compress(b"a,\xfcber\n1,2\n"), "gunzip -k x.csv.gz, then iconv -f CP1252 -t UTF-8 x.csv"),
        ("x.csv.gz", b"not gzip", "x.csv.gz: cannot be read"),
        ("x.parquet", b"not parquet", "x.parquet: cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_opened_is_said(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_reading_is_counted_in_rows(tmp_path, monkeypatch, capsys, kind):
    """As it goes on, and where nobody watches a line a minute, here one a batch."""
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    monkeypatch.setattr("seqrec_prompt.data.readers._BLOCK_BYTES", 1 << 12)
    n, path = 200_000, tmp_path / f"x.{kind}"
    table = pa.table({"a": [str(i) for i in range(n)]})
    pacsv.write_csv(table, path) if kind == "csv" else pq.write_table(table, path)
    open_source(str(path)).read(["a"])
    counts = [int(c.replace(",", "")) for c in re.findall(rf"read x\.{kind}: ([\d,]+) rows, ", capsys.readouterr().err)]
    assert len(counts) > 1
    assert counts == sorted(counts)
    assert counts[-1] == n


def test_a_repeated_column_name_is_an_error_only_when_it_is_read(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,b\n1,2,3\n")
    source = open_source(str(tmp_path / "x.csv"))
    assert source.read(["a"]).columns["a"].to_pylist() == ["1"]
    with pytest.raises(DataError, match="column 'b' appears more than once"):
        source.read(["a", "b"])


def test_an_open_quote_is_not_taken_for_the_rest_of_the_file(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n1,x\n2,"Rose\n3,y\n4,z\n')
    with pytest.raises(DataError, match=r"row 3: a quote \(\"\) opened in this row is never closed"):
        open_source(str(tmp_path / "x.csv")).read(["a"])


def test_a_row_that_no_block_holds_is_told_in_its_own_words(tmp_path, monkeypatch):
    monkeypatch.setattr("seqrec_prompt.data.readers._BLOCK_BYTES", 1 << 20)
    (tmp_path / "x.csv").write_text(f"a,b\n1,x\n2,{'y' * (5 << 20)}\n3,z\n")
    with pytest.raises(DataError, match=r"x\.csv: a row of more than 1 MB\. Cut its longest cell"):
        open_source(str(tmp_path / "x.csv")).read(["a"])


def test_an_open_quote_is_found_in_any_column(tmp_path):
    (tmp_path / "x.csv").write_text('a,b,c\n1,x,p\n2,"Rose,q\n3,y,"r\n4,z,s\n')
    with pytest.raises(DataError, match=r"row 3: a quote \(\"\) opened in this row is not closed in it"):
        open_source(str(tmp_path / "x.csv")).read(["a", "c"])


def test_several_splits_must_be_chosen_from(tmp_path):
    import datasets

    data = datasets.Dataset.from_dict({"a": ["1"]})
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="several splits; it has train, test"):
        open_source(str(tmp_path / "d"))
    with pytest.raises(DataError, match="no split 'dev'"):
        open_source(f"{tmp_path / 'd'}:dev")
    assert open_source(f"{tmp_path / 'd'}:test").columns == ["a"]


def test_a_dataset_that_is_not_there_is_told_in_the_words_of_the_library(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"nobody/nothing: the datasets library says: .*\n.*reach the hub"):
        open_source("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: the datasets library says"):
        open_source("empty")


def test_a_cell_costs_a_code_and_not_its_text(tmp_path, monkeypatch):
    """80 MB of text in two columns, a hundred cells over and over: Arrow never holds a fourth of it."""
    path, n = tmp_path / "log.csv", 200_000
    cells = [f"{i:03d}" * 66 for i in range(100)]
    path.write_text("a,b\n" + "".join(f"{cells[i % 100]},{cells[i % 99]}\n" for i in range(n)))
    assert path.stat().st_size > 79e6
    monkeypatch.setattr("seqrec_prompt.data.readers._BLOCK_BYTES", 1 << 17)
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pool := COUNTING)
    try:
        table = open_source(str(path)).read(["a", "b"])
    finally:
        pa.set_memory_pool(usual)
    assert pool.max_memory() < 20e6
    assert [column[n - 1].as_py() for column in table.columns.values()] == [cells[(n - 1) % 100], cells[(n - 1) % 99]]
