"""What the objectives of `finetune` cost and bring: targets a second, and ranking quality after equal time.

python eval/benchmarks/finetuning.py speed quality --data runs/quickstart/data --dtype bfloat16
python eval/benchmarks/finetuning.py speed quality --data runs/recsys23-0 --set beauty --name Beauty --seconds 600 \
  --sessions 400 --seeds 0 --max-items 10 --title-tokens 8 --packing --dtype bfloat16 --runs runs/objectives-beauty
python eval/benchmarks/finetuning.py page

`speed` trains a few steps with each objective and with last-item pairs expanded over all prefixes of a session, which
is what most public code does, all over the same windows. `quality` turns --seconds into steps by those figures, trains
with every objective and seed, and decodes the same test sessions. A stopped run goes on. Each part writes a JSON file
into --out, PART-SET.json where --set names other data than the bundled sample; `page` writes finetuning.md from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _measure import stamp, table
from transformers import TrainerCallback

from seqrec_prompt.artifacts import read_manifest, write_json, write_text
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.engines.models import load_tokenizer
from seqrec_prompt.evaluation.evaluate import EvaluateConfig, evaluate
from seqrec_prompt.finetuning.examples import windows
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.packing import PackingCollator
from seqrec_prompt.finetuning.setup import build_trainer
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

OBJECTIVES = ("last_item", "all_items", "catalog")
EXPANDED = "last_item, all prefixes"
WARM = 2  # first steps of a training, which are slower


def settings(given: argparse.Namespace, out: Path, **more: Any) -> FinetuneConfig:
    """Settings that all trainings share."""
    template = {"max_items": given.max_items, "title_tokens": given.title_tokens}
    return FinetuneConfig(
        data=given.data, model=given.model, out=out, template=template, batch_size=given.batch_size,
        learning_rate=given.learning_rate, dtype=given.dtype, packing=given.packing, logging_steps=10, **more,
    )  # fmt: skip


class Timer(TrainerCallback):  # type: ignore[misc]
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock; the batch is made before."""
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._begun)


