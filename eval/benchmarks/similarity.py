"""LLMSeqSim: how many sessions a second one core answers, at the size of Amazon Beauty and random vectors.

python eval/benchmarks/similarity.py --out eval/results/similarity.md

Neither the values of the vectors nor the items of the sessions change the work: exact similarities of all items, then
the k best. Needs no data.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from _measure import commit

from seqrec_prompt.artifacts import manifest, write_text
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.recommenders.similarity import LLMSeqSim, SimilarityConfig

SESSIONS, ITEMS, K = 4_469, 12_101, 20
SIMILARITIES: tuple[Literal["cosine", "dot", "euclidean"], ...] = ("cosine", "dot", "euclidean")


def main() -> None:
    """Measure every dimension and similarity in a process of its own, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("DIM", "SIMILARITY"), help="measure this alone and print it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(one(int(given.one[0]), given.one[1], given.seed))
        return
    rows = []
    for dimension in (384, 1_536):
        for similarity in SIMILARITIES:
            command = [sys.executable, *sys.argv, "--one", str(dimension), similarity]
            rows.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
            print(rows[-1])
    write_text(given.out, "\n".join(page(rows, given.seed)) + "\n")


def one(dimension: int, similarity: Literal["cosine", "dot", "euclidean"], seed: int) -> str:
    """One row of the table: the median of five runs, each over all sessions."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(ITEMS, dimension)).astype(np.float32)
    lengths = 1 + draw.geometric(1 / 7.9, SESSIONS)  # Beauty has 8.9 items a session
    sessions = Sessions.build([str(i) for i in range(SESSIONS)], [draw.integers(ITEMS, size=n) for n in lengths])
    catalog = Catalog([str(i) for i in range(ITEMS)], [""] * ITEMS)
    table = EmbeddingTable(vectors, manifest("embed", {}, {}))
    started = time.perf_counter()
    recommender = LLMSeqSim.fit(table, catalog, SimilarityConfig(similarity=similarity))
    fitting = time.perf_counter() - started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(5):
        started = time.process_time()
        recommender.recommend(sessions, K, exclude_seen=True)
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    median = float(np.median(seconds))
    return (
        f"| {dimension:,} | {similarity} | {median:.2f} ({min(seconds):.2f}–{max(seconds):.2f}) | "
        f"{SESSIONS / median:,.0f} | {fitting:.2f} | {(peak - before) / 2**20:.2f} |"
    )


def page(rows: list[str], seed: int) -> list[str]:
    """The result page."""
    return [
        "# LLMSeqSim",
        "",
        f"The {K} nearest of {ITEMS:,} items to each of {SESSIONS:,} sessions (the sizes of Amazon Beauty), seen items "
        "left out, harmonic weights, random vectors. CPU seconds of one core: median of five runs (least–most). Added: "
        "what recommending adds to the peak memory of the process. Euclidean computes in float64.",
        "",
        "| dimensions | similarity | CPU seconds | sessions a CPU second | fit s | added GB |",
        "|---:|---|---:|---:|---:|---:|",
        *rows,
        "",
        f"`python eval/benchmarks/similarity.py --out eval/results/similarity.md --seed {seed}`, commit {commit()}; "
        f"CPU, 1 core; torch {importlib.metadata.version('torch')}, numpy {importlib.metadata.version('numpy')}.",
    ]


if __name__ == "__main__":
    main()
