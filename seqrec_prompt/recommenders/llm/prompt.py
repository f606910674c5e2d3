"""LLMSeqPrompt GenItem: the LLM continues the session, constrained to the catalog (Harte et al., RecSys'23)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

import numpy as np

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.eligible import Filters
from seqrec_prompt.decoding.frontier import FloatArray
from seqrec_prompt.decoding.search import Found, PrefixScorer, Scoring, score_catalog, search
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.errors import ModelError, is_out_of_memory
from seqrec_prompt.prompting.prompter import Prompter
from seqrec_prompt.ragged import IntArray
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.rules import Rules


@dataclass
class Effort:
    """What decoding cost so far, summed over sessions; seconds: as whoever runs it tells."""

    sessions: int = 0
    prompt_tokens: int = 0
    rounds: int = 0
    tree_tokens: int = 0
    outside: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        """Both together."""
        return Effort(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def add(self, prompt_tokens: int, found: Found) -> None:
        """Count one batch."""
        self.sessions += len(found.certified)
        self.prompt_tokens += prompt_tokens
        self.rounds += int(found.counts.rounds.sum())
        self.tree_tokens += int(found.counts.tokens.sum())
        self.outside += float(found.outside.sum())

    def means(self) -> dict[str, float]:
        """Per session: seconds, tokens of the prompt, rounds and tokens after it, probability outside the catalog."""
        n = max(self.sessions, 1)
        return {
            "seconds_a_session": self.seconds / n,
            "prompt_tokens": self.prompt_tokens / n,
            "rounds": self.rounds / n,
            "tree_tokens": self.tree_tokens / n,
            "outside_catalog": self.outside / n,
        }


@dataclass
class LLMSeqPrompt:
    """Recommends by decoding the most probable titles after the prompt; every item is real, every list distinct.

    context: most tokens of prompt and title together. scoring: `renormalised` over the catalog or the model's own
    `joint` probability. bonus: (leaves,) added to titles, see `log_prior`. rules: items that sessions may not be
    given. batch_size: sessions decoded together. budget: tokens read after each prompt at most.
    """

    engine: PrefixScorer
    prompter: Prompter
    trie: CatalogTrie
    context: int
    scoring: Scoring = "renormalised"
    bonus: FloatArray | None = None
    rules: Rules = field(default_factory=Rules)
    batch_size: int = 8
    budget: int = 2000
    name: str = "LLMSeqPrompt"
    effort: Effort = field(default_factory=Effort)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return the k best items of each session, in the order of `sessions`."""
        return Recommendations.concatenate(list(self.batches(sessions, k, exclude_seen=exclude_seen)))

    def batches(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Iterator[Recommendations]:
        """Yield the lists of `batch_size` sessions after the other; of half as many once memory runs out."""
        start = 0
        while start < len(sessions):
            part = sessions.take(np.arange(start, min(start + self.batch_size, len(sessions))))
            filters = self.rules.filters(part, exclude_seen=exclude_seen)
            try:
                prompts, found = self._decode(part, k, filters)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.batch_size = _fewer(part)
                print(f"out of memory with {len(part)} sessions at once: going on with {self.batch_size}")
                continue
            self.effort.add(sum(map(len, prompts)), found)
            start += len(part)
            yield Recommendations(
                part.ids, found.offsets, found.items, found.scores, found.certified, found.gap, "constrained",
                found.outside,
            )  # fmt: skip

    def _decode(self, sessions: Sessions, k: int, filters: Filters) -> tuple[list[IntArray], Found]:
        """The prompts of a batch, and its lists."""
        prompts = [self.prompter.prompt(items) for items in self.prompter.fitting(sessions, self.context)]
        found = search(
            self.engine, self.trie, prompts, k, scoring=self.scoring, bonus=self.bonus, filters=filters,
            budget=self.budget, shared=len(self.prompter.head),
        )  # fmt: skip
        return prompts, found


def _fewer(sessions: Sessions) -> int:
    """Half as many sessions as did not fit the memory."""
    if len(sessions) == 1:
        raise ModelError(
            f"Out of memory on one session, '{sessions.ids[0]}'. Shorten its prompt with --context, lower --budget, or "
            "take a --dtype of half the size."
        )
    return len(sessions) // 2


def log_prior(engine: PrefixScorer, prompter: Prompter, trie: CatalogTrie, scoring: Scoring) -> FloatArray:
    """(leaves,) log p(title | empty session): how much the model likes each title for its own sake.

    Added with weight −λ, it corrects the scores for it: log p(title | session) − λ·log p(title | empty session).
    """
    return score_catalog(engine, trie, prompter.prompt(np.empty(0, np.int32)), scoring=scoring)
