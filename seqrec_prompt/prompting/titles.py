"""Long titles, cut where they are told apart: what a model need not read to know which item is meant."""

from __future__ import annotations

import numpy as np

from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, ranges


def shorten(titles: TokenLists, most: int, end: IntArray) -> TokenLists:
    """Cut titles after `most` tokens, or after the token that tells them from every other, whichever is later.

    titles: each with what ends it. end: what ends a title that is cut. A title that would not get shorter stays as it
    is; equal titles stay equal, different ones different, and none becomes the beginning of another that it was not.
    """
    kept = np.maximum(most, told_apart(titles))
    cut = kept + len(end) < titles.lengths
    lengths = np.where(cut, kept + len(end), titles.lengths)
    offsets = offsets_of(lengths)
    tokens = titles.tokens[ranges(titles.offsets[:-1], lengths)].copy()  # of a cut title also what `end` now replaces
    tokens[ranges(offsets[1:][cut] - len(end), np.full(cut.sum(), len(end)))] = np.tile(end, cut.sum())
    return TokenLists(tokens, offsets)


def told_apart(titles: TokenLists) -> LongArray:
    """(titles,) tokens from the start that no title with another text begins with; all of them, if that many."""
    lists = [titles[i].tolist() for i in range(len(titles))]
    order = sorted(range(len(lists)), key=lists.__getitem__)
    needed = np.zeros(len(lists), np.int64)
    group: list[int] = []  # equal titles, one after the other
    before = 0  # tokens shared with the group before
    for place, item in enumerate(order):
        group.append(item)
        following = lists[order[place + 1]] if place + 1 < len(order) else []
        if following == lists[item]:
            continue
        after = _shared(lists[item], following)
        needed[group] = min(max(before, after) + 1, len(lists[item]))
        group, before = [], after
    return needed


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens two titles begin with alike."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
