"""SASRec, BERT4Rec and GRU4Rec on Amazon Beauty: accuracy with and without an LLM, speed beside RecTools and RePlay.

python eval/benchmarks/sequential.py quality --data runs/loo-file 'runs/loo-shuffle-{seed}' --models SASRec
python eval/benchmarks/sequential.py speed --data runs/loo-file --peers rectools=DIR/bin/python replay=DIR/bin/python

The data are Beauty, `prepare --split leave_one_out --ties file`, or for each seed `--ties shuffle --seed SEED`;
the embeddings are what `embed` made. Lists of 20, seen items left out. Models learn from all before the last item, for
as many epochs as were best when the item before it was held out. Runs are kept in --work: a stopped benchmark goes on,
and --models adds to what is there. Each part writes OUT/PART.json, then the page.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import KEEPS, commit, table
from scipy import stats

from seqrec_prompt.artifacts import write_json, write_text
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.evaluation.metrics import evaluate_lists
from seqrec_prompt.finetuning.training import hardware
from seqrec_prompt.recommenders import files
from seqrec_prompt.recommenders.fit import FitConfig, build, fit
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

SHOWN = ("ndcg@10", "hr@10", "ndcg@20", "hr@20")
K, USERS, REPEATS = 20, 8_000, 3
# Chosen on the validation part of one shuffled order: EPOCHS is where its NDCG@20 is best.
EPOCHS = 11
TUNED: dict[str, Any] = {"dim": 128, "dropout": 0.4, "temperature": 0.07, "precision": "bfloat16"}
TUNED |= {"patience": None, "epochs": EPOCHS}
LLM = {"start": "llm_init", "scale": 8}
# Name → recommender, settings. Nothing was chosen by test figures.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SASRec": ("sasrec", TUNED),
    "LLM2SASRec": ("sasrec", TUNED | {"items": LLM}),
    "LLM2SASRec, permuted": ("sasrec", TUNED | {"items": LLM | {"permuted": True}}),
}
# What both sides of the speed table have: the architecture, the loss and the batch of SASRec, and of BERT4Rec.
EQUAL = {"dim": 64, "layers": 2, "heads": 2, "dropout": 0.2, "max_items": 50, "batch_size": 128}


def one_run(name: str, data: Path, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train, recommend and evaluate one model; what `work` holds already is not made again."""
    kind, settings = MODELS[name]
    place = given.work / f"{name.replace(', ', '-').lower()}-{data.name}-{seed}"
    config = {"data": data, "recommender": kind, "out": place, "sessions": "before_test"}
    config |= {"sequential": settings | {"seed": seed}} | (
        {"embeddings": given.embeddings} if "items" in settings else {}
    )
    fit(FitConfig.model_validate(config))
    lists = place.with_suffix(".parquet")
    recommend(RecommendConfig(data=data, recommender=place, k=K, exclude_seen=True, out=lists))
    dataset = Dataset.load(data)
    n_items, found = len(dataset.catalog), files.read(lists, dataset.catalog).lists
    # Novelty and serendipity are not shown, so what is counted for them does not matter.
    judged = evaluate_lists(found, dataset.split.test.targets, np.ones(n_items, np.int64), n_items, (10, 20))
    values = {f"{metric}@{k}": judged.means[k][metric] for k in (10, 20) for metric in ("ndcg", "hr", "coverage")}
    print(name, data.name, seed, {metric: round(values[metric], 4) for metric in SHOWN}, flush=True)
    made = {"seed": seed, "ties": dataset.manifest["config"]["ties"], "data": dataset.hash}
    return values | made | {"ids": found.session_ids, "per_session": judged.per_session[20]["ndcg"]}


def quality(given: argparse.Namespace) -> dict[str, Any]:
    """Every model with every seed, for each order of ties. The RecSys'23 split is `seqrec-prompt reproduce`'s."""
    rows: dict[str, dict[str, Any]] = {}
    for name in given.models:
        for data in given.data:
            runs = [one_run(name, Path(str(data).format(seed=seed)), given, seed) for seed in given.seeds]
            rows.setdefault(runs[0]["ties"], {})[name] = runs
    for models in rows.values():
        for name, runs in models.items():
            if name != "SASRec" and "SASRec" in models:
                one, other = (_by_session(models[key]) for key in (name, "SASRec"))
                runs[0]["p_against_plain"] = float(stats.ttest_rel(one, other).pvalue)
        for run in (run for runs in models.values() for run in runs):
            del run["per_session"], run["ids"]
    return {"rows": rows, "settings": {name: MODELS[name][1] for name in given.models}, "hardware": hardware()}


def _by_session(runs: list[dict[str, Any]]) -> Any:
    """(sessions,) NDCG@20 of each, by id, averaged over its seeds: the seeds of one session are not independent."""
    ids = np.concatenate([run["ids"] for run in runs]).astype(str)
    _, place, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return np.bincount(place, np.concatenate([run["per_session"] for run in runs])) / counts


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """CPU-seconds a step and users a CPU-second: ours in float32 and bfloat16, then each peer in its environment.

    Peers run twice: as they come, and with an allocator that keeps what it was given (KEEPS).
    """
    [place] = given.data
    data = Dataset.load(place)
    rows = [ours(data, kind, dtype) for kind in ("sasrec", "bert4rec") for dtype in ("float32", "bfloat16")]
    script, failed = Path(__file__).with_name("sequential_peers.py"), {}
    for peer in given.peers:
        name, _, python = peer.partition("=")
        command = [python, str(script), name, str(place), json.dumps(EQUAL), str(USERS)]
        for note, more in (("", {}), (", memory kept", KEEPS)):
            environment = os.environ | more
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            rows += [row | {"name": row["name"] + note} for row in found]
            if done.returncode:
                failed[name + note] = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            print(failed.get(name + note, rows[-1]), flush=True)
    return {"rows": rows, "failed": failed, "settings": EQUAL, "hardware": hardware()}


