"""Free text becomes items: the first way that applies, equal titles by popularity, nothing invented."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.prompting.grounding import Grounder, entries, normalise

TITLES = [
    "OPI Nail Lacquer, Red",  # 0
    "Burt&#39;s Bees Lip Balm (Pack of 2)",  # 1
    "Crème brûlée set",  # 2
    "Dove Body Wash",  # 3
    "Dove Body Wash",  # 4
    "7. Heaven Mask",  # 5
    "",  # 6: written as its id
    "☆☆☆",  # 7
    "OPI Nail Lacquer, Blue",  # 8
]
CATALOG = Catalog([f"id-{i}" for i in range(len(TITLES))], TITLES)
POPULARITY = np.array([5, 1, 1, 2, 9, 1, 1, 1, 1])


@pytest.fixture(scope="module")
def grounder():
    return Grounder(CATALOG, POPULARITY)


@pytest.mark.parametrize(
    ("text", "item", "how"),
    [
        ("OPI Nail Lacquer, Red", 0, "exact"),
        ("  OPI  Nail\tLacquer, Red ", 0, "exact"),  # white space is folded in the catalog's own texts, too
        ("Burt's Bees Lip Balm (Pack of 2)", 1, "exact"),
        ("Burt&#39;s Bees Lip Balm (Pack of 2)", 1, "exact"),
        ("BURT’S BEES LIP BALM - PACK OF 2", 1, "normalised"),
        ("1. opi nail lacquer red", 0, "normalised"),
        ("- OPI Nail Lacquer; Blue!", 8, "normalised"),
        ("CRE\u0300ME BRU\u0302LE\u0301E SET", 2, "normalised"),  # decomposed letters
        ("ＤＯＶＥ　Ｂｏｄｙ　Ｗａｓｈ", 4, "normalised"),  # full-width; of equal titles the most popular item
        ("Dove Body Wash", 4, "exact"),
        ("7. Heaven Mask", 5, "exact"),
        ("7. heaven mask", 5, "normalised"),
        ("2. 7. Heaven Mask", 5, "normalised"),
        ("id-6", 6, "exact"),
        ("☆☆☆", 7, "exact"),
        ("OPI Nail Laquer Red", 0, "fuzzy"),
        ("Dove Bodywash", 4, "fuzzy"),
        ("Something else entirely", -1, "rejected"),
        ("", -1, "rejected"),
        ("!!!", -1, "rejected"),
        ("Dove", -1, "rejected"),
    ],
)
def test_each_text_is_found_by_the_first_way_that_applies(grounder, text, item, how):
    found = grounder([text])
    assert (found.items.tolist(), found.provenance.tolist()) == ([item], [how])


def test_the_threshold_is_indel_similarity_of_the_normalised_texts():
    """Worked: "dove bodywash" (13) against "dove body wash" (14): one insertion of 27 letters, 1 − 1/27 = 96.3."""
    for threshold, how in ((96.2, "fuzzy"), (96.4, "rejected")):
        assert Grounder(CATALOG, POPULARITY, threshold)(["Dove Bodywash"]).provenance.tolist() == [how]


def test_every_item_of_a_nasty_catalog_finds_itself_or_its_twin(catalog):
    texts = catalog.texts()
    found = Grounder(catalog, np.arange(len(catalog)))(texts)
    assert set(found.provenance.tolist()) == {"exact"}
    assert [texts[item] for item in found.items] == texts


def test_many_texts_are_grounded_in_their_order(grounder):
    texts = ["Dove Body Wash", "nothing", "Dove Body Wash", "OPI Nail Laquer Red"]
    assert grounder(texts).items.tolist() == [4, -1, 4, 0]
    assert grounder([]).items.tolist() == []


@given(st.text(max_size=40))
def test_any_text_ends_as_an_item_or_rejected(text):
    found = Grounder(CATALOG, POPULARITY)([text])
    assert (found.items[0] == -1) == (found.provenance[0] == "rejected")
    assert -1 <= found.items[0] < len(CATALOG)
    assert normalise(normalise(text)) == normalise(text)


def test_an_answer_of_several_lines_is_a_list():
    assert entries("1. One\n\n  \n2. Two\r\nThree") == ["1. One", "2. Two", "Three"]
    assert entries(" \n") == []


def test_what_no_words_match_goes_to_the_nearest_item_that_is_near_enough():
    asked = []

    def nearest(texts):
        asked.append(list(texts))
        return np.array([3, 8, 1][: len(texts)]), np.array([0.5, 0.39, 0.4][: len(texts)])

    grounder = Grounder(CATALOG, POPULARITY, nearest=nearest, least_cosine=0.4)
    texts = ["Dove", "2. something blue", "Dove Bodywash", "", "Dove", "bees", "☆☆☆"]
    found = grounder(texts)
    # Each text once, as an entry; of the items that share item 3's title the most popular one.
    assert asked == [["Dove", "something blue", "bees"]]
    assert found.items.tolist() == [4, -1, 4, -1, 4, 1, 7]
    named = ["embedding", "rejected", "fuzzy", "rejected", "embedding", "embedding", "exact"]
    assert found.provenance.tolist() == named
    np.testing.assert_array_equal(found.cosine, [0.5, 0.39, np.nan, np.nan, 0.5, 0.4, np.nan])
    assert grounder(["Dove Body Wash"]).items.tolist() == [4]
    assert len(asked) == 1  # with nothing left over no model is asked
