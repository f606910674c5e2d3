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


def test_bare_forwards_read_the_loops_batches_without_padding(benchmark, tiny_model, catalog):
    embedder = CausalEmbedder.load(str(tiny_model))
    read = []
    embed = embedder.embed
    embedder.embed = lambda texts: read.append(texts) or embed(texts)
    distinct = list(dict.fromkeys(catalog.texts()))
    one = Catalog([str(i) for i in range(len(distinct))], distinct)
    benchmark.loop(embedder, one, 64)
    unpadded = benchmark.equal_lengths(embedder, one, 64)
    assert [len(batch) for batch in unpadded] == [len(texts) for texts in read]
    for batch, texts in zip(unpadded, read, strict=True):
        assert 0 <= embedder.lengths(texts).sum() - batch.numel() < len(texts)


def test_both_read_the_same_tokens(benchmark, tiny_model, catalog):
    distinct = list(dict.fromkeys(catalog.texts()))
    one = Catalog([str(i) for i in range(len(distinct))], distinct)
    embedder = CausalEmbedder.load(str(tiny_model))
    rows = benchmark.measure(embedder, one, 3, 64)
    assert len(rows) == 3
    assert all(0 <= row["loop_tokens"] - row["bare_tokens"] < len(distinct) for row in rows)
    assert sum(row["loop_tokens"] for row in rows) == embedder.lengths(distinct).sum()
