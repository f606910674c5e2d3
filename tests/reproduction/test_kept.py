"""Rows added to a page that is there: the others stay as they were measured, and say so."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seqrec_prompt.cli import EXIT_ERROR

SCRIPT = Path(__file__).parents[2] / "eval" / "reproduce_recsys23.py"
AS_MEASURED = ("seeds", "metrics", "lists", "made_from", "commands")


@pytest.fixture
def make(table, tmp_path, monkeypatch):
    """Run the script on the small table; returns its exit code and what the page's JSON holds."""
    spec = importlib.util.spec_from_file_location("reproduce_recsys23", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce_recsys23", script)
    spec.loader.exec_module(script)

    def run(*words, out="out", plan=table["plan"]):
        given = ["--data", str(table["data"]), "--out", str(tmp_path / out), "--page", str(tmp_path / "page")]
        monkeypatch.setattr(sys, "argv", ["reproduce_recsys23.py", plan, *given, "--epochs", "1", *words])
        code = script.main()
        return code, json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))

    return run


def shown(tmp_path):
    """The page's text, and the first cells of the rows of its first table."""
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    names = [line.split("|")[1].strip() for line in text.partition("## ")[0].splitlines() if line.startswith("| ")]
    return text, names[2 : len(names) // 2]


def test_a_row_is_added_and_the_others_stay_as_they_were_measured(make, table, tmp_path):
    _, old = make("--skip", "GRU4Rec")
    assert old["rows"]["GRU4Rec"]["seeds"] == []
    plan = yaml.safe_load(Path(table["plan"]).read_text(encoding="utf-8"))
    plan["rows"]["GRU4Rec"][0]["fit"]["sequential"]["dim"] = 8
    (tmp_path / "later.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    code, new = make("--only", "GRU4Rec", "--seeds", "1", "--add", out="elsewhere", plan=str(tmp_path / "later.yaml"))
    assert code == 0
    assert list(new["rows"]) == ["GRU4Rec", "MostPopular", "V-SKNN"]
    assert new["plan_hash"] != old["plan_hash"]
    assert (new["seeds"], new["data"], new["sessions"]) == ([0, 1], old["data"], old["sessions"])
    for name in ("MostPopular", "V-SKNN"):
        row = new["rows"][name]
        assert [row[key] for key in AS_MEASURED] == [old["rows"][name][key] for key in AS_MEASURED]
        assert row["kept"]["plan_hash"] == old["plan_hash"]
        assert row["kept"]["commit"] == old["commit"]
        assert row["kept"]["command"] == old["command"]
        assert row["kept"]["hardware"] == old["hardware"]
    assert new["rows"]["GRU4Rec"]["seeds"] == [1]
    assert "kept" not in new["rows"]["GRU4Rec"]
    text, names = shown(tmp_path)
    assert names == ["GRU4Rec", "MostPopular [1]", "V-SKNN [1]"]
    assert f"[1] Kept, of an earlier plan: MostPopular, V-SKNN. `{old['command']}`, commit {old['commit']}" in text
    assert f"`{new['command']}`, commit {new['commit']}; plan {new['plan_hash'][:12]}" in text


def test_a_row_is_compared_with_rows_of_the_same_making_alone(make, tmp_path):
    """V-SKNN follows the walks and MostPopular cannot: marked while both lists are there."""
    _, old = make("--skip", "GRU4Rec")
    marks = old["rows"]["V-SKNN"]["higher_than"]
    assert marks["@10"]["ndcg"] == ["MostPopular"]
    _, new = make("--only", "GRU4Rec", "--add", out="elsewhere")
    assert new["rows"]["V-SKNN"]["higher_than"] == marks
    assert "[1] Kept, of the same plan: MostPopular, V-SKNN." in shown(tmp_path)[0]
    _, last = make("--only", "MostPopular", "--add", out="third")
    assert last["rows"]["V-SKNN"]["higher_than"]["@10"]["ndcg"] == [], "MostPopular is another one now"
    assert last["rows"]["V-SKNN"]["kept"] == new["rows"]["V-SKNN"]["kept"]
    assert new["pairs"] == old["pairs"] != []
    assert last["pairs"] == []
    assert last["rows"]["GRU4Rec"]["kept"]["command"] == new["command"]
    text, names = shown(tmp_path)
    assert names == ["GRU4Rec [1]", "MostPopular", "V-SKNN [2]"]
    assert "[2] Kept, of the same plan: V-SKNN. " in text


def test_rows_whose_lists_are_there_are_compared(make, tmp_path):
    _, whole = make()
    _, first = make("--skip", "GRU4Rec", out="elsewhere")
    (tmp_path / "page.json").write_text(json.dumps(first), encoding="utf-8")
    _, added = make("--only", "GRU4Rec", "--add")
    assert added["rows"] == whole["rows"]


def test_a_row_that_the_plan_has_no_more_stays(make, table, tmp_path):
    make("--only", "V-SKNN")
    plan = yaml.safe_load(Path(table["plan"]).read_text(encoding="utf-8"))
    del plan["rows"]["V-SKNN"], plan["pairs"]
    (tmp_path / "later.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    make("--only", "MostPopular", "--add", plan=str(tmp_path / "later.yaml"))
    assert shown(tmp_path)[1] == ["GRU4Rec", "MostPopular", "V-SKNN [1]"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data", {"1": "0" * 64}, "the data of seed 1 were 000000000000 and are "),
        ("sessions", {"test": 60, "evaluated": 30}, "sessions were {'test': 60, 'evaluated': 30} and are "),
    ],
)
def test_rows_of_other_sessions_are_refused(make, tmp_path, capsys, key, value, said):
    _, old = make("--only", "V-SKNN")
    (tmp_path / "page.json").write_text(json.dumps(old | {key: value}), encoding="utf-8")
    code, kept = make("--only", "MostPopular", "--add")
    assert code == EXIT_ERROR
    assert kept == old | {key: value}
    assert f"The rows cannot stand in one table: {said}" in capsys.readouterr().err


def test_a_page_that_is_not_there_is_told_before_anything_is_made(table, tmp_path):
    words = [sys.executable, str(SCRIPT), table["plan"], "--data", str(table["data"]), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*words, "--page", str(tmp_path / "page"), "--add"], capture_output=True, text=True, check=False
    )
    assert done.returncode == EXIT_ERROR
    assert "page.json cannot be read" in done.stderr
    assert "Without --add a new page is made" in done.stderr
    assert not (tmp_path / "out").exists()
