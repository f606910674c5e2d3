"""What the benchmark of the vLLM engine makes of lists, without vLLM."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from seqrec_prompt.decoding.search import Counts, Found
from seqrec_prompt.engines.models import load_model
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune

FOLDER = Path(__file__).parents[1] / "eval" / "benchmarks"


@pytest.fixture(scope="module")
def part():
    """Loads a module of the benchmark."""
    sys.path.insert(0, str(FOLDER))

    def load(name):
        return importlib.import_module(f"on_vllm_{name}")

    yield load
    sys.path.remove(str(FOLDER))


def found(lists):
    """As the search returns it; lists: of (item, score) a session."""
    flat, n = [pair for part in lists for pair in part], len(lists)
    offsets = np.cumsum([0, *map(len, lists)])
    items, scores = np.array([item for item, _ in flat], np.int32), np.array([score for _, score in flat])
    zeros = np.zeros(n)
    counts = Counts(*(np.zeros(n, np.int64) for _ in Counts.__dataclass_fields__))
    return Found(offsets, items, scores, zeros == 0, zeros, zeros, counts)


@pytest.mark.parametrize(
    ("other", "items", "order", "error", "swapped"),
    [
        ([[(3, -1.0), (5, -2.0), (7, -2.25)], [(1, -1.0), (2, -3.0)]], 1, 1, 0, 0),
        ([[(3, -1.0), (5, -2.0), (7, -2.25)], [(1, -1.5), (2, -3.0)]], 1, 1, 0.5, 0),
        ([[(3, -1.0), (7, -2.0), (5, -2.25)], [(1, -1.0), (2, -3.0)]], 1, 0.5, 0.25, 0.25),
        ([[(3, -1.0), (5, -2.0), (9, -2.25)], [(1, -1.0), (2, -3.0)]], 0.5, 0.5, 0, 0),
    ],
)
def test_differences_of_lists_are_told(part, other, items, order, error, swapped):
    mine = found([[(3, -1.0), (5, -2.0), (7, -2.25)], [(1, -1.0), (2, -3.0)]])
    told = part("agreement").compare(mine, found(other)) | {"end": 2, "transformers_seconds": 3, "vllm_seconds": 4}
    row = part("agreement").summary([told, told | {"end": 4}, told | {"end": 6}], 4)
    names = ("same_items", "same_order", "score_error", "swapped", "sessions", "vllm_seconds")
    assert [row[name] for name in names] == [items, order, error, swapped, 4, 8]


def test_shares_are_of_the_twenty_titles_wanted(part):
    lists = [list(range(20)), [0, 0, -1, 1] * 5]
    row = part("peers").row_of("x", lists, {"seconds": 8.0, "requests": 40, "tokens": 100, "steps": 7})
    assert row["valid"] == pytest.approx((20 + 15) / 40)
    assert row["distinct"] == pytest.approx((20 + 2) / 40)
    assert (row["starved"], row["seconds"], row["requests"], row["tokens"], row["steps"]) == (0.5, 4, 20, 50, 7)


def test_a_merged_copy_is_the_model_with_its_adapter(part, tiny_model, dataset_dir, tmp_path):
    settings = {"context": 1024, "max_steps": 2, "learning_rate": 0.05, "dtype": "float32"}
    adapter = finetune(FinetuneConfig(data=dataset_dir, out=tmp_path / "a", model=str(tiny_model), **settings))
    copy = load_model(str(part("sessions").merged(str(tiny_model), adapter, tmp_path / "merged")), torch.float32)

    from peft import PeftModel

    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        base = load_model(str(tiny_model), torch.float32)
        untuned = base(tokens).logits
        beside = PeftModel.from_pretrained(base, str(adapter)).eval()(tokens).logits
        assert torch.allclose(copy.eval()(tokens).logits, beside, rtol=1e-4, atol=1e-3)  # they reach 10
    assert not torch.allclose(untuned, beside, atol=1e-2)
