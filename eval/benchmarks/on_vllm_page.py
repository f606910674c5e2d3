"""What on_vllm.py measured, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _measure import table


def page(out: Path) -> str:
    """The results in `out` as Markdown."""
    lines = [
        "# The engine on vLLM",
        "",
        "Model smollm2 (dequantised 4-bit SmolLM2-135M: no figure of SmolLM2's own), float32. **No GPU was at hand**: "
        "all times are of a CPU, on which vLLM is not at home, and sessions a second on a GPU are not measured. "
        "Requests are the same anywhere, and tokens but for the blocks of the prefix cache, 32 tokens on a CPU, 16 on "
        "a GPU. `make test-vllm` makes the environment and holds the same on a tiny random model, with and without an "
        "adapter: lists over 64 sessions with both scorings, vectors, a run that was stopped, a served model.",
    ]
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))}
    for part, write in (("agreement", _agreement), ("peers", _peers), ("many", _many)):
        if part in found:
            result = found[part]
            versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            lines += ["", *write(result), ""]
            lines += [f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; {versions}."]
    return "\n".join(lines) + "\n"


AS = {
    "none": "without an adapter",
    "merged": "vLLM has a copy of the model with the adapter merged into it",
    "served": "vLLM serves the adapter beside the model, unmerged",
}


def _agreement(result: dict[str, Any]) -> list[str]:
    k = result["k"]
    head = ["adapter", "scores", "sessions", f"the same {k} items", "in the same order"]
    head += ["largest difference of a score", "… of the mass outside", "full lists", "certified", "tree tokens"]
    head += ["s a session, transformers", "s a session, vLLM"]
    rows = [
        [
            row["adapter"],
            row["scoring"],
            f"{row['sessions']}",
            f"{row['same_items'] * row['sessions']:.0f}",
            f"{row['same_order'] * row['sessions']:.0f}",
            f"{row['score_error']:.1e}",
            f"{row['outside_error']:.1e}",
            f"{row['full'] * row['sessions']:.0f}",
            f"{row['certified']:.0%}",
            f"{row['tree_tokens']:.0f}",
            f"{row['transformers_seconds'] / row['sessions']:.2f}",
            f"{row['vllm_seconds'] / row['sessions']:.2f}",
        ]
        for row in result["rows"]
    ]
    ways = "; ".join(f"{name}: {AS[name]}" for name in dict.fromkeys(row["adapter"] for row in result["rows"]))
    swapped = max(row["swapped"] for row in result["rows"])
    ties = f" Items that change places differ by at most {swapped:.1e} in score." if swapped else ""
    return [
        "## The same as on transformers",
        "",
        f"{result['catalog']}. Test sessions with prompts of {result['prompt_tokens']:.0f} tokens on average, lists of "
        f"{k}, at most {result['budget']} tokens a session: a list that is not proven best by then is what was found, "
        "on both, and it may be short. Transformers merges the adapter as it loads it; "
        f"{ways}. The difference is the largest of two places of one rank and of one item.{ties} {_clock(result)}",
        "",
        *table(head, rows),
        "",
        f"Embeddings of {result['titles']:,} titles, weighted mean, the adapter as in the first row: no number differs "
        f"by more than {result['vector_error']:.1e} where the largest is {result['largest_number']:.0f}, and by more "
        f"than {result['unit_error']:.1e} in vectors of length one; least cosine {result['least_cosine']:.9f}.",
    ]


def _clock(result: dict[str, Any]) -> str:
    return "Seconds are CPU time." if result["hardware"].startswith("CPU") else ""


def _peers(result: dict[str, Any]) -> list[str]:
    k = result["k"]
    head = ["way", "valid", "distinct items", "starved sessions", "s a session", "requests a session"]
    head += ["tokens computed a session", "steps"]
    rows = [
        [row["name"], f"refused: {row['refused']}", *[""] * 6]
        if "refused" in row
        else [
            row["name"],
            f"{row['valid']:.0%}",
            f"{row['distinct']:.0%}",
            f"{row['starved']:.0%}",
            f"{row['seconds']:.2f}",
            f"{row['requests']:.0f}",
            f"{row['tokens']:,.0f}",
            f"{row['steps']:,.0f}",
        ]
        for row in result["rows"]
    ]
    certified = ", ".join(f"{row['certified']:.0%} {row['name'].strip('*')}" for row in result["rows"][:2])
    return [
        "## Beside vLLM's own ways",
        "",
        f"One engine, {AS[result['adapter']]}; the same {result['sessions']} sessions all at once, {k} titles each; "
        f"the first two, ours, with at most {result['budget']} tokens a session, certified: {certified}. Valid: "
        f"completions that are a title. Distinct: different real items of the {k} wanted; starved: sessions with fewer "
        f"than {k} of them. Times hold the set-up of a grammar, which vLLM makes at the first request. Tokens "
        f"computed: those that were not in the prefix cache. {_clock(result)}",
        "",
        *table(head, rows),
    ]


def _many(result: dict[str, Any]) -> list[str]:
    k = result["k"]
    return [
        "## Thousands of sessions",
        "",
        f"`recommend --engine vllm` for {result['sessions']:,} sessions with a tiny random model and 30 items, killed "
        f"with {result['batches_kept']} batches in its journal and started again: {result['full_and_distinct']:,} "
        f"lists of {k} distinct items, {result['certified']:,} certified, {result['seconds']:.0f} s with both starts, "
        f"{result['first_gb']:.2f} GB of memory after the second's first batch and {result['peak_gb']:.2f} GB at most, "
        "libraries and key-value cache included.",
    ]
