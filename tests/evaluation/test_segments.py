"""Kinds of sessions: every session is in one, and in the right one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.evaluation.segments import CATEGORIES, POPULARITY, by_category, by_length, popularity_classes


def test_lengths_go_by_doubling_steps():
    found = by_length(np.array([0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 1000]))
    assert [found.labels[i] for i in found.of] == [
        *("0", "1", "2–3", "2–3", "4–7", "4–7", "8–15", "8–15", "16–31", "16–31", "32 and more", "32 and more")
    ]
    assert by_length(np.array([9, 2])).labels == ["2–3", "8–15"]  # none without sessions


def test_popularity_worked_by_hand():
    # 18 interactions: 6 belong to the head, 6 more to the middle. An item is where its first interaction is.
    popularity = np.array([1, 7, 0, 5, 2, 3])
    assert [POPULARITY[i] for i in popularity_classes(popularity)] == ["tail", "head", "cold", "middle", "tail", "tail"]
    assert [POPULARITY[i] for i in popularity_classes(np.zeros(2, np.int64))] == ["cold", "cold"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_classes_go_down_with_popularity(counts):
    popularity = np.array(counts, np.int64)
    classes = popularity_classes(popularity)
    assert ((classes == 3) == (popularity == 0)).all()
    for upper in (0, 1):
        higher, lower = popularity[classes == upper], popularity[classes == upper + 1]
        if len(higher) and len(lower):
            assert higher.min() >= lower.max()
    if popularity.sum():
        # Without its last item the head has less than a third of the interactions.
        head = np.sort(popularity[classes == 0])
        assert 3 * head[1:].sum() < popularity.sum()
        assert 3 * head.sum() >= popularity.sum()


def test_rare_categories_go_together():
    values = [f"c{i:02}" for i in range(CATEGORIES + 5)] * 2 + ["c03"] * 4
    found = by_category("target kind", values)
    assert found.labels[0] == "c03"
    assert found.labels[-1] == "other categories"
    assert len(found.labels) == CATEGORIES + 1
    assert np.bincount(found.of).tolist() == [6, *[2] * (CATEGORIES - 1), 10]
