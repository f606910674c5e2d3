"""Hybrids on Amazon Beauty: what one weight trades between accuracy and coverage, and neighbours by embedding.

python eval/benchmarks/hybrids.py --embeddings runs/minilm --name MiniLM-L6 \\
  --recsys23 runs/recsys23-0 runs/recsys23-1 runs/recsys23-2

The data are those of neighbors.py, RecSys'23 split, ties shuffled; lists of 20, seen items left out. The parts are
V-SKNN with the settings of the paper, and LLMSeqSim whitened to 256 dimensions with logarithmic weights. Every weight
is shown, none is chosen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from _measure import commit, table
from neighbors import PAPER, measure

from seqrec_prompt.artifacts import write_json, write_text
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.reduce import ReduceConfig
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.recommenders.base import Recommender
from seqrec_prompt.recommenders.hybrids import Blend, Switch
from seqrec_prompt.recommenders.nearest.embedding_neighbors import EmbeddingNeighborsConfig, EmbeddingSKNN
from seqrec_prompt.recommenders.nearest.neighbors import VSKNN
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SimilarityConfig
from seqrec_prompt.recommenders.settings import BlendConfig, SwitchConfig

SHOWN = ("ndcg@10", "hr@10", "ndcg@20", "hr@20", "coverage@20")
REDUCE = ReduceConfig(method="whiten_pca", dimensions=256)
MERGES: tuple[Literal["rank", "confidence"], ...] = ("rank", "confidence")


def recommenders(embeddings: Path, data: Dataset) -> dict[str, Recommender]:
    """What is measured, by name."""
    n_items, train = len(data.catalog), data.split.train
    vectors = EmbeddingTable.load(embeddings, data.catalog)
    neighbors = VSKNN.fit(train, n_items, PAPER)
    similar = LLMSeqSim.fit(vectors, data.catalog, SimilarityConfig(reduce=REDUCE, weighting="log"))
    near = EmbeddingNeighborsConfig(reduce=REDUCE, weighting="log", k_neighbors=PAPER.k_neighbors)
    parts = (neighbors, similar)
    found: dict[str, Recommender] = {
        "V-SKNN": neighbors,
        "LLMSeqSim": similar,
        "SKNN over embeddings": EmbeddingSKNN.fit(vectors, data.catalog, train, near),
    }
    for merge in MERGES:
        for weight in (0.1, 0.25, 0.5, 0.75, 0.9):
            found[f"blend by {merge}, LLMSeqSim's share {weight}"] = Blend(parts, weight, BlendConfig(merge=merge))
    for quantile in (0.25, 0.5, 0.75):
        config = SwitchConfig(quantile=quantile)
        found[f"V-SKNN for prompts above quantile {quantile}, else LLMSeqSim"] = Switch.fit(
            parts, train, n_items, config
        )
    return found


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    parts = result["recsys23"]
    rows = [[name, *(_spread([part[name][metric] for part in parts]) for metric in SHOWN)] for name in parts[0]]
    lines = [
        "# Hybrids on Amazon Beauty",
        "",
        f"RecSys'23 split, same-day ties shuffled: mean ± standard deviation over {len(parts)} orders of the ties. "
        "12,101 items, all ranked; lists of 20; seen items left out. V-SKNN: 320 neighbours of 1,530 drawn at random. "
        f"LLMSeqSim: {result['name']}, whitened to 256, logarithmic weights; so are the vectors of SKNN over "
        "embeddings, 320 neighbours.",
        "",
        *table(["recommender", "NDCG@10", "HR@10", "NDCG@20", "HR@20", "coverage@20"], rows),
        "",
        f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; seeds {result['seeds']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def main() -> None:
    """Measure everything, then write the JSON file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, required=True, help="directory made by 'embed'")
    parser.add_argument("--name", required=True, help="what the embeddings are called on the page")
    parser.add_argument("--recsys23", type=Path, nargs="+", required=True, help="one directory a seed, at least two")
    parser.add_argument("--out", type=Path, default=Path("eval/results/hybrids"), help="OUT.json and OUT.md")
    given = parser.parse_args()
    results: list[dict[str, dict[str, float]]] = []
    seeds = []
    for place in given.recsys23:
        data = Dataset.load(place)
        seeds.append(data.manifest["config"]["seed"])
        results.append({})
        for name, one in recommenders(given.embeddings, data).items():
            results[-1][name] = measure(one, data.split.test, len(data.catalog))
            print(place, name, {metric: round(results[-1][name][metric], 4) for metric in SHOWN}, flush=True)
    result = {
        "name": given.name,
        "command": f"python eval/benchmarks/hybrids.py --embeddings {given.embeddings} --name {given.name} --recsys23 "
        + " ".join(map(str, given.recsys23)),
        "commit": commit(),
        "hardware": "CPU, 1 core",
        "seeds": seeds,
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "scikit-learn", "torch")},
        "recsys23": results,
    }
    write_json(given.out.with_suffix(".json"), result)
    write_text(given.out.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
