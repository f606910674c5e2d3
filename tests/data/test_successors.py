"""What followed what, against plain loops."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.data.successors import followers, successors

N_ITEMS = 6
item_lists = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=9), max_size=12)


def sessions_of(lists):
    return Sessions.build([f"s{i}" for i in range(len(lists))], lists)


@given(item_lists)
def test_successors_are_the_plain_count(lists):
    counted = Counter(pair for session in lists for pair in pairwise(session))
    offsets, following, counts = successors(sessions_of(lists), N_ITEMS)
    for item in range(N_ITEMS):
        part = slice(offsets[item], offsets[item + 1])
        expected = sorted((other, n) for (one, other), n in counted.items() if one == item)
        assert list(zip(following[part].tolist(), counts[part].tolist(), strict=True)) == expected


@given(item_lists, st.integers(1, 4))
def test_followers_are_those_that_came_twice_at_least_most_frequent_first(lists, most):
    counted = Counter(pair for session in lists for pair in pairwise(session))
    found = followers(sessions_of(lists), N_ITEMS, most)
    assert len(found) == N_ITEMS
    for item in range(N_ITEMS):
        after = [(-n, other) for (one, other), n in counted.items() if one == item and n >= 2]
        assert found[item].tolist() == [other for _, other in sorted(after)][:most]
