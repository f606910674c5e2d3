"""LLMSeqSim: how many sessions a second one core answers, at the size of Amazon Beauty and with a million items.

python eval/benchmarks/similarity.py --out eval/results/similarity.md          # one core
python eval/benchmarks/similarity.py --out eval/results/similarity.md --cores  # two, the machine idle: adds a table

The vectors are random. In exact search neither their values nor the items of the sessions change the work: all
similarities, then the k best. Each row is measured in a process of its own. Needs no data; with the extra [faiss].
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from _measure import commit, table

from seqrec_prompt.artifacts import write_json, write_text
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.recommenders.nearest.cells import PROBES, Cells
from seqrec_prompt.recommenders.nearest.rows import BLOCK, ROWS
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SimilarityConfig

SESSIONS, ITEMS, K = 4_469, 12_101, 20
MANY, ASKED, CENTRES = 1_000_000, 1_000, 10_000


def main() -> None:
    """Measure every row in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", action="store_true", help="only the time that two cores take")
    parser.add_argument("--beauty", nargs=2, metavar=("DIM", "SIMILARITY"), help="measure this alone and print it")
    parser.add_argument("--million", metavar="SEARCH", help="measure this alone and print it")
    given = parser.parse_args()
    if given.beauty:
        print("|".join(beauty(int(given.beauty[0]), given.beauty[1], given.seed)))
    elif given.million:
        print("|".join(million(given.million, given.seed)))
    else:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Measure one part, each row in a process of its own; write it beside the page's other part, and the page."""
    kept = given.out.with_suffix(".json")
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    sizes = ("384", "1536")
    if given.cores:
        ways = [(size, way) for size in sizes for way in ("cosine", "faiss")]
        part, found = "cores", {"beauty": [_alone(2, "--beauty", *words) for words in ways]}
    else:
        ways = [(size, way) for size in sizes for way in ("cosine", "dot", "euclidean", "faiss")]
        found = {"beauty": [_alone(1, "--beauty", *words) for words in ways]}
        part, found["million"] = "core", [_alone(1, "--million", search) for search in ("exact", "ivf", "faiss")]
    words = f"--out {given.out} --seed {given.seed}" + " --cores" * given.cores
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "faiss-cpu"))
    stamp = f"`python eval/benchmarks/similarity.py {words}`, commit {commit()}; CPU; {versions}."
    results[part] = found | {"stamp": stamp}
    write_json(kept, results)
    write_text(given.out, "\n".join(page(results)) + "\n")


def beauty(dimension: int, similarity: Any, seed: int) -> list[str]:
    """One row of the first table: the median of five runs, each over all sessions."""
    draw = np.random.default_rng(seed)
    vectors = draw.standard_normal((ITEMS, dimension), np.float32)
    lengths = 1 + draw.geometric(1 / 7.9, SESSIONS)  # Beauty has 8.9 items a session
    sessions = _sessions([draw.integers(ITEMS, size=n) for n in lengths])
    name, run = _way(vectors, sessions, similarity)
    cpu, elapsed, added = _timed(run, 5)
    rate, share = SESSIONS / np.median(cpu), np.median(np.divide(cpu, elapsed))
    return [f"{dimension:,}", name, _spread(cpu), f"{rate:,.0f}", f"{added:.2f}", _spread(elapsed), f"{share:.2f}"]


def million(search: Any, seed: int) -> list[str]:
    """One row of the second table: MANY items around CENTRES points, each session of items around one of them."""
    draw = np.random.default_rng(seed)
    centre = draw.integers(CENTRES, size=MANY)
    vectors = draw.standard_normal((MANY, 384), np.float32)
    centres = draw.standard_normal((CENTRES, 384), np.float32)
    for start in range(0, MANY, ROWS):
        vectors[start : start + ROWS] += centres[centre[start : start + ROWS]]
    near = np.argsort(centre, kind="stable")
    starts = np.searchsorted(centre[near], draw.integers(CENTRES, size=ASKED))
    sessions = _sessions([near[start : start + 1 + draw.geometric(1 / 7.9)] for start in starts])
    started = time.process_time()
    if search == "ivf":
        config = SimilarityConfig(search="ivf", probes=PROBES)
        made = LLMSeqSim(vectors, np.arange(MANY), config, Cells.build(vectors, "cosine", PROBES).pack())
        name, run = f"LLMSeqSim, ivf, {PROBES} of 1,000 cells", _asked(made, sessions)
    else:
        name, run = _way(vectors, sessions, "cosine" if search == "exact" else search)
    fitting = time.process_time() - started
    cpu, _, added = _timed(run, 1)
    recall = "1"
    if search == "ivf":
        exact = LLMSeqSim(vectors, np.arange(MANY), SimilarityConfig()).recommend(sessions, K, exclude_seen=True)
        both = [len(set(a) & set(b)) for a, b in zip(run(), exact, strict=True)]
        recall = f"{np.mean(both) / K:.3f}"
    return [name, _spread(cpu), f"{ASKED / cpu[0]:,.0f}", recall, f"{fitting:.0f}", f"{added:.2f}"]


