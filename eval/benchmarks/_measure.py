"""What the benchmarks share: the stamp of a result and the page that shows all of them."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from seqrec_prompt.artifacts import write_text
from seqrec_prompt.finetuning.training import hardware

# glibc gives large blocks back to the system when they are freed, and every page of the next is a fault: a peer's
# logits of all items are such, and the caches that a beam copies. With these it keeps them: who knows may run peers so.
KEEPS = {"MALLOC_TRIM_THRESHOLD_": str(10**11), "MALLOC_MMAP_THRESHOLD_": str(10**11)}


def stamp(given: argparse.Namespace, part: str, *more: str) -> dict[str, Any]:
    """Command with the settings that matter, `more` of them to `part`; commit, hardware and versions of a result."""
    words = ["python", f"eval/benchmarks/{Path(sys.argv[0]).name}", *([part] if part else [])]
    for name in ("model", "adapter", *more, "seed", "keep_memory"):
        value = getattr(given, name, None)
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, *map(str, value if isinstance(value, (list, tuple)) else [value])]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {
        "command": " ".join(words),
        "commit": commit(),
        "hardware": _hardware(),
        "versions": versions,
    }


def _hardware() -> str:
    """The hardware; of a CPU what times and ratios hang on, too.

    That is the vector instructions that torch found, and whether freed memory stays with the process.
    """
    if torch.cuda.is_available():
        return hardware()
    kept = ", memory kept" if os.environ.keys() >= KEEPS.keys() else ""
    return f"{hardware()}, {torch.backends.cpu.get_cpu_capability()}{kept}"


def keep_memory() -> None:
    """Begin this process anew under KEEPS, which malloc reads at its start."""
    if not os.environ.keys() >= KEEPS.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEPS)  # noqa: S606


def commit() -> str:
    """The commit that is checked out, with a + when the package has changed since."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "seqrec_prompt") else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()


def write_page(out: Path) -> None:
    """Write OUT.md from the JSON files in OUT."""
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))}
    lines = [
        "# Constrained decoding",
        "",
        "The 20 best titles of the catalog after a prompt; model smollm2 (dequantised 4-bit SmolLM2-135M: no figure of "
        "SmolLM2's own), float32 on a CPU. `renormalised`: softmax over what the catalog allows; `joint`: every token "
        "of a title counted. Compare times within a table only.",
    ]
    for part, write in (
        ("speed", _speed),
        ("proof", _proof),
        ("tuned", _proof),
        ("joint", _joint),
        ("joint_companions", _proof),
        ("peers", _peers),
        ("beam_64", _peers),
        ("vocabulary", _speed),
        ("scale", _scale),
    ):
        for stem in sorted(name for name in found if name.partition("-")[0] == part):
            result = found[stem]
            on = "" if stem == part else f": {result['hardware']}"  # a second kind of hardware
            lines += ["", f"## {TITLES[part]}{on}", "", *write(result)]
            versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
            lines += ["", f"`{result['command']}`, commit {result['commit']}; {result['hardware']}; {versions}."]
    write_text(out.with_suffix(".md"), "\n".join(lines) + "\n")
    print(f"wrote {out.with_suffix('.md')}")


TITLES = {
    "speed": "Speed and proof",
    "proof": "All test sessions",
    "tuned": "All test sessions, with a tuned adapter",
    "joint": "Joint scores of a tuned adapter",
    "joint_companions": "Joint scores, companions in the prompt",
    "peers": "Against peers, eight sessions",
    "beam_64": "Against beam search, 64 sessions, bfloat16",
    "vocabulary": "A vocabulary of 151,936",
    "scale": "From twelve thousand titles to a million",
}


def peak_gb() -> float:
    """Most memory that this process ever held, libraries included, in 10⁹ bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, its first column to the left and the others to the right."""
    return ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"] + [
        "| " + " | ".join(row) + " |" for row in rows
    ]


def _speed(result: dict[str, Any]) -> list[str]:
    head = ["scores", "sessions, batch", "s a session", "of it prefill", "rounds", "tree tokens", "constraint"]
    head += ["certified", "median gap", "peak GB"]
    rows = [
        [
            row["scoring"],
            f"{row['sessions']}, {row['batch']}",
            f"{row['seconds'] / row['sessions']:.2f}",
            f"{row['prefill_seconds'] / row['sessions']:.2f}",
            f"{row['rounds']:.1f}",
            f"{row['tree_tokens']:.0f}",
            f"{row['constraint_share']:.1%}",
            f"{row['certified']:.0%}",
            f"{row['median_gap']:.2f}",
            f"{row['peak_gb']:.1f}",
        ]
        for row in result["rows"]
    ]
    note = f"Prompts of {result['rows'][0]['prompt_tokens']:.0f} tokens on average."
    if "catalog" in result:
        note = f"{result['catalog']}. {note}"
    return [note, "Constraint: share of the time outside the model's body and LM head.", "", *table(head, rows)]


