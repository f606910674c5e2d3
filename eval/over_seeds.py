"""Average evaluations that differ in their seed: mean and standard deviation over runs, as a Markdown page.

python eval/over_seeds.py runs/quickstart-0 runs/quickstart-1 runs/quickstart-2 --out eval/results/quickstart.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path

from seqrec_prompt.artifacts import read_manifest, write_text

METRICS = ("ndcg", "hr", "mrr", "coverage", "serendipity", "novelty")


def page(runs: list[Path], command: str) -> str:
    """Write the page for run directories that hold `data`, `adapter` and `evaluation`."""
    results = [json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8")) for run in runs]
    adapters = [read_manifest(run / "adapter", "finetune") for run in runs]
    lines = [
        f"# {len(runs)} seeds",
        "",
        f"Made by `{command}` in each run, then `python eval/over_seeds.py`. Commit {_commit()}.",
        f"Seeds {', '.join(str(a['config']['seed']) for a in adapters)}; model {adapters[0]['config']['model']} "
        "(dequantised 4-bit SmolLM2-135M: no figure of SmolLM2's own); "
        f"{adapters[0]['facts']['hardware']}, transformers {adapters[0]['versions']['transformers']}, "
        f"torch {adapters[0]['versions']['torch']}.",
        f"{adapters[0]['facts']['steps']} steps a run, {_span([a['facts']['seconds'] for a in adapters], '.0f')} s. "
        "{evaluated} of {test} test sessions, the same in every run. ".format(**results[0]["sessions"])
        + f"Data {adapters[0]['inputs']['data'][:12]}, base model {adapters[0]['inputs']['model'][:12]}.",
        "Mean ± standard deviation over the runs; without ±, equal in every run.",
    ]
    for k in results[0]["config"]["cutoffs"]:
        lines += ["", f"| top {k} | " + " | ".join(METRICS) + " |", "|---" + "|---:" * len(METRICS) + "|"]
        for row in zip(*(result["recommenders"] for result in results), strict=True):
            cells = [
                _span([recommender["metrics"][f"@{k}"][metric] for recommender in row], ".4f") for metric in METRICS
            ]
            lines.append(f"| {row[0]['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _span(values: list[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    return mean if len(set(values)) == 1 else f"{mean} ± {format(statistics.stdev(values), form)}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--command", default="make quickstart SEED=… RUN=…", help="what made each run")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    given = parser.parse_args()
    write_text(given.out, page(given.runs, given.command))
    print(f"wrote {given.out}")
