"""The catalog's token sequences as a radix trie in flat arrays.

A node is the root, a branching point or a leaf; the tokens between two nodes are forced and stored once, in the leaves'
sequences. Only branching points need a decision, so a title of twenty tokens costs about three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from seqrec_prompt.errors import TemplateError
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of


@dataclass(frozen=True, eq=False)
class CatalogTrie:
    """A compiled catalog. Nodes are numbered breadth first, so the children of a node are consecutive; 0 is the root.

    Per node (nodes,): `first_child` and `n_children` (0 at a leaf), `parent` (-1 at the root), `token`, the first token
    of the edge into it, `depth`, tokens from the root to the node's end, `lo`/`hi`, the range of leaf ranks below it.
    Leaves are ranked in the order of their token sequences: `leaves` (leaf ranks → sequence in `sequences`), and the
    items of leaf rank r are `items[item_ptr[r]:item_ptr[r+1]]`, best first by the priority given at compile time.
    `leaf_of` (catalog,) is the leaf rank of each item.
    """

    first_child: IntArray
    n_children: IntArray
    parent: IntArray
    token: IntArray
    depth: IntArray
    lo: IntArray
    hi: IntArray
    sequences: TokenLists
    item_ptr: LongArray
    items: IntArray
    leaf_of: IntArray

    def __len__(self) -> int:
        return len(self.token)

    @property
    def n_items(self) -> int:
        """Number of items, those with equal titles counted apart."""
        return len(self.items)

    @property
    def n_leaves(self) -> int:
        """Number of distinct token sequences."""
        return len(self.sequences)

    def children(self, node: int) -> npt.NDArray[np.int64]:
        """Node numbers of a node's children, by token."""
        return np.arange(self.first_child[node], self.first_child[node] + self.n_children[node])

    def edge(self, node: int) -> IntArray:
        """Tokens of the edge into `node`, the deciding one first."""
        return self.path(node)[self.depth[self.parent[node]] :]

    def path(self, node: int) -> IntArray:
        """Tokens from the root to the end of `node`."""
        return self.sequences[int(self.lo[node])][: self.depth[node]]

    def items_at(self, leaf: int) -> IntArray:
        """Items whose titles share one token sequence, best first."""
        return self.items[self.item_ptr[leaf] : self.item_ptr[leaf + 1]]

    @cached_property
    def decisions(self) -> tuple[LongArray, IntArray, IntArray]:
        """Where each leaf's sequence is decided: (ptr, position, node).

        Entries ptr[r]..ptr[r+1] of leaf rank r: at token `position` of its sequence, the branching `node` it leaves.
        """
        leaf, position, branch = [], [], []
        nodes: IntArray = np.flatnonzero(self.n_children == 0).astype(np.int32)  # one leaf node per leaf rank
        rank = self.lo[nodes]
        while (up := self.parent[nodes]).max(initial=-1) >= 0:
            inner = up >= 0
            nodes, rank = up[inner], rank[inner]
            leaf.append(rank)
            position.append(self.depth[nodes])
            branch.append(nodes)
        flat = np.concatenate([*leaf, np.empty(0, np.int32)]).astype(np.int64)
        where = np.concatenate([*position, np.empty(0, np.int32)]).astype(np.int32)
        order = np.lexsort((where, flat))
        ptr = offsets_of(np.bincount(flat, minlength=self.n_leaves))
        node = np.concatenate([*branch, np.empty(0, np.int32)]).astype(np.int32)
        return ptr, where[order], node[order]

    def highest_below(self, values: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64] | None:
        """(nodes,) the highest of `values` (leaves,) among the leaves below each node; None for None."""
        if values is None:
            return None
        # reduceat reads bounds lo, hi, lo, hi, …: every other answer is that of a node. The value at the end is for hi.
        highest: npt.NDArray[np.float64] = np.maximum.reduceat(
            np.append(values, -np.inf), np.stack([self.lo, self.hi], axis=1).ravel()
        )[::2]
        return highest

    def describe(self) -> str:
        """One line for people: sizes and how much is forced."""
        branches = int((self.n_children > 0).sum())
        ptr = self.decisions[0]
        return (
            f"{self.n_items:,} items, {self.n_leaves:,} distinct titles, {len(self.sequences.tokens):,} tokens; "
            f"{branches:,} branching points, {np.diff(ptr).mean():.2f} decisions a title (most {np.diff(ptr).max()})"
        )


