"""SIGKILL in the middle of `reproduce`: the next run goes on and ends with the table of an unbroken one."""

import json
import signal

import pyarrow.parquet as pq
import yaml

from seqrec_prompt.reproduction.plans import load_plan

ROWS = ("V-SKNN", "GRU4Rec")


def figures(out):
    """Everything measured; where things lie and what carries a date left out."""
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    found = {name: (row["seeds"], row["metrics"]) for name, row in rows.items()}
    lists = {name: pq.read_table(out / "seed-0" / f"{name}.parquet").to_pylist() for name in ROWS}
    return found, lists


def test_a_killed_table_ends_as_an_unbroken_one(server, dataset_dir, tmp_path):
    lists = pq.read_table(dataset_dir / "train.parquet").to_pylist()
    raw = [f"{row['session_id']},{item}" for row in lists for item in row["items"]]
    (tmp_path / "interactions.csv").write_text("\n".join(["session_id,item_id", *raw]) + "\n", encoding="utf-8")
    items = ["item_id,title", *(f"{item},Item {item}" for item in {line.split(",")[1] for line in raw})]
    (tmp_path / "items.csv").write_text("\n".join(items) + "\n", encoding="utf-8")
    base = load_plan("recsys23-beauty").model_dump(mode="json")
    files = {name: f"{{raw}}/{name}.csv" for name in ("interactions", "items")}
    plan = base | {
        "seeds": [0],
        "prepare": files | {"split": "leave_one_out", "out": "{run}/data"},
        "rows": {name: base["rows"][name] for name in ROWS},
        "pairs": {},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")

    def words(out):
        return ["reproduce", tmp_path / "plan.yaml", "--data", tmp_path, "--out", out, "--epochs", 30]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, said = server.run(words(whole))
    assert code == 0, said
    for made in ("V-SKNN.parquet", "GRU4Rec.checkpoint"):
        running = server.start(words(killed))
        running.wait_for(killed / "seed-0" / made)
        running.kill()
        assert running.wait() == -signal.SIGKILL, running.output
    assert not (killed / "results.json").exists()
    code, said = server.run(words(killed))
    assert code == 0, said
    assert said.count("already prepared") == said.count("already fitted") == said.count("already recommended") == 1
    assert figures(killed) == figures(whole)
    assert {file.name for file in killed.iterdir()} == {file.name for file in whole.iterdir()}
