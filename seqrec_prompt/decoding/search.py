"""Certified top-k over a catalog trie, for any engine that scores the next tokens of prefixes.

The score of a prefix bounds that of every title below it. The search keeps the open prefixes of each session, reads the
best ones on in batches, and stops when the k-th complete title scores at least as much as the best open prefix: no
title that was not looked at can be better, so the list is exact.

Two scores. `renormalised`: at each branching point, softmax over the catalog's continuations only; forced tokens cost
nothing. The scores of all titles sum to one: they are the model's distribution over the catalog. `joint`: the model's
own log p(title | prompt), every token counted. To either, a `bonus` a title can be added: with −λ·log p(title | no
session) it is the prior-corrected score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from seqrec_prompt.console import progress
from seqrec_prompt.decoding.eligible import Eligible, Filters
from seqrec_prompt.decoding.frontier import FloatArray, Prefixes
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, ranges

Scoring = Literal["renormalised", "joint"]


class PrefixScorer(Protocol):
    """What the search asks of an engine. A slot is the engine's number for a token it has read, with all before it.

    A session that one `extend` leaves out is over, and the engine may forget it, unless `prefill` was told to `keep`.
    """

    def prefill(self, prompts: Sequence[IntArray], shared: int = 0, *, keep: bool = False) -> LongArray:
        """Begin one session per prompt, forgetting earlier ones; return (sessions,) the slot of each last token.

        The first `shared` tokens are the same in all prompts, and most often in those of the next call, too. keep:
        remember all sessions until the next prefill.
        """
        ...

    def extend(self, session: LongArray, slot: LongArray, runs: TokenLists) -> LongArray:
        """Read run i after slot[i] of session[i], all runs at once; return (tokens,) the slot of every token read."""
        ...

    def logprobs(self, slot: LongArray, tokens: TokenLists, *, relative: bool = False) -> npt.NDArray[np.float32]:
        """Log p of each token of list i right after slot[i], log-softmax over the whole vocabulary; flat (total,).

        relative: the tokens of a list are only compared with each other; any number may be added to all of a list.
        """
        ...


@dataclass(frozen=True)
class Counts:
    """What a search cost, per session (sessions,): rounds after the prompt, tokens read after the prompt."""

    rounds: LongArray
    tokens: LongArray


@dataclass(frozen=True)
class Found:
    """Result of a search. The lists are flat: session i holds entries offsets[i]..offsets[i+1], best first.

    certified (sessions,): the list is the exact top-k. gap (sessions,): the most that anything not followed to its end
    can score minus the last score of the list, inf while the list is short of k; a certified list has gap ≤ 0.
    outside (sessions,): probability that the first token begins no title.
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
    scoring: Scoring = "renormalised",
    bonus: FloatArray | None = None,
    filters: Filters | None = None,
    width: int = 20,
    stride: int = 8,
    budget: int = 2000,
    shared: int = 0,
) -> Found:
    """Find the k best items of each prompt.

    bonus: (leaves,) added to the score of each title. filters: items that sessions may not be given; the scores of the
    others stay as they are. width: open prefixes read a round. stride: forced tokens read at most before a title
    under `joint` scores is weighed again. budget: tokens read a session after the prompt, at most; a search that
    spends it returns what it has, uncertified, with the gap. shared: first tokens that all prompts have in common.
    """
    return search_after(
        engine, trie, engine.prefill(prompts, shared), k, scoring=scoring, bonus=bonus, filters=filters, width=width,
        stride=stride, budget=budget,
    )  # fmt: skip


