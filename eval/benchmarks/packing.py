"""Packing: how much padding it saves on prepared sessions, and how much time a step then takes.

python eval/benchmarks/packing.py --data runs/quickstart/data --out eval/results/packing

Steps are forward and backward passes of `finetune` with a LoRA adapter, padded and packed in turn over the same
batches. Padding: share of the tokens computed that are none of an example.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import stamp, table

from seqrec_prompt.artifacts import write_json, write_text
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.finetuning.finetune import FinetuneConfig
from seqrec_prompt.finetuning.setup import build_trainer
from seqrec_prompt.prompting.templates import TemplateConfig

OBJECTIVES = {"catalog": "continue", "all_items": "continue", "last_item": "ask"}


def main() -> None:
    """Measure, and write OUT.json and OUT.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory made by 'prepare'")
    parser.add_argument("--out", type=Path, required=True, help="result, without suffix")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32], help="examples a step; the first is timed")
    parser.add_argument("--steps", type=int, default=4, help="steps timed, each padded and packed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for objective, size in itertools.product(OBJECTIVES, given.batch):
        rows.append(measure(given, objective, size))
        print(json.dumps(rows[-1]))
    result = stamp(given, "", "batch", "steps") | {"rows": rows}
    write_json(given.out.with_suffix(".json"), result)
    write_text(given.out.with_suffix(".md"), "\n".join(page(result)) + "\n")


def measure(given: argparse.Namespace, objective: Any, size: int) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        config = FinetuneConfig(
            data=given.data,
            out=Path(folder),
            model=given.model,
            objective=objective,
            template=TemplateConfig(layout=OBJECTIVES[objective], max_items=11),
            packing=True,
            dtype="float32",
            batch_size=size,
            seed=given.seed,
        )
        trainer, _ = build_trainer(config, Dataset.load(given.data))
    examples, collator = trainer.train_dataset, trainer.data_collator
    order = np.random.default_rng(given.seed).permutation(len(examples)).tolist()
    tokens, computed = 0, {"padded": 0, "packed": 0}
    for start in range(0, len(order), size):
        batch = collator.padded([examples[i] for i in order[start : start + size]])
        tokens += int(batch["attention_mask"].sum())
        computed["padded"] += batch["input_ids"].numel()
        computed["packed"] += collator([examples[i] for i in order[start : start + size]])["input_ids"].numel()
    seconds = {"padded": [], "packed": []}  # type: dict[str, list[float]]
    for step in range(given.steps + 1 if size == given.batch[0] else 0):
        chosen = [examples[i] for i in order[step * size : (step + 1) * size]]
        for way, collate in (("padded", collator.padded), ("packed", collator)):
            batch = collate(chosen)
            started = time.process_time()
            trainer.compute_loss(trainer.model.train(), dict(batch)).backward()
            trainer.model.zero_grad()
            if step:  # the first one warms up
                seconds[way].append(time.process_time() - started)
    return {
        "objective": objective,
        "batch": size,
        "examples": len(examples),
        "tokens": tokens,
        "padding": {way: 1 - tokens / n for way, n in computed.items()},
        "seconds": seconds,
    }


def page(result: dict[str, Any]) -> list[str]:
    """The result page."""
    head = ["objective", "batch", "padding", "packed", "s a step", "packed", "ratio (least–most)"]
    rows = []
    for row in result["rows"]:
        padded, packed = row["seconds"]["padded"], row["seconds"]["packed"]
        ratios = [one / other for one, other in zip(padded, packed, strict=True)]
        rows.append(
            [
                row["objective"],
                str(row["batch"]),
                *(f"{row['padding'][way]:.0%}" for way in ("padded", "packed")),
                *(f"{np.mean(times):.1f}" if times else "–" for times in (padded, packed)),
                f"{sum(padded) / sum(packed):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–",
            ]
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [
        "# Packing",
        "",
        f"The bundled sample's {result['rows'][0]['examples']:,} training examples, shuffled; dequantised 4-bit "
        "SmolLM2-135M, LoRA, float32. Padding: share of the computed tokens, over all batches. Seconds: CPU time of a "
        f"forward and a backward pass, mean of {len(result['rows'][0]['seconds']['padded'])} batches, each padded and "
        "packed in turn. Ratio: times that a packed step is faster.",
        "",
        *table(head, rows),
        "",
        f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; {versions}.",
    ]


if __name__ == "__main__":
    main()
