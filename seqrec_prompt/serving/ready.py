"""Recommenders kept ready, each answering questions of different sessions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.ragged import IntArray
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.rules import Rules, load_rules
from seqrec_prompt.serving.settings import ServedConfig

if TYPE_CHECKING:
    from seqrec_prompt.recommenders.fitted import Kept
    from seqrec_prompt.recommenders.llm.prompt import LLMSeqPrompt

LLM = "llm"
NONE = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class Question:
    """A session to continue by k items.

    session: (n,) catalog positions, oldest first. exclude: items not to be given; exclude_seen: nor the session's own.
    """

    session: IntArray
    k: int
    exclude: IntArray = field(default_factory=lambda: NONE)
    exclude_seen: bool = False


class Ready(Protocol):
    """A recommender that answers questions; one thread at a time may ask it."""

    def answer(self, questions: Sequence[Question]) -> list[Recommendations]:
        """One list a question, each as if it had been asked alone."""
        ...


@dataclass
class ReadyFitted:
    """What `fit` made. Items that may not be given are left out of a list that is as much longer."""

    recommender: Kept
    gone: IntArray = field(default_factory=lambda: NONE)

    def answer(self, questions: Sequence[Question]) -> list[Recommendations]:
        """One list a question."""
        without = [np.union1d(question.exclude, self.gone) for question in questions]
        alike = [
            (question.k + len(left_out), question.exclude_seen)
            for question, left_out in zip(questions, without, strict=True)
        ]
        found: dict[int, Recommendations] = {}
        for depth, exclude_seen in dict.fromkeys(alike):
            rows = [row for row, one in enumerate(alike) if one == (depth, exclude_seen)]
            lists = self.recommender.recommend(_sessions(questions, rows), depth, exclude_seen=exclude_seen)
            for place, row in enumerate(rows):
                found[row] = _first(lists.take(np.array([place])), questions[row].k, without[row])
        return [found[row] for row in range(len(questions))]


@dataclass
class ReadyLLM:
    """An LLM. What may not be given is left out by the search itself."""

    llm: LLMSeqPrompt

    def answer(self, questions: Sequence[Question]) -> list[Recommendations]:
        """One list a question."""
        found: dict[int, Recommendations] = {}
        stock = self.llm.rules.stock
        for k in dict.fromkeys(question.k for question in questions):
            rows = [row for row, question in enumerate(questions) if question.k == k]
            denied = [
                np.concatenate([question.exclude, question.session if question.exclude_seen else NONE])
                for question in (questions[row] for row in rows)
            ]
            sessions = _sessions(questions, rows)
            self.llm.rules = Rules(deny=dict(zip(sessions.ids, denied, strict=True)), stock=stock)
            lists = self.llm.recommend(sessions, k, exclude_seen=False)
            found |= {row: lists.take(np.array([place])) for place, row in enumerate(rows)}
        return [found[row] for row in range(len(questions))]


def load_ready(config: ServedConfig, data: Dataset) -> dict[str, Ready]:
    """Load every recommender of a configuration, by name: the LLM first, called `llm`, then the fitted ones.

    Raises ConfigError for two of one name or an LLM that needs candidates, and what loading them raises.
    """
    names = [LLM] * config.asks_llm + [directory.resolve().name for directory in config.recommenders]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two recommenders are called '{twice[0]}'. Rename the directory of one.")
    rules = load_rules(data.catalog, out_of_stock=config.out_of_stock)
    ready: dict[str, Ready] = {LLM: _llm(config, data, rules)} if config.asks_llm else {}
    return ready | {directory.resolve().name: _fitted(directory, data, rules) for directory in config.recommenders}


def _fitted(directory: Path, data: Dataset, rules: Rules) -> ReadyFitted:
    from seqrec_prompt.recommenders import fitted

    gone = NONE if rules.stock is None else np.flatnonzero(~rules.stock).astype(np.int32)
    return ReadyFitted(fitted.load(directory, data)[0], gone)


def _llm(config: ServedConfig, data: Dataset, rules: Rules) -> ReadyLLM:
    from seqrec_prompt.engines.models import model_hash
    from seqrec_prompt.recommenders.llm.variants import build_recommender, check_variant, template_of

    template, _ = template_of(config, model_hash(config.model, config.revision))
    if template.name == "Rank":
        raise ConfigError("Rank puts candidates in order, and a question brings none. Use 'recommend --candidates'.")
    check_variant(config, template)
    return ReadyLLM(build_recommender(config, data, template, rules))


def _sessions(questions: Sequence[Question], rows: Sequence[int]) -> Sessions:
    return Sessions.build([str(row) for row in rows], [questions[row].session.tolist() for row in rows])


def _first(one: Recommendations, k: int, without: IntArray) -> Recommendations:
    """The first k entries of a single list that are not in `without`."""
    keep = np.flatnonzero(~np.isin(one.items, without))[:k]
    return replace(
        one,
        offsets=np.array([0, len(keep)]),
        items=one.items[keep],
        scores=one.scores[keep],
        provenance=one.provenances[keep],
    )
