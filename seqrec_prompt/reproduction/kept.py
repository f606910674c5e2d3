"""Rows of an earlier table in a new one: they stay as they were measured, and say when and how that was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqrec_prompt.errors import ConfigError

# What tells how a table's own rows were made.
HOW = ("command", "commit", "plan_hash", "settings", "embeddings", "hardware", "versions")
Result = Mapping[str, Any]  # what results.json holds


def with_kept_rows(new: Result, old: Result) -> dict[str, Any]:
    """Give `new` the rows of `old` that it lacks, each with a `kept` that says how it was made.

    Their lists need not be there any more, so they are compared with nothing new: of their significance marks those
    stay that name rows of the same making. Raises ConfigError where the two tables judge other sessions.
    """
    _require_same_sessions(new, old)
    earlier = {name: _kept(row, old) for name, row in old["rows"].items() if row["seeds"]}
    rows = {name: row if row["seeds"] else earlier.get(name, row) for name, row in new["rows"].items()}
    rows |= {name: row for name, row in earlier.items() if name not in rows}
    for row in rows.values():
        if "kept" in row:
            row["higher_than"] = {
                at: {metric: [o for o in lower if rows[o].get("kept") == row["kept"]] for metric, lower in of.items()}
                for at, of in row["higher_than"].items()
            }
    measured = {name for name, row in new["rows"].items() if row["seeds"]}
    earlier_pairs = [pair for pair in old.get("pairs", []) if not measured & {pair["row"], pair["than"]}]
    first = new if new["data"] else old
    return {
        **new,
        "rows": rows,
        "pairs": [*new["pairs"], *earlier_pairs],
        "seeds": sorted({seed for row in rows.values() for seed in row["seeds"]} | set(new["seeds"])),
        "data": dict(sorted({**old["data"], **new["data"]}.items())),
        "sessions": first["sessions"],
        "cutoffs": first["cutoffs"],
        "confidence": first["confidence"],
    }


def _kept(row: Mapping[str, Any], result: Result) -> dict[str, Any]:
    """A copy of the row with how it was made, be it kept by `result` already or its own."""
    return {"kept": {key: result[key] for key in HOW if key in result}, **row}


def _require_same_sessions(new: Result, old: Result) -> None:
    problems = [
        f"the data of seed {seed} were {old['data'][seed][:12]} and are {digest[:12]}"
        for seed, digest in new["data"].items()
        if old["data"].get(seed, digest) != digest
    ]
    if new["data"] and old["data"]:
        problems += [
            f"{what} were {old[what]} and are {new[what]}"
            for what in ("sessions", "cutoffs", "confidence")
            if new[what] != old[what]
        ]
    if problems:
        raise ConfigError(f"The rows cannot stand in one table: {'; '.join(problems)}. Make all rows again.")
