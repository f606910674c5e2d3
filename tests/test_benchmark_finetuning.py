"""The fine-tuning benchmark counts what it says it counts."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "eval" / "benchmarks" / "finetuning.py"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FILE.parent))
    spec = importlib.util.spec_from_file_location("benchmark_finetuning", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FILE.parent))
    return module


@pytest.mark.parametrize(("last", "targets"), [(True, 2), (False, 1 + 3)])
def test_targets_tokens_and_padding_of_a_batch_are_counted(benchmark, last, targets):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    counted = benchmark.Counted(lambda _: {"attention_mask": mask}, last=last)
    assert counted([{"items": [1, 2]}, {"items": [1, 2, 3, 4]}])["attention_mask"] is mask
    assert counted.seen == [(targets, 7, 8)]
