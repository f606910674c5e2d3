"""What directly followed what in sessions, and how often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, places

LEAST = 2  # what followed once may have followed by chance, and is the very session that is to be learned


def successors(sessions: Sessions, n_items: int) -> tuple[LongArray, IntArray, LongArray]:
    """Count consecutive pairs: (offsets, following, counts).

    What followed item i is `following[offsets[i]:offsets[i+1]]`, in catalog order, so often as `counts` says; offsets
    are (n_items+1,), the others (distinct pairs,).
    """
    rows = sessions.rows
    together = rows[:-1] == rows[1:]
    pairs, counts = np.unique(
        sessions.items[:-1][together].astype(np.int64) * n_items + sessions.items[1:][together], return_counts=True
    )
    item, following = np.divmod(pairs, n_items)
    return offsets_of(np.bincount(item, minlength=n_items)), following.astype(np.int32), counts.astype(np.int64)


def most_frequent(
    offsets: LongArray, following: IntArray, counts: npt.NDArray[np.int64]
) -> tuple[IntArray, npt.NDArray[np.int64]]:
    """Put what `successors` found in order: the most frequent first, ties in catalog order; offsets stay."""
    order = np.lexsort((following, -counts, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))))
    return following[order], counts[order]


def followers(sessions: Sessions, n_items: int, most: int) -> TokenLists:
    """(n_items,) lists: of each item the `most` items that most often followed it, twice at least."""
    offsets, following, counts = successors(sessions, n_items)
    following, counts = most_frequent(offsets, following, counts)
    keep = (places(np.diff(offsets)) < most) & (counts >= LEAST)
    rows = np.repeat(np.arange(n_items), np.diff(offsets))[keep]
    return TokenLists.by_row(rows, following[keep], n_items)
