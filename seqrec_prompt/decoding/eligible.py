"""Which items each session may be given: seen items, allow and deny lists, stock. The trie is never rebuilt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Filters:
    """Filters of a batch of n sessions; items are catalog positions.

    deny: n lists of items left out. allow: n lists of the only items admitted, counted where `limited` (n,) is True
    (default: for all n). stock: (items,) True where an item can be had, for every session alike.
    """

    deny: TokenLists | None = None
    allow: TokenLists | None = None
    limited: BoolArray | None = None
    stock: BoolArray | None = None


def one_of_each_title(trie: CatalogTrie, n: int, filters: Filters) -> Filters:
    """`filters` of n sessions, and of the items that share a title only the first that a session may be given.

    First in the order of the trie, the most popular before the others.
    """
    sizes = np.diff(trie.item_ptr)
    shared = np.repeat(sizes > 1, sizes)
    twins, sizes = trie.items[shared], sizes[sizes > 1]
    if not len(twins):
        return filters
    session = np.repeat(np.arange(n), len(twins))
    able = Eligible(trie, n, filters).items(session, np.tile(twins, n)).reshape(n, -1)
    before: LongArray = np.cumsum(able, axis=1) - able  # twins further left; those of the same title are what counts
    first = np.cumsum(sizes) - sizes
    later = able & (before > np.repeat(before[:, first], sizes, axis=1))
    rows, column = np.nonzero(later)
    deny = filters.deny or TokenLists(np.empty(0, np.int32), np.zeros(n + 1, np.int64))
    both = np.concatenate([deny.rows, rows]), np.concatenate([deny.tokens, twins[column]])
    return replace(filters, deny=TokenLists.by_row(*both, n))


class Eligible:
    """Counts, below any node of the trie, the items that each session may be given.

    A list becomes one sorted key an item, session · leaves + leaf rank: the items of a session below a node, whose
    leaves are a range, are then a range of keys, and two binary searches count them.
    """

    def __init__(self, trie: CatalogTrie, n: int, filters: Filters) -> None:
        self._trie, self._stock = trie, filters.stock
        self._in_stock = None if filters.stock is None else np.concatenate([[0], np.cumsum(filters.stock[trie.items])])
        self._deny = self._keys(filters.deny)
        self._allow, self._limited = None, np.zeros(n, np.bool_)
        if filters.allow is not None:
            self._allow = self._keys(filters.allow, self._deny[1])
            self._limited = np.ones(n, np.bool_) if filters.limited is None else filters.limited

    def below(self, session: LongArray, node: LongArray) -> LongArray:
        """Number of items below each node that its session may be given."""
        trie = self._trie
        lo, hi = trie.lo[node].astype(np.int64), trie.hi[node].astype(np.int64)
        first, last = trie.item_ptr[lo], trie.item_ptr[hi]
        count = last - first if self._in_stock is None else self._in_stock[last] - self._in_stock[first]
        count -= self._within(self._deny[0], session, lo, hi)
        if self._allow is not None:
            count = np.where(self._limited[session], self._within(self._allow[0], session, lo, hi), count)
        return count

    def items(self, session: LongArray, item: IntArray) -> BoolArray:
        """Whether each session may be given each item."""
        keys = session * self._trie.n_items + item
        fine = ~np.isin(keys, self._deny[1])
        if self._stock is not None:
            fine &= self._stock[item]
        if self._allow is not None:
            fine &= ~self._limited[session] | np.isin(keys, self._allow[1])
        return fine

    def _within(self, keys: LongArray, session: LongArray, lo: LongArray, hi: LongArray) -> LongArray:
        base = session * self._trie.n_leaves
        return np.searchsorted(keys, base + hi) - np.searchsorted(keys, base + lo)

    def _keys(self, lists: TokenLists | None, without: LongArray | None = None) -> tuple[LongArray, LongArray]:
        """Sorted keys by leaf and by item of what is in stock, each item once, without those of `without`."""
        if lists is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        session = np.repeat(np.arange(len(lists)), lists.lengths)
        by_item = np.unique(session * self._trie.n_items + lists.tokens)
        if without is not None:
            by_item = by_item[~np.isin(by_item, without)]
        session, item = np.divmod(by_item, self._trie.n_items)
        if self._stock is not None:
            session, item, by_item = (array[self._stock[item]] for array in (session, item, by_item))
        return np.sort(session * self._trie.n_leaves + self._trie.leaf_of[item]), by_item
