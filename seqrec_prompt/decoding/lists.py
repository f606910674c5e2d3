"""Lists decoded title after title: each is the most probable of those not listed yet, given the session and the list.

Every choice is a certified search for the best title, so it is exact at its place; the list as a whole is greedy, as
the lists are that the model was taught to write. The prompt and each title are read once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seqrec_prompt.decoding.eligible import BoolArray, Filters
from seqrec_prompt.decoding.search import Counts, Found, PrefixScorer, Scoring, search_after
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.ragged import IntArray, TokenLists


def decode_lists(
    engine: PrefixScorer,
    trie: CatalogTrie,
    prompts: Sequence[IntArray],
    k: int,
    *,
    length: int,
    context: int,
    filters: Filters | None = None,
    scoring: Scoring = "renormalised",
    budget: int = 2000,
    shared: int = 0,
) -> Found:
    """Decode a list of k distinct items after each prompt, shorter only where no other item may be given.

    An item's score is the log-probability of the list up to and with it, so scores fall along a list. At place `length`
    (the longest list that was taught), or where no room is left in `context` for two more titles, the rest of the list
    is that place's own ranking, scored alike. filters, scoring, shared: as for `search`. budget: tokens read a session
    for one title. certified: every choice was exact; gap: the largest of them.

    Raises ModelError, from the engine, when a prompt does not fit with a title.
    """
    n, longest = len(prompts), int(trie.sequences.lengths.max())
    filters = filters or Filters()
    room = context - np.array([len(prompt) for prompt in prompts], np.int64)
    slot = engine.prefill(prompts, shared, keep=True)
    going, total = np.ones(n, np.bool_), np.zeros(n)
    certified, gap, outside = np.ones(n, np.bool_), np.full(n, -np.inf), np.zeros(n)
    rounds, tokens = np.zeros(n, np.int64), np.zeros(n, np.int64)
    session, items, scores = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0)]
    for place in range(k):
        last = going & ((place == min(k, length) - 1) | (room < 2 * longest))
        left = _left(filters, ~going, TokenLists.by_row(np.concatenate(session), np.concatenate(items), n))
        found = search_after(
            engine, trie, slot, np.where(last, k - place, 1), scoring=scoring, filters=left, budget=budget
        )
        size = np.diff(found.offsets)
        row = np.repeat(np.arange(n), size)
        session.append(row)
        items.append(found.items)
        scores.append(total[row] + found.scores)
        certified &= found.certified | ~going
        gap = np.where(going, np.maximum(gap, found.gap), gap)
        outside = found.outside if place == 0 else outside
        rounds, tokens = rounds + found.counts.rounds, tokens + found.counts.tokens
        going &= ~last & (size > 0)
        if not going.any():
            break
        # The title stands in the list from now on: what is asked next follows it.
        entry = found.offsets[:-1][going]
        total[going] += found.scores[entry]
        runs = trie.sequences.take(trie.leaf_of[found.items[entry]])
        slot[going] = engine.extend(np.flatnonzero(going), slot[going], runs)[runs.offsets[1:] - 1]
        room[going] -= runs.lengths
        tokens[going] += runs.lengths
    rows = np.concatenate(session)
    lists, order = TokenLists.by_row(rows, np.concatenate(items), n), np.argsort(rows, kind="stable")
    counts = Counts(rounds, tokens)
    return Found(lists.offsets, lists.tokens, np.concatenate(scores)[order], certified, gap, outside, counts)


def _left(filters: Filters, over: BoolArray, listed: TokenLists) -> Filters:
    """`filters`, less what is listed; sessions that are over may be given nothing."""
    n = len(over)
    deny = listed
    if filters.deny is not None:
        rows = np.concatenate([filters.deny.rows, listed.rows])
        deny = TokenLists.by_row(rows, np.concatenate([filters.deny.tokens, listed.tokens]), n)
    if filters.allow is None:
        return Filters(deny, TokenLists.by_row(np.empty(0, np.int64), np.empty(0, np.int32), n), over, filters.stock)
    keep = ~over[filters.allow.rows]
    allow = TokenLists.by_row(filters.allow.rows[keep], filters.allow.tokens[keep], n)
    return Filters(deny, allow, None if filters.limited is None else filters.limited | over, filters.stock)
