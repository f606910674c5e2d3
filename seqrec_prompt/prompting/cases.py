"""What a prompt variant makes of a session: what the prompt shows and what answers it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seqrec_prompt.artifacts import hash_file
from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.embeddings.clusters import Clusters
from seqrec_prompt.embeddings.table import VECTORS, EmbeddingTable
from seqrec_prompt.errors import ArtifactError, DataError
from seqrec_prompt.prompting.prompter import LISTS_SHARE, Prompter
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import IntArray, TokenLists, offsets_of

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset

# What training needs beside the sessions, and where it comes from.
NEEDS = {"GenList": "candidates", "Classify": "embeddings", "Rank": "candidates"}
HOW = {
    "candidates": "lists that 'recommend' made for the same sessions, of any recommender (in the paper llm-seq-sim); "
    "to learn from, with --part train",
    "embeddings": "a directory made by 'embed'",
}


def check_needs(template: TemplateConfig, candidates: Path | None, embeddings: Path | None) -> None:
    """Raise ValueError unless just what training this variant needs is given."""
    need = NEEDS.get(template.name)
    for name, path in (("candidates", candidates), ("embeddings", embeddings)):
        if path is None and name == need:
            raise ValueError(f"{template.name} needs '{name}': {HOW[name]}")
        if path is not None and name != need:
            raise ValueError(f"{template.name} has no use for '{name}': leave it out or choose another template.name")


def input_hashes(candidates: Path | None, embeddings: Path | None) -> dict[str, str]:
    """What is given of both, by name, with its hash. Raises ArtifactError when it is not there."""
    files = {"candidates": candidates, "embeddings": embeddings and embeddings / VECTORS}
    given = {name: file for name, file in files.items() if file is not None}
    for name, file in given.items():
        if not file.is_file():
            raise ArtifactError(f"'{name}' = {file}: no such file. It should be {HOW[name]}.")
    return {name: hash_file(file) for name, file in given.items()}


@dataclass(frozen=True, eq=False)
class Cases:
    """Prompts and their answers, n of them.

    shown: the items of each session that its prompt holds. answers: (n,) lists of numbers in `Prompter.answers`: the
    target, a list that begins with it, or its cluster. candidates: (n,) lists of items that the prompt offers, Rank
    only. cut: how many of the answers the context made shorter than they were to be.
    """

    shown: Sessions
    answers: TokenLists
    candidates: TokenLists | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.shown)

    def describe(self) -> str:
        """How long the answers are, in few words."""
        lengths = self.answers.lengths
        said = f"{lengths.min()} to {lengths.max()} titles, {lengths.mean():.1f} on average"
        return said + (f"; {self.cut:,} of {len(self):,} cut short by the context (--context)" if self.cut else "")

    def prompt(self, i: int, prompter: Prompter) -> IntArray:
        """Tokens of prompt i."""
        return prompter.prompt(self.shown[i], None if self.candidates is None else self.candidates[i])

    def answer(self, i: int, prompter: Prompter) -> IntArray:
        """Tokens of answer i, its end included."""
        return np.concatenate(prompter.answer(self.answers[i]))


def load_clusters(template: TemplateConfig, embeddings: Path | None, data: Dataset) -> Clusters | None:
    """Clusters for Classify, from the embeddings of the data's catalog; None for the other variants."""
    if template.name != "Classify" or embeddings is None:
        return None
    table = EmbeddingTable.load(embeddings, data.catalog)
    return Clusters.fit(table, template.clusters, data.catalog, data.popularity)


def lessons(
    prompter: Prompter, holdout: Holdout, context: int, candidates: Candidates | None, clusters: Clusters | None
) -> Cases:
    """Make cases to learn from, each with its answer as the variant wants it (Harte et al., RecSys'23).

    GenItem: the target. Classify: its cluster. GenList: the target, then the session's `candidates`, each title once,
    less what the session holds. Rank: the target, then its `candidates`; the prompt offers the same items in catalog
    order, which tells nothing of their rank. Lists take at most half of the context, the session has the rest; sessions
    without candidates give no case.

    Raises TemplateError when the context is too short, DataError when no session has candidates.
    """
    name = prompter.template.name
    if not prompter.template.lists or candidates is None:
        return questions(prompter, holdout, context, None, clusters)
    listed = candidates.of(holdout.prompts.ids)
    some = np.flatnonzero(listed.lengths)
    if len(holdout) and not len(some):
        raise DataError(
            [f"{candidates.path}: no list for any of {len(holdout):,} train sessions, e.g. '{holdout.prompts.ids[0]}'"],
            f"It should hold {HOW['candidates']}.",
        )
    holdout, listed = holdout.take(some), listed.take(some)
    # Each list with its target in front; what is there before in its session or as its target goes.
    before = holdout.prompts if name == "GenList" else None
    listed = _less(listed, holdout.targets, before)
    if name == "GenList":
        listed = _distinct(listed, holdout.targets, prompter.answers)
    ends = offsets_of(listed.lengths + 1)
    whole = TokenLists(np.insert(listed.tokens, listed.offsets[:-1], holdout.targets), ends)
    answers = prompter.shortened(whole, context)
    cut = int((answers.lengths < np.minimum(whole.lengths, prompter.template.list_length)).sum())
    shown = prompter.fitting(holdout.prompts, context, prompter.taken(answers))
    return Cases(shown, answers, in_catalog_order(answers) if name == "Rank" else None, cut)


