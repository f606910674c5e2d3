"""The embedding benchmark compares like with like."""

import importlib.util
import sys
from pathlib import Path

import pytest

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.engines.embedder import CausalEmbedder

FILE = Path(__file__).parents[1] / "eval" / "benchmarks" / "embedding.py"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FILE.parent))
    spec = importlib.util.spec_from_file_location("benchmark_embedding", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(FILE.parent))
    return module


def test_bare_forwards_read_every_text_once_without_padding(benchmark, tiny_model, catalog):
    embedder = CausalEmbedder.load(str(tiny_model))
    batches = benchmark.equal_lengths(embedder, catalog, 64)
    assert all(len(batch) == 1 or batch.numel() <= 64 for batch in batches)
    read = sorted(row for batch in batches for row in batch.tolist())
    texts = catalog.texts()
    assert read == sorted(embedder.tokenizer(texts, split_special_tokens=True)["input_ids"])


def test_both_read_the_same_tokens(benchmark, tiny_model, catalog):
    distinct = list(dict.fromkeys(catalog.texts()))
    one = Catalog([str(i) for i in range(len(distinct))], distinct)
    embedder = CausalEmbedder.load(str(tiny_model))
    rows = benchmark.measure(embedder, one, 3, 64)
    assert len(rows) == 3
    assert all(row["loop_tokens"] == row["bare_tokens"] for row in rows)
    assert sum(row["loop_tokens"] for row in rows) == embedder.lengths(distinct).sum()
