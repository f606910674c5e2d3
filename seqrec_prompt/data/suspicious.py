"""Titles that look as if they were written for a model, a browser or a terminal, and not for a reader.

Nothing is left out for it: a title is plain text wherever this package writes it. It is listed, for a person to look.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

LONG, SHOWN = 300, 3

SIGNS = {
    "control tokens of a chat": re.compile(
        r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask)>"
        r"|\[(?:CLS|SEP|MASK|PAD|UNK)\]|<｜[^｜]{1,40}｜>",
        re.IGNORECASE,
    ),
    "orders to a model": re.compile(
        r"\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:previous|prior|above|earlier|all|your)\b.{0,40}"
        r"\b(?:instruction|prompt|rule|message|direction)s?\b|\bsystem prompt\b|\byou (?:are|must) now\b"
        r"|\b(?:always|only) (?:recommend|rank|answer|choose) (?:this|me)\b",
        re.IGNORECASE,
    ),
    "HTML or script": re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|<!--|\bjavascript:", re.IGNORECASE),
    "links": re.compile(r"\bhttps?://|\bwww\.\w", re.IGNORECASE),
    "characters that cannot be seen, or turn the reading direction": re.compile(
        "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
    ),
    f"more than {LONG} characters": re.compile(rf".{{{LONG + 1}}}", re.DOTALL),
}


def suspicious(titles: Sequence[str]) -> dict[str, list[int]]:
    """Sign → positions of the titles that show it; signs that no title shows are left out."""
    found = {sign: [i for i, title in enumerate(titles) if look.search(title)] for sign, look in SIGNS.items()}
    # What is a control token is no HTML too.
    tokens = SIGNS["control tokens of a chat"]
    found["HTML or script"] = [
        i for i in found["HTML or script"] if SIGNS["HTML or script"].search(tokens.sub("", titles[i]))
    ]
    return {sign: positions for sign, positions in found.items() if positions}


def describe(ids: Sequence[str], titles: Sequence[str], found: Mapping[str, Sequence[int]]) -> str:
    """Say which titles are suspicious and why, three of each sign; found: by `suspicious`."""
    if not found:
        return "Suspicious titles: none."
    lines = [f"Suspicious titles, {len({i for which in found.values() for i in which}):,} to look at:"]
    for sign, positions in found.items():
        lines.append(
            f"  {len(positions):,} with {sign}" if not sign.startswith("more") else f"  {len(positions):,} of {sign}"
        )
        lines += [f"    {ids[i]}: {_visible(titles[i])}" for i in positions[:SHOWN]]
    return "\n".join(lines)


def _visible(title: str) -> str:
    """The title with everything that cannot be seen written out, cut to 80 characters."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in title)
    return shown if len(shown) <= 80 else shown[:79] + "…"
