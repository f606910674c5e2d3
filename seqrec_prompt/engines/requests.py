"""Prefix scoring (`decoding.search.PrefixScorer`) by whoever answers requests for the next token, as vLLM does.

Such a service keeps keys and values itself: what a request has in common with an earlier one is read from its prefix
cache. So nothing is read here before it is asked about, and a slot is no more than a text and a place in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from seqrec_prompt.errors import ModelError
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, places

FloatArray = npt.NDArray[np.float32]
MOST_IDS = 128  # tokens whose log-probability vLLM tells a request by their numbers


@dataclass(frozen=True)
class Question:
    """How probable is, after `prefix`, each of the `forced` tokens, written one after the other, then each choice?"""

    prefix: list[int]
    forced: list[int]
    choices: IntArray


class RequestEngine(ABC):
    """Scores title prefixes by asking questions.

    context: most tokens that may stand before one that is asked about, that one included.
    """

    def __init__(self, context: int) -> None:
        self.context = context
        self._texts: list[list[int]] = []
        # Slot s is the token before place _end[s] of text _text[s].
        self._text, self._end = np.empty(0, np.int64), np.empty(0, np.int64)

    @abstractmethod
    def answer(self, questions: Sequence[Question]) -> list[FloatArray]:
        """Log-softmax over the vocabulary: per question that of each forced token, then of each choice."""

    def prefill(self, prompts: Sequence[IntArray], shared: int = 0, *, keep: bool = False) -> LongArray:
        """Begin one session per prompt; slots 0..n-1 are their last tokens. The service finds shared tokens itself."""
        self._texts = [prompt.tolist() for prompt in prompts]
        self._text = np.arange(len(prompts))
        self._end = np.array([len(prompt) for prompt in prompts], np.int64)
        return self._text

    def extend(self, session: LongArray, slot: LongArray, runs: TokenLists) -> LongArray:
        """Note every run after its slot; every token gets a slot."""
        first, before = len(self._texts), self._end[slot]
        for text, end, run in zip(self._text[slot].tolist(), before.tolist(), runs, strict=True):
            self._texts.append(self._texts[text][:end] + run.tolist())
        slots: LongArray = len(self._text) + np.arange(len(runs.tokens))
        self._text = np.concatenate([self._text, first + runs.rows])
        self._end = np.concatenate([self._end, np.repeat(before, runs.lengths) + places(runs.lengths) + 1])
        return slots

    def logprobs(self, slot: LongArray, tokens: TokenLists, *, relative: bool = False) -> FloatArray:
        """Log-softmax over the vocabulary after each slot, at the tokens of its list; flat (total,).

        Slots that follow each other in a text are one question while each is asked for the token that comes next in it.
        """
        questions, first = [], 0
        for last in self._last_of_chains(slot, tokens).tolist():
            forced = tokens.tokens[tokens.offsets[first] : tokens.offsets[last]].tolist()
            end = int(self._end[slot[first]])
            self._require_room(end + len(forced) + 1)
            questions.append(Question(self._texts[int(self._text[slot[first]])][:end], forced, tokens[last]))
            first = last + 1
        return np.concatenate([np.empty(0, np.float32), *self.answer(questions)])

    def _last_of_chains(self, slot: LongArray, tokens: TokenLists) -> LongArray:
        text, end = self._text[slot], self._end[slot]
        joined = (text[1:] == text[:-1]) & (end[1:] == end[:-1] + 1) & (tokens.lengths[:-1] == 1)
        for i in np.flatnonzero(joined).tolist():
            joined[i] = tokens.tokens[tokens.offsets[i]] == self._texts[int(text[i])][int(end[i])]
        return np.flatnonzero(np.append(~joined, np.ones(min(len(slot), 1), np.bool_)))

    def _require_room(self, length: int) -> None:
        if length > self.context:
            raise ModelError(
                f"A prompt with its title takes {length} tokens, but the model is read here up to {self.context}. "
                f"Shorten prompts with --context {self.context}."
            )


def split_forced(question: Question, most: int) -> list[Question]:
    """The same question for a service that only looks one token ahead, at `most` tokens at once."""
    prefix, parts = list(question.prefix), []
    for token in question.forced:
        parts.append(Question(list(prefix), [], np.array([token], np.int32)))
        prefix.append(token)
    starts = range(0, len(question.choices), most)
    return parts + [Question(prefix, [], question.choices[start : start + most]) for start in starts]


def answer_split(
    questions: Sequence[Question], most: int, ask: Callable[[list[Question]], list[FloatArray]]
) -> list[FloatArray]:
    """Answers to all questions, asked together as `split_forced` has them; `ask` answers those parts."""
    parts = [split_forced(question, most) for question in questions]
    offsets = offsets_of([len(some) for some in parts]).tolist()
    found = ask([part for some in parts for part in some])
    return [np.concatenate(found[a:b]) for a, b in pairwise(offsets)]
