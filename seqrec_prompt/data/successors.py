"""What stood next to what in sessions, and how often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, places

LEAST = 2  # what stood there once may have done so by chance, and in the very session that is to be learned


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


def companions(sessions: Sessions, n_items: int, most: int) -> TokenLists:
    """(n_items,) lists: of each item i the `most` items j that most often stood next to it, twice at least.

    First those with the largest P(j|i) + Q(j|i), the shares of j among what directly followed i and among what directly
    went before it, compared as 32-bit numbers; ties in catalog order.
    """
    offsets, following, counts = successors(sessions, n_items)
    item = np.repeat(np.arange(n_items), np.diff(offsets))
    after = counts / np.bincount(item, counts, minlength=n_items)[item]
    before = counts / np.bincount(following, counts, minlength=n_items)[following]
    pairs = np.concatenate([item * n_items + following, following.astype(np.int64) * n_items + item])
    found, place = np.unique(pairs, return_inverse=True)
    shares = np.bincount(place, np.concatenate([after, before])).astype(np.float32)
    often = np.bincount(place, np.concatenate([counts, counts])) >= LEAST
    rows, other = np.divmod(found[often], n_items)
    order = np.lexsort((other, -shares[often], rows))
    rows, other = rows[order], other[order]
    keep = places(np.bincount(rows, minlength=n_items)) < most
    return TokenLists.by_row(rows[keep], other[keep].astype(np.int32), n_items)
