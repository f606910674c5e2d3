"""Bad input is named by file, row and column, all of it at once, or dropped and counted."""

import pytest

from seqrec_prompt.data.prepare import PrepareConfig, prepare
from seqrec_prompt.errors import DataError

GOOD = [f"{s},{i},{100 * n + k}" for n, s in enumerate("abcdefghij") for k, i in enumerate(["x", "y", "z"])]
ITEMS = ["x,Apple", "y,Pear", "z,Plum"]


class Data:
    """Files of a small good data set, and what `prepare` makes of them."""

    def __init__(self, folder):
        self.folder = folder
        self.settings = {"time_column": "t", "out": folder / "out"}
        self.log(*GOOD)
        self.items(*ITEMS)

    def write(self, name, header, rows):
        text = "\n".join([header, *rows, ""])
        # Surrogate escapes stand for bytes that are not UTF-8.
        (self.folder / f"{name}.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
        self.settings[name] = str(self.folder / f"{name}.csv")

    def log(self, *rows, header="session_id,item_id,t"):
        self.write("interactions", header, rows)

    def items(self, *rows, header="item_id,title"):
        self.write("items", header, rows)

    def sessions(self, *rows, header="session_id,split"):
        self.write("sessions", header, rows)
        self.settings |= {"split": "column"}

    def prepare(self, **settings):
        return prepare(PrepareConfig(**self.settings | settings))

    def problems(self, **settings):
        with pytest.raises(DataError) as caught:
            self.prepare(**settings)
        assert sorted(p.name for p in self.folder.iterdir() if not p.name.endswith(".csv")) == []
        return caught.value.problems

    def dropped(self, **settings):
        dataset = self.prepare(on_bad="drop", **settings)
        split = dataset.split
        kept = len(split.train.items) + len(split.test.prompts.items) + len(split.test)
        return dataset.manifest["facts"]["dropped"], kept


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def test_good_data_has_no_problem(data):
    assert data.dropped() == ({}, 30)


@pytest.mark.parametrize(
    ("row", "problem", "kind"),
    [
        (",x,5", "interactions.csv: row 32, column session_id: the session id is empty", "empty session id"),
        ("a, ,5", "interactions.csv: row 32, column item_id: the item id is empty", "empty item id"),
        ("a,x,nan", "interactions.csv: row 32, column t: 'nan' is not a time", "bad time"),
        ("a,x,", "interactions.csv: row 32, column t: '' is not a time", "bad time"),
        ("a,x,inf", "interactions.csv: row 32, column t: 'inf' is not a time", "bad time"),
        ("a,x,soon", "interactions.csv: row 32, column t: 'soon' is not a time", "bad time"),
        ("a,w,5", "interactions.csv: row 32, column item_id: 'w' is not in items.csv", "unknown item id"),
        ("a,x", "interactions.csv: row 32: 2 cells where the header has 3", "ragged rows"),
        ("a,x,5,6", "interactions.csv: row 32: 4 cells where the header has 3", "ragged rows"),
        ("a,\udcff,5", "interactions.csv: row 32, column item_id: the cell is not UTF-8 text", "not UTF-8"),
        (
            "a,x,1318896000",
            "interactions.csv: column t: mixed time units: order numbers (row 2: '0') and seconds (row 32: "
            "'1318896000'; 1 row). --time-unit reads every number in one unit.",
            "mixed time units",
        ),
    ],
)
def test_a_bad_interaction(data, row, problem, kind):
    data.log(*GOOD, row)
    assert data.problems() == [problem]
    assert data.dropped() == ({kind: 1}, 30)


@pytest.mark.parametrize(
    ("row", "problem", "kind"),
    [
        (",Fig", "items.csv: row 5, column item_id: the item id is empty", "empty item id"),
        ("x,Fig", "items.csv: row 5, column item_id: 'x' is already in row 2", "duplicate item id"),
        ("w", "items.csv: row 5: 1 cell where the header has 2", "ragged rows"),
        ("w,\udcff", "items.csv: row 5, column title: the cell is not UTF-8 text", "not UTF-8"),
    ],
)
def test_a_bad_item(data, row, problem, kind):
    data.items(*ITEMS, row)
    assert data.problems() == [problem]
    assert data.dropped() == ({kind: 1}, 30)


SPLIT = [f"{s},{'test' if s in 'ij' else 'train'}" for s in "abcdefghij"]


@pytest.mark.parametrize(
    ("row", "problem", "kind"),
    [
        (",train", "sessions.csv: row 12, column session_id: the session id is empty", "empty session id"),
        ("a,train", "sessions.csv: row 12, column session_id: 'a' is already in row 2", "duplicate session id"),
        (
            "k,train",
            "sessions.csv: row 12, column session_id: session 'k' has no interaction in interactions.csv",
            "session with no item",
        ),
    ],
)
def test_a_bad_session(data, row, problem, kind):
    data.sessions(*SPLIT, row)
    assert data.problems() == [problem]
    assert data.dropped() == ({kind: 1}, 30)


def test_an_interaction_of_an_unknown_session(data):
    data.sessions(*SPLIT)
    data.log(*GOOD, "k,x,1", "k,y,2")
    assert data.problems() == [
        "interactions.csv: row 32, column session_id: 'k' is not in sessions.csv",
        "interactions.csv: row 33, column session_id: 'k' is not in sessions.csv",
    ]
    assert data.dropped() == ({"session not in the sessions file": 2}, 30)


def test_a_session_in_two_parts_of_the_split(data):
    rows = [f"{row},{'Test' if row[0] in 'ij' else 'train'}" for row in GOOD]
    rows[4] = "b,y,101,test"
    rows[5] = "b,z,102,test "
    data.log(*rows, header="session_id,item_id,t,split")
    assert data.problems(split="column") == [
        "interactions.csv: row 6, column split: session 'b' is 'test' here and 'train' in row 5"
    ]
    assert data.dropped(split="column") == ({"session in two parts of the split": 1}, 27)


def test_a_dropped_item_takes_its_interactions_along(data):
    data.items("x,Apple", "y,Pear", "z,\udcff")
    assert data.problems() == ["items.csv: row 4, column title: the cell is not UTF-8 text"]
    with pytest.raises(DataError, match=r"iconv -f CP1252 -t UTF-8 items\.csv > utf8-items\.csv"):
        data.prepare()
    assert data.dropped() == ({"not UTF-8": 1, "unknown item id": 10}, 20)


def test_mixed_units_name_both_and_the_minority_goes(data):
    rows = [f"{s},{i},{1318896000 + 100 * n + k}" for n, s in enumerate("abcdefghij") for k, i in enumerate("xyz")]
    rows[7] = "c,y,1318896201000"
    rows[8] = "c,z,1318896202000"
    data.log(*rows)
    assert data.problems() == [
        "interactions.csv: column t: mixed time units: seconds (row 2: '1318896000') and milliseconds (row 9: "
        "'1318896201000'; 2 rows). --time-unit reads every number in one unit."
    ]
    # Session c is left with one item, so it is too short.
    assert data.dropped() == ({"mixed time units": 2}, 27)


def test_all_problems_are_told_together(data):
    data.log(*GOOD, "a,x,nan", ",x,1", "a,q,2", "a,x")
    data.items(*ITEMS, "x,Fig")
    assert data.problems() == [
        "interactions.csv: row 35: 2 cells where the header has 3",
        "interactions.csv: row 33, column session_id: the session id is empty",
        "interactions.csv: row 32, column t: 'nan' is not a time",
        "items.csv: row 5, column item_id: 'x' is already in row 2",
        "interactions.csv: row 34, column item_id: 'q' is not in items.csv",
    ]
    assert data.dropped() == (
        {"ragged rows": 1, "empty session id": 1, "bad time": 1, "duplicate item id": 1, "unknown item id": 1},
        30,
    )


def test_five_examples_of_a_kind_and_the_number_of_the_others(data):
    data.log(*GOOD, *["a,x,never"] * 317)
    problems = data.problems()
    assert len(problems) == 5
    assert problems[0] == "interactions.csv: row 32, column t: 'never' is not a time"
    assert problems[4].endswith("\n  … and 312 more (bad time)")
    assert data.dropped() == ({"bad time": 317}, 30)


def test_missing_columns_are_fatal_and_name_the_nearest(data):
    data.log(*GOOD, header="session,item_id,tme")
    data.items(*ITEMS, header="item_id,titel")
    expected = [
        "interactions.csv: no column 'session_id'. It has: session, item_id, tme. Did you mean 'session'? "
        "Name it with --session-column.",
        "interactions.csv: no column 't'. It has: session, item_id, tme. Did you mean 'tme'? "
        "Name it with --time-column.",
        "items.csv: no column 'title'. It has: item_id, titel. Did you mean 'titel'? Name it with --title-column.",
    ]
    assert data.problems() == expected
    assert data.problems(on_bad="drop") == expected


def test_an_empty_table_is_fatal(data):
    data.log()
    data.items()
    expected = [
        "interactions.csv: the file has a header but no rows.",
        "items.csv: the file has a header but no rows.",
    ]
    assert data.problems() == expected
    assert data.problems(on_bad="drop") == expected


def test_missing_files_are_told_together(data):
    data.settings |= {"interactions": "gone.csv", "items": "lost.parquet"}
    assert data.problems() == ["gone.csv: no such file.", "lost.parquet: no such file."]


def test_nothing_left_is_an_error_even_when_dropping(data):
    data.log("a,x,never", "b,x,never")
    assert "no interaction is left" in data.problems(on_bad="drop")[0]
    data.log("a,x,1", "b,x,2")
    assert "no session is left" in data.problems(on_bad="drop")[0]


def test_blank_lines_are_no_problem_but_counted(data):
    data.log(*GOOD[:15], "", *GOOD[15:], "", "")
    assert data.dropped() == ({"blank row": 3}, 30)


def test_several_possible_split_columns(data):
    data.sessions(*[f"{row},x" for row in SPLIT], header="session_id,a_split,b_split")
    assert data.problems() == [
        "sessions.csv: several columns could be the split: a_split, b_split. Name one with --split-column."
    ]
    assert data.dropped(split_column="a_split") == ({}, 30)
