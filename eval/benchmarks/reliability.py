"""Faults and what came of them, a long run's memory, and a large file's.

python eval/benchmarks/reliability.py kills     # tests/faults/test_kills.py, at 20 random points a stage
python eval/benchmarks/reliability.py training  # … test_checkpoints.py
python eval/benchmarks/reliability.py disk      # … test_full_disk.py
python eval/benchmarks/reliability.py runs      # … test_two_at_once.py
python eval/benchmarks/reliability.py soak      # 20,000 sessions through recommend
python eval/benchmarks/reliability.py csv       # prepare of a generated CSV, by rows

Each part adds itself to eval/results/reliability.json and writes the page beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import stamp, table

from seqrec_prompt.artifacts import write_json, write_text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "eval" / "results" / "reliability.json"
TITLES = {
    "kills": "Killed and stopped",
    "training": "A training killed",
    "disk": "A disk that is full or fails",
    "runs": "Two runs of one output, other settings, too little memory",
    "soak": "A long run",
    "csv": "A large file",
}
# The second has more rows than the first, the third more sessions than the second; the last has 5 GB.
SIZES = ["5000000:50000:36", "8000000:50000:36", "8000000:1000000:36", "20000000:1000000:250"]
FILES = {
    "kills": "test_kills.py",
    "training": "test_checkpoints.py",
    "disk": "test_full_disk.py",
    "runs": "test_two_at_once.py",
}


def main() -> None:
    """Measure one part and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=list(TITLES))
    parser.add_argument("--points", type=int, default=20, help="kills: random points a stage is killed at")
    parser.add_argument("--sessions", type=int, default=20_000, help="soak: how many")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="csv: rows:sessions:bytes a row of each file")
    parser.add_argument("--folder", type=Path, help="csv: where the files are made; they need up to twice their size")
    given = parser.parse_args()
    more = {"kills": ["points"], "soak": ["sessions"], "csv": ["sizes"]}.get(given.part, [])
    found = {"soak": soak, "csv": large_file}.get(given.part, faults)(given)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    write_json(RESULTS, results | {given.part: found | stamp(given, given.part, *more)})
    write_page()


class Outcomes:
    """A pytest plugin that keeps what the tests tell."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the outcome of a test that tells one, and every failure."""
        told = dict(report.user_properties).get("outcome")
        if report.when == "call" and (told or report.failed):
            stage, fault, seen = told or ["", report.nodeid, "FAILED"]
            self.rows.append({"stage": stage, "fault": fault, "outcome": seen, "passed": report.passed})


def faults(given: argparse.Namespace) -> dict[str, Any]:
    """Run a file of tests/faults."""
    import pytest

    os.environ["SEQREC_FAULT_POINTS"] = str(given.points)
    outcomes = Outcomes()
    pytest.main(
        [str(ROOT / "tests" / "faults" / FILES[given.part]), "-p", "no:cacheprovider", "--timeout=3000"],
        plugins=[outcomes],
    )
    return {"rows": outcomes.rows}


