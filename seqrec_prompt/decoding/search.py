"""Certified top-k over a catalog trie, for any engine that scores the next tokens of prefixes.

The log-probability of a prefix bounds that of every title below it. The search keeps the open prefixes of each session,
extends the best ones in batches, and stops when the k-th complete title scores at least as much as the best open
prefix: no title that was not looked at can be better, so the list is exact.

Scores are `renormalised`: at each branching point, softmax over the catalog's continuations only; forced tokens cost
nothing. The scores of all titles sum to one: they are the model's distribution over the catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, ranges

FloatArray = npt.NDArray[np.float64]


class PrefixScorer(Protocol):
    """What the search asks of an engine. A slot is the engine's number for a token it has read, with all before it.

    A session that one `extend` leaves out is over: the engine may forget it.
    """

    def prefill(self, prompts: Sequence[IntArray]) -> LongArray:
        """Begin one session per prompt, forgetting earlier ones; return (sessions,) the slot of each last token."""
        ...

    def extend(self, session: LongArray, slot: LongArray, runs: TokenLists) -> LongArray:
        """Read run i after slot[i] of session[i], all runs at once; return (runs,) the slots of their last tokens."""
        ...

    def logprobs(self, slot: LongArray, tokens: TokenLists) -> npt.NDArray[np.float32]:
        """Log p of each token of list i right after slot[i], log-softmax over the whole vocabulary; flat (total,)."""
        ...


@dataclass(frozen=True)
class Counts:
    """What a search cost, per session (sessions,): rounds after the prompt, tokens read after the prompt."""

    rounds: LongArray
    tokens: LongArray


@dataclass(frozen=True)
class Found:
    """Result of a search. The lists are flat: session i holds entries offsets[i]..offsets[i+1], best first.

    certified (sessions,): the list is the exact top-k. gap (sessions,): best prefix not followed to its end minus the
    last score of the list, inf while the list is short of k; a certified list has gap ≤ 0. outside (sessions,):
    probability that the first token begins no title.
    """

    offsets: LongArray
    items: IntArray
    scores: FloatArray
    certified: npt.NDArray[np.bool_]
    gap: FloatArray
    outside: FloatArray
    counts: Counts


def search(
    engine: PrefixScorer,
    trie: CatalogTrie,
    prompts: Sequence[IntArray],
    k: int,
    *,
    exclude: TokenLists | None = None,
    width: int = 20,
    budget: int = 2000,
) -> Found:
    """Find the k best items of each prompt under renormalised scores.

    exclude: item positions left out, one list a session; excluded titles take no part in a list, the distribution over
    the others stays as the model gives it. width: open prefixes read a round. budget: tokens read a session after the
    prompt, at most; a search that spends it returns what it has, uncertified, with the gap.
    """
    n = len(prompts)
    allowed = _Allowed(trie, n, exclude)
    done = _Pool(n)
    open_ = _Pool(n)
    rounds, spent = np.zeros(n, np.int64), np.zeros(n, np.int64)
    pruned = np.full(n, -np.inf)  # best prefix that was given up, a bound on everything below it

    slots = engine.prefill(prompts)
    sessions = np.arange(n)
    inside = _expand(engine, trie, allowed, done, open_, sessions, np.zeros(n, np.int64), np.zeros(n), slots)
    while True:
        worst = done.kth_score(k)
        hopeful = open_.score > worst[open_.session]
        np.maximum.at(pruned, open_.session[~hopeful], open_.score[~hopeful])
        open_.keep(hopeful)
        cost = trie.depth[open_.node] - trie.depth[trie.parent[open_.node]]
        chosen = open_.pop_best(width, cost, budget - spent)
        if not len(chosen.node):
            break
        runs = _edges(trie, chosen.node)
        slots = engine.extend(chosen.session, chosen.slot, runs)
        np.add.at(spent, chosen.session, runs.lengths)
        rounds[np.unique(chosen.session)] += 1
        _expand(engine, trie, allowed, done, open_, chosen.session, chosen.node, chosen.score, slots)
    np.maximum.at(pruned, open_.session, open_.score)
    return _result(trie, allowed, done, pruned, k, np.maximum(1 - inside, 0), Counts(rounds, spent))


def _expand(
    engine: PrefixScorer,
    trie: CatalogTrie,
    allowed: _Allowed,
    done: _Pool,
    open_: _Pool,
    session: LongArray,
    node: LongArray,
    score: FloatArray,
    slot: LongArray,
) -> FloatArray:
    """Score the children of branching nodes; leaves are complete, the rest is open. Returns (nodes,) their mass."""
    counts = trie.n_children[node].astype(np.int64)
    starts = offsets_of(counts)
    owner = np.repeat(np.arange(len(node)), counts)
    child = ranges(trie.first_child[node], counts)
    logp = engine.logprobs(slot, TokenLists(trie.token[child], starts)).astype(np.float64)
    peak = np.maximum.reduceat(logp, starts[:-1])
    log_mass = peak + np.log(np.add.reduceat(np.exp(logp - peak[owner]), starts[:-1]))
    child_score = score[owner] + logp - log_mass[owner]
    rows = session[owner]
    items = allowed.count(rows, child)
    leaf = trie.n_children[child] == 0
    for pool, part in ((done, leaf & (items > 0)), (open_, ~leaf & (items > 0))):
        pool.add(rows[part], child[part], child_score[part], slot[owner[part]], items[part])
    mass: FloatArray = np.exp(log_mass)
    return mass


def _edges(trie: CatalogTrie, node: LongArray) -> TokenLists:
    start, end = trie.depth[trie.parent[node]].astype(np.int64), trie.depth[node].astype(np.int64)
    offsets = offsets_of(end - start)
    first = trie.sequences.offsets[trie.lo[node]] + start
    entries = ranges(first, end - start)
    return TokenLists(trie.sequences.tokens[entries], offsets)


def _result(
    trie: CatalogTrie, allowed: _Allowed, done: _Pool, unseen: FloatArray, k: int, outside: FloatArray, counts: Counts
) -> Found:
    n = len(outside)
    order = np.lexsort((done.node, -done.score, done.session))
    leaf = trie.lo[done.node[order]]
    size = trie.item_ptr[leaf + 1] - trie.item_ptr[leaf]
    entry = ranges(trie.item_ptr[leaf], size)
    session, score, item = np.repeat(done.session[order], size), np.repeat(done.score[order], size), trie.items[entry]
    keep = allowed.item(session, item)
    session, score, item = session[keep], score[keep], item[keep]
    first = np.searchsorted(session, np.arange(n))
    keep = np.arange(len(session)) - first[session] < k
    session, score, item = session[keep], score[keep], item[keep]
    lengths = np.bincount(session, minlength=n)
    offsets = offsets_of(lengths)
    # A list shorter than k may still grow while prefixes are open; -inf stands for its missing last score.
    last = np.full(n, -np.inf)
    last[lengths >= k] = score[offsets[1:][lengths >= k] - 1]
    gap = np.where(np.isneginf(unseen), -np.inf, unseen - np.where(np.isneginf(last), 0, last))
    gap[np.isneginf(last) & ~np.isneginf(unseen)] = np.inf
    certified = unseen <= last
    return Found(offsets, item, score, certified, gap, outside, counts)


class _Allowed:
    """Which items each session may be given, counted below any node without touching the trie."""

    def __init__(self, trie: CatalogTrie, n: int, exclude: TokenLists | None) -> None:
        self.trie = trie
        exclude = exclude or TokenLists(np.empty(0, np.int32), np.zeros(n + 1, np.int64))
        session = np.repeat(np.arange(n), exclude.lengths)
        # One sorted key per excluded item: a range of leaves of one session is then a range of keys.
        leaf = trie.leaf_of[exclude.tokens].astype(np.int64)
        unique = np.unique(np.stack([session, leaf, exclude.tokens.astype(np.int64)]), axis=1)
        self.leaf_keys = unique[0] * trie.n_leaves + unique[1]
        self.item_keys = np.sort(unique[0] * trie.n_items + unique[2])

    def count(self, session: LongArray, node: LongArray) -> LongArray:
        """Number of items below each node that its session may be given."""
        lo, hi = self.trie.lo[node].astype(np.int64), self.trie.hi[node].astype(np.int64)
        base = session * self.trie.n_leaves
        excluded = np.searchsorted(self.leaf_keys, base + hi) - np.searchsorted(self.leaf_keys, base + lo)
        return self.trie.item_ptr[hi] - self.trie.item_ptr[lo] - excluded

    def item(self, session: LongArray, item: IntArray) -> npt.NDArray[np.bool_]:
        """Whether each session may be given each item."""
        return ~np.isin(session * self.trie.n_items + item, self.item_keys)


class _Pool:
    """Prefixes of many sessions as parallel arrays; `slot` is the parent's, `weight` the number of items below."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.session = self.node = self.slot = self.weight = np.empty(0, np.int64)
        self.score = np.empty(0)

    def add(self, session: LongArray, node: LongArray, score: FloatArray, slot: LongArray, weight: LongArray) -> None:
        self.session = np.concatenate([self.session, session])
        self.node = np.concatenate([self.node, node])
        self.score = np.concatenate([self.score, score])
        self.slot = np.concatenate([self.slot, slot])
        self.weight = np.concatenate([self.weight, weight])

    def keep(self, which: npt.NDArray[np.bool_] | LongArray) -> None:
        self.session, self.node, self.slot = self.session[which], self.node[which], self.slot[which]
        self.score, self.weight = self.score[which], self.weight[which]

    def kth_score(self, k: int) -> FloatArray:
        """(sessions,) score of each session's k-th best item; -inf while there are fewer."""
        order = np.lexsort((-self.score, self.session))
        session = self.session[order]
        total = np.cumsum(self.weight[order])
        before = np.concatenate([[0], total])[np.searchsorted(session, np.arange(self.n))]
        reached = total - before[session] >= k
        worst = np.full(self.n, -np.inf)
        np.maximum.at(worst, session[reached], self.score[order][reached])
        return worst

    def pop_best(self, width: int, cost: IntArray, room: LongArray) -> _Pool:
        """Take out each session's `width` best prefixes, as far as their `cost` (prefixes,) fits its `room`."""
        order = np.lexsort((-self.score, self.session))
        session = self.session[order]
        first = np.searchsorted(session, np.arange(self.n))
        total = np.concatenate([[0], np.cumsum(cost[order])])
        fits = total[1:] - total[first[session]] <= room[session]
        best = order[(np.arange(len(order)) - first[session] < width) & fits]
        chosen = _Pool(self.n)
        chosen.add(self.session[best], self.node[best], self.score[best], self.slot[best], self.weight[best])
        rest = np.ones(len(order), np.bool_)
        rest[best] = False
        self.keep(rest)
        return chosen
