"""The table of item vectors: what is written comes back, and only beside the catalog it was made of."""

import numpy as np
import pytest

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.table import VECTORS, EmbeddingTable
from seqrec_prompt.errors import ArtifactError

CATALOG = Catalog(["a", "b", "c"], ["One", "Two", "Three"])
ROWS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    made = manifest("embed", {"data": "runs/first", "pooling": "mean"}, {"data": CATALOG.hash, "model": "1234"})
    EmbeddingTable(ROWS, made).save(tmp_path / "table")
    return tmp_path / "table"


def test_vectors_and_manifest_come_back(saved):
    table = EmbeddingTable.load(saved, CATALOG)
    assert np.array_equal(table.vectors, ROWS)
    assert table.vectors.dtype == np.float32
    assert table.manifest["inputs"] == {"data": CATALOG.hash, "model": "1234"}
    assert table.manifest["config"]["pooling"] == "mean"
    assert len(table) == 3


def test_another_catalog_is_refused_by_name(saved):
    other = Catalog(["a", "b", "c"], ["One", "Two", "Four"])
    with pytest.raises(ArtifactError, match=f"runs/first, hash {CATALOG.hash[:12]}.*hash {other.hash[:12]}, 3 items"):
        EmbeddingTable.load(saved, other)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-7])])
def test_a_damaged_table_is_refused(saved, damage):
    damage(saved / VECTORS)
    with pytest.raises(ArtifactError, match=r"embeddings\.safetensors is missing or damaged.*--overwrite"):
        EmbeddingTable.load(saved, CATALOG)


def test_rows_that_are_not_the_items_are_refused(saved):
    EmbeddingTable(ROWS[:2], EmbeddingTable.load(saved, CATALOG).manifest).save(saved)
    with pytest.raises(ArtifactError, match=r"shape \(2, 5\), but the catalog has 3 items"):
        EmbeddingTable.load(saved, CATALOG)


def test_a_directory_of_another_stage_is_refused(dataset_dir, catalog):
    with pytest.raises(ArtifactError, match="was not made by 'seqrec-prompt embed'"):
        EmbeddingTable.load(dataset_dir, catalog)