def compile_trie(titles: TokenLists, priority: npt.NDArray[np.int64] | None = None) -> CatalogTrie:
    """Build the trie of `titles`, one token sequence an item, each with its end token.

    Items with equal sequences share a leaf, ordered by falling `priority` (items,), then by catalog order; none is
    lost. Raises TemplateError when one sequence is empty or begins another: then the end of a title is ambiguous.
    """
    n_items = len(titles)
    if n_items == 0:
        raise TemplateError("The catalog is empty: there is nothing to decode.")
    if titles.lengths.min() == 0:
        raise TemplateError(f"Item {int(titles.lengths.argmin())} of the catalog, from 0, has no tokens.")
    leaf_of, first, counts = _sorted_leaves(titles)
    sequences = titles.take(first)
    common = _common_prefixes(sequences)
    short = np.flatnonzero(common == sequences.lengths[:-1])
    if len(short):
        raise TemplateError(
            f"The tokens of item {int(first[short[0]])} begin those of item {int(first[short[0] + 1])}: "
            "the template's end token must end every title and occur in none."
        )
    popularity = np.zeros(n_items, np.int64) if priority is None else priority
    items = np.lexsort((np.arange(n_items), -popularity, leaf_of)).astype(np.int32)
    item_ptr = offsets_of(counts)
    first_child, n_children, parent, token, depth, lo, hi = _nodes(sequences, common)
    return CatalogTrie(first_child, n_children, parent, token, depth, lo, hi, sequences, item_ptr, items, leaf_of)


def _sorted_leaves(titles: TokenLists) -> tuple[IntArray, LongArray, LongArray]:
    """Rank distinct sequences: (leaf rank of each item, one item of each leaf, number of items of each leaf)."""
    # Big-endian bytes of equal width compare like the token sequences they encode.
    data = titles.tokens.astype(">u4").tobytes()
    bounds = (titles.offsets * 4).tolist()
    keys = [data[a:b] for a, b in pairwise(bounds)]
    del data, bounds  # as large as the keys, which sorting needs room beside
    order = sorted(range(len(keys)), key=keys.__getitem__)
    new = np.array([True] + [keys[a] != keys[b] for a, b in pairwise(order)])
    rank = np.cumsum(new) - 1
    positions = np.array(order, np.int64)
    leaf_of = np.empty(len(order), np.int32)
    leaf_of[positions] = rank
    return leaf_of, positions[new], np.bincount(rank).astype(np.int64)


def _common_prefixes(sequences: TokenLists) -> LongArray:
    """(leaves-1,) number of leading tokens that each sequence shares with the next."""
    common = np.zeros(len(sequences) - 1, np.int64)
    limit = np.minimum(sequences.lengths[:-1], sequences.lengths[1:])
    alive = np.flatnonzero(limit > 0)
    while len(alive):
        at = common[alive]
        same = sequences.tokens[sequences.offsets[alive] + at] == sequences.tokens[sequences.offsets[alive + 1] + at]
        alive = alive[same]
        common[alive] += 1
        alive = alive[common[alive] < limit[alive]]
    return common


def _nodes(sequences: TokenLists, common: LongArray) -> list[IntArray]:
    """Make the node arrays from sorted distinct sequences and their neighbours' common prefix lengths.

    The branching nodes are the intervals of leaves that share more tokens than their surroundings; a stack finds them
    in one pass (Kasai et al. 2001, as for suffix arrays).
    """
    n = len(sequences)
    # Each open interval: [tokens shared, first leaf]. Closed ones go to `found` as (depth, lo, hi).
    found: list[tuple[int, int, int]] = []
    stack: list[tuple[int, int]] = [(0, 0)]
    for leaf, shared in enumerate(common.tolist()):
        start = leaf
        while stack[-1][0] > shared:
            depth, start = stack.pop()
            found.append((depth, start, leaf + 1))
        if stack[-1][0] < shared:
            stack.append((shared, start))
    while stack:
        depth, start = stack.pop()
        found.append((depth, start, n))
    leaves = np.stack([sequences.lengths, np.arange(n), np.arange(n) + 1], axis=1)
    every = np.concatenate([np.array(found, np.int64).reshape(-1, 3), leaves])
    del found, leaves
    # Preorder: by first leaf, outer intervals before inner ones. The parent is the innermost interval still open.
    every = every[np.lexsort((every[:, 0], every[:, 1]))]
    parent, level = _nesting(every[:, 1].tolist(), every[:, 2].tolist())
    # Intervals of one level do not overlap: ordered by first leaf, siblings stand together, as their parents do.
    breadth_first = np.lexsort((every[:, 1], level))
    renumbered = np.empty(len(every), np.int64)
    renumbered[breadth_first] = np.arange(len(every))
    depth, lo, hi = every[breadth_first].T
    parent = renumbered[parent[breadth_first]]
    parent[0] = -1
    n_children = np.bincount(parent[1:], minlength=len(every))
    first_child = np.where(n_children > 0, 1 + offsets_of(n_children)[:-1], 0)
    token = np.full(len(every), -1, np.int64)
    token[1:] = sequences.tokens[sequences.offsets[lo[1:]] + depth[parent[1:]]]
    return [array.astype(np.int32) for array in (first_child, n_children, parent, token, depth, lo, hi)]


def _nesting(lo: list[int], hi: list[int]) -> tuple[LongArray, LongArray]:
    """For nested intervals in preorder: the parent of each (0 for the root too) and how many enclose it."""
    parent, level = np.zeros(len(lo), np.int64), np.zeros(len(lo), np.int64)
    enclosing: list[int] = []
    for node, start in enumerate(lo):
        while enclosing and hi[enclosing[-1]] <= start:
            enclosing.pop()
        if enclosing:
            parent[node], level[node] = enclosing[-1], len(enclosing)
        enclosing.append(node)
    return parent, level
