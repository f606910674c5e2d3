"""A fitted recommender as teacher: part of each lesson is what it would recommend where the target stood.

Knowledge distillation (Hinton, Vinyals & Dean, 2015) at the decisions of the trie. A target teaches a decision that its
own child is right; the teacher, whose list holds many items, teaches what share of them lies below each child.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from seqrec_prompt.config import Config
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.ragged import IntArray, LongArray, offsets_of, ranges
from seqrec_prompt.recommenders.base import FloatArray, Recommendations

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.recommenders.fitted import Kept


# Recommenders whose scores are sums of evidence, never negative: a list's scores then say its items' shares.
COUNTING = ("most-popular", "transition-counts", "transitions", "sknn", "s-sknn", "sf-sknn", "v-sknn")


class TeacherConfig(Config):
    """Which recommender teaches beside the targets, and how much."""

    recommender: Path | None = Field(
        None,
        description="objective 'catalog' with GenItem: directory made by 'fit' on the same data; its lists, too, are "
        "learned",
    )
    share: float = Field(
        0.7, gt=0, le=1, description="of each lesson, what the recommender teaches; the rest is the target's"
    )
    depth: int = Field(50, ge=1, description="items of the recommender's lists that are learned")


@dataclass(frozen=True, eq=False)
class Teacher:
    """Lists of a recommender as shares of a decision's children."""

    recommender: Kept
    config: TeacherConfig

    @classmethod
    def load(cls, config: TeacherConfig, data: Dataset) -> Teacher | None:
        """Read the recommender of `config`; None when it names none.

        Raises ArtifactError as `fitted.load` does, ConfigError for one whose scores cannot be read as shares.
        """
        if config.recommender is None:
            return None
        from seqrec_prompt.recommenders import fitted

        recommender, _ = fitted.load(config.recommender, data)
        counting = tuple(fitted.RECOMMENDERS[name] for name in COUNTING)
        if not isinstance(recommender, counting):
            raise ConfigError(
                f"'teacher.recommender' = {config.recommender}: the scores of {recommender.name} are no shares of a "
                f"list. Fit one that counts: {', '.join(COUNTING)}."
            )
        return cls(recommender, config)

    def targets(
        self, prompts: Sessions, trie: CatalogTrie, owner: LongArray, node: LongArray, right: LongArray
    ) -> FloatArray:
        """(children,) what is to be learned of each child, decision by decision: shares that sum to 1.

        Decision e, of D, is met after prompt `owner[e]`, at trie `node[e]`, whose child number `right[e]` leads to the
        target. share · (the list's weight below the child / below the node) + (1 - share) · [child is right]; where the
        list has nothing below the node, the target teaches alone.
        """
        lists = self.recommender.recommend(prompts, self.config.depth, exclude_seen=True)
        n_children = trie.n_children[node].astype(np.int64)
        start = offsets_of(n_children)
        child = ranges(trie.first_child[node].astype(np.int64), n_children)
        prompt = np.repeat(owner, n_children)
        below = _Mass(lists, trie.leaf_of, trie.n_leaves)
        found = below(prompt, trie.lo[child], trie.hi[child])
        whole = below(owner, trie.lo[node], trie.hi[node])
        share = np.where(whole > 0, self.config.share, 0.0)
        taught = np.repeat(share / np.where(whole > 0, whole, 1.0), n_children) * found
        taught[start[:-1] + right] += 1 - share
        return taught


class _Mass:
    """Weight that lists put on ranges of leaves; a list's scores sum to 1."""

    def __init__(self, lists: Recommendations, leaf_of: IntArray, n_leaves: int) -> None:
        rows = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
        key = rows * n_leaves + leaf_of[lists.items]
        order = np.argsort(key, kind="stable")
        self.width, self.keys = n_leaves, key[order]
        totals = np.bincount(rows, lists.scores, minlength=len(lists))
        totals[totals == 0] = 1  # popular items that train never saw fill a list with zeros
        self.sums = np.concatenate([[0.0], np.cumsum((lists.scores / totals[rows])[order])])

    def __call__(self, row: LongArray, lo: IntArray, hi: IntArray) -> FloatArray:
        """Of list `row`, the weight of leaf ranks `lo`..`hi`, all (n,)."""
        first, last = (np.searchsorted(self.keys, row * self.width + bound) for bound in (lo, hi))
        weight: FloatArray = np.where(last > first, self.sums[last] - self.sums[first], 0.0)
        return weight
