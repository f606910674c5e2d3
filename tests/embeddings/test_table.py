"""The table of item vectors: what is written comes back, and only beside the catalog it was made of."""

import numpy as np
import pytest

from seqrec_prompt.artifacts import hash_file, manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.table import VECTORS, EmbeddingTable, load_tables
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


def save(directory, vectors):
    made = manifest("embed", {}, {"data": CATALOG.hash, "model": directory.name})
    EmbeddingTable(vectors.astype(np.float32), made).save(directory)
    return directory


def test_one_table_is_read_as_it_is(saved):
    table, read = load_tables([saved], CATALOG)
    assert np.array_equal(table.vectors, ROWS)
    assert read == hash_file(saved / VECTORS)


def test_joined_tables_have_the_same_say_whatever_their_length_and_mean(tmp_path):
    other = np.random.default_rng(1).normal(size=(3, 2))
    one, two = save(tmp_path / "one", ROWS), save(tmp_path / "two", other)
    table, read = load_tables([one, two], CATALOG)
    assert table.vectors.shape == (3, 7)
    assert table.vectors.dtype == np.float32
    # Squared distances are the sum of each table's own, in units of its mean over all pairs of items.
    apart = sum(distances(vectors) / distances(vectors).mean() for vectors in (ROWS.astype(float), other))
    assert distances(table.vectors) == pytest.approx(apart / apart.mean() * distances(table.vectors).mean(), abs=1e-5)
    longer, swapped = (
        load_tables([one, save(tmp_path / "long", 100 * other + 7)], CATALOG),
        load_tables([two, one], CATALOG),
    )
    assert longer[0].vectors == pytest.approx(table.vectors, abs=1e-5)
    assert len({read, longer[1], swapped[1]}) == 3


def test_a_joined_table_can_be_kept(saved, tmp_path):
    joined, _ = load_tables([saved, saved], CATALOG)
    joined.save(tmp_path / "joined")
    found = EmbeddingTable.load(tmp_path / "joined", CATALOG)
    assert np.array_equal(found.vectors, joined.vectors)
    assert [made["inputs"]["model"] for made in found.manifest["config"]["joined"]] == ["1234", "1234"]


def test_items_that_are_all_alike_add_nothing(saved, tmp_path):
    table, _ = load_tables([saved, save(tmp_path / "flat", np.ones((3, 2)))], CATALOG)
    assert np.array_equal(table.vectors[:, 5:], np.zeros((3, 2)))
    assert np.isfinite(table.vectors).all()


def test_every_table_has_to_be_of_the_catalog(saved, tmp_path):
    other = Catalog(["a", "b"], ["One", "Two"])
    made = manifest("embed", {"data": "runs/other"}, {"data": other.hash})
    EmbeddingTable(ROWS[:2], made).save(tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"other holds the items of another catalog \(that of runs/other"):
        load_tables([saved, tmp_path / "other"], CATALOG)


def distances(vectors):
    return ((vectors[:, None] - vectors[None]) ** 2).sum(axis=2)