def ours(data: Dataset, kind: str, precision: str) -> dict[str, Any]:
    """One epoch, and the test prompts of USERS users."""
    settings = EQUAL | {"precision": precision, "patience": None, "epochs": 1}
    if kind == "bert4rec":
        settings |= {"mask_probability": 0.2}
    base = {"data": "-", "out": "-", "recommender": kind}
    config = FitConfig.model_validate(base | {"sequential": settings})
    few = replace(data.split, train=data.split.train.take(np.arange(300)))
    build(config, replace(data, split=few), None)  # what the first run alone pays
    started = time.process_time()
    recommender = build(config, data, None)
    seconds = time.process_time() - started
    prompts = data.split.test.prompts.take(np.arange(min(USERS, len(data.split.test))))
    rates = []
    for _ in range(REPEATS):
        started = time.process_time()
        recommender.recommend(prompts, K, exclude_seen=True)
        rates.append(len(prompts) / (time.process_time() - started))
    steps = -(-int((data.split.train.lengths >= 2).sum()) // EQUAL["batch_size"])
    row = {"name": f"{kind}, {precision}", "epoch": seconds, "step": seconds / steps, "users": float(np.median(rates))}
    print(row, flush=True)
    return row


def page(out: Path) -> str:
    """The page of all parts that are there."""
    lines = ["# Sequential models on Amazon Beauty", "", "12,101 items, all ranked; lists of 20; seen items left out."]
    if (out / "quality.json").exists():
        found = json.loads((out / "quality.json").read_text())
        lines += ["", "## Leave-one-out", "", *_quality(found)]
    if (out / "speed.json").exists():
        lines += ["", "## Speed", "", *_speed(json.loads((out / "speed.json").read_text()))]
    return "\n".join(lines) + "\n"


def _quality(result: dict[str, Any]) -> list[str]:
    rows = []
    for ties, models in result["rows"].items():
        for name, runs in models.items():
            p = runs[0].get("p_against_plain")
            cells = [_interval([run[metric] for run in runs]) for metric in SHOWN]
            rows.append([name, ties, str(len(runs)), *cells, "–" if p is None else f"{p:.1g}"])
    head = ["model", "ties", "seeds", "NDCG@10", "HR@10", "NDCG@20", "HR@20", "p against plain"]
    return [
        "Mean ± half the 95% interval over seeds (Student's t). Ties: a session's items of one day are in the order of "
        "the file, or shuffled, another way with each seed. p: paired t-test of NDCG@20 over sessions, each averaged "
        "over its seeds.",
        "",
        *table(head, rows),
        "",
        *(f"- {name}: `{json.dumps(settings)}`" for name, settings in result["settings"].items()),
        "",
        f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; torch {result['torch']}.",
    ]


def _interval(values: list[float], form: str = ".4f") -> str:
    mean = format(np.mean(values), form)
    if len(values) == 1:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean} ± {format(half, form)}"


def _speed(result: dict[str, Any]) -> list[str]:
    ours = {row["name"].split(",")[0]: row for row in result["rows"] if row["name"].endswith("float32")}
    rows = []
    for row in result["rows"]:
        mine = ours["bert4rec" if "bert" in row["name"].lower() else "sasrec"]
        rows.append(
            [row["name"], f"{row['step']:.3f}", f"{row['step'] / mine['step']:.1f}", f"{row['users']:,.0f}",
             f"{mine['users'] / row['users']:.1f}"]
        )  # fmt: skip
    return [
        f"Equal for all: {json.dumps(result['settings'])}, full softmax cross-entropy over all items, Adam(W). CPU-"
        "seconds a step of 128 sessions; an epoch has the same steps everywhere. Ratios against ours in float32. Our "
        "BERT4Rec computes the loss at hidden positions alone, RecTools' at all: that is part of its ratio. "
        "Memory kept: the allocator gives nothing back to the system ("
        + ", ".join(f"{name}={value}" for name, value in KEEPS.items())
        + "), as who knows of it may run a peer.",
        "",
        *table(["model", "CPU-seconds a step", "times ours", "users a CPU-second", "ours, times theirs"], rows),
        "",
        *(f"Not measured to its end: {name}. {why}\n" for name, why in result.get("failed", {}).items()),
        f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; torch {result['torch']}.",
    ]


def main() -> None:
    """Run one part, then write its JSON file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["quality", "speed", "page"])
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="made by 'prepare'; quality: one an order")
    parser.add_argument("--embeddings", type=Path, help="directory made by 'embed'")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", nargs="*", default=[], help="rectools=PYTHON replay=PYTHON")
    parser.add_argument("--work", type=Path, default=Path("runs/sequential"), help="models and lists are kept here")
    parser.add_argument("--out", type=Path, default=Path("eval/results/sequential"), help="OUT/*.json and OUT.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part != "page":
        result = quality(given) if given.part == "quality" else speed(given)
        result |= {
            "command": shlex.join(["python", "eval/benchmarks/sequential.py", *sys.argv[1:]]),
            "commit": commit(),
        }
        write_json(given.out / f"{given.part}.json", result | {"torch": torch.__version__})
    write_text(given.out.with_suffix(".md"), page(given.out))


if __name__ == "__main__":
    main()
