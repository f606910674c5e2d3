"""Plans: the shipped ones are whole, others are refused with the nearest name, stages come before what needs them."""

from pathlib import Path

import pytest
import yaml

from seqrec_prompt.config import parse
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.evaluation.metrics import METRICS
from seqrec_prompt.recommenders.fit import FitConfig
from seqrec_prompt.reproduction.plans import PAPERS, PLANS, expand, load_paper, load_plan
from seqrec_prompt.reproduction.reproduce import ReproduceConfig

SHIPPED = sorted(file.stem for file in PLANS.glob("*.yaml"))
PLAN = {
    "title": "A table",
    "about": "Data.",
    "seeds": [0, 1],
    "settings": {"epochs": 2},
    "defaults": {
        "fit": {"data": "{run}/data", "out": "{run}/{row}"},
        "recommend": {"data": "{run}/data", "recommender": "{run}/{row}", "out": "{run}/{row}.parquet"},
    },
    "prepare": {
        "interactions": "{raw}/events.csv",
        "split": "leave_one_out",
        "seed": "{seed}",
        "out": "{run}/data",
    },
    "embed": {"vectors": {"data": "{run}/data", "out": "{out}/{row}"}},
    "rows": {
        "Both": [
            {"fit": {"recommender": "blend", "blend": {"parts": ["{run}/Near", "{run}/Popular"]}}},
            {"recommend": {}},
        ],
        "Popular": [{"fit": {"recommender": "most-popular"}}, {"recommend": None}],
        "Near": [{"fit": {"recommender": "llm-seq-sim", "embeddings": "{vectors}"}}, {"recommend": {}}],
    },
    "evaluate": {"data": "{run}/data", "recommendations": "{lists}", "out": "{run}/evaluation"},
    "report": {"evaluation": "{run}/evaluation", "out": "{run}/report"},
}


def plan_of(tmp_path, **changed):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(PLAN | changed, sort_keys=False), encoding="utf-8")
    return load_plan(str(file))


def expanded(plan, *, seeds=(0, 1), chosen=None, given=None):
    return expand(plan, Path("raw"), Path("out"), seeds, chosen or {}, given or {})


def made(stages):
    return [str(stage.out) for stage in stages]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_plan_fits_the_verbs(name):
    found = expanded(load_plan(name), seeds=(0, 1, 2))
    for row in found.plan.rows:
        stages = found.needed([row])
        assert stages[0].step.verb == "prepare"
        assert stages[-1].out == found.lists(row, 2)
    lists = {0: [found.lists(row, 0) for row in found.plan.rows]}
    assert [stage.step.verb for stage in found.tables(lists)] == ["evaluate", "report"]


def test_the_three_plans_have_the_rows_of_the_paper():
    paper = set(load_plan("recsys23-beauty").rows)
    assert all(paper <= set(load_plan(name).rows) for name in SHIPPED)
    for name, table in load_plan("recsys23-beauty").papers.items():
        for rows in load_paper(name)["tables"][table].values():
            assert set(rows) <= paper


@pytest.mark.parametrize("name", sorted(file.stem for file in PAPERS.glob("*.yaml")))
def test_published_figures_are_of_metrics_that_we_have(name):
    for table in load_paper(name)["tables"].values():
        for row in (row for rows in table.values() for row in rows.values()):
            assert {"ndcg", "hr"} <= set(row) <= set(METRICS)
            assert row["ndcg"] < row["hr"]


def test_what_a_row_needs_comes_before_it_and_once(tmp_path):
    stages = expanded(plan_of(tmp_path)).needed(["Both", "Near"])
    assert made(stages) == [
        "out/seed-0/data",
        "out/vectors",
        "out/seed-0/Near",
        "out/seed-0/Popular",
        "out/seed-0/Both",
        "out/seed-0/Both.parquet",
        "out/seed-1/data",
        "out/seed-1/Near",
        "out/seed-1/Popular",
        "out/seed-1/Both",
        "out/seed-1/Both.parquet",
        "out/seed-0/Near.parquet",
        "out/seed-1/Near.parquet",
    ]


def test_embeddings_that_are_there_are_taken_and_not_made(tmp_path):
    stages = expanded(plan_of(tmp_path), given={"vectors": Path("elsewhere")}).needed(["Near"], [1])
    assert [stage.step.verb for stage in stages] == ["prepare", "fit", "recommend"]
    assert stages[1].step.config.embeddings == (Path("elsewhere"),)


def test_names_keep_the_type_of_their_value(tmp_path):
    sequential = {"recommender": "gru4rec", "sequential": {"epochs": "{epochs}", "seed": "{seed}"}}
    plan = plan_of(tmp_path, rows={"GRU4Rec": [{"fit": sequential}, {"recommend": {}}]})
    assert [stage.step.config.sequential.epochs for stage in expanded(plan).needed(["GRU4Rec"])[1::3]] == [2, 2]
    chosen = expanded(plan, chosen={"epochs": 7}).needed(["GRU4Rec"], [1])[1].step
    assert (chosen.config.sequential.epochs, chosen.config.sequential.seed) == (7, 1)
    assert chosen.command == (
        "seqrec-prompt fit --data out/seed-1/data --out out/seed-1/GRU4Rec --recommender gru4rec "
        "--sequential.epochs 7 --sequential.seed 1"
    )


