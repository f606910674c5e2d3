"""Allow and deny lists and stock, from tables to filters."""

import numpy as np
import pytest

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.errors import DataError
from seqrec_prompt.recommenders.rules import Rules, load_rules

CATALOG = Catalog(["10", "11", "12", "13"], ["ten", "eleven", "twelve", "thirteen"])
SESSIONS = Sessions.build(["a", "b", "c"], [[0, 1], [2], []])


def as_lists(texts):
    return None if texts is None else [sorted(items.tolist()) for items in texts]


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / f"table{len(list(tmp_path.iterdir()))}.csv"
        path.write_text(text)
        return path

    return write


def test_without_rules_everything_may_be_given():
    filters = load_rules(CATALOG).filters(SESSIONS, exclude_seen=False)
    assert as_lists(filters.deny) == [[], [], []]
    assert filters.allow is None
    assert filters.stock is None


def test_seen_items_are_denied_beside_those_of_the_list(table):
    rules = load_rules(CATALOG, deny=table("session_id,item_id\nb,10\nb,13\nelsewhere,11\n"))
    assert as_lists(rules.filters(SESSIONS, exclude_seen=True).deny) == [[0, 1], [0, 2, 3], []]
    assert as_lists(rules.filters(SESSIONS, exclude_seen=False).deny) == [[], [0, 3], []]


def test_only_the_sessions_that_are_named_are_limited(table):
    filters = load_rules(CATALOG, allow=table("session_id,item_id\na,12\na,13\n")).filters(SESSIONS, exclude_seen=False)
    assert as_lists(filters.allow) == [[2, 3], [], []]
    assert filters.limited.tolist() == [True, False, False]


def test_a_session_whose_allowed_items_are_all_unknown_is_given_none(table, capsys):
    path = table("session_id,item_id\na,12\nc,99\n")
    filters = load_rules(CATALOG, allow=path).filters(SESSIONS, exclude_seen=False)
    assert filters.limited.tolist() == [True, False, True]
    assert as_lists(filters.allow) == [[2], [], []]
    assert capsys.readouterr().out == f"{path}: 1 of 2 items are not in the catalog, e.g. '99'\n"


def test_stock_is_one_mark_an_item(table):
    filters = load_rules(CATALOG, out_of_stock=table("item_id,since\n11,yesterday\n99,ever\n")).filters(
        SESSIONS, exclude_seen=False
    )
    assert filters.stock.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("session,item_id\na,10\n", r"no column 'session_id' \(it has: session, item_id\)"),
        ("session_id,item_id\na,98\nb,99\n", "column item_id: none of its 2 items is in the catalog"),
        ("session_id,item_id\na,10\nb\n", "row 3: 1 cells, not 2"),
    ],
)
def test_a_table_that_does_not_fit_is_explained(table, text, message):
    with pytest.raises(DataError, match=message):
        load_rules(CATALOG, deny=table(text))


def test_rules_can_be_made_in_code():
    rules = Rules(deny={"a": np.array([3], np.int32)}, stock=np.array([True, True, False, True]))
    filters = rules.filters(SESSIONS, exclude_seen=False)
    assert as_lists(filters.deny) == [[3], [], []]
    assert filters.stock.tolist() == [True, True, False, True]
