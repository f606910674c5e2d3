"""Columns are told by name and checked by content; what cannot be told is asked for."""

import re

import pytest

from seqrec_prompt.data.columns import Found, find_columns, look
from seqrec_prompt.data.readers import open_source
from seqrec_prompt.errors import DataError


@pytest.fixture
def table(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return open_source(str(path))

    return write


@pytest.mark.parametrize(
    ("header", "row", "found"),
    [
        ("user_id,item_id,timestamp,title", "u,i,1400000000,Cup",
         Found("user_id", "item_id", "timestamp", "title", None)),
        ("SessionId,ItemID,Time", "s,i,2020-01-01", Found("SessionId", "ItemID", "Time", None, None)),
        ("InvoiceNo,StockCode,InvoiceDate,CustomerID,Description", "1,2,2011-12-01 08:26,3,CUP",
         Found("InvoiceNo", "StockCode", "InvoiceDate", "Description", None)),
        # a name that only contains what is looked for, when there is one such
        ("my_user_key,the_product_code,when", "u,p,2020-01-01T10:00:00",
         Found("my_user_key", "the_product_code", "when", None, None)),
        ("Customer,Product Code,Product Name", "c,p,Cup",
         Found("Customer", "Product Code", None, "Product Name", None)),
        # a session goes before a user
        ("user,session,item", "u,s,i", Found("session", "item", None, None, None)),
    ],
)  # fmt: skip
def test_columns_are_found_by_their_names(table, header, row, found):
    assert find_columns(table("a.csv", f"{header}\n{row}\n"), None, {}) == found


def test_a_column_named_like_a_time_must_hold_times(table):
    source = table("a.csv", "user_id,item_id,date\nu,i,soon\nu,j,later\n")
    assert find_columns(source, None, {}).time is None


def test_a_column_that_is_given_as_the_time_must_hold_times(table):
    source = table("a.csv", "user_id,item_id,bought\nu,i,2024-01-31\nu,j,31.01.2024\n")
    told = r"(?s)a\.csv: row 3, column bought: '31\.01\.2024' is no time, like 1 of 2\..*ISO 8601 text such as"
    with pytest.raises(DataError, match=told):
        find_columns(source, None, {"time": "bought"})


def test_a_column_of_dates_is_found_by_what_is_in_it(table):
    source = table("a.csv", "user_id,item_id,bought,price\nu,i,2020-01-01,3\nu,j,2020-01-02,4\n")
    assert find_columns(source, None, {}).time == "bought"


def test_a_split_column_must_have_train_and_test(table):
    two = "user_id,item_id,my_split\nu,i,{}\nv,j,Test\n"
    assert find_columns(table("a.csv", two.format("train")), None, {}).split == "my_split"
    assert find_columns(table("b.csv", two.format("other")), None, {}).split is None


def test_the_item_id_stands_in_both_files(table):
    log = table("log.csv", "user_id,sku,item\nu,a,x\n")
    items = table("items.csv", "sku,name\na,Cup\n")
    found = find_columns(log, items, {})
    assert (found.item, found.title) == ("sku", "name")


def test_the_only_column_of_both_files_is_the_item_id_whatever_its_name(table):
    log = table("log.csv", "Kunde;Artikel;Menge\n1;a;2\n")
    items = table("items.csv", "Artikel;Bezeichnung\na;Becher, rot\n")
    found = find_columns(log, items, {"session": "Kunde"})
    assert (found.item, found.title) == ("Artikel", None)


def test_what_is_given_is_taken(table):
    source = table("a.csv", "a,b,c,title\n1,2,3,4\n")
    found = find_columns(source, None, {"session": "a", "item": "b", "title": "c"})
    assert found == Found("a", "b", None, "c", None)


def test_what_cannot_be_told_is_asked_for_with_the_columns_there_are(table):
    with pytest.raises(DataError) as caught:
        find_columns(table("a.csv", "x,y\n1,2\n"), None, {})
    message = str(caught.value)
    assert "a.csv: cannot tell which column is the item id. It has: x, y. Name it: --item-column." in message
    assert "--session-column" in message


def test_files_without_a_shared_column_are_told_apart(table):
    log, items = table("log.csv", "user_id,item_id\nu,i\n"), table("items.csv", "asin,title\ni,Cup\n")
    with pytest.raises(DataError, match=re.escape("log.csv and items.csv share no column")):
        find_columns(log, items, {})


def test_a_given_column_must_exist(table):
    with pytest.raises(DataError, match=re.escape("a.csv: no column 'uid'. It has: user_id, item_id.")):
        find_columns(table("a.csv", "user_id,item_id\nu,i\n"), None, {"session": "uid"})


def test_what_the_settings_depend_on_is_measured(table):
    source = table(
        "a.csv",
        "user_id,item_id,timestamp,title\n"
        "u,i,1400000000,RED CUP\nu,i,1400000000,RED CUP\nu,j,1400000009,\nv,i,1400000001,RED CUP\n",
    )
    facts = look(source, None, find_columns(source, None, {}))
    assert (facts.rows, facts.sessions, facts.items) == (4, 2, 2)
    assert (facts.median_length, facts.longest) == (2, 3)
    assert facts.repeats == 1 / 4  # one row of four repeats an item of its session
    assert facts.ties == 1 / 2  # of two neighbouring pairs, both of u, one has one time
    assert (facts.time_form, facts.capitals, facts.no_title) == ("seconds", 1.0, 0.25)


def test_a_table_without_rows_is_refused(table):
    source = table("a.csv", "user_id,item_id\n")
    with pytest.raises(DataError, match=re.escape("a.csv: the file has a header but no rows.")):
        look(source, None, find_columns(source, None, {}))
