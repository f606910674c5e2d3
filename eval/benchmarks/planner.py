"""What `plan` foretells, with a probe and without, against what `finetune` and `recommend` then take.

Each runs in a process of its own, on one thread. Seconds are the processor's, from call to return, those of the probe,
too: what else the machine is doing meanwhile does not count. Bytes are the process's peak. DATA is what
`seqrec-prompt prepare --config recipes/configs/quickstart.yaml` makes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import stamp, table

from seqrec_prompt.artifacts import write_json, write_text

RUN = """
import json, resource, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
time.perf_counter = time.process_time
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.planning.plan import PlanConfig, plan
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend
verb, settings, out = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
config, function = {"finetune": (FinetuneConfig, finetune), "plan": (PlanConfig, plan),
                    "recommend": (RecommendConfig, recommend)}[verb]
started = time.perf_counter()
made = function(config(**settings))
seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
out.write_text(json.dumps({"seconds": seconds, "bytes": peak, "made": made if verb == "plan" else None}))
"""


def run(verb: str, settings: dict[str, Any], place: Path) -> dict[str, Any]:
    """What a verb took in a fresh process and, of `plan`, what it foretold."""
    out = place / f"{verb}.json"
    subprocess.run([sys.executable, "-c", RUN, verb, json.dumps(settings), str(out)], check=True)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Foretell, run, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--max-steps", type=int, default=12)
    parser.add_argument("--max-sessions", type=int, default=48)
    parser.add_argument("--probe-steps", type=int, default=4)
    parser.add_argument("--probe-sessions", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("eval/results/planner"))
    given = parser.parse_args()
    shared = {"data": str(given.data), "model": given.model, "template": {"max_items": 11}}
    train = shared | {"max_steps": given.max_steps, "batch_size": 8}
    planned = train | {"max_sessions": given.max_sessions}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        foretold = run("plan", planned, place)
        probe = {"probe": True, "probe_steps": given.probe_steps, "probe_sessions": given.probe_sessions}
        probed = run("plan", planned | probe, place)
        taken = {
            "finetune": run("finetune", train | {"out": str(place / "adapter"), "seed": given.seed}, place),
            "recommend": run(
                "recommend", shared | {"out": str(place / "r.parquet"), "max_sessions": given.max_sessions}, place
            ),
        }
    result = stamp(given, "", "max_steps", "max_sessions", "probe_steps", "probe_sessions")
    result["rows"] = [
        {
            "stage": stage,
            "what": what,
            "taken": one[what],
            "probe": probed["made"][stage][what],
            "formula": foretold["made"][stage][what],
        }
        for stage, one in taken.items()
        for what in ("seconds", "bytes")
    ]
    result["probe_seconds"], result["formula_seconds"] = probed["seconds"], foretold["seconds"]
    write_json(given.out.with_suffix(".json"), result)
    write_page(given.out.with_suffix(".md"), result)


def write_page(file: Path, result: dict[str, Any]) -> None:
    """Write the Markdown page of a result."""
    rows = []
    for row in result["rows"]:
        scale, unit = (1, "s") if row["what"] == "seconds" else (1e9, "GB")
        cells = [f"{row['stage']}, {unit}", f"{row['taken'] / scale:.3g}"]
        for name in ("probe", "formula"):
            cells += [f"{row[name] / scale:.3g}", f"{row[name] / row['taken'] - 1:+.0%}"]
        rows.append(cells)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    again = result.get("formula_commit")  # where only the formula was computed anew
    formula = f" (without a probe: {again})" if again else ""
    lines = [
        "# What `plan` foretells",
        "",
        "Foretold before, taken after, on the bundled sample, in seconds of one processor core. With `--probe`, "
        "`plan` runs a few real steps and "
        f"sessions first, here for {result['probe_seconds']:.0f} s; without, it times one product of matrices and "
        "computes: that is rough, and `plan` says so. The shares of a product's speed that it counts with were set by "
        "this run, so its seconds of training foretell nothing here.",
        "",
        *table(["", "taken", "with --probe", "off by", "without", "off by"], rows),
        "",
        f"`{result['command']}`, commit {result['commit']}{formula}; {result['hardware']}; {versions}.",
    ]
    write_text(file, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
