"""Training examples: windows of sessions, turned into tokens batch by batch.

Tokens come from the compiled template, item by item, so a model is trained on exactly the ids it will decode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.embeddings.clusters import Clusters
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.prompting.cases import Cases, lessons
from seqrec_prompt.prompting.prompter import Prompter
from seqrec_prompt.ragged import IntArray, LongArray, offsets_of, ranges

Objective = Literal["last_item", "all_items", "catalog"]
IGNORED = -100  # the label value that losses skip


def windows(sessions: Sessions, prompter: Prompter, context: int, objective: Objective) -> Sessions:
    """Cut sessions into training examples.

    `last_item`: one example a session, its most recent items, the last of which is the target. Otherwise every item
    after a session's first is the target of exactly one example: long sessions are cut into windows of up to
    `max_items`+1 items that overlap in one. Windows end early where the next title would pass the context; sessions of
    one item give none. Raises TemplateError when two items do not fit.
    """
    sessions = sessions.take(sessions.lengths >= 2)
    if objective == "last_item":
        return _with_last_item(sessions, prompter, context)
    cost = prompter.lines.lengths
    room = context - len(prompter.head) - len(prompter.tail)
    starts: list[int] = []
    stops: list[int] = []
    sizes = cost[sessions.items].tolist()
    for begin, end in zip(sessions.offsets[:-1].tolist(), sessions.offsets[1:].tolist(), strict=True):
        start = begin
        while start < end - 1:
            stop, used = start, 0
            while stop < end and stop - start <= prompter.template.max_items and used + sizes[stop] <= room:
                used += sizes[stop]
                stop += 1
            if stop - start < 2:
                (one, other), tokens = sessions.items[start : start + 2].tolist(), sum(sizes[start : start + 2])
                raise TemplateError(
                    f"The titles of items {one} and {other} of the catalog (from 0), {tokens} tokens, and the "
                    f"template do not fit a context of {context} tokens. Raise it with --context."
                )
            starts.append(start)
            stops.append(stop)
            start = stop - 1
    first, lengths = np.array(starts, np.int64), np.array(stops, np.int64) - np.array(starts, np.int64)
    offsets = offsets_of(lengths)
    entries = ranges(first, lengths)
    return Sessions(sessions.ids[sessions.rows[first]], offsets, sessions.items[entries])


def _with_last_item(sessions: Sessions, prompter: Prompter, context: int) -> Sessions:
    lengths = sessions.lengths
    history = prompter.fitting(sessions.slice_items(np.zeros_like(lengths), lengths - 1), context)
    kept = history.lengths
    return sessions.slice_items(lengths - 1 - kept, lengths)


def training_examples(
    train: Sessions,
    prompter: Prompter,
    context: int,
    objective: Objective,
    candidates: Candidates | None = None,
    clusters: Clusters | None = None,
) -> Sessions | Cases:
    """What is trained on: windows of sessions, or in layout `ask` one case a session of two items or more."""
    if prompter.template.layout == "continue":
        return windows(train, prompter, context, objective)
    targets = Holdout.of_last_items(train.take(train.lengths >= 2))
    return lessons(prompter, targets, context, candidates, clusters)


def tokens_of(examples: Sessions | Cases, prompter: Prompter) -> LongArray:
    """(examples,) tokens of each."""
    if isinstance(examples, Sessions):
        frame, lengths = len(prompter.head) + len(prompter.tail), prompter.lines.lengths
        last = examples.items[examples.offsets[1:] - 1]
        below = (lengths - prompter.answers.lengths)[last]  # nothing is asked after the last title
        return frame - below + np.add.reduceat(lengths[examples.items], examples.offsets[:-1])
    return np.array(
        [len(examples.prompt(i, prompter)) + len(examples.answer(i, prompter)) for i in range(len(examples))]
    )


@dataclass(frozen=True, eq=False)
class Collator:
    """Turns windows, or cases of layout `ask`, into padded batches.

    Output: input_ids, attention_mask, labels, all (B, T). For `last_item` and `all_items` the labels are the tokens of
    the targets, with what ends a list. For `catalog` they only mark the first token of each target, so that counting
    labels counts items; the loss reads `decisions` (D, 4): row, position of the state that decides, trie node it
    decides at, index of the right child among the node's children.
    """

    prompter: Prompter
    objective: Objective
    trie: CatalogTrie
    pad_token: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Build the batch of `examples`, each {"items": catalog positions}.

        Where there are "answers", all of the items stand in the prompt, with the "candidates"; else the last is asked.
        """
        rows = [self._tokens(example) for example in examples]
        longest = max(len(tokens) for tokens, _, _ in rows)
        input_ids = np.full((len(rows), longest), self.pad_token, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        labels = np.full((len(rows), longest), IGNORED, np.int64)
        decisions = []
        for row, (tokens, starts, targets) in enumerate(rows):
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            if self.objective == "catalog":
                labels[row, starts] = tokens[starts]
                decisions.append(self._decisions(row, starts, targets))
            elif self.prompter.template.layout == "ask":  # targets stand one after the other, up to the end
                labels[row, starts[0] : len(tokens)] = tokens[starts[0] :]
            else:
                taught = ranges(starts, self.prompter.answers.lengths[targets])
                labels[row, taught] = tokens[taught]
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        if decisions:
            batch["decisions"] = np.concatenate(decisions)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _tokens(self, example: Mapping[str, Any]) -> tuple[IntArray, LongArray, IntArray]:
        """Tokens of one example, where its targets start, and which of the answers they are."""
        prompter, items = self.prompter, np.array(example["items"], np.int32)
        if prompter.template.layout == "ask":
            shown, answers = (items, example["answers"]) if "answers" in example else (items[:-1], items[-1:])
            prompt = prompter.prompt(shown, example.get("candidates"))
            answers = np.array(answers, np.int32)
            starts = len(prompt) + offsets_of(prompter.answers.lengths[answers])[:-1]
            return np.concatenate([prompt, *prompter.answer(answers)]), starts, answers
        tokens = np.concatenate([prompter.prompt(items[:-1]), *prompter.answer(items[-1:])])
        starts = len(prompter.head) + offsets_of(prompter.lines.lengths[items])[:-1]
        first = len(items) - 1 if self.objective == "last_item" else 1
        return tokens, starts[first:], items[first:]

    def _decisions(self, row: int, starts: LongArray, targets: IntArray) -> npt.NDArray[np.int64]:
        ptr, position, node = self.trie.decisions
        leaf = self.trie.leaf_of[targets]
        counts = ptr[leaf + 1] - ptr[leaf]
        entry = ranges(ptr[leaf], counts)
        branch = node[entry].astype(np.int64)
        # The right child is the one whose leaves include the target's.
        right = self._child_above(branch, np.repeat(leaf, counts))
        state = np.repeat(starts, counts) + position[entry] - 1
        return np.stack([np.full(len(entry), row), state, branch, right], axis=1)

    def _child_above(self, branch: npt.NDArray[np.int64], leaf: IntArray) -> npt.NDArray[np.int64]:
        # Children's first leaves rise with the child and, breadth first, siblings are consecutive: binary search.
        low = self.trie.first_child[branch].astype(np.int64)
        first, high = low.copy(), low + self.trie.n_children[branch]
        while (wide := high - low > 1).any():
            middle = (low + high) // 2
            right = wide & (self.trie.lo[np.minimum(middle, len(self.trie) - 1)] <= leaf)
            low = np.where(right, middle, low)
            high = np.where(wide & ~right, middle, high)
        return low - first
