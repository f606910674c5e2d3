"""Titles named in an answer become a list: worked cases, and what holds for any answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.recommenders.llm.answers import Tally, list_of, neighbours

NEAR = {0: [1, 2, 3], 1: [0, 2, 3], 2: [3, 1, 0], 3: [2, 1, 0]}
WORDS = [(0, "exact"), (0, "fuzzy"), (-1, "rejected"), (0, "exact"), (2, "embedding"), (2, "exact")]


def listed(named, seen=(), k=9, near=NEAR, fill=False):
    tally = Tally()
    return list_of(named, set(seen), k, near, tally, fill=fill), tally


def test_without_neighbours_repeated_and_rejected_titles_are_left_out_and_counted():
    found, tally = listed(WORDS, near={})
    assert found == {0: "exact", 2: "embedding"}
    facts = tally.facts()
    assert facts["provenance"] == {"embedding": 1, "exact": 3, "fuzzy": 1, "rejected": 1}
    # Of six titles, one names nothing and one was only guessed; item 0 stands there twice more, item 2 once in words.
    assert facts["hallucinated_share"] == pytest.approx(2 / 6)
    assert (facts["duplicate"], facts["replaced"], facts["filled"]) == (2, 0, 0)


def test_a_repeated_title_leaves_its_place_to_a_neighbour_that_is_not_named():
    """0 again: its nearest 1; 0 a third time: 2 is named below, so 3; 2 again: all its neighbours are taken."""
    found, tally = listed(WORDS)
    assert list(found.items()) == [(0, "exact"), (1, "neighbour"), (3, "neighbour"), (2, "embedding")]
    assert (tally.duplicate, tally.replaced, tally.filled) == (2, 2, 0)


def test_a_list_is_filled_by_each_item_in_turn():
    near = {0: [1, 5, 6], 9: [1, 7, 8]}
    found, tally = listed([(0, "exact"), (9, "fuzzy")], k=6, near=near, fill=True)
    # 0 gives 1; 9's nearest, 1, is there, so 7; then 5 and 8.
    assert list(found) == [0, 9, 1, 7, 5, 8]
    assert list(found.values()) == ["exact", "fuzzy"] + ["neighbour"] * 4
    assert tally.filled == 4


def test_what_passes_k_is_neither_listed_nor_replaced():
    found, tally = listed([(0, "exact"), (0, "exact"), (3, "exact"), (2, "exact"), (2, "exact")], k=2)
    assert found == {0: "exact", 1: "neighbour"}
    assert (tally.duplicate, tally.replaced, tally.beyond_k) == (2, 1, 2)


def test_seen_items_are_no_neighbours_either():
    found, tally = listed([(0, "exact"), (0, "exact"), (3, "exact")], seen={1, 3}, fill=True)
    assert found == {0: "exact", 2: "neighbour"}
    assert (tally.seen, tally.replaced, tally.filled) == (1, 1, 0)


def test_items_that_share_a_title_count_as_one():
    """0 and 1 are twins, 4 is one of 5, which was seen: 1 is no neighbour of 0, and 4 stays out."""
    title = [0, 0, 2, 3, 4, 4, 6]
    tally = Tally()
    named = [(0, "exact"), (0, "exact"), (4, "exact"), (3, "exact")]
    near = {0: [1, 2, 6], 3: [2, 4, 1, 6]}
    found = list_of(named, {5}, 9, near, tally, fill=True, title=title)
    assert found == {0: "exact", 2: "neighbour", 3: "exact", 6: "neighbour"}
    assert (tally.seen, tally.replaced, tally.duplicate, tally.filled) == (1, 1, 1, 1)


def test_an_answer_without_an_item_stays_empty():
    assert listed([(-1, "rejected")], fill=True)[0] == {}
    assert listed([], fill=True)[0] == {}


@given(
    named=st.lists(st.integers(-1, 11), max_size=12),
    seen=st.sets(st.integers(0, 11), max_size=3),
    k=st.integers(1, 14),
    order=st.randoms(use_true_random=False),
    fill=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_any_answer_becomes_distinct_unseen_items_in_its_own_order(named, seen, k, order, fill):
    near = {item: order.sample([other for other in range(12) if other != item], 11) for item in range(12)}
    answer = [(item, "exact" if item >= 0 else "rejected") for item in named]
    found, tally = listed(answer, seen, k, near, fill)
    own = [item for item in dict.fromkeys(named) if item >= 0 and item not in seen]
    words = [item for item, how in found.items() if how == "exact"]
    assert words == own[: len(words)]  # never another order, never one left out for one after it
    assert not seen & set(found)
    assert not {item for item, how in found.items() if how == "neighbour"} & set(named)
    repeated = sum(item >= 0 for item in named) - len({item for item in named if item >= 0})
    assert tally.duplicate == repeated
    if not fill:
        assert tally.filled == 0
    elif own:
        assert len(found) == min(k, 12 - len(seen))


def test_neighbours_are_those_of_the_highest_cosine():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(40, 5)).astype(np.float32) * draw.uniform(0.1, 9, (40, 1)).astype(np.float32)
    table = EmbeddingTable(vectors, {})
    catalog = Catalog([str(i) for i in range(40)], [str(i) for i in range(40)])
    found = neighbours(np.array([3, 17], np.int32), table, catalog, 39)
    for item, others in found.items():
        cosine = [float(v @ vectors[item] / np.linalg.norm(v) / np.linalg.norm(vectors[item])) for v in vectors]
        assert others == sorted((i for i in range(40) if i != item), key=lambda i: -cosine[i])
