"""Evaluation: CPU-seconds of the metrics beside ranx and rectools, of intervals and tests, and of a million sessions.

python eval/benchmarks/evaluation.py --out eval/results/evaluation.md

Lists of 20 different random items, the target in 8% of them: the sizes of Amazon Beauty, then a million sessions. Needs
no data. ranx comes with the extra 'test'; rectools is left out where it is not installed (pip install --no-deps
rectools implicit attrs typeguard). Every peer is given its own objects, made before the clock starts, and is run once
before: what is timed is the computing of metrics alone, once compiled.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from _measure import commit, table

from seqrec_prompt.artifacts import write_json, write_text
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.evaluation.metrics import METRICS, ListMetrics, evaluate_lists
from seqrec_prompt.evaluation.significance import bootstrap_interval, randomisation_test, t_test
from seqrec_prompt.ragged import IntArray, LongArray, offsets_of
from seqrec_prompt.recommenders import files
from seqrec_prompt.recommenders.base import Recommendations

SESSIONS, ITEMS, K, CUTOFFS, MANY = 22_363, 12_101, 20, (10, 20), 1_000_000
Timed = dict[str, float]


def made_up(n: int, seed: int, targets: IntArray | None = None) -> tuple[Recommendations, IntArray]:
    """Lists of n sessions and their targets."""
    draw = np.random.default_rng(seed)
    steps = draw.integers(1, ITEMS // K, (n, K), dtype=np.int32)
    items = (draw.integers(0, ITEMS, (n, 1), dtype=np.int32) + steps.cumsum(axis=1, dtype=np.int32)) % ITEMS
    if targets is None:
        targets = draw.integers(0, ITEMS, n, dtype=np.int32)
    absent = np.flatnonzero((items != targets[:, None]).all(axis=1))
    hits = absent[draw.random(len(absent)) < 0.08]
    items[hits, draw.integers(0, K, len(hits))] = targets[hits]
    ids = np.array([f"s{i}" for i in range(n)], dtype=object)
    scores = np.tile(-np.arange(K, dtype=np.float64), n)
    lists = Recommendations(ids, offsets_of(np.full(n, K)), items.ravel(), scores, np.ones(n, np.bool_), np.zeros(n))
    return lists, targets


def cpu(work: Callable[[], Any], repeats: int) -> Timed:
    """Median, least and most CPU-seconds of `repeats` runs, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return {"median": float(np.median(seconds)), "least": min(seconds), "most": max(seconds)}


def ranx_times(lists: Recommendations, targets: IntArray, repeats: int) -> Timed:
    """ranx: three of the six metrics; it knows no catalog."""
    ranx = importlib.import_module("ranx")
    run = ranx.Run({f"s{i}": {str(x): float(K - j) for j, x in enumerate(items)} for i, items in enumerate(lists)})
    qrels = ranx.Qrels({f"s{i}": {str(target): 1} for i, target in enumerate(targets)})
    names = [f"{metric}@{k}" for metric in ("ndcg", "hit_rate", "mrr") for k in CUTOFFS]
    return cpu(lambda: ranx.evaluate(qrels, run, names), repeats)


def rectools_times(lists: Recommendations, targets: IntArray, popularity: LongArray, repeats: int) -> Timed:
    """rectools: all six; its serendipity and novelty are near relatives of ours."""
    metrics = importlib.import_module("rectools.metrics")
    n = len(lists)
    shown = pd.DataFrame(
        {"user_id": np.repeat(np.arange(n), K), "item_id": lists.items, "rank": np.tile(np.arange(1, K + 1), n)}
    )
    truth = pd.DataFrame({"user_id": np.arange(n), "item_id": targets})
    before = pd.DataFrame({"user_id": np.arange(popularity.sum()), "item_id": np.repeat(np.arange(ITEMS), popularity)})
    wanted: dict[str, Any] = {}
    for k in CUTOFFS:
        wanted |= {
            f"ndcg@{k}": metrics.NDCG(k, divide_by_achievable=True),
            f"hr@{k}": metrics.HitRate(k),
            f"mrr@{k}": metrics.MRR(k),
            f"coverage@{k}": metrics.CatalogCoverage(k, normalize=True),
            f"serendipity@{k}": metrics.Serendipity(k),
            f"novelty@{k}": metrics.MeanInvUserFreq(k),
        }
    return cpu(lambda: metrics.calc_metrics(wanted, shown, truth, before, np.arange(ITEMS)), repeats)


def statistics(one: ListMetrics, other: ListMetrics, repeats: int) -> dict[str, Timed]:
    """Intervals of one recommender's five per-session metrics; both tests of a pair in all of them."""
    columns = [(k, name) for k in CUTOFFS for name in METRICS if name != "coverage"]

    def intervals() -> None:
        for k, name in columns:
            bootstrap_interval(one.per_session[k][name], 1000, 0.95, np.random.default_rng(0))

    def tests() -> None:
        groups = [[c for c in columns if c[1] != "novelty"], *([c] for c in columns if c[1] == "novelty")]
        for group in groups:
            differences = np.stack([one.per_session[k][m] - other.per_session[k][m] for k, m in group], axis=1)
            randomisation_test(differences, 10_000, np.random.default_rng(0))
            t_test(differences)

    return {"intervals": cpu(intervals, repeats), "tests": cpu(tests, repeats)}