class Counted:
    """A collator that keeps of each batch its targets, tokens, and tokens with padding."""

    def __init__(self, collate: Any, *, last: bool) -> None:
        self.collate, self.last = collate, last
        self.seen: list[tuple[int, int, int]] = []

    def __call__(self, examples: list[Any]) -> Any:
        """Collate and count."""
        batch = self.collate(examples)
        padded = self.collate.padded(examples) if isinstance(self.collate, PackingCollator) else batch
        targets = sum(1 if self.last else len(example["items"]) - 1 for example in examples)
        self.seen.append((targets, int(padded["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """Targets and tokens a second of each objective, over examples from the same windows."""
    data = Dataset.load(given.data)
    seconds: dict[str, list[float]] = {name: [] for name in (EXPANDED, *OBJECTIVES)}
    counts = {}
    for _ in range(given.rounds):  # in turn: a slow minute of the machine is no objective's alone
        for name in seconds:
            timed, counts[name] = _train(given, data, name)
            seconds[name] += timed
            print(name, timed, flush=True)
    rows = []
    for name, timed in seconds.items():
        step, (targets, tokens, padded) = statistics.median(timed), counts[name]
        rows.append(
            {
                "name": name,
                "step_seconds": step,
                "targets_step": targets,
                "targets_second": targets / step,
                "tokens_second": tokens / step,
                "padding": 1 - tokens / padded,
            }
        )
    return {"rows": rows, "batch_size": given.batch_size, "steps": given.rounds * given.steps, "name": given.name}


def _train(given: argparse.Namespace, data: Dataset, name: str) -> tuple[list[float], Any]:
    """Seconds of --steps steps; and targets, tokens, and tokens with padding of a step on average."""
    objective = "last_item" if name == EXPANDED else name
    with tempfile.TemporaryDirectory() as out:
        config = settings(given, Path(out), objective=objective, max_steps=WARM + given.steps, seed=given.seed)
        trainer, _ = build_trainer(config, _over_prefixes(data, config) if name == EXPANDED else data)
        timer = Timer()
        trainer.data_collator = counted = Counted(trainer.data_collator, last=objective == "last_item")
        trainer.add_callback(timer)
        trainer.train()
    # A step's batch may be made one step ahead: the counts of all steps, the seconds of the warm ones.
    return timer.seconds[WARM:], np.mean(counted.seen[: len(timer.seconds)], axis=0)


def _over_prefixes(data: Dataset, config: FinetuneConfig) -> Dataset:
    prompter = compile_template(
        config.template,
        data.catalog,
        load_tokenizer(config.model),
        companions=data.companions(config.template.companions),
    )
    cut = windows(data.split.train, prompter, config.context, "all_items").prefixes()
    return dataclasses.replace(data, split=dataclasses.replace(data.split, train=cut))


def quality(given: argparse.Namespace) -> dict[str, Any]:
    """NDCG and hit rate after --seconds of training, a row an objective and seed."""
    measured = json.loads(_file(given, "speed").read_text(encoding="utf-8"))
    step = {row["name"]: row["step_seconds"] for row in measured["rows"]}
    rows = []
    for seed in given.seeds:
        for objective in OBJECTIVES:
            run = given.runs / f"{objective}-{seed}"
            steps = max(1, round(given.seconds / step[objective]))
            trained = finetune(settings(given, run / "adapter", objective=objective, max_steps=steps, seed=seed))
            lists = recommend(
                RecommendConfig(
                    data=given.data, model=given.model, adapter=trained, out=run / "lists.parquet", k=20,
                    max_sessions=given.sessions, exclude_seen=True, dtype=given.dtype,
                )
            )  # fmt: skip
            found = evaluate(EvaluateConfig(data=given.data, recommendations=(lists,), out=run / "evaluation"))
            metrics, facts = found["recommenders"][0]["metrics"], read_manifest(trained, "finetune")["facts"]
            rows.append(
                {"objective": objective, "seed": seed, "steps": facts["steps"], "seconds": facts["seconds"]}
                | {f"{m}@{k}": metrics[f"@{k}"][m] for k in (10, 20) for m in ("ndcg", "hr")}
            )
            print(rows[-1], flush=True)
            result = {"rows": rows, "seconds": given.seconds, "sessions": found["sessions"], "name": given.name}
            write_json(_file(given, "quality"), result | _stamp(given, "quality"))  # a training takes minutes
    return result


def _file(given: argparse.Namespace, part: str) -> Path:
    return Path(given.out / f"{part}-{given.set}.json" if given.set else given.out / f"{part}.json")


def _stamp(given: argparse.Namespace, part: str) -> dict[str, Any]:
    own = {"speed": ("rounds", "steps"), "quality": ("seconds", "sessions", "seeds")}[part]
    shared = ("data", "set", "batch_size", "max_items", "title_tokens", "packing", "learning_rate", "dtype")
    return stamp(given, part, *shared, *own)


def page(out: Path) -> str:
    """The results as Markdown."""
    lines = [
        "# What the objectives of `finetune` cost and bring",
        "",
        "`last_item`: the tokens of a session's last title. `all_items`: the tokens of every title after the first, in "
        "one sequence. `catalog`: the same sequence, but only its decisions in the catalog's trie, as they are "
        "decoded. Model smollm2 (dequantised 4-bit SmolLM2-135M: no figure of SmolLM2's own), LoRA r = 16.",
    ]
    # The bundled sample first, and of the same data its speed first.
    files = sorted(out.glob("*.json"), key=lambda file: (file.stem.partition("-")[2], "speed" not in file.stem))
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        part = file.stem.partition("-")[0]
        if part in PARTS:
            lines += ["", *PARTS[part](result)]
            versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
            lines += ["", f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; {versions}."]
    return "\n".join(lines) + "\n"


def _speed(result: dict[str, Any]) -> list[str]:
    first = result["rows"][0]
    head = ["examples", "s a step", "targets a step", "targets/s", "times as many", "tokens/s", "padding"]
    rows = [
        [
            row["name"],
            f"{row['step_seconds']:.2f}",
            f"{row['targets_step']:.0f}",
            f"{row['targets_second']:.1f}",
            f"{row['targets_second'] / first['targets_second']:.1f}",
            f"{row['tokens_second']:.0f}",
            f"{row['padding']:.0%}",
        ]
        for row in result["rows"]
    ]
    return [
        "## Targets a second",
        "",
        f"{result['name']}: {result['batch_size']} examples a step, median of {result['steps']} steps, the objectives "
        "in turn. The first row is one pair for every prefix of the windows that the last two rows train on whole.",
        "",
        *table(head, rows),
    ]


def _quality(result: dict[str, Any]) -> list[str]:
    metrics = ("ndcg@10", "hr@10", "ndcg@20", "hr@20")
    rows = []
    for objective in OBJECTIVES:
        mine = [row for row in result["rows"] if row["objective"] == objective]
        if mine:
            steps = sorted({row["steps"] for row in mine})
            cells = [_spread([row[metric] for row in mine]) for metric in metrics]
            seconds = statistics.mean(row["seconds"] for row in mine)
            rows.append([objective, str(len(mine)), ", ".join(map(str, steps)), f"{seconds:.0f}", *cells])
    return [
        "## Quality after equal time",
        "",
        f"{result['name']}: {result['sessions']['evaluated']:,} of {result['sessions']['test']:,} test sessions, exact "
        f"decoding over the whole catalog, seen items left out. Steps that take about {result['seconds']:.0f} s by the "
        "table above; the seconds are those of the trainings themselves, loading and other load included. Mean ± "
        "standard deviation over seeds.",
        "",
        *table(["objective", "seeds", "steps", "seconds", *(metric.upper() for metric in metrics)], rows),
    ]


PARTS = {"speed": _speed, "quality": _quality}


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def main() -> None:
    """Run the parts that were asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["speed", "quality", "page"], help="what to measure")
    parser.add_argument("--data", type=Path, default=Path("runs/quickstart/data"), help="directory made by 'prepare'")
    parser.add_argument("--name", default="The bundled sample", help="what the data are called on the page")
    parser.add_argument("--set", help="their name in the files; not given: the bundled sample")
    parser.add_argument("--model", default="smollm2", help="hub name, directory, or 'smollm2'")
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"), help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=Path("eval/results/finetuning"), help="directory of the results")
    parser.add_argument("--rounds", type=int, default=3, help="how often the objectives take turns in 'speed'")
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed in a turn")
    parser.add_argument("--seconds", type=float, default=240, help="training time of each objective")
    parser.add_argument("--sessions", type=int, default=200, help="test sessions that are decoded")
    parser.add_argument("--batch-size", type=int, default=8, help="examples a step")
    parser.add_argument("--max-items", type=int, default=11, help="items of a window, less one")
    parser.add_argument("--title-tokens", type=int, help="where titles are cut; not given: nowhere")
    parser.add_argument("--packing", action="store_true", help="several short examples in a row")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--dtype", default="auto", help="of the frozen weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--seed", type=int, default=0, help="draws the examples that are timed")
    given = parser.parse_args()
    for part in given.parts:
        if part != "page":
            found = {"speed": speed, "quality": quality}[part](given)
            write_json(_file(given, part), found | _stamp(given, part))
    write_text(given.out.with_suffix(".md"), page(given.out))
    print(f"wrote {given.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
