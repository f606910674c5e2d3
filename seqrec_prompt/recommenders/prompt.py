"""LLMSeqPrompt: the LLM continues the session, constrained to the catalog (Harte et al., RecSys'23)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.search import Found, PrefixScorer, search
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.prompting.templates import Prompter
from seqrec_prompt.ragged import TokenLists
from seqrec_prompt.recommenders.base import Recommendations


@dataclass
class Effort:
    """What decoding cost so far, summed over sessions."""

    sessions: int = 0
    prompt_tokens: int = 0
    rounds: int = 0
    tree_tokens: int = 0
    outside: float = 0.0

    def add(self, prompt_tokens: int, found: Found) -> None:
        """Count one batch."""
        self.sessions += len(found.certified)
        self.prompt_tokens += prompt_tokens
        self.rounds += int(found.counts.rounds.sum())
        self.tree_tokens += int(found.counts.tokens.sum())
        self.outside += float(found.outside.sum())

    def means(self) -> dict[str, float]:
        """Per session: tokens of the prompt, rounds and tokens after it, probability outside the catalog."""
        n = max(self.sessions, 1)
        return {
            "prompt_tokens": self.prompt_tokens / n,
            "rounds": self.rounds / n,
            "tree_tokens": self.tree_tokens / n,
            "outside_catalog": self.outside / n,
        }


@dataclass
class LLMSeqPrompt:
    """Recommends by decoding the most probable titles after the prompt; every item is real, every list distinct.

    context: most tokens of prompt and title together. batch_size: sessions decoded together. budget: tokens read after
    each prompt at most.
    """

    engine: PrefixScorer
    prompter: Prompter
    trie: CatalogTrie
    context: int
    batch_size: int = 8
    budget: int = 2000
    name: str = "LLMSeqPrompt"
    effort: Effort = field(default_factory=Effort)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return the k most probable items of each session, in the order of `sessions`."""
        return Recommendations.concatenate(list(self.batches(sessions, k, exclude_seen=exclude_seen)))

    def batches(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Iterator[Recommendations]:
        """Yield the lists of `batch_size` sessions after the other."""
        shown = self.prompter.fitting(sessions, self.context)
        for start in range(0, len(sessions), self.batch_size):
            batch = np.arange(start, min(start + self.batch_size, len(sessions)))
            prompts = [self.prompter.prompt(items) for items in shown.take(batch)]
            part = sessions.take(batch)
            seen = TokenLists(part.items, part.offsets) if exclude_seen else None
            found = search(self.engine, self.trie, prompts, k, exclude=seen, budget=self.budget)
            self.effort.add(sum(map(len, prompts)), found)
            yield Recommendations(
                part.ids, found.offsets, found.items, found.scores, found.certified, found.gap, "constrained"
            )
