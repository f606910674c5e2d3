"""Compiling and decoding from twelve thousand titles to a million: seconds, memory, and what a session costs.

python eval/benchmarks/scale.py --data runs/beauty/data --out eval/results/decoding

The first titles are the catalog's own; the others are chains of its words, each word drawn among those that follow
the one before it, so that they branch as product titles do. Each size is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _measure import peak_gb, stamp, write_page

from seqrec_prompt.artifacts import write_json
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import CATALOG, Dataset
from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.decoding.search import search
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.engines.models import load_tokenizer
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig

SIZES = (12_101, 100_000, 1_000_000)
ADDED = 1000


def titles(known: list[str], n: int, seed: int) -> list[str]:
    """`n` distinct titles: the known ones, then chains of their words."""
    draw = random.Random(seed)
    after: dict[str, list[str]] = {}
    for title in known:
        for one, two in pairwise(["", *title.split(), ""]):
            after.setdefault(one, []).append(two)
    found = dict.fromkeys(known)
    while len(found) < n:
        words = [draw.choice(after[""])]
        while words[-1] and len(words) < 40:
            words.append(draw.choice(after[words[-1]]))
        if title := " ".join(words).strip():
            found.setdefault(title)
    return list(found)[:n]


def one_size(given: argparse.Namespace) -> dict[str, Any]:
    """Measure one catalog size in this process."""
    texts = titles(Catalog.load(given.data / CATALOG).texts(), given.one + ADDED, given.seed)
    ids = [str(i) for i in range(len(texts))]
    catalog, more = Catalog(ids[: given.one], texts[: given.one]), Catalog(ids[given.one :], texts[given.one :])
    del texts, ids
    tokenizer = load_tokenizer(given.model)
    cache = Path(tempfile.mkdtemp())
    before = peak_gb()
    start = time.perf_counter()
    compile_template(TemplateConfig(), catalog, tokenizer)
    tokenise = time.perf_counter() - start
    start = time.perf_counter()
    compiled = compile_catalog(TemplateConfig(), catalog, tokenizer, cache=cache)
    compile_seconds = time.perf_counter() - start
    peak = peak_gb()
    start = time.perf_counter()
    compile_catalog(TemplateConfig(), catalog, tokenizer, cache=cache)
    load = time.perf_counter() - start
    start = time.perf_counter()
    compiled.add(more, tokenizer)
    add = time.perf_counter() - start
    shutil.rmtree(cache)

    data, engine = Dataset.load(given.data), HuggingFaceEngine.load(given.model)
    drawn = np.sort(np.random.default_rng(given.seed).choice(len(data.split.test), 8, replace=False))
    shown = compiled.prompter.fitting(data.split.test.prompts.take(drawn), 2048)
    prompts, shared = [compiled.prompter.prompt(items) for items in shown], len(compiled.prompter.head)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        found = search(engine, compiled.trie, prompts, 20, shared=shared)
        times.append((time.perf_counter() - start) / len(prompts))
    return {
        "titles": given.one,
        "compile_seconds": compile_seconds,
        "tokenise_seconds": tokenise,
        "peak_gb": peak,
        "gb_before": before,
        "load_seconds": load,
        "add_seconds": add,
        "session_seconds": float(np.median(times)),
        "tree_tokens": float(found.counts.tokens.mean()),
        "rounds": float(found.counts.rounds.mean()),
        "certified": float(found.certified.mean()),
    }


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Log-log: compile time, cache time and time a session against the number of titles."""
    from matplotlib import pyplot  # here, as the processes that are measured do not need it

    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    sizes = [row["titles"] for row in rows]
    for key, label in (
        ("compile_seconds", "compile, once"),
        ("load_seconds", "read from cache"),
        ("session_seconds", "recommend 20 titles, a session"),
    ):
        axes.loglog(sizes, [row[key] for row in rows], marker="o", label=label)
    axes.set_xlabel("titles in the catalog")
    axes.set_ylabel("seconds")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure every size, then write the result, the plot and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/beauty/data"), help="directory made by 'prepare'")
    parser.add_argument("--model", default="smollm2", help="hub name, directory, or 'smollm2'")
    parser.add_argument("--out", type=Path, default=Path("eval/results/decoding"), help="directory of the results")
    parser.add_argument("--seed", type=int, default=0, help="draws titles and sessions")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_size(given)))
        return
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--data", given.data, "--model", given.model, "--seed", str(given.seed)]
        answer = subprocess.run([*command, "--one", str(size)], check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(answer.splitlines()[-1]))
        print(rows[-1], flush=True)
    note = "Real titles first, then chains of their words. Peak memory is that of the process, libraries included."
    write_json(given.out / "scale.json", {"rows": rows, "note": note} | stamp(given, ""))
    plot(rows, given.out / "scale.png")
    write_page(given.out)


if __name__ == "__main__":
    main()
