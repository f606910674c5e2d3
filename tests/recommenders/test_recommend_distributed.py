"""The recipe on Ray, on one machine with two workers: the lists of `recommend`, whole files, gone on with."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "recommend_distributed.py"
there = importlib.util.find_spec("ray") is not None
on_ray = pytest.mark.skipif(not there, reason='Ray is not installed here: pip install "seqrec_prompt[ray]"')


@pytest.fixture(scope="module")
def folder(dataset_dir, tmp_path_factory):
    """The test sessions in three files, and a fourth without any."""
    data, folder = Dataset.load(dataset_dir), tmp_path_factory.mktemp("sessions")
    prompts = data.split.test.prompts
    rows = [(name, [data.catalog.ids[i] for i in items]) for name, items in zip(prompts.ids, prompts, strict=True)]
    for number, part in enumerate((rows[:5], rows[5:6], rows[6:], [])):
        write(folder / f"{number}.parquet", part)
    return folder


def write(file, rows):
    schema = pa.schema([("session_id", pa.string()), ("item_ids", pa.list_(pa.string()))])
    pq.write_table(pa.table([[row[0] for row in rows], [row[1] for row in rows]], schema=schema), file)


@pytest.fixture
def run(dataset_dir, tiny_model, tmp_path, folder):
    def start(*more, sessions=folder):
        command = [sys.executable, str(RECIPE), "--data", str(dataset_dir), "--model", str(tiny_model)]
        command += ["--sessions", str(sessions), "--out", str(tmp_path / "lists"), "--k", "5", "--dtype", "float32"]
        given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, env=os.environ | given, cwd=tmp_path
        )

    return start


def rows_of(*files):
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@on_ray
@pytest.mark.timeout(900)
def test_two_workers_make_the_lists_of_recommend_and_go_on_with_what_is_missing(
    run, dataset_dir, tiny_model, tmp_path, folder
):
    settings = {"data": dataset_dir, "model": str(tiny_model), "k": 5, "dtype": "float32"}
    wanted = rows_of(recommend(RecommendConfig(out=tmp_path / "wanted.parquet", **settings)))
    sessions = tmp_path / "sessions"
    shutil.copytree(folder, sessions)
    write(sessions / "1.parquet", [("a", ["no-such-item"])])
    done = run("--workers", "2", sessions=sessions)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "1.parquet: row 1, session 'a': 'no-such-item' is not in the catalog" in done.stderr
    assert "(11 sessions in 3 files)" in done.stdout
    first = tmp_path / "lists" / "0.parquet"
    before = first.stat().st_mtime_ns

    shutil.copy(folder / "1.parquet", sessions)
    done = run(sessions=sessions)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "files to make: 1\n" in done.stdout
    parts = sorted((tmp_path / "lists").glob("*.parquet"))
    assert [part.name for part in parts] == [f"{number}.parquet" for number in range(4)]
    assert first.stat().st_mtime_ns == before
    found = rows_of(*parts)
    for name in ("session_id", "rank", "item_id", "certified", "provenance"):
        assert [row[name] for row in found] == [row[name] for row in wanted]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-4)
    assert not rows_of(parts[3])

    assert "(0 sessions in 0 files)" in run(sessions=sessions).stdout
    done = run("--k", "6", sessions=sessions)
    assert done.returncode == 2
    assert "config.k: was 5, is 6" in done.stderr


def test_what_is_wrong_is_told_before_ray_is_there(run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(sessions=empty)
    assert done.returncode == 2
    assert "empty: no Parquet files" in done.stderr
    pq.write_table(pa.table({"session_id": ["a"], "items": [["b"]]}), empty / "x.parquet")
    done = run(sessions=empty)
    assert done.returncode == 2
    assert "x.parquet: no column 'item_ids' (it has: session_id, items)" in done.stderr
    pq.write_table(pa.table({"session_id": ["a"], "item_ids": ["b c"]}), empty / "x.parquet")
    done = run(sessions=empty)
    assert done.returncode == 2
    assert "x.parquet: column 'item_ids' holds string; it must hold a list of item ids in each row" in done.stderr


@pytest.fixture
def recipe():
    spec = importlib.util.spec_from_file_location("recommend_distributed", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # the annotations of its settings are looked up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_worker_in_another_directory_finds_what_relative_paths_name(
    recipe, dataset_dir, tiny_model, folder, tmp_path, monkeypatch
):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    for name, place in (("data", dataset_dir), ("model", tiny_model), ("sessions", folder)):
        shutil.copytree(place, here / name)
    settings = {"context": 1024, "max_steps": 1, "dtype": "float32"}
    monkeypatch.chdir(here)
    adapter = finetune(FinetuneConfig(data=Path("data"), out=Path("adapter"), model="model", **settings))
    settings = {"data": Path("data"), "model": "model", "adapter": adapter, "k": 5, "dtype": "float32"}
    wanted = rows_of(recommend(RecommendConfig(out=Path("wanted.parquet"), **settings)))
    config = recipe.DistributedConfig(sessions=Path("sessions"), out=Path("lists"), **settings)
    given, rows = config.for_workers(), recipe.owed(config)

    monkeypatch.chdir(elsewhere)
    worker = recipe.Worker(**given)
    assert [worker(row)["problem"] for row in rows] == [""] * 4
    found = rows_of(*sorted((here / "lists").glob("*.parquet")))
    assert [row["item_id"] for row in found] == [row["item_id"] for row in wanted]
    assert not list(elsewhere.iterdir())


def test_what_a_worker_lacks_comes_back_as_a_problem(recipe, dataset_dir, tiny_model, folder, tmp_path, monkeypatch):
    settings = {"data": dataset_dir, "model": str(tiny_model), "sessions": folder, "out": tmp_path / "lists"}
    config = recipe.DistributedConfig(engine="vllm", **settings)
    monkeypatch.setattr("seqrec_prompt.engines.vllm.importlib.util.find_spec", lambda name: None)
    told = {recipe.Worker(**config.for_workers())(row)["problem"] for row in recipe.owed(config)}
    assert told == {'vLLM is not installed. Install it with: pip install "seqrec_prompt[vllm]"'}


@pytest.mark.parametrize(
    ("engine", "workers", "asked", "there", "each"),
    [
        ("vllm", 4, None, 8, 1),
        ("vllm", 4, None, 0, 0),
        ("vllm", 4, 0, 8, 0),
        ("transformers", 3, None, 2, 0.666),
        ("transformers", 2, None, 8, 1),
        ("transformers", 5, None, 0, 0),
        ("transformers", 5, 0.2, 1, 0.2),
    ],
)
def test_workers_share_what_gpus_there_are(recipe, engine, workers, asked, there, each):
    given = {"data": Path("d"), "sessions": Path("s"), "out": Path("o")}
    config = recipe.DistributedConfig(engine=engine, workers=workers, gpus=asked, **given)
    assert recipe._gpus(config, there) == each


def test_more_gpus_than_there_are_is_refused_for_ray_would_wait(recipe):
    given = {"data": Path("d"), "sessions": Path("s"), "out": Path("o")}
    with pytest.raises(ConfigError, match=r"'gpus' is 1, and the cluster has 0"):
        recipe._gpus(recipe.DistributedConfig(gpus=1, **given), 0)


def test_a_name_at_a_hub_stays_a_name(recipe):
    given = {"data": Path("d"), "sessions": Path("s"), "out": Path("o")}
    assert recipe.DistributedConfig(model="org/model", **given).for_workers()["llm"] == {"model": "org/model"}


def test_vllm_takes_a_gpu_whole(run, recipe):
    done = run("--engine", "vllm", "--gpus", "0.2")
    assert done.returncode == 2
    assert "'gpus' 0.2: vLLM takes one GPU whole" in done.stderr
    assert "--gpus 1, or --engine transformers" in done.stderr
    given = {"data": Path("d"), "sessions": Path("s"), "out": Path("o")}
    assert recipe.DistributedConfig(engine="vllm", gpus=1, **given).gpus == 1
    assert recipe.DistributedConfig(engine="transformers", gpus=0.2, **given).gpus == 0.2


@pytest.mark.skipif(there, reason="Ray is installed here")
def test_the_extra_is_named(run):
    done = run()
    assert done.returncode == 2
    assert 'Ray is not installed. Install it with: pip install "seqrec_prompt[ray]"' in done.stderr