def search_after(
    engine: PrefixScorer,
    trie: CatalogTrie,
    slots: LongArray,
    k: int | LongArray,
    *,
    scoring: Scoring = "renormalised",
    bonus: FloatArray | None = None,
    filters: Filters | None = None,
    width: int = 20,
    stride: int = 8,
    budget: int = 2000,
) -> Found:
    """Find the k best items after each slot (sessions,) of what the engine has read; k may differ by session.

    The settings are those of `search`.
    """
    n = len(slots)
    k = np.broadcast_to(np.asarray(k, np.int64), n)
    run = _Run(engine, trie, Eligible(trie, n, filters or Filters()), scoring, trie.highest_below(bonus))
    rounds, spent, room = np.zeros(n, np.int64), np.zeros(n, np.int64), np.full(n, budget)
    unseen = np.full(n, -np.inf)  # the best that was given up bounds everything not looked at

    inside = run.decide(np.arange(n), np.zeros(n, np.int64), np.zeros(n), slots, absolute=True)
    while True:
        worst = run.done.kth(k, n)
        hopeful = run.open.bound > worst[run.open.session]
        np.maximum.at(unseen, run.open.session[~hopeful], run.open.bound[~hopeful])
        run.open = run.open[hopeful]
        # Under joint scores every token costs: complete lists first, as a beam does, then whatever could beat them.
        deep = np.isneginf(worst) & (scoring == "joint")
        chosen = run.open.best(width, run.next_run(run.open, stride), room, deep)
        if not len(chosen):
            break
        going, lengths = run.open.session[chosen], run.next_run(run.open[chosen], stride)
        np.add.at(spent, going, lengths)
        rounds[np.unique(going)] += 1
        # A session whose best does not fit the budget any more is over, though something shorter might.
        room = np.where(np.isin(np.arange(n), going), budget - spent, 0)
        run.read_on(chosen, lengths)
    np.maximum.at(unseen, run.open.session, run.open.bound)
    return _result(run, unseen, k, np.maximum(1 - inside, 0), Counts(rounds, spent))


def score_catalog(
    engine: PrefixScorer, trie: CatalogTrie, prompt: IntArray, *, scoring: Scoring = "renormalised", block: int = 1024
) -> FloatArray:
    """(leaves,) score of every title after one prompt, by walking the whole trie, about `block` tokens at a time."""
    scores = np.empty(trie.n_leaves)
    edge = trie.depth - np.where(trie.parent < 0, 0, trie.depth[trie.parent])
    if scoring == "renormalised":
        edge = np.where(trie.n_children == 0, 0, edge)  # past its last decision a title is not read
    part = np.cumsum(np.bincount(trie.lo, edge, trie.n_leaves)) // block
    everything = len(trie.sequences.tokens)
    with progress(trie.n_leaves, "score the catalog", "titles") as bar:
        for leaves in np.split(np.arange(trie.n_leaves), np.flatnonzero(np.diff(part)) + 1):
            items = trie.items[trie.item_ptr[leaves]]
            only = Filters(allow=TokenLists(items, np.array([0, len(items)])))
            found = search(
                engine, trie, [prompt], len(leaves), scoring=scoring, filters=only,
                width=everything, stride=everything, budget=everything,
            )  # fmt: skip
            scores[trie.leaf_of[found.items]] = found.scores
            bar.update(len(leaves))
    return scores


