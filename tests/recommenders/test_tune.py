"""`tune`: what is searched and judged, that it goes on, ends, prunes, and what it refuses."""

import csv
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from seqrec_prompt.cli import main
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Split
from seqrec_prompt.data.splits import forward_chaining
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from seqrec_prompt.evaluation.metrics import evaluate_lists
from seqrec_prompt.recommenders import base
from seqrec_prompt.recommenders import tune as module
from seqrec_prompt.recommenders.fit import FitConfig
from seqrec_prompt.recommenders.nearest.neighbors import SKNN
from seqrec_prompt.recommenders.settings import NeighborsConfig
from seqrec_prompt.recommenders.tune import SPACES, Range, TuneConfig, read_space, tune

SPACE = """
recommender: sknn
settings:
  neighbors.k_neighbors: {low: 1, high: 20}
  neighbors.idf: {low: 0.5, high: 4, log: true}
  neighbors.similarity: [cosine, dot, binary]
  neighbors.max_items: 9
"""


@pytest.fixture(scope="module")
def timed(dataset_dir, tmp_path_factory):
    """The tiny data with times, whose order is not that of the sessions, and a validation part."""
    data, where = Dataset.load(dataset_dir), tmp_path_factory.mktemp("timed")
    train = data.split.train
    draw = np.random.default_rng(0)
    train = replace(train, times=draw.permutation(len(train)).astype(float)[train.rows])
    own = Holdout.of_last_items(train.take(np.arange(8)))
    Dataset(data.catalog, Split(train, data.split.test, own), data.manifest).save(where)
    return where


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    return str(tmp_path / "space.yaml")


def rows(out):
    with (out / "trials.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def test_from_the_command_line_to_a_fit(timed, space, tmp_path, capsys):
    out = tmp_path / "tuned"
    command = ["tune", "--data", str(timed), "--space", space, "--trials", "6", "--random-trials", "3"]
    assert main([*command, "--out", str(out)]) == 0
    best = max(rows(out), key=lambda row: float(row["ndcg@20"] or 0))
    found = yaml.safe_load((out / "best.yaml").read_text())["fit"]
    assert found["recommender"] == "sknn"
    assert found["neighbors"] == {
        "k_neighbors": int(best["neighbors.k_neighbors"]),
        "idf": float(best["neighbors.idf"]),
        "similarity": best["neighbors.similarity"],
        "max_items": 9,
    }
    config = NeighborsConfig.model_validate(found["neighbors"])
    data = Dataset.load(timed)
    values = []
    for fold in forward_chaining(data.split.train):
        lists = SKNN.fit(fold.train, len(data.catalog), config).recommend(
            fold.validation.prompts, 20, exclude_seen=True
        )
        judged = evaluate_lists(lists, fold.validation.targets, data.popularity, len(data.catalog), (20,))
        values.append(judged.means[20]["ndcg"])
    assert len(values) == 3
    assert float(best["ndcg@20"]) == pytest.approx(np.mean(values))
    fitted = ["fit", "--data", str(timed), "--config", str(out / "best.yaml"), "--out", str(tmp_path / "fitted")]
    assert main(fitted) == 0
    assert "fitted: " in capsys.readouterr().out


def test_a_search_goes_on_as_if_unbroken(timed, space, tmp_path, monkeypatch, capsys):
    config = TuneConfig(data=timed, space=space, out=tmp_path / "one", trials=9, random_trials=3)
    tune(config)
    tune(config.model_copy(update={"out": tmp_path / "two", "trials": 2}))
    right, calls = module.build, []

    def breaks(*given):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return right(*given)

    monkeypatch.setattr(module, "build", breaks)
    with pytest.raises(KeyboardInterrupt):
        tune(config.model_copy(update={"out": tmp_path / "two"}))
    assert "going on: 2/9 trials are done" in capsys.readouterr().out
    tune(config.model_copy(update={"out": tmp_path / "two"}))
    assert re.search(r"going on: [2-8]/9 trials are done", capsys.readouterr().out)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert len(rows(tmp_path / "one")) == 9
    assert len({tuple(row.values()) for row in rows(tmp_path / "one")}) == 9
    done = len(calls)
    tune(config.model_copy(update={"out": tmp_path / "two"}))
    assert len(calls) == done, "the budget is spent"


def test_another_search_in_the_same_place_is_refused_unless_it_may_be_overwritten(timed, space, tmp_path):
    config = TuneConfig(data=timed, space=space, out=tmp_path / "out", trials=2)
    tune(config)
    with pytest.raises(ArtifactError, match=r"config.seed: was 0, is 1"):
        tune(config.model_copy(update={"seed": 1}))
    tune(config.model_copy(update={"seed": 1, "overwrite": True, "trials": 1}))
    assert len(rows(tmp_path / "out")) == 1


def test_a_search_that_overwrites_another_goes_on_too(timed, space, tmp_path, monkeypatch, capsys):
    """Stopped, it leaves no best settings of the other under its own name."""
    config = TuneConfig(data=timed, space=space, out=tmp_path / "out", trials=3)
    tune(config)
    other, right = config.model_copy(update={"seed": 1, "overwrite": True}), module.build
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls = iter(range(99))
        patch.setattr(module, "build", lambda *given: right(*given) if next(calls) < 8 else stop())
        tune(other)
    assert not (config.out / "best.yaml").exists()
    capsys.readouterr()
    tune(other)
    assert re.search(r"going on: [1-2]/3 trials are done", capsys.readouterr().out)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".manifest.json.abcd_123.partial").write_text("{")  # killed before anything else
    tune(other.model_copy(update={"out": tmp_path / "new", "overwrite": False}))
    assert rows(config.out) == rows(tmp_path / "new")


