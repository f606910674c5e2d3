"""`reproduce`: a whole table from raw files with a tiny model, checked against them; what is missing says so."""

import csv
import gzip
import json
import math
import shutil
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import permutation_test

from seqrec_prompt import quickstart
from seqrec_prompt.artifacts import manifest
from seqrec_prompt.cli import main
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.errors import ConfigError, StageError
from seqrec_prompt.evaluation import tables
from seqrec_prompt.recommenders.files import read_file_manifest
from seqrec_prompt.reproduction.plans import load_paper, load_plan
from seqrec_prompt.reproduction.reproduce import ReproduceConfig, reproduce

SESSIONS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model):
    """Every row of `online-retail` on the bundled sample, with random embeddings and the least of training."""
    out = tmp_path_factory.mktemp("reproduce") / "table"
    fewer = {"statistics": {"resamples": 100, "sign_flips": 100}}
    few = {"blocks": 1}  # of the tiny model's two
    plan = {"base": "online-retail", "settings": few, "evaluate": load_plan("online-retail").evaluate | fewer}
    file = out.with_name("plan.yaml")
    file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    settings = {
        "plan": str(file),
        "data": quickstart.SAMPLE,
        "out": out,
        "seeds": (0,),
        "epochs": 1,
        "max_steps": 1,
        "max_sessions": SESSIONS,
        "model": str(tiny_model),
    }
    reproduce(ReproduceConfig(**settings, only=("MostPopular",)))
    catalog = Dataset.load(out / "seed-0" / "data").catalog
    given = []
    for number, name in enumerate(load_plan("online-retail").embed):
        vectors = np.random.default_rng(number).normal(size=(len(catalog), 330)).astype(np.float32)
        EmbeddingTable(vectors, manifest("embed", {}, {"data": catalog.hash, "model": "random"})).save(
            out.parent / name
        )
        given.append(f"{name}={out.parent / name}")
    config = ReproduceConfig(**settings, embeddings=tuple(given))
    return config, reproduce(config)


def test_every_row_is_measured_from_raw_files(whole):
    config, result = whole
    assert list(result["rows"]) == list(load_plan("online-retail").rows)
    for name, row in result["rows"].items():
        assert row["seeds"] == [0], name
        assert 0 <= row["metrics"]["@10"]["hr"][0] <= row["metrics"]["@20"]["hr"][0] <= 1, name
    page = (config.out / "results.md").read_text(encoding="utf-8")
    assert "not run" not in page.lower()
    assert result["embeddings"] == {"MiniLM": "random", "SmolLM2": "random"}
    assert (config.out / "seed-0" / "report" / "report.html").exists()
    assert json.loads((config.out / "results.json").read_text(encoding="utf-8")) == result