def ours(n: int, popularity: LongArray, repeats: int) -> dict[str, Any]:
    """All that evaluation does with n sessions: reading a file, metrics, intervals, tests."""
    lists, targets = made_up(n, 1)
    times: dict[str, Any] = {"sessions": n}
    catalog = Catalog([str(i) for i in range(ITEMS)], [""] * ITEMS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lists.parquet"
        sessions = pa.array(lists.session_ids, pa.string()).take(np.repeat(np.arange(n), K))
        items = pa.array(catalog.ids, pa.string()).take(lists.items)
        ranks = np.tile(np.arange(1, K + 1, dtype=np.int32), n)
        pq.write_table(pa.table({"session_id": sessions, "rank": ranks, "item_id": items}), path)
        del sessions, items, ranks
        times["read"] = cpu(lambda: files.read(path, catalog), repeats)
    times["metrics"] = cpu(lambda: evaluate_lists(lists, targets, popularity, ITEMS, CUTOFFS), repeats)
    one = evaluate_lists(lists, targets, popularity, ITEMS, CUTOFFS)
    other = evaluate_lists(made_up(n, 2, targets)[0], targets, popularity, ITEMS, CUTOFFS)
    times |= statistics(one, other, repeats)
    times["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return times


def one(what: str, repeats: int) -> Any:
    """What a process of its own measures: a number of sessions, or a peer at SESSIONS."""
    popularity = np.random.default_rng(0).integers(1, 33, ITEMS)
    if what.isdigit():
        return ours(int(what), popularity, repeats)
    lists, targets = made_up(SESSIONS, 1)
    if what == "ranx":
        return ranx_times(lists, targets, repeats)
    return rectools_times(lists, targets, popularity, repeats)


def shown(timed: Timed) -> str:
    """Write '0.012 (0.011–0.013)'."""
    return f"{timed['median']:.3f} ({timed['least']:.3f}–{timed['most']:.3f})"


def page(result: dict[str, Any]) -> list[str]:
    """The result page."""
    base = result["sizes"][0]["metrics"]["median"]
    peers = [["**seqrec_prompt**", "6", shown(result["sizes"][0]["metrics"]), "1"]]
    peers += [
        [p["name"], p["metrics"], shown(p["seconds"]), f"{p['seconds']['median'] / base:.0f}"] for p in result["peers"]
    ]
    parts = ("read", "metrics", "intervals", "tests")
    rows = [[f"{r['sessions']:,}", *(shown(r[part]) for part in parts), f"{r['peak_gb']:.1f}"] for r in result["sizes"]]
    head = ["sessions", "reading a file", "six metrics", "intervals of a recommender", "both tests of a pair"]
    return [
        "# Evaluation",
        "",
        f"Random lists of {K} of {ITEMS:,} items, one target a session, in 8% of the lists; cut-offs 10 and 20. "
        "CPU-seconds of one core: median of the runs (least–most), after one that is not counted.",
        "",
        f"## Metrics of {SESSIONS:,} sessions",
        "",
        "Each library's own objects are made before. rectools' serendipity and novelty are near relatives of ours.",
        "",
        *table(["library", "metrics", "CPU-seconds", "times ours"], peers),
        "",
        "## With more sessions",
        "",
        "Intervals: 1,000 bootstrap resamples, five metrics at two cut-offs. Tests: 10,000 sign flips, and Student's, "
        "of the same ten. Both draw how often each value occurs, not the sessions.",
        "",
        *table([*head, "peak GB"], rows),
        "",
        f"`{result['command']}`, commit {result['commit']}; CPU, 1 core"
        + (f", {result['beside']}" if result["beside"] else "")
        + f"; {', '.join(f'{name} {version}' for name, version in result['versions'].items())}.",
    ]


def main() -> None:
    """Measure every size and peer in a process of its own; write OUT and, beside it, the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", default="", help="what else the machine did, for the page")
    parser.add_argument("--one", help="measure this alone, a number of sessions or a peer, and print it")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.repeats)))
        return

    def apart(what: str) -> Any:
        command = [sys.executable, *sys.argv, "--one", what]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    sizes = [apart(str(n)) for n in (SESSIONS, MANY)]
    peers = [
        {"name": name, "metrics": metrics, "seconds": apart(name)}
        for name, metrics in (("ranx", "3"), ("rectools", "6"))
        if importlib.util.find_spec(name)
    ]
    names = ["numpy", "scipy", "pyarrow", *(peer["name"] for peer in peers)]
    result = {
        "command": f"python eval/benchmarks/evaluation.py --out {given.out} --repeats {given.repeats}",
        "commit": commit(),
        "beside": given.beside,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "sizes": sizes,
        "peers": peers,
    }
    write_json(given.out.with_suffix(".json"), result)
    write_text(given.out, "\n".join(page(result)) + "\n")
    print(given.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
