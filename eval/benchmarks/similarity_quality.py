"""What LLMSeqSim reaches on Amazon Beauty with the embeddings of one model, in two protocols, without any training.

python eval/benchmarks/similarity_quality.py --embeddings runs/minilm --name MiniLM-L6 \
  --leave-one-out runs/loo --recsys23 runs/recsys23-0 runs/recsys23-1 runs/recsys23-2

The data are those of neighbors.py, the embeddings `embed` made. Lists of 20, seen items left out, cosine. `chosen`:
reduction and weighting with the best NDCG@10 on validation targets (in the second protocol: the last items of train
sessions), never on test targets.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from _measure import commit, table
from neighbors import SHOWN, TUNED_ON, measure

from seqrec_prompt.artifacts import write_json, write_text
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.embeddings.reduce import ReduceConfig
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.recommenders.similarity import LLMSeqSim, SimilarityConfig

REDUCTIONS = [None, *(ReduceConfig(method="whiten_pca", dimensions=d) for d in (64, 96, 128, 192, 256))]
FIXED = {
    "as it is": SimilarityConfig(),
    "PCA 128": SimilarityConfig(reduce=ReduceConfig(method="pca", dimensions=128)),
    "whitened to 128": SimilarityConfig(reduce=ReduceConfig(method="whiten_pca", dimensions=128)),
}


def choose(vectors: EmbeddingTable, data: Dataset, validation: Holdout) -> SimilarityConfig:
    """The settings with the best NDCG@10 on TUNED_ON random sessions of `validation`."""
    drawn = np.random.default_rng(0).choice(len(validation), min(TUNED_ON, len(validation)), replace=False)
    sample, n_items = validation.take(np.sort(drawn)), len(data.catalog)
    grid = [
        SimilarityConfig.model_validate({"reduce": reduce, "weighting": weighting})
        for reduce in REDUCTIONS
        for weighting in ("harmonic", "log", "harmonic_squared", "scaling_linear")
    ]
    reached = [measure(LLMSeqSim.fit(vectors, data.catalog, one), sample, n_items)["ndcg@10"] for one in grid]
    return grid[int(np.argmax(reached))]


def protocol(embeddings: Path, data: Dataset) -> dict[str, Any]:
    """Test metrics of the fixed settings and of the chosen ones."""
    vectors, split = EmbeddingTable.load(embeddings, data.catalog), data.split
    chosen = choose(vectors, data, split.validation or Holdout.of_last_items(split.train))
    rows = {}
    for name, config in {**FIXED, "chosen": chosen}.items():
        model = LLMSeqSim.fit(vectors, data.catalog, config)
        rows[name] = measure(model, split.test, len(data.catalog))
        print(name, {metric: round(rows[name][metric], 4) for metric in SHOWN}, flush=True)
    return {"rows": rows, "chosen": chosen.resolved()}


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = ["embeddings", "NDCG@10", "HR@10", "NDCG@20", "HR@20"]
    first, others = result["leave_one_out"], result["recsys23"]
    spread = [
        [name, *(_spread([part["rows"][name][metric] for part in others]) for metric in SHOWN)]
        for name in first["rows"]
    ]
    lines = [
        f"# LLMSeqSim on Amazon Beauty, {result['name']}",
        "",
        "12,101 items, all ranked; lists of 20; seen items left out; cosine of an item's title and the session's mean, "
        "weights 1/i from the end unless chosen otherwise. No training.",
        "",
        "## Leave-one-out, ties in file order",
        "",
        *table(head, [[name, *(f"{row[metric]:.4f}" for metric in SHOWN)] for name, row in first["rows"].items()]),
        "",
        f"`chosen` on {TUNED_ON:,} validation targets: {_settings(first['chosen'])}.",
        "",
        "## RecSys'23 split, same-day ties shuffled",
        "",
        f"Mean ± standard deviation over {len(others)} orders of the ties.",
        "",
        *table(head, spread),
        "",
        f"`chosen` on the last items of {TUNED_ON:,} train sessions, apart for each order: "
        + "; ".join(_settings(part["chosen"]) for part in others)
        + ".",
        "",
        f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; seeds {result['seeds']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _settings(chosen: dict[str, Any]) -> str:
    reduce = chosen["reduce"]
    size = "no reduction" if reduce is None else f"whitened to {reduce['dimensions']}"
    return f"{size}, {chosen['weighting']}"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def main() -> None:
    """Measure both protocols, then write the JSON file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, required=True, help="directory made by 'embed'")
    parser.add_argument("--name", required=True, help="what the embeddings are called on the page")
    parser.add_argument("--leave-one-out", type=Path, required=True, help="directory made by 'prepare'")
    parser.add_argument("--recsys23", type=Path, nargs="+", required=True, help="one directory a seed, at least two")
    parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.md")
    given = parser.parse_args()
    others = [Dataset.load(place) for place in given.recsys23]
    places = " ".join(map(str, given.recsys23))
    result = {
        "name": given.name,
        "command": f"python eval/benchmarks/similarity_quality.py --embeddings {given.embeddings} --name "
        f"{given.name} --leave-one-out {given.leave_one_out} --recsys23 {places} --out {given.out}",
        "commit": commit(),
        "hardware": "CPU, 1 core",
        "seeds": [data.manifest["config"]["seed"] for data in others],
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn", "torch")},
        "leave_one_out": protocol(given.embeddings, Dataset.load(given.leave_one_out)),
        "recsys23": [protocol(given.embeddings, data) for data in others],
    }
    write_json(given.out.with_suffix(".json"), result)
    write_text(given.out.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
