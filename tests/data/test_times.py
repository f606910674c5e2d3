"""Times in any unit become Unix seconds."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data.times import FORMS, parse_times


def seconds(*cells: str, unit: str = "auto") -> list[float]:
    return parse_times(pa.array(cells, pa.large_string()), unit).seconds.tolist()


@pytest.mark.parametrize(
    ("cell", "form"),
    [
        ("1318896000", "seconds"),
        ("1318896000000", "milliseconds"),
        ("1318896000000000", "microseconds"),
        ("1318896000000000000", "nanoseconds"),
        ("1.318896e9", "seconds"),
        ("2011-10-18", "dates"),
        ("2011-10-18T00:00:00Z", "dates"),
        ("2011-10-18 02:00:00+02:00", "dates"),
        (" 2011-10-18 00:00:00.000 ", "dates"),
    ],
)
def test_the_same_moment_in_every_form(cell, form):
    times = parse_times(pa.array([cell], pa.large_string()))
    assert times.seconds.tolist() == [1318896000.0]
    assert FORMS[times.main] == form


@given(
    st.datetimes(datetime(1990, 1, 2), datetime(2099, 12, 30)),
    st.sampled_from([("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]),
)
def test_the_unit_is_detected_for_every_plausible_date(moment, unit):
    name, factor = unit
    whole = int(moment.replace(tzinfo=UTC).timestamp())
    assert seconds(str(whole * factor)) == pytest.approx([whole])
    assert seconds(str(whole * factor), unit=name) == pytest.approx([whole])


def test_order_numbers_are_kept():
    assert seconds("0", "1", "2", "-3", "2.5") == [0, 1, 2, -3, 2.5]


def test_a_given_unit_overrules_the_window():
    assert seconds("5000", unit="ms") == [5.0]
    assert seconds("5", "1318896000", unit="s") == [5.0, 1318896000.0]


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "inf", "-inf", "soon", "2011-13-01", "1_000", "None"])
def test_what_is_not_a_time_is_bad(cell):
    times = parse_times(pa.array([cell, "5"], pa.large_string()))
    assert times.bad.tolist() == [True, False]
    assert not times.odd.any()


def test_the_minority_unit_is_odd():
    times = parse_times(pa.array(["1318896000", "1318896000000", "1318896001", "2011-10-18", "7", "x"]))
    assert times.odd.tolist() == [False, True, False, True, True, False]
    assert np.isnan(times.seconds[5])


def test_an_empty_column():
    assert len(parse_times(pa.array([], pa.large_string())).seconds) == 0


@given(st.lists(st.text("0123456789.eE+-naif xX_", max_size=8), min_size=1, max_size=5))
def test_a_column_of_numbers_is_read_as_its_cells_are_one_by_one(cells):
    """Columns of numbers alone take another way, through Arrow's parser; a date beside them forces Python's."""
    together = parse_times(pa.array(cells, pa.large_string()), "s")
    apart = parse_times(pa.array([*cells, "2011-10-18"], pa.large_string()), "s")
    np.testing.assert_array_equal(together.seconds, apart.seconds[:-1])
    np.testing.assert_array_equal(together.bad, apart.bad[:-1])
