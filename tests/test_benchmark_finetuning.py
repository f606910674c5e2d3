"""The fine-tuning benchmark counts what it says it counts."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.ragged import offsets_of

FILE = Path(__file__).parents[1] / "eval" / "benchmarks" / "finetuning.py"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FILE.parent))
    spec = importlib.util.spec_from_file_location("benchmark_finetuning", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FILE.parent))
    return module


def sessions_of(lists: list[list[int]]) -> Sessions:
    ids = np.array([f"s{i}" for i in range(len(lists))])
    return Sessions(ids, offsets_of([len(items) for items in lists]), np.concatenate(lists).astype(np.int32))


def test_every_prefix_of_two_items_or_more_becomes_a_session(benchmark):
    found = benchmark.expanded(sessions_of([[7, 8, 9], [5], [1, 2], [3, 3, 3, 4]]))
    wanted = [[7, 8], [7, 8, 9], [1, 2], [3, 3], [3, 3, 3], [3, 3, 3, 4]]
    assert [items.tolist() for items in found] == wanted
    assert len(set(found.ids.tolist())) == len(wanted)


@pytest.mark.parametrize(("last", "targets"), [(True, 2), (False, 1 + 3)])
def test_targets_tokens_and_padding_of_a_batch_are_counted(benchmark, last, targets):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    counted = benchmark.Counted(lambda _: {"attention_mask": mask}, last=last)
    assert counted([{"items": [1, 2]}, {"items": [1, 2, 3, 4]}])["attention_mask"] is mask
    assert counted.seen == [(targets, 7, 8)]