def test_most_popular_is_what_the_raw_files_say(whole):
    """Counted in plain Python: the latest fifth of the baskets tests, the last item is the target."""
    config, result = whole
    baskets, ends = defaultdict(list), {}
    with gzip.open(quickstart.SAMPLE / "interactions.csv.gz", "rt", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            baskets[row["session_id"]].append(row["item_id"])
            ends[row["session_id"]] = int(row["timestamp"])
    with gzip.open(quickstart.SAMPLE / "items.csv.gz", "rt", encoding="utf-8") as stream:
        place = {row["item_id"]: i for i, row in enumerate(csv.DictReader(stream))}
    order = sorted(baskets, key=lambda basket: ends[basket])
    train, test = order[: -math.ceil(len(order) / 5)], order[-math.ceil(len(order) / 5) :]
    counts = Counter(item for basket in train for item in baskets[basket])
    best = sorted(counts, key=lambda item: (-counts[item], place[item]))
    asked = set(pq.read_table(config.out / "seed-0" / "MostPopular.parquet")["session_id"].to_pylist())
    assert len(asked) == SESSIONS
    assert asked <= set(test)
    gains = []
    for basket in asked:
        *prompt, target = [item for item in baskets[basket] if item in counts]
        shown = [item for item in best if item not in prompt][:20]
        gains.append(1 / math.log2(shown.index(target) + 2) if target in shown else 0)
    found = result["rows"]["MostPopular"]["metrics"]["@20"]
    assert found["ndcg"][0] == pytest.approx(sum(gains) / SESSIONS, abs=1e-12)
    assert found["hr"][0] == pytest.approx(sum(gain > 0 for gain in gains) / SESSIONS, abs=1e-12)
    assert sum(gains) > 0


def test_an_llms_training_outlives_its_adapter(whole):
    """Its losses, as the trainer logged them, and the adapter's hash, in words on the page."""
    config, result = whole
    [training] = result["rows"]["LLMSeqPrompt"]["training"]
    adapter = config.out / "seed-0" / "LLMSeqPrompt"
    log = json.loads((adapter / "log.json").read_text(encoding="utf-8"))
    assert training["losses"] == [[entry["step"], entry["loss"]] for entry in log if "loss" in entry] != []
    lists = read_file_manifest(config.out / "seed-0" / "LLMSeqPrompt.parquet")
    page = (config.out / "results.md").read_text(encoding="utf-8")
    [line] = [line for line in page.splitlines() if line.startswith("LLMSeqPrompt, seed 0, `finetune`: 1 steps in ")]
    assert line.endswith(f"; adapter {lists['inputs']['adapter'][:12]}.")
    assert [name for name, row in result["rows"].items() if "training" in row] == ["LLMSeqPrompt"]


def test_what_is_done_is_not_done_again(whole, capsys):
    config, result = whole
    assert reproduce(config) == result
    said = capsys.readouterr().out
    calls = [line for line in said.splitlines() if line.startswith("$ ")]
    kept = [line for line in said.splitlines() if "already" in line]
    assert len(calls) - len(kept) == 2, "only the tables are made again"


def test_a_row_made_with_other_settings_is_not_in_the_table(whole, tmp_path, capsys):
    config, _ = whole
    shutil.copytree(config.out, tmp_path / "table")
    other = config.model_copy(update={"out": tmp_path / "table", "only": ("V-SKNN",), "epochs": 2})
    rows = reproduce(other)["rows"]
    models = ["GRU4Rec", "SASRec", "BERT4Rec"]
    llm = [f"LLM2{name}{start}" for name in models for start in ("", "-SmolLM2", "-both")]
    trained = [*models, *llm, "LLM2SASRec-permuted"]
    without = [*trained, "LLMSeqSim&Sequential", "LLM2BERT4Rec+LLMSeqSim", "LLM2SASRec+LLMSeqSim"]
    assert [name for name, row in rows.items() if not row["seeds"]] == [n for n in rows if n in without]
    assert f"Not run: {', '.join(n for n in rows if n in without)}." in capsys.readouterr().out
    page = (tmp_path / "table" / "results.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| SASRec ")]
    assert [line.split("|")[3].strip() for line in lines] == ["not run"] * 2


def test_rows_may_be_made_on_several_days_and_for_fewer_seeds(table):
    first = reproduce(ReproduceConfig(**table, only=("V-SKNN",)))["rows"]
    assert {name: row["seeds"] for name, row in first.items()} == {"GRU4Rec": [], "MostPopular": [], "V-SKNN": [0, 1]}
    reproduce(ReproduceConfig(**table, only=("GRU4Rec",), seeds=(1,)))
    last = reproduce(ReproduceConfig(**table, skip=("GRU4Rec",)))["rows"]
    assert {name: row["seeds"] for name, row in last.items()} == {
        "GRU4Rec": [1],
        "MostPopular": [0, 1],
        "V-SKNN": [0, 1],
    }
    kept = ("metrics", "lists", "made_from", "commands")
    assert [last["V-SKNN"][key] for key in kept] == [first["V-SKNN"][key] for key in kept]


def test_what_was_made_elsewhere_may_be_copied_into_its_place(table, tmp_path, capsys):
    """As a model that was trained on another machine: known by its manifest, wherever its data lay."""
    elsewhere = tmp_path / "elsewhere"
    reproduce(ReproduceConfig(**table | {"out": elsewhere}, only=("GRU4Rec",)))
    for name in ("GRU4Rec", "GRU4Rec.parquet"):
        (table["out"] / "seed-0").mkdir(parents=True, exist_ok=True)
        (elsewhere / "seed-0" / name).rename(table["out"] / "seed-0" / name)
    capsys.readouterr()
    reproduce(ReproduceConfig(**table, only=("GRU4Rec",), seeds=(0,)))
    said = capsys.readouterr().out
    assert f"already fitted: {table['out'] / 'seed-0' / 'GRU4Rec'}" in said
    assert f"already recommended: {table['out'] / 'seed-0' / 'GRU4Rec.parquet'}" in said


