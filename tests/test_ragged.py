"""Lists in flat arrays against the same in plain Python."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt import ragged
from seqrec_prompt.ragged import TokenLists

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=8)


@given(LISTS, st.data(), st.sampled_from([1, 3, 100]))
def test_take_moves_whole_lists_however_few_tokens_at_once(lists, data, at_once):
    which = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=12))
    usual, ragged.AT_ONCE = ragged.AT_ONCE, at_once
    try:
        taken = TokenLists.of(lists).take(np.array(which, np.int64))
    finally:
        ragged.AT_ONCE = usual
    assert [tokens.tolist() for tokens in taken] == [lists[i] for i in which]
    assert taken.tokens.dtype == np.int32