def _way(vectors: Any, sessions: Sessions, similarity: Any) -> tuple[str, Callable[[], Any]]:
    """LLMSeqSim, or the peer: faiss's exact index, given the sessions' vectors and keeping seen items."""
    place = np.arange(len(vectors))
    if similarity != "faiss":
        made = LLMSeqSim(vectors, place, SimilarityConfig(similarity=similarity))
        return f"LLMSeqSim, {similarity}", _asked(made, sessions)
    queries = LLMSeqSim(vectors, place, SimilarityConfig()).session_vectors(sessions)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return "faiss IndexFlatIP", lambda: index.search(queries, K)


def _asked(made: LLMSeqSim, sessions: Sessions) -> Callable[[], Any]:
    made.recommend(sessions.take(np.arange(1)), K, exclude_seen=True)  # the first call loads what is searched
    return lambda: made.recommend(sessions, K, exclude_seen=True)


def _sessions(lists: Any) -> Sessions:
    return Sessions.build([str(i) for i in range(len(lists))], [items.tolist() for items in lists])


def _timed(run: Callable[[], Any], times: int) -> tuple[list[float], list[float], float]:
    """CPU seconds and seconds of each run, and GB by which the peak memory of the process rose."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, elapsed = [], []
    for _ in range(times):
        started, clock = time.process_time(), time.perf_counter()
        run()
        cpu.append(time.process_time() - started)
        elapsed.append(time.perf_counter() - clock)
    return cpu, elapsed, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def _spread(seconds: list[float]) -> str:
    least, most = min(seconds), max(seconds)
    return f"{np.median(seconds):.2f}" + (f" ({least:.2f}–{most:.2f})" if len(seconds) > 1 else "")


def _alone(threads: int, *words: str) -> list[str]:
    """Run this file for one row, torch, BLAS and faiss with so many threads."""
    command = [sys.executable, *sys.argv, *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    row = done.stdout.strip().split("|")
    print(*row, sep=" | ", flush=True)
    return row


def page(results: dict[str, Any]) -> list[str]:
    """The result page."""
    lines = [
        "# LLMSeqSim",
        "",
        f"The {K} nearest items to each session, seen items left out, harmonic weights, random vectors. Added: what "
        f"recommending adds to the peak memory of the process; at most {BLOCK:,} similarities stand at once, "
        f"{BLOCK * 4 / 2**20:.0f} MB. Euclidean computes in float64. The peer, exact search by faiss, is given the "
        "sessions' vectors and leaves nothing out. Rows of one table were measured one after another.",
    ]
    size = f"{ITEMS:,} items, {SESSIONS:,} sessions; median of five runs (least–most)"
    if "core" in results:
        head = ["dimensions", "way", "CPU seconds", "sessions a CPU second", "added GB"]
        lines += ["", "## The size of Amazon Beauty", "", f"{size}, one thread.", ""]
        lines += table(head, [row[:5] for row in results["core"]["beauty"]])
        lines += [
            "",
            "## A million items",
            "",
            f"{MANY:,} items of 384 dimensions, normal around {CENTRES:,} centres that are normal themselves; "
            f"{ASKED:,} sessions, each of items around one centre; cosine; one thread, one run. Recall: share of the "
            "exact lists' items.",
            "",
            *table(
                ["way", "CPU seconds", "sessions a CPU second", "recall@20", "fit CPU s", "added GB"],
                results["core"]["million"],
            ),
            "",
            results["core"]["stamp"],
        ]
    if "cores" in results:
        head = ["dimensions", "way", "seconds", "CPU seconds", "cores it had", "added GB"]
        rows = [[row[0], row[1], row[5], row[2], row[6], row[4]] for row in results["cores"]["beauty"]]
        lines += ["", "## On two cores", "", f"{size}, two threads. Cores it had: CPU seconds a second.", ""]
        lines += [*table(head, rows), "", results["cores"]["stamp"]]
    return lines


if __name__ == "__main__":
    main()
