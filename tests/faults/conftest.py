"""Real processes, real signals. $SEQREC_FAULT_POINTS sets how many random points a stage is killed at (default 3)."""

import os
from dataclasses import replace

import numpy as np
import pytest
from processes import Server

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    return Server(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="session")
def points() -> int:
    return int(os.environ.get("SEQREC_FAULT_POINTS", "3"))


@pytest.fixture
def outcome(record_property):
    """Tell eval/benchmarks/reliability.py what came of a fault: stage, fault, outcome."""

    def tell(stage, fault, seen):
        record_property("outcome", [stage, fault, seen])

    return tell


@pytest.fixture(scope="session")
def recommend_argv(tiny_model, dataset_dir):
    """Arguments of `recommend`, in batches of three of the twelve sessions."""

    def build(out, *more):
        fixed = ["recommend", "--data", dataset_dir, "--model", tiny_model, "--k", 5, "--dtype", "float32"]
        return [*fixed, "--batch-size", 3, "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def embed_argv(tiny_model, dataset_dir):
    def build(out, *more):
        return ["embed", "--data", dataset_dir, "--model", tiny_model, "--batch-tokens", 60, "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def fit_argv(dataset_dir):
    def build(out, *more):
        return ["fit", "--data", dataset_dir, "--recommender", "v-sknn", "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def prepare_argv(tmp_path_factory):
    log = tmp_path_factory.mktemp("raw") / "log.csv"
    log.write_text("\n".join(["session_id,item_id,t", *(f"s{i // 4},i{i % 90},{i}" for i in range(2000))]) + "\n")

    def build(out, *more):
        return ["prepare", "--interactions", log, "--time-column", "t", "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def answer_argv(server, fit_argv, dataset_dir, tmp_path_factory):
    """Arguments of `recommend` without an LLM."""
    fitted = tmp_path_factory.mktemp("fitted") / "v-sknn"
    assert server.run(fit_argv(fitted))[0] == 0

    def build(out, *more):
        return ["recommend", "--data", dataset_dir, "--recommender", fitted, "--k", 5, "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def evaluate_argv(server, answer_argv, dataset_dir, tmp_path_factory):
    lists = tmp_path_factory.mktemp("lists") / "recs.parquet"
    assert server.run(answer_argv(lists))[0] == 0

    def build(out, *more):
        return ["evaluate", "--data", dataset_dir, "--recommendations", lists, "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def sequential_argv(dataset_dir, points):
    """Short epochs of a small GRU4Rec, more than so many kills let pass."""
    settings = ["--sequential.dim", 8, "--sequential.epochs", 20 * points, "--sequential.patience", "none"]

    def build(out, *more):
        return ["fit", "--data", dataset_dir, "--recommender", "gru4rec", *settings, "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def tune_argv(dataset_dir, tmp_path_factory):
    """Eight trials on folds by time; each session comes at its place in the data."""
    folder = tmp_path_factory.mktemp("tune")
    data = Dataset.load(dataset_dir)
    train = data.split.train
    timed = replace(train, times=np.arange(len(train)).astype(float)[train.rows])
    (folder / "data").mkdir()
    replace(data, split=replace(data.split, train=timed)).save(folder / "data")
    settings = "{neighbors.k_neighbors: {low: 1, high: 20}, neighbors.similarity: [cosine, dot, binary]}"
    (folder / "space.yaml").write_text(f"recommender: sknn\nsettings: {settings}\n")

    def build(out, *more):
        fixed = ["tune", "--data", folder / "data", "--space", folder / "space.yaml", "--random-trials", 3]
        return [*fixed, "--trials", 8, "--out", out, *more]

    return build


@pytest.fixture(scope="session")
def adapter(tiny_model, dataset_dir, tmp_path_factory):
    """Trained in this process: autograd and a fork do not go together."""
    out = tmp_path_factory.mktemp("tuned") / "adapter"
    settings = {"data": dataset_dir, "model": str(tiny_model), "context": 1024, "max_steps": 1, "batch_size": 4}
    return finetune(FinetuneConfig(**settings, dtype="float32", out=out))


@pytest.fixture(scope="session")
def other_data(dataset_dir, tmp_path_factory):
    """The same sessions over a catalog with one other title."""
    data = Dataset.load(dataset_dir)
    catalog = replace(data.catalog, titles=["Another title", *data.catalog.titles[1:]])
    directory = tmp_path_factory.mktemp("other")
    replace(data, catalog=catalog).save(directory)
    return directory