class _Run:
    """The state of one search: open and complete prefixes of all its sessions."""

    def __init__(
        self, engine: PrefixScorer, trie: CatalogTrie, eligible: Eligible, scoring: Scoring, bonus: FloatArray | None
    ) -> None:
        self.engine, self.trie, self.eligible, self.bonus = engine, trie, eligible, bonus
        self.joint = scoring == "joint"
        self.open, self.done = Prefixes.none(), Prefixes.none()

    def next_run(self, prefixes: Prefixes, stride: int) -> LongArray:
        """(prefixes,) tokens that each reads next: to the end of its edge, under joint scores at most `stride`."""
        # Nothing is asked after the last token of a title, so it need not be read.
        rest = self.trie.depth[prefixes.node] - prefixes.read - (self.trie.n_children[prefixes.node] == 0)
        lengths: LongArray = np.minimum(rest, stride) if self.joint else rest
        return lengths

    def read_on(self, chosen: LongArray, lengths: LongArray) -> None:
        """Read each chosen open prefix on by `lengths` tokens; score what comes after them."""
        trie, rest = self.trie, np.ones(len(self.open), np.bool_)
        rest[chosen] = False
        moved, self.open = self.open[chosen], self.open[rest]
        self.open.fresh = np.zeros(len(self.open), np.bool_)
        start = trie.sequences.offsets[trie.lo[moved.node]] + moved.read
        runs = TokenLists(trie.sequences.tokens[ranges(start, lengths)], offsets_of(lengths))
        slots = self.engine.extend(moved.session, moved.slot, runs)
        moved.read = moved.read + lengths
        moved.slot = slots[runs.offsets[1:] - 1]
        branching = moved.read == trie.depth[moved.node]
        # Each token read foretells the next of its path; at a branching point that is the children's business.
        scored = lengths - branching
        if self.joint and scored.any():
            forced = TokenLists(trie.sequences.tokens[ranges(start + 1, scored)], np.arange(scored.sum() + 1))
            logp = self.engine.logprobs(slots[ranges(runs.offsets[:-1], scored)], forced).astype(np.float64)
            cost = np.bincount(np.repeat(np.arange(len(moved)), scored), logp, len(moved))
            moved.score, moved.bound = moved.score + cost, moved.bound + cost
            self._add(moved[~branching])
        at = moved[branching]
        self.decide(at.session, at.node, at.score, at.slot)

    def decide(
        self, session: LongArray, node: LongArray, score: FloatArray, slot: LongArray, *, absolute: bool = False
    ) -> FloatArray:
        """Score the children of branching nodes that have been read to their end; returns (nodes,) their mass.

        The mass is a probability under `joint` scores or if asked for by `absolute`, else up to a factor.
        """
        if not len(node):
            return np.empty(0)
        trie = self.trie
        counts = trie.n_children[node].astype(np.int64)
        starts = offsets_of(counts)
        owner = np.repeat(np.arange(len(node)), counts)
        child = ranges(trie.first_child[node], counts)
        choices, relative = TokenLists(trie.token[child], starts), not (self.joint or absolute)
        logp = self.engine.logprobs(slot, choices, relative=relative).astype(np.float64)
        peak = np.maximum.reduceat(logp, starts[:-1])
        log_mass = peak + np.log(np.add.reduceat(np.exp(logp - peak[owner]), starts[:-1]))
        child_score = score[owner] + logp - (0 if self.joint else log_mass[owner])
        rows = session[owner]
        weight = self.eligible.below(rows, child)
        some = weight > 0
        owner, child, child_score = owner[some], child[some], child_score[some]
        bound = child_score if self.bonus is None else child_score + self.bonus[child]
        read = trie.depth[node].astype(np.int64)[owner]
        fresh = np.ones(len(child), np.bool_)
        self._add(Prefixes(rows[some], child, read, slot[owner], child_score, bound, weight[some], fresh))
        mass: FloatArray = np.exp(log_mass)
        return mass

    def _add(self, prefixes: Prefixes) -> None:
        leaf = self.trie.n_children[prefixes.node] == 0
        # What follows a leaf's deciding token is forced: free when renormalised, else to be read and scored.
        complete = leaf if not self.joint else leaf & (prefixes.read == self.trie.depth[prefixes.node] - 1)
        self.done += prefixes[complete]
        self.open += prefixes[~complete]


def _result(run: _Run, unseen: FloatArray, k: LongArray, outside: FloatArray, counts: Counts) -> Found:
    n, trie, done = len(outside), run.trie, run.done
    order = np.lexsort((done.node, -done.bound, done.session))
    leaf = trie.lo[done.node[order]]
    size = trie.item_ptr[leaf + 1] - trie.item_ptr[leaf]
    session, score = np.repeat(done.session[order], size), np.repeat(done.bound[order], size)
    item = trie.items[ranges(trie.item_ptr[leaf], size)]
    keep = run.eligible.items(session, item)
    session, score, item = session[keep], score[keep], item[keep]
    first = np.searchsorted(session, np.arange(n))
    keep = np.arange(len(session)) - first[session] < k[session]
    session, score, item = session[keep], score[keep], item[keep]
    lengths = np.bincount(session, minlength=n)
    offsets = offsets_of(lengths)
    # A list shorter than k may still grow while prefixes are open; -inf stands for its missing last score.
    last = np.full(n, -np.inf)
    last[lengths >= k] = score[offsets[1:][lengths >= k] - 1]
    gap = np.where(np.isneginf(unseen), -np.inf, unseen - np.where(np.isneginf(last), 0, last))
    gap[np.isneginf(last) & ~np.isneginf(unseen)] = np.inf
    return Found(offsets, item, score, unseen <= last, gap, outside, counts)