def test_none_is_written_where_the_default_is_another(tmp_path):
    sequential = {"recommender": "gru4rec", "sequential": {"patience": None, "clip_norm": None}}
    plan = plan_of(tmp_path, rows={"GRU4Rec": [{"fit": sequential}, {"recommend": {}}]})
    step = expanded(plan).needed(["GRU4Rec"])[1].step
    assert step.command.endswith(" --recommender gru4rec --sequential.patience none")
    words = step.command.split()[2:]
    assert parse(FitConfig, words, verb="fit") == step.config


def test_epochs_are_those_of_all_sequential_models(tmp_path):
    settings = {"data": tmp_path, "out": tmp_path / "out", "epochs": 3}
    stages = ReproduceConfig(plan="recsys23-beauty", **settings).expanded().stages
    fits = [stage.step.config for stage in stages if stage.step.verb == "fit"]
    assert {fit.sequential.epochs for fit in fits if "sequential" in fit.used()} == {3}


def test_a_plan_may_begin_with_a_shipped_one(tmp_path):
    file = tmp_path / "plan.yaml"
    row = [{"fit": {"recommender": "sknn"}}, {"recommend": {"recommender": "{run}/{row}"}}]
    own = {"base": "recsys23-beauty", "title": "Mine", "rows": {"SKNN": row}, "settings": {"epochs": 1}}
    file.write_text(yaml.safe_dump(own), encoding="utf-8")
    plan, base = load_plan(str(file)), load_plan("recsys23-beauty")
    assert (plan.title, plan.prepare) == ("Mine", base.prepare)
    assert list(plan.rows) == [*base.rows, "SKNN"]
    assert plan.settings == base.settings | {"epochs": 1}
    assert plan.hash != base.hash


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"A": [{"fitt": {}}]}, "A: fitt: unknown verb 'fitt': did you mean 'fit'?"),
        (
            {"A": [{"fit": {"recommender": "sasrec", "sequential": {"epoch": 1}}}]},
            "A: fit: unknown setting 'sequential.epoch': did you mean 'sequential.epochs'?",
        ),
        ({"A": [{"fit": {"recommender": "sasrek"}}]}, "'recommender' = 'sasrek'"),
        ({"A": [{"fit": {"recommender": "sknn", "out": "{rum}/x"}}]}, "nothing is called {rum}: did you mean 'run'?"),
        (
            {"A": [{"fit": {"recommender": "sknn"}}, {"fit": {"recommender": "sknn"}}]},
            "another stage writes out/seed-0/A",
        ),
        ({"A": [{"validate": {"data": "{run}/data"}}]}, "A: validate: 'validate' has no --out"),
    ],
)
def test_a_plan_that_cannot_run_is_refused_before_anything_is_made(tmp_path, rows, told):
    with pytest.raises(ConfigError) as error:
        expanded(plan_of(tmp_path, rows=rows))
    assert told in str(error.value)
    assert str(error.value).count(told) == 1, "once, not once a seed"


def test_all_that_is_wrong_with_a_plan_is_told_at_once(tmp_path):
    rows = {"A": [{"fitt": {}}], "B": [{"recommend": {"kk": 3}}]}
    with pytest.raises(ConfigError, match=r"2 problems:\n  A: fitt: .*\n  B: recommend: unknown setting 'kk'"):
        expanded(plan_of(tmp_path, rows=rows))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rows": {"a/b": [{"fit": {}}]}}, "row 'a/b' needs a stage"),
        ({"rows": {"a": []}}, "row 'a' needs a stage"),
        ({"rows": {}}, "'rows'"),
        ({"seeds": []}, "'seeds'"),
        ({"row": {}}, "unknown setting 'row': did you mean 'rows'?"),
        ({"base": "recsys23"}, "base: there is no plan 'recsys23': did you mean 'recsys23-beauty'?"),
    ],
)
def test_a_file_that_is_no_plan_is_told_what_is_wrong(tmp_path, changed, told):
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, **changed)
    assert told in str(error.value)
    assert str(tmp_path / "plan.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"chosen": {"epoch": 3}}, "there is no setting 'epoch': did you mean 'epochs'?"),
        ({"given": {"vector": Path("x")}}, "there is no embeddings 'vector': did you mean 'vectors'?"),
    ],
)
def test_settings_and_embeddings_that_a_plan_does_not_have_are_refused(tmp_path, asked, told):
    with pytest.raises(ConfigError) as error:
        expanded(plan_of(tmp_path), **asked)
    assert told in str(error.value)
