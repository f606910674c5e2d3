"""Part `agreement` of on_vllm.py: the lists and vectors of both engines, side by side."""

from __future__ import annotations

import argparse
import gc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from _measure import commit
from on_vllm_sessions import Bench, K, as_asked, clock

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.decoding.search import Found, Scoring
from seqrec_prompt.engines.embedder import CausalEmbedder
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.engines.models import adapter_hash, model_hash
from seqrec_prompt.engines.vllm import VLLMEmbedder, VLLMEngine
from seqrec_prompt.journal import Journal

BATCH = 16  # sessions decoded together; a stopped run loses no more
SCORINGS: tuple[Scoring, ...] = ("renormalised", "joint")


def agreement(given: argparse.Namespace) -> dict[str, Any]:
    """Both engines on the same sessions and titles; transformers always merges the adapter itself."""
    plain = HuggingFaceEngine.load(given.model, given.adapter, "float32")
    bench = Bench(given, plain.tokenizer, given.sessions)
    adapter = as_asked(given)
    ways = [(given.adapter_as if given.adapter else "none", adapter, given.sessions)]
    if adapter != given.adapter and given.beside_sessions:
        ways.append(("served", given.adapter, given.beside_sessions))
    inputs = {"data": bench.data.hash, "model": model_hash(given.model)}
    inputs |= {"adapter": adapter_hash(given.adapter)} if given.adapter else {}
    identity = manifest("agreement", {"budget": given.budget, "seed": given.seed}, inputs)
    journal = Journal(given.scratch / "agreement.journal", identity)
    rows = []
    for name, own, sessions in ways:
        _decode(journal, bench, plain, given, name, own, sessions)
        for scoring in SCORINGS:
            told = [one for one in journal.records() if (one["adapter"], one["scoring"]) == (name, scoring)]
            rows.append({"adapter": name, "scoring": scoring} | summary(told, sessions))
    del plain
    commits = ", ".join(dict.fromkeys([*(one["commit"] for one in journal.records()), commit()]))
    journal.close()
    vectors = _vectors(given, bench, adapter)
    return bench.about() | {"budget": given.budget, "rows": rows, "together": BATCH, "commit": commits} | vectors


def _decode(
    journal: Journal, bench: Bench, plain: Any, given: argparse.Namespace, name: str, own: Path | None, sessions: int
) -> None:
    """Append what the journal lacks of the first sessions, by batches."""
    done = {(one["adapter"], one["scoring"], one["start"], one["end"]) for one in journal.records()}
    starts = range(0, sessions, BATCH)
    asked = [(name, scoring, start, min(start + BATCH, sessions)) for start in starts for scoring in SCORINGS]
    if done.issuperset(asked):
        return
    served = VLLMEngine.load(given.model, own, "float32")
    for _, scoring, start, end in (one for one in asked if one not in done):
        record: dict[str, Any] = {"adapter": name, "scoring": scoring, "start": start, "end": end, "commit": commit()}
        found = []
        for engine, seconds in ((plain, "transformers_seconds"), (served, "vllm_seconds")):
            started = clock()
            found.append(bench.ours(engine, scoring, given.budget, slice(start, end)))
            record[seconds] = clock() - started
        journal.append(record | compare(*found))
        print(name, scoring, end, flush=True)
    del served
    gc.collect()  # the key-value cache of one goes before another's is made


def compare(wanted: Found, found: Found) -> dict[str, list[Any]]:
    """Whether the items are the same, and in the same order, and the largest differences of scores, a session each.

    `score_error`: of two places of the same rank, and of the same item. `swapped`: the most by which, in `wanted`, the
    scores of items differ that stand at another's rank.
    """
    items, order, errors, swaps = [], [], [], []
    for (a, b), (c, d) in zip(pairwise(wanted.offsets), pairwise(found.offsets), strict=True):
        one = dict(zip(wanted.items[a:b].tolist(), wanted.scores[a:b].tolist(), strict=True))
        other = dict(zip(found.items[c:d].tolist(), found.scores[c:d].tolist(), strict=True))
        items.append(one.keys() == other.keys())
        order.append(list(one) == list(other))
        error = [abs(x - y) for x, y in zip(one.values(), other.values(), strict=False)]
        errors.append(max([0.0, *error, *(abs(score - other[item]) for item, score in one.items() if item in other)]))
        swaps.append(max([0.0, *(abs(one[x] - one[y]) for x, y in zip(one, other, strict=False) if y in one)]))
    return {
        "same_items": items,
        "same_order": order,
        "score_error": errors,
        "swapped": swaps,
        "outside_error": np.abs(wanted.outside - found.outside).tolist(),
        "certified": found.certified.tolist(),
        "full": (np.diff(found.offsets) == K).tolist(),
        "tree_tokens": found.counts.tokens.tolist(),
    }


def summary(records: list[dict[str, Any]], sessions: int) -> dict[str, Any]:
    """Sums, means and the largest differences over the batches of the first sessions."""
    counted = [one for one in records if one["end"] <= sessions]
    flat = {name: [value for one in counted for value in one[name]] for name in counted[0] if name in WHOLE | MOST}
    row: dict[str, Any] = {"sessions": len(flat["full"])}
    row |= {name: float(np.mean(flat[name])) for name in WHOLE} | {name: max(flat[name]) for name in MOST}
    return row | {name: sum(one[name] for one in counted) for name in ("transformers_seconds", "vllm_seconds")}


WHOLE = {"same_items", "same_order", "certified", "full", "tree_tokens"}
MOST = {"score_error", "swapped", "outside_error"}


def _vectors(given: argparse.Namespace, bench: Bench, adapter: Path | None) -> dict[str, Any]:
    texts = list(dict.fromkeys(bench.data.catalog.texts()))[: given.titles]
    embedders = (CausalEmbedder.load(given.model, given.adapter), VLLMEmbedder.load(given.model, adapter))
    one, other = (embedder.embed(texts).astype(np.float64) for embedder in embedders)
    units = [made / np.linalg.norm(made, axis=1, keepdims=True) for made in (one, other)]
    return {
        "titles": len(texts),
        "vector_error": float(np.abs(one - other).max()),
        "unit_error": float(np.abs(units[0] - units[1]).max()),
        "least_cosine": float((units[0] * units[1]).sum(axis=1).min()),
        "largest_number": float(np.abs(one).max()),
    }
