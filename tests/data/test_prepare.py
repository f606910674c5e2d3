"""`prepare`: from files to a prepared directory."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from seqrec_prompt.config import load, parse
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.prepare import PrepareConfig, prepare, sentence_case
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"

LOG = """\
user,item,when,name
u2,b,20,BLUE PEN
u1,a,10,Red pen
u2,a,10,Red pen
u1,c,5,
u1,b,30,Blue pen
u3,a,1,RED PEN
u2,b,40,Blue pen
u3,d,2,
u4,c,50,
u4,b,60,BLUE PEN
u5,a,70,Red pen
u5,b,80,BLUE PEN
"""
COLUMNS = {"session_column": "user", "item_column": "item", "time_column": "when"}


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    return {"interactions": str(tmp_path / "log.csv"), "out": tmp_path / "out", **COLUMNS}


def run(settings, **changes):
    return prepare(PrepareConfig(**settings | changes))


def sessions_of(dataset):
    """All sessions as item ids, the held-out ones joined with their targets."""
    split, ids = dataset.split, dataset.catalog.ids
    whole = {name: [ids[i] for i in s] for name, s in zip(split.train.ids, split.train, strict=True)}
    for name, s, target in zip(split.test.prompts.ids, split.test.prompts, split.test.targets, strict=True):
        whole[name] = [*(ids[i] for i in s), ids[target]]
    return whole


def test_rows_of_a_session_need_not_be_contiguous(settings):
    dataset = run(settings, title_column="name")
    assert sessions_of(dataset) == {
        "u2": ["a", "b", "b"],
        "u1": ["c", "a", "b"],
        "u3": ["a", "d"],
        "u4": ["c", "b"],
        "u5": ["a", "b"],
    }
    assert dataset.split.train.ids.tolist() == ["u2", "u1", "u3", "u4"]
    assert dataset.split.train.times.tolist() == [10, 20, 40, 5, 10, 30, 1, 2, 50, 60]


def test_titles_from_the_interactions_are_the_most_frequent(settings):
    dataset = run(settings, title_column="name")
    # b: three BLUE PEN against two Blue pen; c and d never have a title.
    assert dict(zip(dataset.catalog.ids, dataset.catalog.titles, strict=True)) == {
        "b": "BLUE PEN",
        "a": "Red pen",
        "c": "",
        "d": "",
    }
    assert dataset.manifest["facts"]["empty_titles"] == 2
    assert dataset.catalog.texts() == ["BLUE PEN", "Red pen", "c", "d"]


def test_without_any_titles_the_ids_are_used_and_it_is_said(settings, capsys):
    dataset = run(settings)
    assert dataset.catalog.titles == dataset.catalog.ids
    assert "Titles are the item ids" in capsys.readouterr().out
    with pytest.raises(DataError, match="no column 'titel'"):
        run(settings, title_column="titel", overwrite=True)


def test_an_items_file_gives_the_order_and_keeps_unused_items(settings, tmp_path):
    (tmp_path / "items.tsv").write_text(
        "item\ttitle\tbrand\nz\tZebra\tZoo\nd\tDuck\t\nc\tCat\tC\nb\tBee\tB\na\tAnt\tA\n"
    )
    items = {"items": str(tmp_path / "items.tsv"), "attribute_columns": ("brand",)}
    dataset = run(settings, **items)
    assert dataset.catalog.ids == ["z", "d", "c", "b", "a"]
    assert dataset.catalog.attributes == {"brand": ["Zoo", "", "C", "B", "A"]}
    assert sessions_of(dataset)["u1"] == ["c", "a", "b"]
    dataset = run(settings, **items, k_core=2, overwrite=True)
    assert dataset.catalog.ids == ["c", "b", "a"]
    assert sessions_of(dataset) == {"u2": ["a", "b", "b"], "u1": ["c", "a", "b"], "u4": ["c", "b"], "u5": ["a", "b"]}


def test_repeats_can_be_dropped(settings):
    assert sessions_of(run(settings, repeats="first"))["u2"] == ["a", "b"]


def test_without_times_the_file_order_holds(settings):
    settings.pop("time_column")
    dataset = run(settings, split="leave_one_out")
    split = dataset.split
    assert split.train.times is None
    assert [dataset.catalog.ids[i] for i in split.test.targets] == ["b", "b"]
    assert [[dataset.catalog.ids[i] for i in s] for s in split.test.prompts] == [["b", "a"], ["a", "c"]]


def test_times_in_other_units_give_the_same_dataset(settings, tmp_path):
    base = 1_318_896_000
    made = []
    for form, write in {
        "s": lambda t: str(base + t),
        "ms": lambda t: str((base + t) * 1000),
        "iso": lambda t: f"2011-10-18T00:{t // 60:02}:{t % 60:02}Z",
    }.items():
        rows = [line.split(",") for line in LOG.splitlines()]
        text = "\n".join(",".join([*r[:2], write(int(r[2])), r[3]]) for r in rows[1:])
        (tmp_path / f"{form}.csv").write_text(f"user,item,when,name\n{text}\n")
        made.append(run(settings, interactions=str(tmp_path / f"{form}.csv"), out=tmp_path / form))
    for dataset in made:
        assert dataset.split.train.times.tolist() == made[0].split.train.times.tolist()
        assert sessions_of(dataset) == sessions_of(made[0])
    assert made[0].split.train.times[0] == base + 10


def test_a_saved_dataset_loads_as_it_was(settings):
    made = run(settings, title_column="name")
    loaded = Dataset.load(settings["out"])
    assert loaded.hash == made.hash
    assert sessions_of(loaded) == sessions_of(made)
    assert loaded.split.test.target_times.tolist() == made.split.test.target_times.tolist() == [80]
    assert loaded.catalog.titles == made.catalog.titles


def test_the_same_again_is_already_prepared(settings, capsys):
    first = run(settings)
    before = {p.name: p.stat().st_mtime_ns for p in settings["out"].iterdir()}
    capsys.readouterr()
    assert run(settings).hash == first.hash
    assert "already prepared" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in settings["out"].iterdir()} == before


def test_other_settings_or_other_content_refuse_unless_overwritten(settings):
    first = run(settings)
    with pytest.raises(ArtifactError, match=r"config.k_core: was 0, is 1"):
        run(settings, k_core=1)
    Path(settings["interactions"]).write_text(LOG + "u5,b,90,x\n")
    with pytest.raises(ArtifactError, match=r"inputs.interactions: was"):
        run(settings)
    assert Dataset.load(settings["out"]).hash == first.hash
    assert run(settings, overwrite=True).hash != first.hash


def test_the_hash_is_of_content_and_settings_not_of_places(settings, tmp_path):
    first = run(settings)
    (tmp_path / "elsewhere.csv").write_text(LOG)
    moved = run(settings, interactions=str(tmp_path / "elsewhere.csv"), out=tmp_path / "out2")
    assert moved.hash == first.hash
    assert run(settings, seed=1, out=tmp_path / "out3").hash != first.hash


def test_nothing_is_left_behind_when_writing_fails(settings, tmp_path, monkeypatch):
    def fail(self, directory):
        (directory / "half").write_text("written")
        raise OSError("disk full")

    monkeypatch.setattr(Dataset, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        run(settings)
    assert os.listdir(tmp_path) == ["log.csv"]  # noqa: PTH208


def test_out_may_not_hold_the_inputs(settings, tmp_path):
    with pytest.raises(ArtifactError, match="would be replaced"):
        run(settings, out=tmp_path, overwrite=True)
    with pytest.raises(ArtifactError, match="is a file"):
        run(settings, out=tmp_path / "log.csv", overwrite=True)
    assert (tmp_path / "log.csv").read_text() == LOG


def test_ties_are_shuffled_by_seed_or_kept(settings, tmp_path):
    rows = "".join(f"s{n},i{k},{n}\n" for n in range(30) for k in range(6))
    (tmp_path / "tied.csv").write_text(f"user,item,when\n{rows}")
    tied = {**settings, "interactions": str(tmp_path / "tied.csv")}
    kept = run(tied, ties="file", out=tmp_path / "a")
    in_order = [f"i{k}" for k in range(6)]
    assert all(s == in_order for s in sessions_of(kept).values())
    first, again, other = (run(tied, seed=s, out=tmp_path / f"b{n}") for n, s in enumerate((0, 0, 1)))
    assert sessions_of(first) == sessions_of(again) != sessions_of(other)
    assert all(sorted(s) == in_order for s in sessions_of(first).values())
    assert first.manifest["facts"]["tied_test_share"] == 1.0


def test_the_split_column_is_found_and_named_in_the_summary(settings, tmp_path, capsys):
    rows = "".join(f"u{n},{'TEST' if n == 5 else 'dropped' if n == 4 else 'Train'}\n" for n in range(1, 6))
    (tmp_path / "users.csv").write_text(f"user,my_split\n{rows}")
    dataset = run(settings, sessions=str(tmp_path / "users.csv"), split="column")
    assert dataset.split.train.ids.tolist() == ["u2", "u1", "u3"]
    assert dataset.split.test.prompts.ids.tolist() == ["u5"]
    printed = capsys.readouterr().out
    assert "Split column: 'my_split' of users.csv." in printed
    assert "left out of the split: 1 dropped" in printed


@pytest.mark.parametrize(
    ("settings_given", "message"),
    [
        ({"interactions": "x.csv", "out": "o"}, "needs --time-column"),
        (
            {"interactions": "x.csv", "out": "o", "split": "leave_one_out", "split_column": "s"},
            "only by split 'column'",
        ),
        ({"interactions": "x.csv", "out": "o", "time_column": "t", "test_fraction": 1.0}, "test_fraction"),
    ],
)
def test_settings_that_do_not_fit_together(settings_given, message):
    with pytest.raises(ConfigError, match=message):
        load(PrepareConfig, overrides=settings_given, verb="prepare")


def test_help_names_every_field_and_imports_nothing_heavy(capsys):
    with pytest.raises(SystemExit):
        parse(PrepareConfig, ["--help"], verb="prepare")
    printed = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in printed for name in PrepareConfig.model_fields)
    assert all(field.description for field in PrepareConfig.model_fields.values())
    code = (
        "import sys, seqrec_prompt.data.prepare; print([m for m in ('numpy','pyarrow','datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("WHITE HANGING HEART T-LIGHT HOLDER", "White hanging heart t-light holder"),
        ("6 RIBBONS", "6 ribbons"),
        ("Mixed Case", "Mixed Case"),
        ("", ""),
        ("ÉTÉ", "Été"),
    ],
)
def test_sentence_case(title, expected):
    assert sentence_case(title) == expected


beauty = SHARED / "beauty_2014_5core"
scientific = SHARED / "amazon_scientific_2018"


@pytest.mark.skipif(not beauty.exists(), reason="the Beauty data is not beside this checkout")
def test_beauty_has_the_sessions_of_the_paper(tmp_path):
    files = {"interactions": str(beauty / "interactions.csv.gz"), "items": str(beauty / "items.csv.gz")}
    common = {**files, "session_column": "user_id", "time_column": "timestamp"}
    by_column = prepare(
        PrepareConfig(
            **common,
            sessions=str(beauty / "users.csv.gz"),
            split="column",
            split_column="recsys23_split",
            out=tmp_path / "column",
        )
    )
    facts = by_column.manifest["facts"]
    assert (facts["sessions"], facts["items"], facts["interactions"]) == (22_363, 12_101, 198_502)
    assert (len(by_column.split.train), len(by_column.split.test)) == (17_890, 4_469)
    assert facts["left_out"] == {"test_dropped": 4}
    assert facts["empty_titles"] == 7
    assert facts["tied_test_share"] == pytest.approx(0.351, abs=5e-4)
    lengths = by_column.split.train.lengths
    assert lengths.mean() == pytest.approx(8.057183, abs=1e-6)
    assert lengths.max() == 99
    by_time = prepare(PrepareConfig(**common, k_core=5, out=tmp_path / "temporal"))
    assert (len(by_time.split.train), len(by_time.split.test)) == (17_890, 4_469)
    assert len(by_time.catalog) == 12_101


@pytest.mark.skipif(not scientific.exists(), reason="the Scientific data is not beside this checkout")
def test_data_without_times_is_split_leave_one_out(tmp_path):
    dataset = prepare(
        PrepareConfig(
            interactions=str(scientific / "interactions.csv.gz"),
            items=str(scientific / "items.csv.gz"),
            session_column="user_id",
            split="leave_one_out",
            attribute_columns=("brand", "categories"),
            out=tmp_path / "out",
        )
    )
    split = dataset.split
    assert (len(split.test), len(split.validation), len(dataset.catalog)) == (8_317, 8_317, 4_344)
    assert len(split.train.items) == 58_492 - 2 * 8_317
    last = {}
    with gzip.open(scientific / "interactions.csv.gz", "rt") as stream:
        for line in list(stream)[1:]:
            user, item, _ = line.split(",")
            last[user] = item
    assert {n: dataset.catalog.ids[t] for n, t in zip(split.test.prompts.ids, split.test.targets, strict=True)} == last
    assert dataset.popularity.sum() == len(split.train.items)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["facts"]["items_sharing_a_title"] == sum(
        c for c in Counter(dataset.catalog.texts()).values() if c > 1
    )
