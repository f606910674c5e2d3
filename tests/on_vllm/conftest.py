"""One tiny model for all: as in the other tests, with heads as wide as vLLM has them on a CPU."""

import importlib.util
import os
from pathlib import Path

import pytest
from tiny import save_tiny_model

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
