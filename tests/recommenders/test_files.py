"""Recommendation files: what is written is read back, and other tools' files are read too."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.errors import ArtifactError, DataError
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.files import read, write

CATALOG = Catalog(["10", "11", "12"], ["ten", "eleven", "twelve"])


def lists_of(ids, lists, scores):
    return Recommendations.build(
        np.array(ids, dtype=object), [np.array(i, np.int32) for i in lists], [np.array(s, float) for s in scores]
    )


def test_round_trip_keeps_empty_lists_and_order(tmp_path):
    batches = [
        lists_of(["b", "empty", "a"], [[2, 0], [], [1]], [[3, 1], [], [0.5]]),
        lists_of(["last"], [[]], [[]]),
        lists_of([], [], []),
    ]
    write(tmp_path / "r.parquet", batches, CATALOG, {"stage": "recommend"})
    found = read(tmp_path / "r.parquet", CATALOG)
    assert found.manifest == {"stage": "recommend"}
    assert found.lists.session_ids.tolist() == ["b", "empty", "a", "last"]
    assert [items.tolist() for items in found.lists] == [[2, 0], [], [1], []]
    assert found.lists.scores.tolist() == [3, 1, 0.5]
    assert found.lists.certified.tolist() == [True] * 4


def test_only_empty_lists(tmp_path):
    write(tmp_path / "r.parquet", [lists_of(["a", "b"], [[], []], [[], []])], CATALOG, {})
    assert [items.tolist() for items in read(tmp_path / "r.parquet", CATALOG).lists] == [[], []]


@pytest.mark.parametrize("id_type", [pa.string(), pa.int64()])
def test_another_tools_file_needs_three_columns(tmp_path, id_type):
    table = pa.table(
        {
            "item_id": pa.array([12, 10, 11, 11]).cast(id_type),
            "rank": [2, 1, 1, 3],
            "session_id": pa.array([7, 7, 5, 7]).cast(id_type),
        }
    )
    pq.write_table(table, tmp_path / "other.parquet")
    found = read(tmp_path / "other.parquet", CATALOG)
    assert found.manifest == {}
    assert found.lists.session_ids.tolist() == ["7", "5"]
    assert [items.tolist() for items in found.lists] == [[0, 2, 1], [1]]
    assert not found.lists.certified.any()


def test_what_does_not_fit_is_named(tmp_path):
    path = tmp_path / "r.parquet"
    with pytest.raises(ArtifactError, match="no such file"):
        read(path, CATALOG)
    path.write_text("not parquet")
    with pytest.raises(ArtifactError, match="is not a Parquet file"):
        read(path, CATALOG)
    pq.write_table(pa.table({"session_id": ["a"], "item": ["10"]}), path)
    with pytest.raises(DataError, match=r"no column 'rank' \(it has: session_id, item\)"):
        read(path, CATALOG)
    with pytest.raises(ArtifactError, match="is a directory; a recommendation file is a Parquet file"):
        read(tmp_path, CATALOG)
    pq.write_table(pa.table({"session_id": ["a", None], "rank": [1, 1], "item_id": ["10", "11"]}), path)
    with pytest.raises(DataError, match="row 2, column session_id: no value"):
        read(path, CATALOG)
    pq.write_table(pa.table({"session_id": ["a"], "rank": ["first"], "item_id": ["10"]}), path)
    with pytest.raises(DataError, match="column rank does not hold what it should"):
        read(path, CATALOG)
    pq.write_table(pa.table({"session_id": ["a"], "rank": [1], "item_id": ["99"]}), path)
    with pytest.raises(DataError, match="row 1, column item_id: '99' is not in the catalog"):
        read(path, CATALOG)
