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
        "all times are of a CPU, on which vLLM is not at home. Requests are the same anywhere, and tokens but for the "
        "blocks of the prefix cache, 32 tokens on a CPU, 16 on a GPU.",
    ]
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))}
    for part, write in (("agreement", _agreement), ("peers", _peers), ("many", _many)):
        if part in found:
            result = found[part]
            versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            lines += ["", *write(result), ""]
            lines += [f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; {versions}."]
    return "\n".join(lines) + "\n"


def _agreement(result: dict[str, Any]) -> list[str]:
    k = result["k"]
    head = [
        "scores",
        "lists with the same items",
        "same order",
        "largest difference of a score, rank by rank",
        "… of the mass outside",
    ]
    head += ["certified", "tree tokens", "s a session, transformers", "s a session, vLLM"]
    rows = [
        [
            row["scoring"],
            f"{row['sessions']}",
            f"{row['same_items']:.0%}",
            "yes" if row["same_order"] else "no",
            "" if row["score_error"] is None else f"{row['score_error']:.1e}",
            f"{row['outside_error']:.1e}",
            f"{row['certified']:.0%}",
            f"{row['tree_tokens']:.0f}",
            f"{row['transformers_seconds'] / row['sessions']:.2f}",
            f"{row['vllm_seconds'] / row['sessions']:.2f}",
        ]
        for row in result["rows"]
    ]
    return [
        "## The same as on transformers",
        "",
        f"{result['catalog']}. Test sessions with prompts of {result['prompt_tokens']:.0f} tokens on "
        f"average, the adapter merged by transformers and served beside the model by vLLM, lists of {k}, at most "
        f"{result['budget']} tokens a session.",
        "",
        *table(head, rows),
        "",
        f"Embeddings of {result['titles']:,} titles, weighted mean: no number differs by more than "
        f"{result['vector_error']:.1e} (the largest is {result['largest_number']:.0f}); least cosine "
        f"{result['least_cosine']:.7f}.",
    ]


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
        f"One engine, the same {result['sessions']} sessions all at once, {k} titles each; ours with at most "
        f"{result['budget']} tokens a session, certified: {certified}. Valid: completions that are a title. Distinct: "
        f"different real items of the {k} wanted; starved: sessions with fewer than {k} of them. Times hold the "
        "set-up of a grammar, which vLLM makes at the first request. Tokens computed: not found in the prefix cache.",
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
