"""The notebook runs from top to bottom, and is kept without outputs."""

import json
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "recipes" / "quickstart.ipynb"


def test_the_notebook_runs_on_the_bundled_sample(tiny_model, tmp_path, monkeypatch):
    settings = {"MODEL": tiny_model, "STEPS": 2, "SESSIONS": 4, "OUT": tmp_path / "out", "PROMPT_CACHE": tmp_path / "c"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SEQREC_{name}", str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        output.get("text", output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    assert any("findings (! asks for a change)" in text for text in shown)
    assert any("TransitionCounts" in text for text in shown)
    for name in ("untuned", "tuned"):
        lists = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert len(set(lists["session_id"].to_pylist())) == 4


def test_the_notebook_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
