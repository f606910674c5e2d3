"""Clusters of a catalog: what is near is together, each has a name of its own, and bad input is explained."""

import numpy as np
import pytest

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.clusters import Clusters
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError

POPULARITY = np.array([1, 5, 5, 0, 9, 2])


def catalog(titles=("a", "b", "c", "d", "e", "f")):
    return Catalog([f"i{n}" for n in range(len(titles))], list(titles))


def table(*rows):
    return EmbeddingTable(np.array(rows, np.float32), {})


# Two directions, whatever the length.
TWO = table([1, 0], [0, 2], [9, 0.1], [0.1, 3], [0.01, 0.9], [5, 0.2])


def test_items_of_one_direction_are_one_cluster_named_by_its_most_popular_title():
    found = Clusters.fit(TWO, 2, catalog(), POPULARITY)
    assert len({found.of[i] for i in (0, 2, 5)}) == len({found.of[i] for i in (1, 3, 4)}) == 1
    assert found.of[0] != found.of[1]
    names = found.names(catalog())
    assert names[found.of[0]] == "c"
    assert names[found.of[1]] == "e"


def test_of_titles_that_clusters_share_each_names_one():
    shared = catalog(["x", "x", "x", "y", "x", "z"])
    names = Clusters.fit(TWO, 2, shared, POPULARITY).names(shared)
    assert len(set(names)) == 2
    assert "x" in names
    hopeless = catalog(["x"] * 6)
    assert Clusters.fit(TWO, 2, hopeless, POPULARITY).names(hopeless) == ["x", "x"]


def test_more_clusters_than_embeddings_are_refused():
    twice = table([1, 0], [2, 0], [0, 1], [0, 3], [1, 1], [4, 4])
    assert len(Clusters.fit(twice, 3, catalog(), POPULARITY)) == 3
    with pytest.raises(ConfigError, match=r"template\.clusters' = 4: the catalog has 3 different embeddings"):
        Clusters.fit(twice, 4, catalog(), POPULARITY)


def test_an_embedding_that_is_not_finite_is_named():
    broken = table([1, 0], [0, 2], [np.nan, 0.1], [0.1, 3], [0, 1], [1, 1])
    with pytest.raises(DataError, match="item 'i2' is not finite"):
        Clusters.fit(broken, 2, catalog(), POPULARITY)


def test_they_are_read_back_as_they_were(tmp_path):
    made = Clusters.fit(TWO, 2, catalog(), POPULARITY)
    made.save(tmp_path / "c.safetensors")
    found = Clusters.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(found.of, made.of)
    np.testing.assert_array_equal(found.heads, made.heads)
    (tmp_path / "c.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"c\.safetensors is missing or damaged"):
        Clusters.load(tmp_path / "c.safetensors")
