"""What LLMSeqSim reaches on Amazon Beauty with embeddings of several models, apart and together, without any training.

python eval/benchmarks/similarity_quality.py --embeddings MiniLM-L6=runs/minilm SmolLM2-135M=runs/smollm2 \
  --leave-one-out runs/loo --recsys23 runs/recsys23-0 runs/recsys23-1 runs/recsys23-2

The data are those of neighbors.py, the embeddings `embed` made. Lists of 20, seen items left out, cosine. `chosen`:
reduction and weighting with the best NDCG@10 on validation targets (in the second protocol: the last items of train
sessions; LLMSeqSim learns nothing from sessions, so folds that go forward in time would only leave out the oldest),
never on test targets. Together are the first embeddings and the others that do best there: `concatenated`
side by side, each as it was chosen (whitened, so all dimensions weigh the same), and `blended`, the lists of both.
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
from seqrec_prompt.recommenders.base import Recommender
from seqrec_prompt.recommenders.hybrids import Blend
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SimilarityConfig
from seqrec_prompt.recommenders.settings import BlendConfig

REDUCTIONS = [ReduceConfig(method="whiten_pca", dimensions=dimensions) for dimensions in (128, 256, 320)]
WEIGHTINGS = ("harmonic", "log")
FIXED = {
    "as it is": SimilarityConfig(),
    "PCA 128": SimilarityConfig(reduce=ReduceConfig(method="pca", dimensions=128)),
    "whitened to 128": SimilarityConfig(reduce=ReduceConfig(method="whiten_pca", dimensions=128)),
}


def choose(vectors: EmbeddingTable, data: Dataset, sample: Holdout) -> tuple[SimilarityConfig, float]:
    """The settings with the best NDCG@10 on `sample`, and that."""
    grid = [
        SimilarityConfig.model_validate({"reduce": reduce, "weighting": weighting})
        for reduce in REDUCTIONS
        for weighting in WEIGHTINGS
    ]
    reached = [measure(LLMSeqSim.fit(vectors, data.catalog, one), sample, len(data.catalog))["ndcg@10"] for one in grid]
    best = int(np.argmax(reached))
    return grid[best], reached[best]


def protocol(embeddings: dict[str, Path], data: Dataset) -> dict[str, Any]:
    """Test metrics of the fixed settings, of the chosen ones, and of two embeddings together."""
    split, n_items = data.split, len(data.catalog)
    validation = split.validation or Holdout.of_last_items(split.train)
    drawn = np.random.default_rng(0).choice(len(validation), min(TUNED_ON, len(validation)), replace=False)
    sample, rows, notes = validation.take(np.sort(drawn)), {}, []

    def judge(name: str, model: Recommender) -> None:
        rows[name] = measure(model, split.test, n_items)
        print(name, {metric: round(rows[name][metric], 4) for metric in SHOWN}, flush=True)

    found: dict[str, tuple[SimilarityConfig, float]] = {}
    tables = {name: EmbeddingTable.load(place, data.catalog) for name, place in embeddings.items()}
    for name, vectors in tables.items():
        found[name] = choose(vectors, data, sample)
        for kind, config in {**FIXED, "chosen": found[name][0]}.items():
            judge(f"{name}, {kind}", LLMSeqSim.fit(vectors, data.catalog, config))
        notes.append(f"{name} {_settings(found[name][0])}")
    if len(tables) > 1:
        first, *others = tables
        other = max(others, key=lambda name: found[name][1])
        parts = [LLMSeqSim.fit(tables[name], data.catalog, found[name][0]) for name in (first, other)]
        side = np.concatenate([part.vectors[part.place] for part in parts], axis=1)
        together = LLMSeqSim.fit(
            EmbeddingTable(side, {}), data.catalog, SimilarityConfig(weighting=found[first][0].weighting)
        )
        judge("concatenated", together)
        blend = Blend.fit((parts[0], parts[1]), BlendConfig(weight=None, merge="confidence"), sample)
        judge("blended", blend)
        notes.append(f"together {first} and {other}, the latter's share of the blend {blend.weight:.2f}")
    return {"rows": rows, "chosen": notes}


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    head = ["embeddings", "NDCG@10", "HR@10", "NDCG@20", "HR@20"]
    first, others = result["leave_one_out"], result["recsys23"]
    spread = [
        [name, *(_spread([part["rows"][name][metric] for part in others]) for metric in SHOWN)]
        for name in first["rows"]
    ]
    lines = [
        "# LLMSeqSim on Amazon Beauty",
        "",
        "12,101 items, all ranked; lists of 20; seen items left out; cosine of an item's title and the session's mean, "
        "weights 1/i from the end unless chosen otherwise. No training.",
        "",
        "## Leave-one-out, ties in file order",
        "",
        *table(head, [[name, *(f"{row[metric]:.4f}" for metric in SHOWN)] for name, row in first["rows"].items()]),
        "",
        f"`chosen` on {TUNED_ON:,} validation targets: {'; '.join(first['chosen'])}.",
        "",
        "## RecSys'23 split, same-day ties shuffled",
        "",
        f"Mean ± standard deviation over {len(others)} orders of the ties.",
        "",
        *table(head, spread),
        "",
        f"`chosen` on the last items of {TUNED_ON:,} train sessions, apart for each order: "
        + ". ".join("; ".join(part["chosen"]) for part in others)
        + ".",
        "",
        f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; seeds {result['seeds']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _settings(chosen: SimilarityConfig) -> str:
    size = "as it is" if chosen.reduce is None else f"whitened to {chosen.reduce.dimensions}"
    return f"{size}, {chosen.weighting}"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def main() -> None:
    """Measure both protocols, then write the JSON file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", nargs="+", required=True, metavar="NAME=DIR", help="made by 'embed'")
    parser.add_argument("--leave-one-out", type=Path, required=True, help="directory made by 'prepare'")
    parser.add_argument("--recsys23", type=Path, nargs="+", required=True, help="one directory a seed, at least two")
    parser.add_argument("--out", type=Path, default=Path("eval/results/similarity_quality"), help="OUT.json and OUT.md")
    given = parser.parse_args()
    others = [Dataset.load(place) for place in given.recsys23]
    embeddings = {name: Path(place) for name, place in (one.split("=", 1) for one in given.embeddings)}
    places = " ".join(map(str, given.recsys23))
    result = {
        "command": f"python eval/benchmarks/similarity_quality.py --embeddings {' '.join(given.embeddings)} "
        f"--leave-one-out {given.leave_one_out} --recsys23 {places}",
        "commit": commit(),
        "hardware": "CPU, 1 core",
        "seeds": [data.manifest["config"]["seed"] for data in others],
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn", "torch")},
        "leave_one_out": protocol(embeddings, Dataset.load(given.leave_one_out)),
        "recsys23": [protocol(embeddings, data) for data in others],
    }
    write_json(given.out.with_suffix(".json"), result)
    write_text(given.out.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
