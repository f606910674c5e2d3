"""eval/benchmarks/on_vllm.py on the tiny model: what it tells holds there, and its page is written by its commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)


def test_both_engines_agree_with_the_adapter_merged_and_beside_and_peers_are_counted(
    wide_model, adapter, dataset_dir, tmp_path
):
    command = [sys.executable, "eval/benchmarks/on_vllm.py", "agreement", "peers", "--data", str(dataset_dir)]
    command += ["--model", str(wide_model), "--adapter", str(adapter), "--adapter-as", "merged", "--sessions", "6"]
    command += ["--beside-sessions", "2", "--peer-sessions", "2", "--titles", "20"]
    command += ["--scratch", str(tmp_path / "scratch"), "--out", str(tmp_path / "vllm")]
    given = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | given)
    assert done.returncode == 0, done.stderr[-3000:]

    found = json.loads((tmp_path / "vllm" / "agreement.json").read_text(encoding="utf-8"))
    ways = [(row["adapter"], row["scoring"], row["sessions"]) for row in found["rows"]]
    scorings = ("renormalised", "joint")
    assert ways == [("merged", one, 6) for one in scorings] + [("served", one, 2) for one in scorings]
    for row in found["rows"]:
        assert (row["same_items"], row["same_order"], row["full"], row["certified"]) == (1, 1, 1, 1)
        assert row["score_error"] < 1e-3
    assert found["vector_error"] < 1e-4 < found["largest_number"]

    rows = {row["name"]: row for row in json.loads((tmp_path / "vllm" / "peers.json").read_text("utf-8"))["rows"]}
    for one in scorings:
        ours = rows[f"**{one}**"]
        assert (ours["valid"], ours["distinct"], ours["starved"], ours["certified"]) == (1, 1, 0, 1)
    samples = rows["20 samples, choice of all titles"]
    assert samples["requests"] == 20
    assert rows["**renormalised**"]["tokens"] < rows["**joint**"]["tokens"]

    page = (tmp_path / "vllm.md").read_text(encoding="utf-8")
    assert "No GPU was at hand" in page
    assert page.count("| merged |") == page.count("| served |") == 2