def _proof(result: dict[str, Any]) -> list[str]:
    head = ["lists of 20", "sessions", "full", "certified", "share", "median gap", "items twice in a list"]
    head += ["rounds", "tree tokens"]
    rows = []
    for row in result["rows"]:
        settings = row["settings"]
        named = ", ".join([f"`{settings['data']}`", settings["adapter"] or "no adapter", settings["scoring"]])
        counts = [f"{row['sessions']:,} of {row['of']:,}", f"{row['full']:,}", f"{row['certified']:,}"]
        counts += [f"{row['certified'] / max(row['sessions'], 1):.1%}", f"{row['median_gap']:.2f}"]
        counts += [f"{row['duplicates']:,}", f"{row['facts']['rounds']:.1f}", f"{row['facts']['tree_tokens']:.0f}"]
        rows.append([f"{named}, {settings['dtype']}, budget {settings['budget']:,}", *counts])
    return table(head, rows)


def _joint(result: dict[str, Any]) -> list[str]:
    return [
        "Every title below a prefix scores less than the prefix, and only reading on tells how much less: all prefixes",
        "above the k-th title have to be read. So the proof comes within the budget where the model knows the titles:",
        "where it pays little for the tokens that do not choose. The gap says, in nats, how far the proof is.",
        "",
        *_proof(result),
    ]


def _peers(result: dict[str, Any]) -> list[str]:
    yardsticks = [
        min((row for row in result["ours"] if row["scoring"] == scoring), key=lambda row: row["seconds"])
        for scoring in dict.fromkeys(row["scoring"] for row in result["ours"])
    ]
    fast = yardsticks[0]
    rows = [
        [f"**{row['scoring']}**, {row['batch']} at a time", f"{row['seconds']:.1f}",
         *(_ratio(row, ours, fast["sessions"]) for ours in yardsticks), "100%", "100%",
         f"{row['certified']:.0%} certified"]
        for row in result["ours"]
    ]  # fmt: skip
    for row in result["peers"]:
        done, decoded = row["finished"], row["completions"] // 20
        begun = min(decoded + row["batch"], fast["sessions"])
        valid = 1 - row["invalid"] / row["completions"] if row["completions"] else None
        rows.append(
            [
                f"{row['name']}, {row['batch']} at a time",
                ("" if done else "> ") + f"{row['seconds']:.1f}",
                *(("" if done else "> ") + _ratio(row, ours, begun) for ours in yardsticks),
                "–" if valid is None else f"{valid:.0%}",
                f"{row['distinct_share']:.0%}" if done else "–",
                f"set-up {row['setup_seconds']:.1f} s"
                + ("" if done else f", stopped with {decoded} of {fast['sessions']} sessions done"),
            ]
        )
    head = ["way", "seconds", *(f"times {ours['scoring']}" for ours in yardsticks), "valid", "distinct", "note"]
    note = f"Valid: completions that are a title. Distinct: different real items of {20 * fast['sessions']:,} wanted."
    if "memory_gb" in result:
        note += f" Beam search is given {result['memory_gb']:.0f} GB of memory."
    return [note, "", *table(head, rows)]


def _ratio(row: dict[str, Any], ours: dict[str, Any], begun: int) -> str:
    """Seconds a session in terms of ours; where a peer was stopped, too few, as the last ones begun are not done."""
    ratio = row["seconds"] / begun / (ours["seconds"] / ours["sessions"])
    return f"{ratio:.0f}" if ratio >= 15 else f"{ratio:.1f}"


def _scale(result: dict[str, Any]) -> list[str]:
    head = ["titles", "compile s", "tokenising alone s", "peak GB", "read from cache s", "add 1,000 titles s"]
    head += ["s a session", "tree tokens", "rounds"]
    rows = [
        [
            f"{row['titles']:,}",
            f"{row['compile_seconds']:.1f}",
            f"{row['tokenise_seconds']:.1f}",
            f"{row['peak_gb']:.2f}",
            f"{row['load_seconds']:.2f}",
            f"{row['add_seconds']:.1f}",
            f"{row['session_seconds']:.2f}",
            f"{row['tree_tokens']:.0f}",
            f"{row['rounds']:.1f}",
        ]
        for row in result["rows"]
    ]
    return [result["note"], "", *table(head, rows), "", "![Cost against the number of titles](decoding/scale.png)"]
