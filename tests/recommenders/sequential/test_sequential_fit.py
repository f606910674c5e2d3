"""`fit` and `recommend` with the sequential models: the whole way, resuming, settings, and several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.cli import main
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Split
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.errors import ArtifactError, DataError
from seqrec_prompt.recommenders import fitted
from seqrec_prompt.recommenders.fit import FitConfig, fit
from seqrec_prompt.recommenders.sequential import recommender as recommenders

ROOT = Path(__file__).parents[3]
SMALL = {"dim": 8, "layers": 1, "epochs": 2, "batch_size": 8}


def settings(data, out, recommender="sasrec", **changes):
    sequential = SMALL | changes.pop("sequential", {})
    return FitConfig.model_validate(
        {"data": data, "out": out, "recommender": recommender, "sequential": sequential} | changes
    )


@pytest.fixture(scope="module")
def embeddings(dataset_dir, tmp_path_factory):
    data, where = Dataset.load(dataset_dir), tmp_path_factory.mktemp("embeddings") / "made"
    vectors = np.random.default_rng(0).normal(size=(len(data.catalog), 12)).astype(np.float32)
    EmbeddingTable(vectors, manifest("embed", {"data": "x"}, {"data": data.catalog.hash})).save(where)
    return where


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec"])
@pytest.mark.parametrize("llm", [False, True])
def test_from_the_command_line_to_a_file(dataset_dir, embeddings, tmp_path, capsys, name, llm):
    flags = [f"--sequential.{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    command = ["fit", "--data", str(dataset_dir), "--recommender", name, "--out", str(tmp_path / "made"), *flags]
    command += ["--embeddings", str(embeddings)] if llm else []
    assert main(command) == 0
    assert (
        f"({'LLM2' if llm else ''}{ {'sasrec': 'SASRec', 'bert4rec': 'BERT4Rec', 'gru4rec': 'GRU4Rec'}[name] } on"
        in (capsys.readouterr().out)
    )
    assert main(command) == 0
    assert "already fitted" in capsys.readouterr().out
    assert not (tmp_path / "made.checkpoint").exists()
    recs = tmp_path / "recs.parquet"
    given = ["--data", str(dataset_dir), "--recommender", str(tmp_path / "made"), "--exclude-seen", "--out", str(recs)]
    assert main(["recommend", *given]) == 0
    data = Dataset.load(dataset_dir)
    model, _ = fitted.load(tmp_path / "made", data)
    right = model.recommend(data.split.test.prompts, 20, exclude_seen=True)
    found = pq.read_table(recs).to_pydict()
    assert found["item_id"] == [data.catalog.ids[item] for item in right.items]
    assert found["score"] == right.scores.tolist()
    made = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert [entry["epoch"] for entry in made["facts"]["history"]] == [1, 2]
    assert made["config"]["sequential"]["items"]["start"] == ("llm_init" if llm else "random")


def test_a_run_broken_off_goes_on_and_equals_an_unbroken_one(dataset_dir, tmp_path, monkeypatch, capsys):
    config = settings(dataset_dir, tmp_path / "one", sequential={"epochs": 4})
    fit(config)
    right = recommenders.ndcg
    seen = []

    def breaks(*given, **options):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return right(*given, **options)

    monkeypatch.setattr(recommenders, "ndcg", breaks)
    with pytest.raises(KeyboardInterrupt):
        fit(config.model_copy(update={"out": tmp_path / "two"}))
    assert not (tmp_path / "two").exists()
    with pytest.raises(ArtifactError, match=r"config.sequential.seed: was 0, is 1"):
        fit(settings(dataset_dir, tmp_path / "two", sequential={"epochs": 4, "seed": 1}))
    fit(config.model_copy(update={"out": tmp_path / "two"}))
    assert "going on: 2/" in capsys.readouterr().out
    one, two = (load_file(tmp_path / name / fitted.ARRAYS) for name in ("one", "two"))
    assert set(one) == set(two)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_validation_is_the_datas_own_or_a_tenth_of_train(dataset_dir, tmp_path, monkeypatch):
    data, held_out = Dataset.load(dataset_dir), []
    monkeypatch.setattr(recommenders, "ndcg", lambda model, holdout, **options: held_out.append(holdout) or 0.0)
    fit(settings(dataset_dir, tmp_path / "tenth"))
    assert len(held_out[-1]) == len(data.split.train) // 10
    own = Holdout.of_last_items(data.split.train.take(np.arange(7)))
    (tmp_path / "data").mkdir()
    Dataset(data.catalog, Split(data.split.train, data.split.test, own), data.manifest).save(tmp_path / "data")
    fit(settings(tmp_path / "data", tmp_path / "own"))
    assert held_out[-1].prompts.ids.tolist() == own.prompts.ids.tolist()
    fit(settings(tmp_path / "data", tmp_path / "drawn", sequential={"validation_sessions": 3}))
    assert len(held_out[-1]) == 3
    judged = len(held_out)
    fit(settings(tmp_path / "data", tmp_path / "all", sessions="before_test", sequential={"patience": None}))
    assert len(held_out) == judged


def test_too_few_sessions_to_hold_any_out_is_told(dataset_dir, tmp_path):
    data = Dataset.load(dataset_dir)
    (tmp_path / "data").mkdir()
    Dataset(data.catalog, Split(data.split.train.take(np.arange(9)), data.split.test), data.manifest).save(
        tmp_path / "data"
    )
    with pytest.raises(DataError, match=r"Set sequential.patience to none"):
        fit(settings(tmp_path / "data", tmp_path / "out"))
    fit(settings(tmp_path / "data", tmp_path / "out", sequential={"patience": None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequential": {"items": {"start": "adapter"}}}, "'sasrec' with sequential.items.start 'adapter' needs --emb"),
        ({"embeddings": "e", "sequential": {"items": {"start": "random"}}}, "'random' knows no 'embeddings'"),
        ({"recommender": "most-popular", "sequential": {"dim": 8}}, "'sequential' holds no settings of 'most-popular'"),
        ({"sequential": {"items": 3}, "embeddings": "e"}, "valid dictionary"),
        ({"sequential": {"dimm": 3}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FitConfig.model_validate({"data": "d", "out": "o", "recommender": "sasrec"} | changes)


def launch(processes, config, out):
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps({"fit": config | {"out": str(out)}}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    given = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [*launcher, "recipes/train_sequential.py", "--config", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_train_as_one(dataset_dir, tmp_path):
    config = settings(dataset_dir, tmp_path, "bert4rec", sequential={"dropout": 0, "batch_size": 9, "clip_norm": 1.0})
    both = {name: value for name, value in config.used().items() if value is not None}
    one, two = tmp_path / "one", tmp_path / "two"
    fit(config.model_copy(update={"out": one}))
    assert launch(2, both, two).count("fitted: ") == 1, "only one process speaks and writes"
    weights = [load_file(out / fitted.ARRAYS) for out in (one, two)]
    for name, array in weights[0].items():
        gap = np.abs(weights[1][name] - array)
        if name.endswith("qkv.bias"):  # a bias of the keys changes no attention: its gradient is nothing but rounding
            gap[SMALL["dim"] : 2 * SMALL["dim"]] = 0
        assert gap.max() < 1e-4, name