def test_a_paper_s_figures_stand_in_its_own_columns(table):
    config = ReproduceConfig(**table, only=("V-SKNN",))
    ours = reproduce(config)["rows"]["V-SKNN"]["metrics"]["@20"]["ndcg"]
    theirs = load_paper("harte2023")["tables"]["beauty"]["@20"]
    page = (config.out / "results.md").read_text(encoding="utf-8")
    alone, beside = page.split("## Beside Harte et al.")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in beside.splitlines() if line[:1] == "|"]
    head, *body = rows[[row[0] for row in rows].index("top 20") :]
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in body}
    mean = sum(ours) / 2
    assert shown["V-SKNN"]["NDCG, ours"] == f"{mean:.4f}"
    assert shown["V-SKNN"]["NDCG, harte2023"] == f"{theirs['V-SKNN']['ndcg']:.3f}"
    assert float(shown["V-SKNN"]["Δ"]) != 0  # of the hit rate: the last column of that name
    assert shown["SASRec"]["NDCG, ours"] == "not run"
    assert shown["best of all rows"]["NDCG, harte2023"] == "0.051"
    assert not any(f"{row['ndcg']:.3f} " in alone for row in theirs.values() if row["ndcg"] > 0.04)


def test_a_stage_that_fails_says_which_and_how_to_go_on(table):
    with pytest.raises(StageError) as error:
        reproduce(ReproduceConfig(**table | {"data": table["data"] / "nowhere"}, skip=("MostPopular",)))
    assert "'prepare' of all rows, seed 0 stopped: " in str(error.value)
    reproduce(ReproduceConfig(**table, only=("MostPopular",)))
    (table["out"] / "seed-1" / "GRU4Rec").mkdir()
    (table["out"] / "seed-1" / "GRU4Rec" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StageError) as error:
        reproduce(ReproduceConfig(**table))
    said = str(error.value)
    assert said.startswith("'fit' of row GRU4Rec, seed 1 stopped: ")
    assert "Its command: seqrec-prompt fit --data " in said
    assert said.endswith(
        "Run the same command again to go on: what is done is kept. Or leave the row out: --skip GRU4Rec"
    )
    rows = reproduce(ReproduceConfig(**table, skip=("GRU4Rec",)))["rows"]
    assert [row["seeds"] for row in rows.values()] == [[0], [0, 1], [0, 1]]
    assert (table["out"] / "seed-1" / "GRU4Rec" / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("asked", [{"only": ("V-SKN",)}, {"skip": ("V-SKN",)}])
def test_a_row_that_the_plan_does_not_have_is_refused_with_the_nearest(table, asked):
    with pytest.raises(ConfigError, match=r"there is no row 'V-SKN': did you mean 'V-SKNN'\?"):
        reproduce(ReproduceConfig(**table, **asked))
    assert not table["out"].exists()


def test_nothing_asked_for_is_a_table_without_figures(table):
    result = reproduce(ReproduceConfig(**table, skip=("MostPopular", "V-SKNN", "GRU4Rec")))
    assert all(row["seeds"] == [] for row in result["rows"].values())
    assert "Not run: GRU4Rec, MostPopular, V-SKNN." in (table["out"] / "results.md").read_text(encoding="utf-8")


def test_a_dry_run_prints_the_calls_and_makes_nothing(table, capsys):
    words = ["reproduce", table["plan"], "--data", str(table["data"]), "--out", str(table["out"]), "--only", "V-SKNN"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not table["out"].exists()
    calls = [line.split()[3] for line in shown.splitlines() if line.startswith("# $ seqrec-prompt")]
    assert calls == ["prepare", "fit", "recommend"] * 2 + ["evaluate", "report"] * 2
    assert shown.count("(made before)") == 12
    assert main([*words, "--quiet"]) == 0
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("made with these settings; kept") == 6


@pytest.mark.parametrize("bad", ["MiniLM", "=x", "MiniLM="])
def test_embeddings_are_given_by_name(table, bad):
    with pytest.raises(ValueError, match="is not NAME=DIR"):
        ReproduceConfig(**table, embeddings=(bad,))


@pytest.mark.parametrize("enough", [True, False])
def test_marks_say_what_is_higher_in_every_seed(table, monkeypatch, enough):
    """Against the evaluations of the seeds: a pair is marked where all of them have it below their level."""
    if not enough:
        monkeypatch.setattr(tables, "LETTERS", {"a": "ᵃ", "b": "ᵇ"})
    config = ReproduceConfig(**table)
    result = reproduce(config)
    rows = list(result["rows"])
    seeds = [json.loads((config.out / f"seed-{s}" / "evaluation" / "metrics.json").read_text()) for s in (0, 1)]
    marked = 0
    for at in ("@10", "@20"):
        for metric in ("ndcg", "hr", "mrr", "serendipity", "novelty"):
            for one in rows:
                expected = set()
                for other in rows:
                    found = [
                        p[at][metric] | {"sign": 1 if p["first"] == one else -1}
                        for seed in seeds
                        for p in seed["pairs"]
                        if {p["first"], p["second"]} == {one, other} and one != other
                    ]
                    if found and all(p["randomisation_holm"] < 0.05 and p["sign"] * p["difference"] > 0 for p in found):
                        expected.add(other)
                assert set(result["rows"][one]["higher_than"][at][metric]) == expected
                marked += len(expected)
    assert marked > 0
    page = (config.out / "results.md").read_text(encoding="utf-8").partition("## ")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("| ")]
    if not enough:
        assert "More rows than there are letters for superscripts: 'higher_than' in the JSON file" in page
        assert not {row[2] for row in cells} & set("ab")
        return
    assert [row[1:3] for row in cells if row[2] in "abc" and row[2]] == [
        [row, letter] for row, letter in zip(rows, "abc", strict=True)
    ] * 2


def test_a_pair_is_compared_over_all_seeds_at_once(table):
    """Against the lists themselves, and scipy's test of each session's mean difference."""
    config = ReproduceConfig(**table, skip=("GRU4Rec",))
    (pair,) = reproduce(config)["pairs"]
    assert (pair["row"], pair["than"], pair["seeds"]) == ("V-SKNN", "MostPopular", [0, 1])
    gains = {}  # (row, session, seed) → NDCG@10
    for seed in (0, 1):
        run = config.out / f"seed-{seed}"
        data = Dataset.load(run / "data")
        target = {session: data.catalog.ids[item] for session, item in zip(*_sessions_and_targets(data), strict=True)}
        for row in ("V-SKNN", "MostPopular"):
            gains |= {(row, session, seed): 0.0 for session in target}
            for one in pq.read_table(run / f"{row}.parquet").to_pylist():
                if one["item_id"] == target[one["session_id"]] and one["rank"] <= 10:
                    gains[row, one["session_id"], seed] = 1 / math.log2(one["rank"] + 1)
    apart = [sum(gains["V-SKNN", s, seed] - gains["MostPopular", s, seed] for seed in (0, 1)) / 2 for s in target]
    found = pair["@10"]["ndcg"]
    assert found["difference"] == pytest.approx(sum(apart) / len(apart), abs=1e-12)
    assert found["than"] == pytest.approx(
        sum(gains["MostPopular", s, seed] for s in target for seed in (0, 1)) / 2 / len(apart), abs=1e-12
    )
    low, high = found["interval"]
    assert low < found["difference"] < high
    oracle = permutation_test((np.array(apart),), np.mean, permutation_type="samples", n_resamples=9999, random_state=0)
    assert found["p"] == found["p_holm"] == pytest.approx(oracle.pvalue, abs=0.01)
    page = (config.out / "results.md").read_text(encoding="utf-8")
    assert f"{found['difference']:+.4f} ({found['difference'] / found['than']:+.1%})" in page.partition("## Pairs")[2]


def _sessions_and_targets(data):
    return data.split.test.prompts.ids, data.split.test.targets


def test_a_pair_names_rows(table, tmp_path):
    plan = yaml.safe_load((tmp_path / "plan.yaml").read_text(encoding="utf-8")) | {"pairs": {"V-SKNN": "MostPopula"}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pairs: there is no row 'MostPopula': did you mean 'MostPopular'\?"):
        reproduce(ReproduceConfig(**table))
