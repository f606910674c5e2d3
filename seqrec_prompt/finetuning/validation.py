"""Validation while training: the lists that the model would recommend now, judged by NDCG."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from seqrec_prompt.config import Config
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.data.splits import validation_part
from seqrec_prompt.decoding.eligible import Filters
from seqrec_prompt.decoding.search import search
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.ragged import TokenLists, places

if TYPE_CHECKING:
    from seqrec_prompt.prompting.prompter import Prompter

METRIC = "ndcg@10"
CUTOFF = 10


class ValidationConfig(Config):
    """When and on what a model is judged while it trains."""

    steps: int | None = Field(
        None, ge=1, description="steps between two judgements; unset: none, the last step is kept"
    )
    sessions: int = Field(200, ge=1, description="sessions at most: of the validation part, or else held out of train")
    patience: int = Field(3, ge=1, description="judgements without a better one before training ends")
    exclude_seen: bool = Field(False, description="leave out the items of the session itself")
    context: int = Field(2048, ge=16, description="longest prompt with a title, in tokens; older items go first")
    batch_size: int = Field(8, ge=1, description="sessions decoded together")


def hold_out(split: Split, config: ValidationConfig, seed: int) -> tuple[Sessions, Holdout | None]:
    """Return the sessions to train on and those to validate on: see `validation_part`."""
    return (split.train, None) if config.steps is None else validation_part(split, config.sessions, seed)


@contextlib.contextmanager
def decoding(model: Any, tokenizer: Any) -> Iterator[Any]:
    """Lend a model, adapters in place, to an engine and leave it as it was; ModelError where `recommend` refuses it."""
    from seqrec_prompt.engines.huggingface import HuggingFaceEngine

    attention, training = model.config._attn_implementation, model.training
    try:
        yield HuggingFaceEngine(model, tokenizer)
    finally:
        model.set_attn_implementation(attention)
        model.train(training)


@dataclass(frozen=True, eq=False)
class Validation:
    """Decodes the ten best items of each held-out session with the model as it is and compares them with its target."""

    holdout: Holdout
    prompter: Prompter
    trie: CatalogTrie
    tokenizer: Any
    config: ValidationConfig

    def __post_init__(self) -> None:
        """Raise TemplateError before training, not at the first judgement, when the context is too short."""
        self._shown(self.config.context)

    def _shown(self, context: int) -> Sessions:
        return self.prompter.fitting(self.holdout.prompts, context, flag="--validation.context")

    def __call__(self, model: Any) -> dict[str, float]:
        """NDCG@10 and hit rate@10 of a causal LM, adapters in place, which is left as it was found."""
        with decoding(model, self.tokenizer) as engine:
            ranks = self._ranks(engine, min(self.config.context, engine.context))
        hit = ranks > 0
        gain = np.where(hit, 1 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)
        return {METRIC: float(gain.mean()), f"hr@{CUTOFF}": float(hit.mean())}

    def _ranks(self, engine: Any, context: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(sessions,) rank of each target from 1, 0 where it is not among the first ten."""
        shown = self._shown(context)
        ranks = np.zeros(len(self.holdout), np.int64)
        for first in range(0, len(ranks), self.config.batch_size):
            batch = np.arange(first, min(first + self.config.batch_size, len(ranks)))
            prompts = [self.prompter.prompt(items) for items in shown.take(batch)]
            seen = self.holdout.prompts.take(batch)
            filters = Filters(TokenLists(seen.items, seen.offsets)) if self.config.exclude_seen else None
            found = search(engine, self.trie, prompts, CUTOFF, filters=filters, shared=len(self.prompter.head))
            lengths = np.diff(found.offsets)
            row = np.repeat(batch, lengths)
            right = found.items == self.holdout.targets[row]
            ranks[row[right]] = places(lengths)[right] + 1
        return ranks
