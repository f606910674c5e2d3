"""What followed what, against plain loops."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.data.successors import companions, successors

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
def test_companions_stood_beside_twice_at_least_the_largest_shares_first(lists, most):
    pairs = [pair for session in lists for pair in pairwise(session)]

    def share(near, item):
        return np.float32(0) if item not in near else near.count(item) / len(near)

    found = companions(sessions_of(lists), N_ITEMS, most)
    assert len(found) == N_ITEMS
    for item in range(N_ITEMS):
        after, before = [b for a, b in pairs if a == item], [a for a, b in pairs if b == item]
        ranked = sorted(
            (-np.float32(share(after, other) + share(before, other)), other)
            for other in range(N_ITEMS)
            if (after + before).count(other) >= 2
        )
        assert found[item].tolist() == [other for _, other in ranked][:most]
