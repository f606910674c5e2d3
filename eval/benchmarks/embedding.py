"""What `embed` costs beside the model: its whole loop against bare forwards of the same model over as many tokens.

python eval/benchmarks/embedding.py --data runs/beauty --out eval/results/embedding

The loop: tokenise, sort, pad, forward, pool, keep in the journal. Bare: the same tokens as tensors made beforehand, in
batches of as many rows, but cut into rows of one length, so that nothing is padded; hidden states are thrown away. Both
go over the same parts of the catalog, in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import stamp, table

from seqrec_prompt.artifacts import manifest, write_json, write_text
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.encode import batches, encode, fit_texts
from seqrec_prompt.engines.embedder import CausalEmbedder
from seqrec_prompt.journal import Journal

Batches = list[torch.Tensor]


def loop(embedder: CausalEmbedder, catalog: Catalog, batch_tokens: int) -> int:
    """Embed a catalog as `embed` does; returns the tokens of its distinct texts."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "journal", manifest("embed", {}, {}))
        texts, lengths, _ = fit_texts(embedder, catalog.texts(), None, embedder.context)
        encode(embedder, texts, lengths, catalog, journal, batch_tokens)
        journal.close()
    return int(lengths.sum())


def equal_lengths(embedder: CausalEmbedder, catalog: Catalog, batch_tokens: int) -> Batches:
    """The tokens of the loop's batches in as many rows of one length each; what the division leaves over is dropped."""
    tokens = embedder.tokenizer(catalog.texts(), split_special_tokens=True)["input_ids"]
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    made = []
    for batch in batches(np.argsort(-lengths, kind="stable"), lengths, batch_tokens):
        ids = [token for i in batch.tolist() for token in tokens[i]]
        width = len(ids) // len(batch)
        made.append(torch.tensor(ids[: width * len(batch)], device=embedder.device).view(len(batch), width))
    return made


@torch.inference_mode()
def bare(embedder: CausalEmbedder, unpadded: Batches) -> int:
    """Run the model's body alone; returns the tokens."""
    for batch in unpadded:
        embedder.body(input_ids=batch, use_cache=False)
    if embedder.device.type == "cuda":
        torch.cuda.synchronize()
    return sum(batch.numel() for batch in unpadded)


def measure(embedder: CausalEmbedder, catalog: Catalog, parts: int, batch_tokens: int) -> list[dict[str, float]]:
    """Seconds and CPU seconds of both, a part of the catalog after the other."""
    rows = []
    for chosen in np.array_split(np.random.default_rng(0).permutation(len(catalog)), parts):
        part = Catalog([catalog.ids[i] for i in chosen], [catalog.titles[i] for i in chosen])
        unpadded = equal_lengths(embedder, part, batch_tokens)
        row: dict[str, float] = {}
        for name, run in (
            ("loop", partial(loop, embedder, part, batch_tokens)),
            ("bare", partial(bare, embedder, unpadded)),
        ):
            clock, started = time.perf_counter(), time.process_time()
            row[f"{name}_tokens"] = run()
            row[f"{name}_seconds"] = time.perf_counter() - clock
            row[f"{name}_cpu_seconds"] = time.process_time() - started
        print(row, flush=True)
        rows.append(row)
    return rows


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows, unit = result["rows"], "seconds" if result["gpu"] else "cpu_seconds"
    shown = [
        [
            f"{i}",
            f"{row['bare_tokens']:,.0f}",
            *(f"{row[f'{name}_tokens'] / row[f'{name}_{unit}']:,.0f}" for name in ("loop", "bare")),
            f"{_ratio([row], unit):.3f}",
        ]
        for i, row in enumerate(rows, 1)
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Embedding",
        "",
        f"`embed` of {result['titles']:,} titles of Amazon Beauty, drawn at random in {len(rows)} parts, against bare "
        f"forwards of the same model over as many tokens without padding; {result['dtype']}. Tokens a "
        f"{'second' if result['gpu'] else 'CPU second'}; the part is embedded by the one, then by the other.",
        "",
        *table(["part", "tokens", "embed", "bare forward", "embed / bare"], shown),
        "",
        f"Over all parts `embed` reaches {_ratio(rows, unit):.1%} of the bare forward's rate.",
        "",
        f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; {versions}.",
    ]
    return "\n".join(lines) + "\n"


def _ratio(rows: list[dict[str, float]], unit: str) -> float:
    loop_rate, bare_rate = (
        sum(row[f"{name}_tokens"] for row in rows) / sum(row[f"{name}_{unit}"] for row in rows)
        for name in ("loop", "bare")
    )
    return loop_rate / bare_rate


def main() -> None:
    """Measure, then write the JSON file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory made by 'prepare'")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--titles", type=int, default=1_024, help="drawn at random")
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=4_096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("eval/results/embedding"), help="OUT.json and OUT.md")
    given = parser.parse_args()
    whole = Dataset.load(given.data).catalog
    # Each title once: the loop reads equal texts once, the bare forward would read them again.
    distinct = list(dict.fromkeys(whole.texts()))
    drawn = np.random.default_rng(given.seed).choice(len(distinct), given.titles, replace=False)
    catalog = Catalog([str(i) for i in drawn], [distinct[i] for i in drawn])
    embedder = CausalEmbedder.load(given.model, dtype=given.dtype)
    embedder.embed(catalog.texts()[:8])  # the first forward allocates
    rows = measure(embedder, catalog, given.parts, given.batch_tokens)
    result = stamp(given, "", "titles", "parts", "dtype") | {
        "titles": given.titles,
        "dtype": given.dtype,
        "gpu": embedder.device.type == "cuda",
        "rows": rows,
    }
    write_json(given.out.with_suffix(".json"), result)
    write_text(given.out.with_suffix(".md"), page(result))


if __name__ == "__main__":
    main()
