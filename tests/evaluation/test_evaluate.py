"""`evaluate` end to end on a small prepared directory, and everything it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqrec_prompt.artifacts import hash_file, manifest
from seqrec_prompt.cli import run
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.errors import ArtifactError, DataError
from seqrec_prompt.evaluation.comparable import row_names
from seqrec_prompt.evaluation.evaluate import OUTPUTS, EvaluateConfig, evaluate
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.files import read, write

CATALOG = Catalog(
    ["pan", "pot", "lid", "jar", "cup"],
    ["Frying pan", "Stock pot", "Glass lid", "Jam jar &amp; label", ""],
)
TRAIN = Sessions.build(["t1", "t2", "t3"], [[0, 1, 2], [0, 1], [3, 0]])
TEST = Holdout.of_last_items(Sessions.build(["u1", "u2", "u3", "u4"], [[0, 1], [3, 0, 2], [1, 1, 3], [2, 4]]))
PERFECT = {"u1": [1, 2], "u2": [2, 1], "u3": [3, 0], "u4": [4, 3]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = manifest("prepare", {}, {}, {"hash": "of the inputs", "interactions": 17})
    directory = tmp_path / "data"
    directory.mkdir()
    Dataset(CATALOG, Split(TRAIN, TEST), made).save(directory)
    return directory


def save(path: Path, lists: dict[str, list[int]], data: Path, **config: object) -> Path:
    found = Recommendations.build(
        np.array(list(lists), dtype=object),
        [np.array(items, np.int32) for items in lists.values()],
        [np.arange(len(items), 0, -1.0) for items in lists.values()],
    )
    path.parent.mkdir(exist_ok=True)
    write(path, [found], CATALOG, manifest("recommend", config, {"data": Dataset.load(data).hash}))
    return path


def config(data: Path, *recommendations: Path, **settings: object) -> EvaluateConfig:
    values = {"out": data.parent / "evaluation", "cutoffs": (1, 2), **settings}
    return EvaluateConfig.model_validate({"data": data, "recommendations": recommendations, **values})


def test_it_writes_and_prints_all_numbers(data, tmp_path, capsys):
    # A file may list the sessions in any order; here the second is a miss and the third a hit at rank 2.
    mixed = save(tmp_path / "mixed.parquet", {"u3": [0, 3], "u1": [1], "u4": [], "u2": [0, 1]}, data)
    perfect = save(tmp_path / "perfect.parquet", PERFECT, data)
    result = evaluate(config(data, perfect, mixed, examples=4))
    out = tmp_path / "evaluation"
    assert sorted(p.name for p in out.iterdir()) == sorted(OUTPUTS)
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(result))
    rows = {row["name"]: row for row in result["recommenders"]}
    assert list(rows) == ["perfect", "mixed", "MostPopular", "TransitionCounts", "LastItemRepeat"]
    assert rows["perfect"]["metrics"]["@2"]["hr"] == 1
    assert rows["perfect"]["sha256"] == hash_file(perfect)
    assert rows["mixed"]["metrics"]["@2"]["mrr"] == pytest.approx((1 + 0 + 1 / 2 + 0) / 4)
    assert rows["mixed"]["lists"] == {
        "count": 4, "short": 2, "empty": 1, "items": 5, "valid": 1.0, "made_up": 0.0, "repeated": 0.0,
        "of": "places", "certified": 1.0, "provenance": {"exact": 5}
    }  # fmt: skip
    # Most popular in train: 0 (3 times), 1 (twice). Targets 1, 2, 3, 4: one hit, at rank 2.
    assert rows["MostPopular"]["metrics"]["@2"]["mrr"] == pytest.approx(1 / 8)
    # After 0 came 1 twice: a hit at rank 1 for u1, whose last item is 0; u2's 0 is followed by 1 too, a miss.
    assert rows["TransitionCounts"]["metrics"]["@1"]["hr"] == pytest.approx(1 / 4)

    shown = pq.read_table(out / "per_session.parquet").to_pylist()
    columns = ("recommender", "session_id", "session_length", "target", "target_count", "list_length", "rank")
    assert [tuple(row.values()) for row in shown[4:8]] == [
        ("mixed", "u1", 1, "pot", 2, 1, 1),
        ("mixed", "u2", 2, "lid", 1, 2, None),
        ("mixed", "u3", 2, "jar", 1, 2, 2),
        ("mixed", "u4", 1, "cup", 0, 0, None),
    ]
    assert tuple(shown[0]) == columns
    with (out / "table.csv").open(newline="") as stream:
        first = next(csv.DictReader(stream))
    assert float(first["novelty@2"]) == rows["perfect"]["metrics"]["@2"]["novelty"]

    printed = capsys.readouterr().out
    assert (out / "table.md").read_text().startswith(printed.split("\n\n")[0])
    assert "4 of 4 test sessions" in printed
    assert "mixed: 2 of 4 lists have fewer than 2 items, 1 of them none" in printed
    said = "of places hold a real item; of places, 0.0% made up, 0.0% repeated; 100.0% of lists certified."
    assert f"mixed: 100.0% {said}" in printed
    assert "Jam jar & label" in printed
    assert "  came next   cup\n  mixed: the list is empty" in printed
    assert "    hit  2. Jam jar & label" in printed
    assert all(str(out / name) in printed for name in OUTPUTS)


def test_some_of_the_test_sessions(data, tmp_path, capsys):
    part = save(tmp_path / "part.parquet", {"u4": [4], "u2": [0]}, data)
    result = evaluate(config(data, part, baselines=False, cutoffs=(1,)))
    assert result["sessions"] == {"evaluated": 2, "test": 4}
    assert [row["metrics"]["@1"]["hr"] for row in result["recommenders"]] == [0.5]
    assert "2 of 4 test sessions" in capsys.readouterr().out


def test_baselines_leave_out_seen_items_as_the_files_do(data, tmp_path):
    kept = evaluate(config(data, save(tmp_path / "a.parquet", PERFECT, data), out=tmp_path / "kept"))
    left = evaluate(
        config(data, save(tmp_path / "b.parquet", PERFECT, data, exclude_seen=True), out=tmp_path / "left_out")
    )
    assert (kept["exclude_seen"], left["exclude_seen"]) == (False, True)
    # MostPopular's first item is 0; without it, u1 gets its target 1.
    assert [found["recommenders"][1]["metrics"]["@1"]["hr"] for found in (kept, left)] == [0, 0.25]


def test_popularity_of_all_interactions(data, tmp_path):
    path = save(tmp_path / "perfect.parquet", PERFECT, data)
    result = evaluate(config(data, path, popularity="all", baselines=False, cutoffs=(1,)))
    # Over train and test the targets 1, 2, 3, 4 occur 5, 3, 3 and 1 times; prepare says there were 17 interactions.
    expected = np.mean(-np.log2(np.array([5, 3, 3, 1]) / 17))
    assert result["recommenders"][0]["metrics"]["@1"]["novelty"] == pytest.approx(expected)


def test_another_tools_file_has_no_certificates(data, tmp_path):
    rows = [(session, rank + 1, CATALOG.ids[i]) for session, items in PERFECT.items() for rank, i in enumerate(items)]
    table = pa.table(dict(zip(("session_id", "rank", "item_id"), map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "other.parquet")
    result = evaluate(config(data, tmp_path / "other.parquet"))
    assert result["recommenders"][0]["metrics"]["@1"]["hr"] == 1
    assert "certified" not in result["recommenders"][0]["lists"]


def test_what_is_no_item_or_comes_twice_costs_its_place_when_it_is_counted(data, tmp_path, capsys):
    rows = [
        *(("u1", 1, "ghost"), ("u1", 2, "pot")),  # the target, behind an id that the catalog does not have
        *(("u2", 1, "pan"), ("u2", 2, "pan"), ("u2", 3, "lid")),  # the target, behind an item once more
        *(("u3", 1, "jar"), ("u4", 1, "ghost"), ("u4", 2, "ghost")),
    ]
    table = pa.table(dict(zip(("session_id", "rank", "item_id"), map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "llm.parquet")
    with pytest.raises(DataError, match=r"row 1, column item_id: 'ghost' is not in the catalog\n.*--invalid count"):
        evaluate(config(data, tmp_path / "llm.parquet"))
    result = evaluate(config(data, tmp_path / "llm.parquet", invalid="count", cutoffs=(3,), baselines=False))
    row = result["recommenders"][0]
    assert {name: row["lists"][name] for name in ("items", "valid", "made_up", "repeated")} == {
        "items": 8, "valid": 4 / 8, "made_up": 3 / 8, "repeated": 1 / 8
    }  # fmt: skip
    assert row["metrics"]["@3"]["mrr"] == pytest.approx((1 / 2 + 1 / 3 + 1 + 0) / 4)
    assert row["metrics"]["@3"]["coverage"] == 4 / 5
    # Train has pan 3 times, pot 2, lid 1, jar 1, of 7; a lost place adds nothing and counts.
    bits = {name: -np.log2(count / 7) for name, count in (("pan", 3), ("pot", 2), ("lid", 1), ("jar", 1))}
    expected = (bits["pot"] / 2 + (bits["pan"] + bits["lid"]) / 3 + bits["jar"] + 0) / 4
    assert row["metrics"]["@3"]["novelty"] == pytest.approx(expected)
    said = "llm: 50.0% of places hold a real item; of places, 37.5% made up, 12.5% repeated."
    assert said in capsys.readouterr().out


def test_a_grounded_file_says_what_was_made_up_before_it(data, tmp_path, capsys):
    path = save(tmp_path / "r.parquet", PERFECT, data)
    lists = read(path, CATALOG).lists
    facts = {"hallucinated_share": 0.25, "duplicate_share": 0.125}
    write(path, [lists], CATALOG, manifest("ground", {}, {"data": Dataset.load(data).hash}, facts))
    evaluate(config(data, path))
    assert (
        "100.0% of places hold a real item; of titles named, 25.0% made up, 12.5% repeated;" in capsys.readouterr().out
    )


def test_intervals_pairs_and_segments(data, tmp_path):
    perfect = save(tmp_path / "perfect.parquet", PERFECT, data)
    reverse = save(tmp_path / "reverse.parquet", {name: items[::-1] for name, items in PERFECT.items()}, data)
    result = evaluate(config(data, perfect, reverse, baselines=False))
    for row in result["recommenders"]:
        for at, values in row["metrics"].items():
            assert set(row["intervals"][at]) == set(values)
            assert all(low <= values[name] <= high for name, (low, high) in row["intervals"][at].items())
    (pair,) = result["pairs"]
    assert (pair["first"], pair["second"]) == ("perfect", "reverse")
    found = pair["@1"]["ndcg"]
    # Four sessions, each better: of the 16 sign patterns two are as far from 0.
    assert (found["difference"], found["randomisation"]) == (1, 2 / 16)
    assert pair["@2"]["hr"]["randomisation"] == pair["@2"]["hr"]["t_test_holm"] == 1
    parts = {(part["by"], part["segment"]): part for part in result["segments"]}
    assert {key: part["sessions"] for key, part in parts.items()} == {
        ("session length", "1"): 2, ("session length", "2–3"): 2,
        ("target popularity", "middle"): 1, ("target popularity", "tail"): 2, ("target popularity", "cold"): 1,
    }  # fmt: skip
    cold = parts["target popularity", "cold"]["recommenders"][0]
    assert cold["metrics"]["@1"]["hr"] == 1
    with (tmp_path / "evaluation" / "segments.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["recommender"] for row in rows] == ["perfect", "reverse"] * 5
    assert float(rows[-2]["hr@1"]) == 1


def test_every_pair_is_one_of_holms_family(data, tmp_path):
    perfect = save(tmp_path / "perfect.parquet", PERFECT, data)
    result = evaluate(config(data, perfect))
    assert len(result["pairs"]) == 6
    raw = [pair["@1"]["ndcg"]["randomisation"] for pair in result["pairs"]]
    corrected = [pair["@1"]["ndcg"]["randomisation_holm"] for pair in result["pairs"]]
    assert min(corrected) == pytest.approx(min(1, 6 * min(raw)))
    assert all(after >= before for before, after in zip(raw, corrected, strict=True))


def test_categories_are_those_of_the_targets(tmp_path):
    kinds = {"kind": ["for cooking", "for cooking", "for cooking", "", "for drinking"]}
    catalog = Catalog(CATALOG.ids, CATALOG.titles, kinds)
    directory = tmp_path / "data"
    directory.mkdir()
    Dataset(catalog, Split(TRAIN, TEST), manifest("prepare", {}, {}, {"hash": "h", "interactions": 17})).save(directory)
    path = save(tmp_path / "perfect.parquet", PERFECT, directory)
    result = evaluate(config(directory, path, category="kind", baselines=False))
    found = {part["segment"]: part["sessions"] for part in result["segments"] if part["by"] == "target kind"}
    assert found == {"for cooking": 2, "for drinking": 1, "none": 1}
    with pytest.raises(DataError, match=r"no attribute 'colour' \(it has: kind\)"):
        evaluate(config(directory, path, category="colour", out=tmp_path / "other"))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"u1": [0], "x1": [1], "x2": [2]}, r"2 of 3 sessions are not in the test part of .*data: x1, x2"),
        ({"u1": [0, 1, 0], "u2": [1]}, r"1 of 2 lists repeat an item, .*session 'u1' has item 'pan' more than once"),
        ({}, "holds no sessions"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(data, tmp_path, lists, message):
    with pytest.raises(DataError, match=message):
        evaluate(config(data, save(tmp_path / "r.parquet", lists, data)))
    assert not (tmp_path / "evaluation").exists()


def test_files_of_different_sessions_are_refused(data, tmp_path):
    one = save(tmp_path / "one.parquet", {"u1": [0], "u2": [0]}, data)
    two = save(tmp_path / "two.parquet", {"u1": [0], "u3": [0], "u4": [0]}, data)
    pattern = r"\(2 sessions\) .* \(3 sessions\) .*1 only in the first: u2; 2 only in the second: u3, u4"
    with pytest.raises(DataError, match=pattern):
        evaluate(config(data, one, two))


def test_files_that_disagree_on_seen_items_are_refused(data, tmp_path):
    one = save(tmp_path / "one.parquet", PERFECT, data, exclude_seen=True)
    two = save(tmp_path / "two.parquet", PERFECT, data, exclude_seen=False)
    with pytest.raises(DataError, match=r"two\.parquet: made with exclude_seen = False"):
        evaluate(config(data, one, two))


def test_lists_for_train_sessions_are_refused(data, tmp_path):
    """With leave-one-out train and test sessions have the same ids, so ids cannot tell."""
    path = save(tmp_path / "r.parquet", PERFECT, data, part="train")
    with pytest.raises(DataError, match=r"r\.parquet: lists for train sessions"):
        evaluate(config(data, path))


def test_a_file_of_other_data_is_refused(data, tmp_path):
    path = save(tmp_path / "r.parquet", PERFECT, data)
    prepared = json.loads((data / "manifest.json").read_text())
    prepared["facts"]["hash"] = "of other inputs"
    (data / "manifest.json").write_text(json.dumps(prepared))
    with pytest.raises(DataError, match=r"r\.parquet: made from other data"):
        evaluate(config(data, path))


def test_a_file_given_twice_is_refused(data, tmp_path):
    path = save(tmp_path / "r.parquet", PERFECT, data)
    with pytest.raises(DataError, match="given more than once"):
        evaluate(config(data, path, path))


def test_the_same_again_replaces_its_own_output(data, tmp_path):
    path = save(tmp_path / "r.parquet", PERFECT, data)
    evaluate(config(data, path))
    before = (tmp_path / "evaluation" / "metrics.json").read_text()
    (tmp_path / "evaluation" / "table.md").write_text("damaged")
    evaluate(config(data, path, examples=1))
    assert (tmp_path / "evaluation" / "metrics.json").read_text() == before
    assert "damaged" not in (tmp_path / "evaluation" / "table.md").read_text()


def test_other_settings_need_overwrite(data, tmp_path):
    path = save(tmp_path / "r.parquet", PERFECT, data)
    evaluate(config(data, path))
    with pytest.raises(ArtifactError, match=r"config\.cutoffs: was \[1, 2\], is \[2\]"):
        evaluate(config(data, path, cutoffs=(2,)))
    result = evaluate(config(data, path, cutoffs=(2,), overwrite=True))
    assert list(result["recommenders"][0]["metrics"]) == ["@2"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_it_did_not_make_is_never_touched(data, tmp_path, overwrite):
    path = save(tmp_path / "r.parquet", PERFECT, data)
    for out in (data, tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ArtifactError, match="is not a directory that evaluate made"):
            evaluate(config(data, path, out=out, overwrite=overwrite))
        assert sorted(tmp_path.rglob("*")) == before
    evaluate(config(data, path))
    (tmp_path / "evaluation" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"it holds notes\.txt"):
        evaluate(config(data, path, overwrite=overwrite))
    with pytest.raises(ArtifactError, match="is a file"):
        evaluate(config(data, path, out=path, overwrite=overwrite))


def test_rows_are_named_after_files_and_never_alike(tmp_path):
    paths = [tmp_path / name for name in ("a/recs.parquet", "b/recs.parquet", "b/MostPopular.parquet", "b/other.pq")]
    assert row_names(paths, ["MostPopular"]) == ["a/recs", "b/recs", "b/MostPopular", "other"]
    deep = [tmp_path / name for name in ("x/run/recs.parquet", "y/run/recs.parquet")]
    assert row_names(deep) == ["x/run/recs", "y/run/recs"]
    suffixes = [tmp_path / name for name in ("recs.parquet", "recs.pq")]
    assert row_names(suffixes) == ["recs.parquet", "recs.pq"]


@pytest.mark.parametrize("settings", [{"cutoffs": (0,)}, {"cutoffs": ()}, {"examples": -1}, {"recommendations": ()}])
def test_impossible_settings(data, settings):
    with pytest.raises(ValueError, match="validation error"):
        config(data, *settings.pop("recommendations", [Path("r.parquet")]), **settings)


def test_from_the_command_line(data, tmp_path, capsys):
    path = save(tmp_path / "r.parquet", PERFECT, data)
    arguments = ["--data", str(data), "--recommendations", str(path), "--out", str(tmp_path / "evaluation")]
    assert run("evaluate", [*arguments, "--cutoffs", "2", "1", "--no-baselines"]) == 0
    assert "| r " in capsys.readouterr().out
    assert run("evaluate", ["--data", str(tmp_path), *arguments[2:]]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_script_shows_its_settings_without_loading_arrays():
    script = Path(__file__).parents[2] / "eval" / "evaluate.py"
    program = (
        "import runpy, sys\n"
        "sys.argv = ['evaluate.py', '--help']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'numpy', 'pyarrow', 'torch'} & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "--cutoffs" in found.stdout
