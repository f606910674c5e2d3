"""Lists by session from any table: in order of rank, with what is wrong named."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.errors import DataError
from seqrec_prompt.recommenders.fit import FitConfig, fit
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend


@pytest.fixture
def data(dataset_dir):
    return Dataset.load(dataset_dir)


def lists(found):
    return {name: items.tolist() for name, items in found.lists.items()}


def test_items_stand_in_order_of_rank_or_of_the_table(data, tmp_path, capsys):
    rows = [("a", "item-5", 2), ("b", "item-1", 1), ("a", "item-7", 10), ("a", "item-3", 1), ("b", "gone", 2)]
    file = tmp_path / "ranked.csv"
    file.write_text("session_id,item_id,rank\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    assert lists(Candidates.load(file, data, "test")) == {"a": [3, 5, 7], "b": [1]}
    assert "1 of 5 items are not in the catalog, e.g. 'gone'" in capsys.readouterr().out
    file.write_text("session_id,item_id\n" + "".join(f"{a},{b}\n" for a, b, _ in rows))
    found = Candidates.load(file, data, "test")
    assert lists(found) == {"a": [5, 7, 3], "b": [1]}
    assert [row.tolist() for row in found.of(["b", "nobody", "a"])] == [[1], [], [5, 7, 3]]


def test_an_item_listed_twice_counts_once_and_an_empty_list_is_one(data, tmp_path):
    table = {"session_id": ["a", "a", "a", "b"], "item_id": ["item-2", "item-9", "item-2", None], "rank": [1, 2, 3, 0]}
    pq.write_table(pa.table(table), tmp_path / "lists.parquet")
    found = Candidates.load(tmp_path / "lists.parquet", data, "train")
    assert [row.tolist() for row in found.of(["a", "b"])] == [[2, 9], []]
    assert "b" in found.lists


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("session_id,rank\na,1\n", "no column 'item_id'"),
        ("session_id,item_id,rank\na,item-1,1\na,item-2,first\n", r"row 3, column rank: 'first' is no rank"),
        ("session_id,item_id\na,x\nb,y\n", "none of its 2 items is in the catalog"),
        ("session_id,item_id\n", "none of its 0 items is in the catalog"),
    ],
)
def test_a_table_that_holds_no_lists_is_explained(data, tmp_path, content, message):
    (tmp_path / "lists.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        Candidates.load(tmp_path / "lists.csv", data, "test")


def test_a_damaged_file_is_explained(data, tmp_path):
    (tmp_path / "lists.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"lists\.parquet"):
        Candidates.load(tmp_path / "lists.parquet", data, "test")


def test_lists_of_another_part_or_of_other_data_are_refused(data, dataset_dir, tmp_path):
    popular = fit(FitConfig(data=dataset_dir, recommender="most-popular", out=tmp_path / "popular"))
    file = recommend(RecommendConfig(data=dataset_dir, recommender=popular, k=3, out=tmp_path / "lists.parquet"))
    assert len(Candidates.load(file, data, "test").lists) == 12
    with pytest.raises(DataError, match=r"holds lists of the test part\nMake it with: .*--part train"):
        Candidates.load(file, data, "train")
    other = Dataset(data.catalog, data.split, {"facts": {"hash": "another"}})
    with pytest.raises(DataError, match="made from other data"):
        Candidates.load(file, other, "test")
