"""One tiny model for all: as in the other tests, with heads as wide as vLLM has them on a CPU."""

import importlib.util
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import save_tiny_model

from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.recommenders.recommend import RecommendConfig

# Of the key-value cache, in GB; nothing is looked up at a model hub.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        skip = pytest.mark.skip(reason="vLLM is not installed here: make test-vllm")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("wide_model"), head_dim=32)


@pytest.fixture(scope="session")
def adapter(wide_model, dataset_dir, tmp_path_factory):
    """Trained hard enough to move every score."""
    out = tmp_path_factory.mktemp("tuned") / "adapter"
    settings = {"context": 1024, "max_steps": 3, "learning_rate": 0.05, "dtype": "float32"}
    return finetune(FinetuneConfig(data=dataset_dir, out=out, model=str(wide_model), **settings))


@pytest.fixture
def config_of(wide_model, dataset_dir, tmp_path, adapter):
    def build(engine, **changes):
        settings = {"data": dataset_dir, "out": tmp_path / f"{engine}.parquet", "model": str(wide_model), "k": 5}
        settings |= {"adapter": adapter, "engine": engine, "context": 1024}
        settings |= {} if engine == "openai" else {"dtype": "float32"}
        return RecommendConfig(**settings | changes)

    return build


def rows_of(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture
def assert_same_lists():
    def check(one, other):
        one, other = rows_of(one), rows_of(other)
        for name in ("session_id", "rank", "item_id", "certified"):
            assert [row[name] for row in one] == [row[name] for row in other]
        assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], abs=1e-3)

    return check
