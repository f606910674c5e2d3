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
    batch = {"attention_mask": mask, "input_ids": mask}
    counted = benchmark.Counted(lambda _: batch, last=last)
    assert counted([{"items": [1, 2]}, {"items": [1, 2, 3, 4]}])["attention_mask"] is mask
    assert counted.seen == [(targets, 7, 8)]


def test_of_a_packed_batch_the_computed_tokens_are_those_of_its_rows(benchmark):
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    padded = {"attention_mask": mask, "input_ids": mask, "labels": mask}
    counted = benchmark.Counted(benchmark.PackingCollator(lambda _: padded), last=True)
    packed = counted([{"items": [1, 2]}] * 3)
    assert counted.seen == [(3, 8, packed["input_ids"].numel())]
    assert packed["input_ids"].numel() == 8  # twice the longest: no padding is left
