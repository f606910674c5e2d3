"""Arrays with an entry for every row: in blocks and in files they hold the same as in memory, and take none of it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data import readers, spill
from seqrec_prompt.data.prepare import PrepareConfig, prepare
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.data.splits import first_occurrences, k_core
from seqrec_prompt.data.tables import RowNumbers


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Every array in a file, a few entries at a time."""
    monkeypatch.setattr(spill, "SMALLEST", 0)
    monkeypatch.setattr(spill, "BLOCK", 7)
    with spill.spilling(tmp_path):
        yield tmp_path


def test_a_file_has_no_name_and_goes_with_its_array(on_disk):
    def files():
        return len(list(Path("/proc/self/fd").iterdir()))

    before, array = files(), spill.empty(1000, np.float64)
    array[:] = np.arange(1000)
    assert type(array) is np.ndarray
    assert array.sum() == 499_500
    assert files() == before + 1
    assert not list(on_disk.iterdir())
    del array
    assert files() == before


def test_outside_and_where_it_is_small_an_array_is_in_memory(tmp_path):
    assert spill.empty(spill.SMALLEST, np.int8).base is None
    with spill.spilling(tmp_path):
        assert spill.empty(spill.SMALLEST - 1, np.int8).base is None
        assert spill.empty(spill.SMALLEST, np.int8).base is not None


@given(st.lists(st.lists(st.integers(0, 9)), max_size=9))
def test_an_array_grows(parts):
    growing = spill.Growing(np.int32)
    for part in parts:
        growing.append(np.array(part, np.int32))
    assert growing.values.tolist() == [value for part in parts for value in part]


@given(st.sets(st.integers(2, 40)), st.integers(0, 30))
def test_rows_are_numbered_without_those_left_out(missing, n):
    left = [number for number in range(2, 2 + n + len(missing) + 40) if number not in missing][:n]
    numbers = RowNumbers(n, np.array(sorted(missing), np.int64))
    assert len(numbers) == n
    assert numbers[np.arange(n)].tolist() == left


def test_blocks_count_and_look_up_as_one(on_disk):
    codes = np.random.default_rng(0).integers(0, 5, 50)
    assert spill.count(codes, 6).tolist() == np.bincount(codes, minlength=6).tolist()
    assert spill.lookup(np.arange(5) * 2, codes).tolist() == (2 * codes).tolist()
    assert spill.where(50, lambda rows: codes[rows] == 3).tolist() == np.flatnonzero(codes == 3).tolist()
    assert spill.where(0, lambda rows: codes[rows] == 3).tolist() == []


lists_of_items = st.lists(st.lists(st.integers(0, 6), max_size=12), min_size=1, max_size=12)


@given(lists_of_items, st.integers(1, 4))
def test_filters_in_blocks_are_those_of_plain_python(lists, k):
    def core(sessions):
        counts = [sum(s.count(item) for s in sessions.values()) for item in range(7)]
        kept = {n: [i for i in s if counts[i] >= k] for n, s in sessions.items() if len(s) >= k}
        return kept if kept == sessions else core(kept)

    names = [f"s{n}" for n in range(len(lists))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "BLOCK", 5)
        cored = k_core(Sessions.build(names, lists), k)
        once = first_occurrences(Sessions.build(names, lists))
    found = {name: items.tolist() for name, items in zip(cored.ids, cored, strict=True)}
    assert found == {n: s for n, s in core(dict(zip(names, lists, strict=True))).items() if s}
    assert [items.tolist() for items in once] == [list(dict.fromkeys(items)) for items in lists]


@pytest.fixture
def log(tmp_path):
    """Rows with ties, blank lines, and some that are wrong; titles and the split stand in them."""
    draw, lines = np.random.default_rng(0), ["session_id,item_id,t,title,split"]
    for row in range(3000):
        user, item = draw.integers(0, 200), draw.zipf(1.5) % 60
        cells = [f"u{user}", f"i{item}", str(draw.integers(0, 400)), f"Pen {item + (row % 7 == 0)}"]
        cells.append(("train", "Test", "train ", "dev", "rest")[user % 5])
        cells[row % 5] = ("", "", "soon", "", "test")[row % 5] if row % 97 == 0 else cells[row % 5]
        lines += [",".join([*cells, *(["more"] if row % 101 == 0 else [])]), *(["", ",,,,"] if row % 50 == 0 else [])]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "log.csv"


@pytest.mark.parametrize("split", ["temporal", "leave_one_out", "column"])
@pytest.mark.parametrize("filters", [{}, {"k_core": 3, "repeats": "first", "ties": "file"}])
def test_prepare_writes_the_same_files_from_disk_as_from_memory(log, tmp_path, monkeypatch, split, filters):
    def contents(out):
        config = PrepareConfig(interactions=str(log), time_column="t", split=split, on_bad="drop", **filters, out=out)
        facts = prepare(config).manifest["facts"]
        return facts, {file.name: file.read_bytes() for file in out.glob("*.parquet")}

    whole = contents(tmp_path / "whole")
    assert whole[0]["dropped"]["blank row"] == 120
    monkeypatch.setattr(spill, "SMALLEST", 0)
    monkeypatch.setattr(spill, "BLOCK", 50)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 1 << 11)
    assert contents(tmp_path / "blocks") == whole


LIMITED = """
import resource, sys
from pathlib import Path
from seqrec_prompt.cli import main
from seqrec_prompt.data import readers, sessions, spill
import seqrec_prompt.data.dataset, seqrec_prompt.data.ingest
readers._BLOCK_BYTES, spill.BLOCK, spill.SMALLEST, sessions.GROUP = 1 << 16, 1 << 14, 1 << 16, 1 << 14
def prepare(name):
    return main(["prepare", "--interactions", f"{name}.csv", "--time-column", "t", "--out", name])
assert prepare("small") == 0
{limit}
sys.exit(prepare("large"))
"""
MEMORY = """
status = Path("/proc/self/status").read_text()
most = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData"))) + (16 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
"""
DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"


def limited(folder, limit, rows):
    for name, n in (("small", 20_000), ("large", rows)):
        lines = (f"u{i * 7919 % 997},i{i * 104_729 % 499},{1_600_000_000 + i}\n" for i in range(n))
        (folder / f"{name}.csv").write_text("session_id,item_id,t\n" + "".join(lines))
    # Arrow's own pool keeps what is freed, and more of it the more batches there were.
    return subprocess.run(
        [sys.executable, "-c", LIMITED.replace("{limit}", limit)],
        capture_output=True, text=True, check=False, cwd=folder,
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process that is its own")
def test_a_million_rows_take_less_than_16_mb(tmp_path):
    """Its own memory, not pages of files. Sessions and items are as many as in the small file that came before."""
    done = limited(tmp_path, MEMORY, 1_000_000)
    assert done.returncode == 0, done.stderr
    assert "997 sessions, 499 items, 1,000,000 interactions" in done.stdout


def test_a_disk_without_room_for_the_rows_is_told(tmp_path):
    done = limited(tmp_path, DISK, 300_000)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}: File too large")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".csv") == ["small"]