def soak(given: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of `recommend` on the tests' tiny model, by sessions done."""
    sys.path.insert(0, str(ROOT / "tests"))
    import numpy as np

    from seqrec_prompt.artifacts import hash_json, manifest
    from seqrec_prompt.data.catalog import Catalog
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Holdout, Sessions, Split

    tiny: Any = importlib.import_module("tiny")
    draw = np.random.default_rng(0)
    titles = list(dict.fromkeys(tiny.product_titles(200)))[:50]
    lists = [draw.integers(len(titles), size=n).tolist() for n in draw.integers(2, 10, given.sessions)]
    sessions = Sessions.build([f"s{i}" for i in range(len(lists))], lists)
    split = Split(sessions.take(np.arange(10)), Holdout.of_last_items(sessions))
    with tempfile.TemporaryDirectory() as folder:
        data, model, out = Path(folder, "data"), Path(folder, "model"), Path(folder, "recs.parquet")
        tiny.save_tiny_model(model)
        data.mkdir()
        catalog = Catalog([str(i) for i in range(len(titles))], titles)
        Dataset(catalog, split, manifest("prepare", {}, {}, {"hash": hash_json("soak")})).save(data)
        command = ["recommend", "--data", str(data), "--model", str(model), "--out", str(out), "--k", "5"]
        journal = out.with_name(out.name + ".journal")
        seen, seconds = watched([*command, "--batch-size", "64"], lambda pid: (journal.stat().st_size, _memory(pid)))
    # The journal's size says how far the run is: a record a batch.
    samples = [(size, sum(memory)) for size, memory in seen if size]
    most = max(size for size, _ in samples)
    rows = []
    for share in (0.05, 0.25, 0.5, 0.75, 1.0):
        reached = [memory for size, memory in samples if size >= 0.999 * share * most]
        rows.append({"share": share, "rss_mb": reached[0]})
    return {"rows": rows, "sessions": given.sessions, "seconds": seconds}


def watched(command: list[str], look: Callable[[int], Any]) -> tuple[list[Any], float]:
    """Run a verb; returns what `look` saw of its process, ten times a second, and how long it took."""
    started, samples = time.monotonic(), []
    with subprocess.Popen([sys.executable, "-m", "seqrec_prompt", *command], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):  # not begun yet, or over
                samples.append(look(process.pid))
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return samples, time.monotonic() - started


def _memory(pid: int) -> tuple[float, float]:
    """MB of a process in memory: its own, and pages of files, which the system drops when it needs the room."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    own, files, shared = (int(kb) for kb in re.findall(r"^Rss(?:Anon|File|Shmem):\s+(\d+)", status, re.MULTILINE))
    return own * 1.024e-3, (files + shared) * 1.024e-3


def large_file(given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of `prepare` on generated interactions."""
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for size in given.sizes:
            n, sessions, width = map(int, size.split(":"))
            file = Path(folder, "log.csv")
            generate(file, n, sessions, width)
            argv = ["prepare", "--interactions", str(file), "--session-column", "user_id", "--time-column", "timestamp"]
            seen, seconds = watched([*argv, "--out", str(Path(folder, size.replace(":", "-")))], _memory)
            peak = max(own for own, _ in seen)
            rows.append({"rows": n, "sessions": sessions, "file_mb": file.stat().st_size / 1e6, "peak_mb": peak})
            rows[-1]["seconds"] = seconds
            print(rows[-1], flush=True)
    return {"rows": rows}


def generate(file: Path, rows: int, sessions: int, width: int) -> None:
    """Interactions of `sessions` users with 100,000 items of falling popularity, in the order of their time.

    A column that `prepare` does not read fills the rows to `width` bytes.
    """
    import numpy as np

    draw, filler = np.random.default_rng(0), "5" * max(width - 33, 1)
    with file.open("w", encoding="ascii") as stream:
        stream.write("user_id,item_id,timestamp,review\n")
        for start in range(0, rows, 1_000_000):
            n = min(1_000_000, rows - start)
            users = draw.integers(0, sessions, n).tolist()
            items = (draw.zipf(1.3, n) % 100_000).tolist()
            times = (1_600_000_000 + (start + np.arange(n)) // 4).tolist()
            lines = (f"u{u:08d},B{i:09d},{t},{filler}\n" for u, i, t in zip(users, items, times, strict=True))
            stream.writelines(lines)


def write_page() -> None:
    """Write the page from the JSON file."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = ["# Reliability"]
    for part, title in TITLES.items():
        if part in results:
            write = {"soak": _soak, "csv": _csv}.get(part, _faults)
            result = results[part]
            versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            lines += ["", f"## {title}", "", *write(result), *result.get("notes", []), ""]
            lines += [f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; {versions}."]
    write_text(RESULTS.with_suffix(".md"), "\n".join(lines) + "\n")
    print(f"wrote {RESULTS.with_suffix('.md')}")


def _faults(result: dict[str, Any]) -> list[str]:
    stages: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        stages.setdefault((row["fault"], row["outcome"]), []).append(row["stage"])
    rows = [[", ".join(which), fault, outcome] for (fault, outcome), which in stages.items()]
    note = (
        "What tests/faults does to processes of their own, with real signals and limits of the kernel, on the tests' "
        "tiny model."
    )
    failed = sum(not row["passed"] for row in result["rows"])
    lines = [note, "", "| stage | fault | outcome |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    return [*lines, "", f"{failed} of {len(result['rows'])} failed."]


def _soak(result: dict[str, Any]) -> list[str]:
    rows = [[f"{row['share']:.0%}", f"{row['rss_mb']:.0f}"] for row in result["rows"]]
    note = (
        f"`recommend`, {result['sessions']:,} sessions, batches of 64, the tests' tiny model: "
        f"{result['seconds']:.0f} s. Resident memory of the process when so much of the journal was written."
    )
    return [note, "", *table(["done", "resident MB"], rows)]


def _csv(result: dict[str, Any]) -> list[str]:
    """Memory as a line in rows and sessions, through the first three files."""
    rows = result["rows"]
    small, long, wide = rows[:3]
    by_session = (wide["peak_mb"] - long["peak_mb"]) * 1e6 / (wide["sessions"] - long["sessions"])
    note = (
        "`prepare` of a generated log with 100,000 items. The peak is of the process's own memory: entries of rows lie "
        "in files without a name beside the output, whose pages the system drops when it needs the room. "
        f"{long['rows'] - small['rows']:,} more rows (the second file) change it by "
        f"{long['peak_mb'] - small['peak_mb']:+.0f} MB; {wide['sessions'] - long['sessions']:,} more sessions (the "
        f"third) by {wide['peak_mb'] - long['peak_mb']:+.0f} MB, {by_session:.0f} bytes each. Files below 128 MB take "
        "less: so much is read ahead."
    )
    cells = [
        [*(f"{row[key]:,.0f}" for key in ("rows", "sessions", "file_mb", "peak_mb", "seconds"))]
        for row in result["rows"]
    ]
    return [note, "", *table(["rows", "sessions", "file MB", "peak MB", "seconds"], cells)]


if __name__ == "__main__":
    main()