def questions(
    prompter: Prompter,
    holdout: Holdout,
    context: int,
    candidates: Candidates | None,
    clusters: Clusters | None,
    flag: str = "--context",
) -> Cases:
    """Make cases as a test asks them: nothing in a prompt comes from the target, which alone is the answer.

    Raises TemplateError, naming `flag`, when the context is too short, DataError when Rank lacks candidates for a
    session.
    """
    offered = None
    if prompter.template.name == "Rank" and candidates is not None:
        offered = prompter.shortened(candidates_of(holdout.prompts, candidates), context)
    numbers = holdout.targets if clusters is None else clusters.of[holdout.targets]
    answers = TokenLists(numbers, np.arange(len(numbers) + 1))
    shown = fitting(prompter, holdout.prompts, context, offered, flag)
    return Cases(shown, answers, None if offered is None else in_catalog_order(offered))


def fitting(
    prompter: Prompter,
    sessions: Sessions,
    context: int,
    offered: TokenLists | None = None,
    flag: str = "--context",
) -> Sessions:
    """What test prompts show of their sessions, so that the answer fits; `offered`: the candidates of Rank."""
    if offered is not None:
        return prompter.fitting(sessions, context, prompter.taken(offered), flag)
    if not prompter.template.lists:
        return prompter.fitting(sessions, context, flag=flag)
    # How long a list gets is not known: it has its share, as in training, and at least one title.
    share = max(int(LISTS_SHARE * prompter.space(context)), int(prompter.answers.lengths.max()))
    return prompter.fitting(sessions, context, np.full(len(sessions), share), flag)


def candidates_of(sessions: Sessions, candidates: Candidates) -> TokenLists:
    """The candidates of test sessions; raises DataError when a session is missing."""
    missing = [name for name in sessions.ids if name not in candidates.lists]
    if missing:
        few = f"no candidates for {len(missing):,} of {len(sessions):,} sessions, e.g. '{missing[0]}'"
        hint = "Make the file for the same sessions: with the same --data, --max-sessions and --seed."
        raise DataError([f"{candidates.path}: {few}"], hint)
    return candidates.of(sessions.ids)


def in_catalog_order(lists: TokenLists) -> TokenLists:
    """Each list sorted by catalog position."""
    return TokenLists(lists.tokens[np.lexsort((lists.tokens, lists.rows))], lists.offsets)


def _less(lists: TokenLists, targets: IntArray, sessions: Sessions | None) -> TokenLists:
    """The lists without each session's target and, if given, its items."""
    keep = lists.tokens != targets[lists.rows]
    if sessions is not None:
        width = 1 + max(int(lists.tokens.max(initial=0)), int(sessions.items.max(initial=0)))
        keep &= ~np.isin(lists.rows * width + lists.tokens, sessions.rows * width + sessions.items)
    return TokenLists.by_row(lists.rows[keep], lists.tokens[keep], len(lists))


def _distinct(lists: TokenLists, targets: IntArray, titles: TokenLists) -> TokenLists:
    """The lists with each title once, and without the title of their target: a list of titles is what they teach."""
    number: dict[bytes, int] = {}
    title = np.array([number.setdefault(tokens.tobytes(), len(number)) for tokens in titles], np.int64)
    _, first = np.unique(lists.rows * len(number) + title[lists.tokens], return_index=True)
    first = np.sort(first)
    keep = first[title[lists.tokens[first]] != title[targets[lists.rows[first]]]]
    return TokenLists.by_row(lists.rows[keep], lists.tokens[keep], len(lists))