def stop():
    raise KeyboardInterrupt


def scripted(monkeypatch, values):
    """Each call of the metric gives the next of `values`."""
    script = iter(values)
    monkeypatch.setattr(base, "mean_ndcg", lambda lists, targets: next(script))


def test_a_trial_below_the_median_ends_early(timed, space, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5] * 15 + [0.1] + [0.6] * 3)
    tune(TuneConfig(data=timed, space=space, out=tmp_path / "out", trials=7))
    assert [row["state"] for row in rows(tmp_path / "out")] == ["complete"] * 5 + ["pruned", "complete"]


def test_it_ends_when_nothing_better_comes_or_time_is_over(timed, space, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9])
    config = TuneConfig(data=timed, space=space, out=tmp_path / "a", folds="validation", without_gain=2)
    tune(config)
    assert [float(row["ndcg@20"]) for row in rows(tmp_path / "a")] == [0.1, 0.3, 0.2, 0.3]
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3])
    tune(config.model_copy(update={"out": tmp_path / "b", "minutes": 1e-9}))
    assert len(rows(tmp_path / "b")) == 1


def test_settings_that_do_not_go_together_fail_a_trial_not_the_search(timed, tmp_path):
    text = """
recommender: sasrec
settings: {sequential.dim: 6, sequential.heads: [1, 4], sequential.epochs: 1, sequential.patience: null}
"""
    (tmp_path / "space.yaml").write_text(text)
    space = str(tmp_path / "space.yaml")
    tune(TuneConfig(data=timed, space=space, out=tmp_path / "out", trials=6, folds="validation", max_validation=3))
    found = rows(tmp_path / "out")
    assert {(row["sequential.heads"], row["state"]) for row in found} == {("1", "complete"), ("4", "fail")}
    assert all("no multiple of 'heads'" in row["error"] for row in found if row["state"] == "fail")


def test_a_search_without_a_single_result_says_why(timed, tmp_path):
    (tmp_path / "s.yaml").write_text("{recommender: sasrec, settings: {sequential.heads: [1, 5]}}")
    config = TuneConfig(data=timed, space=str(tmp_path / "s.yaml"), out=tmp_path / "out", trials=1, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_suggest", lambda trial, name, value: 5)
        with pytest.raises(ConfigError, match=r"no trial of 1 came to its end: 'sequential.* no multiple of 'heads'"):
            tune(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{recommender: sknn, settings: {neighbors.k_neighbor: 3}}", "did you mean 'neighbors.k_neighbors'"),
        ("{recommender: sknm, settings: {neighbors.idf: 3}}", "'recommender' = 'sknm'"),
        ("{recommender: sknn, settings: {}}", "'settings'"),
        ("{recommender: sknn, settings: {neighbors.idf: {low: 3, high: 1}}}", "low 3 is above high 1"),
        ("{recommender: sknn, settings: {neighbors.idf: {low: 0, high: 1, log: true}}}", "begins above 0"),
        ("{recommender: [", "not valid YAML"),
        ("{recommender: llm-seq-sim, settings: {similarity.weighting: log}}", "needs --embeddings"),
    ],
)
def test_a_space_that_means_nothing_is_told_before_any_work(timed, tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        tune(TuneConfig(data=timed, space=str(tmp_path / "s.yaml"), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_told(dataset_dir, timed, space, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="none of bert4rec, gru4rec, llm-seq-sim, sasrec, sknn, v-sknn"):
        read_space("sasrek")
    with pytest.raises(DataError, match="forward chaining"):
        tune(TuneConfig(data=dataset_dir, space=space, out=tmp_path / "out"))
    with pytest.raises(DataError, match="no validation part"):
        tune(TuneConfig(data=dataset_dir, space=space, out=tmp_path / "other", folds="validation"))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"seqrec_prompt\[tune\]"):
        tune(TuneConfig(data=timed, space=space, out=tmp_path / "out"))


@pytest.mark.parametrize("file", sorted(SPACES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_end_of_every_shipped_space_is_a_setting_of_fit(file):
    space = read_space(file.stem)
    wide = {"sequential.dim": 192}  # which any number of heads divides
    fixed = {"data": "d", "out": "o", "recommender": space.recommender}
    if space.recommender == "llm-seq-sim":
        fixed["embeddings"] = "e"
    first = {name: module._first(value) for name, value in space.settings.items()}
    assert space.recommender == file.stem
    for name, value in space.settings.items():
        ends = [value.low, value.high] if isinstance(value, Range) else value if isinstance(value, list) else [value]
        for end in ends:
            heads = wide if name == "sequential.heads" else {}
            module.load(FitConfig, None, fixed | first | {name: end} | heads, verb="fit")
