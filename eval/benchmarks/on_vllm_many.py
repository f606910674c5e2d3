"""Part `many` of on_vllm.py: `recommend` for thousands of sessions, killed and gone on with."""

from __future__ import annotations

import argparse
import importlib
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from on_vllm_sessions import K

from seqrec_prompt.artifacts import hash_json, manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split


def many(given: argparse.Namespace) -> dict[str, Any]:
    """`recommend` for thousands of sessions with the tests' tiny model: killed once on its way, then to its end."""
    model, data = _tiny(given.scratch, given.many_sessions)
    lists = given.scratch / "many.parquet"
    command = [sys.executable, "-m", "seqrec_prompt.cli", "recommend", "--engine", "vllm", "--data", str(data)]
    command += ["--model", str(model), "--dtype", "float32", "--out", str(lists), "--k", str(K), "--quiet"]
    journal, started = lists.with_name("many.parquet.journal"), time.perf_counter()
    running = subprocess.Popen(command)
    while running.poll() is None and (not journal.exists() or _lines(journal) < given.kill_after + 1):
        time.sleep(0.2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = _lines(journal) - 1  # the first line is the manifest
    running, held = subprocess.Popen(command), []  # GB, once its first batch is done
    while running.poll() is None:
        if journal.exists() and _lines(journal) > kept + 1:
            held.append(_resident(running.pid))
        time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"recommend ended with {running.returncode}")
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    columns = pq.read_table(lists, columns=["session_id", "item_id", "certified"]).to_pandas()
    by_session = columns.groupby("session_id")
    return {
        "sessions": int(columns["session_id"].nunique()),
        "full_and_distinct": int((by_session["item_id"].nunique() == K).sum()),
        "certified": int(by_session["certified"].all().sum()),
        "batches_kept": kept,
        "seconds": seconds,
        "first_gb": held[0],
        "peak_gb": peak,
    }


def _tiny(scratch: Path, sessions: int) -> tuple[Path, Path]:
    """The tests' tiny model and its catalog of thirty items, with random test sessions."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    tiny = importlib.import_module("tiny")
    catalog, draw = tiny.build_catalog(), np.random.default_rng(0)
    lists = [draw.integers(len(catalog), size=draw.integers(3, 10)).tolist() for _ in range(sessions)]
    test = Holdout.of_last_items(Sessions.build([f"test-{i}" for i in range(sessions)], lists))
    train = Sessions.build(["train-0"], [list(range(len(catalog)))])
    made = manifest("prepare", {}, {}, {"hash": hash_json(["on_vllm", sessions])})
    scratch.mkdir(parents=True, exist_ok=True)
    Dataset(catalog, Split(train, test), made).save(scratch / "data")
    return tiny.save_tiny_model(scratch / "model", head_dim=32), scratch / "data"


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def _resident(process: int) -> float:
    """GB that a process holds; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 1e9
