"""Two recommenders as one: their lists merged, or one of them chosen by how popular the prompt is.

Both are made of any two that `fit` kept (Boz et al., 2024: *EmbeddingEnsemble* merges two LLMSeqSim;
*LLMSeqSim&Sequential* and *LLMSeqSim&Popularity* choose).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray, LongArray, offsets_of, places
from seqrec_prompt.recommenders.base import Arrays, FloatArray, Recommendations, Recommender
from seqrec_prompt.recommenders.settings import BlendConfig, SwitchConfig

Parts = tuple[Recommender, Recommender]
OFFSET = 60  # of reciprocal rank fusion, as its authors set it
GRID = np.linspace(0, 1, 21)  # weights that are tried
JUDGED_AT = 10


@dataclass(frozen=True, eq=False)
class Blend:
    """Merges the lists of two recommenders; `weight` is the second one's share, from 0 to 1.

    score(item) = (1 − weight)·f₁(item) + weight·f₂(item), f = 0 where a list lacks the item, else
      rank        1/(60 + its rank), reciprocal rank fusion (Cormack, Clarke & Büttcher, SIGIR'09)
      confidence  its score, scaled so that the list's best is 1 and its last 0 (CombSUM: Fox & Shaw, TREC-2)
    over the `depth` best of each; ties in catalog order. A part whose share is 0 is not asked.
    """

    parts: Parts
    weight: float
    config: BlendConfig
    name = "Blend"

    @classmethod
    def fit(cls, parts: Parts, config: BlendConfig, validation: Holdout | None = None) -> Self:
        """Take the weight of `config`, or the one with the best NDCG@10 on `validation`, seen items left out.

        Raises DataError when the weight has to be found and there is nothing to judge it on.
        """
        if config.weight is not None:
            return cls(parts, config.weight, config)
        if validation is None or not len(validation):
            raise DataError(
                ["the data have no validation part to choose blend.weight on"],
                "Give --blend.weight, or make the data with 'prepare --split leave_one_out'.",
            )
        lists = [part.recommend(validation.prompts, config.depth, exclude_seen=True) for part in parts]
        reached = [_ndcg(merge(lists, weight, config.merge, JUDGED_AT), validation.targets) for weight in GRID]
        return cls(parts, float(GRID[int(np.argmax(reached))]), config)

    def arrays(self) -> Arrays:
        """What has to be kept beside the parts."""
        return {"weight": np.array([self.weight])}

    @classmethod
    def of_parts(cls, parts: Parts, arrays: Arrays, config: BlendConfig) -> Self:
        """Build it from the parts and what `arrays` gave."""
        return cls(parts, float(arrays["weight"][0]), config)

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return at most `k` items a session, all of them from the parts' lists."""
        if self.weight in (0, 1):
            return self.parts[int(self.weight)].recommend(sessions, k, exclude_seen=exclude_seen)
        depth = max(k, self.config.depth)
        lists = [part.recommend(sessions, depth, exclude_seen=exclude_seen) for part in self.parts]
        return merge(lists, self.weight, self.config.merge, k)


@dataclass(frozen=True, eq=False)
class Switch:
    """Gives popular prompts to the first recommender and the others to the second.

    counts: (items,) occurrences in train. A prompt is as popular as its items are on average; it is a popular one when
    at least the share `quantile` of the train sessions is less popular, which is when it reaches `threshold`. A prompt
    without items is not.
    """

    parts: Parts
    counts: LongArray
    threshold: float
    name = "Switch"

    @classmethod
    def fit(cls, parts: Parts, train: Sessions, n_items: int, config: SwitchConfig) -> Self:
        """Count items and find the threshold in `train`; raises DataError when all its sessions are empty."""
        counts = np.bincount(train.items, minlength=n_items).astype(np.int64)
        known = mean_count(counts, train)[train.lengths > 0]
        if not len(known):
            raise DataError(["there is no train session with an item: nothing tells a popular prompt"])
        return cls(parts, counts, float(np.quantile(known, config.quantile, method="higher")))

    def arrays(self) -> Arrays:
        """What has to be kept beside the parts."""
        return {"counts": self.counts, "threshold": np.array([self.threshold])}

    @classmethod
    def of_parts(cls, parts: Parts, arrays: Arrays, config: SwitchConfig) -> Self:
        """Build it from the parts and what `arrays` gave."""
        return cls(parts, arrays["counts"], float(arrays["threshold"][0]))

    def recommend(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> Recommendations:
        """Return each session's list as the part gives it that the session falls to."""
        popular = mean_count(self.counts, sessions) >= self.threshold
        groups = [np.flatnonzero(popular), np.flatnonzero(~popular)]
        lists = [
            part.recommend(sessions.take(group), k, exclude_seen=exclude_seen)
            for part, group in zip(self.parts, groups, strict=True)
        ]
        return Recommendations.concatenate(lists).take(np.argsort(np.concatenate(groups)))


def mean_count(counts: LongArray, sessions: Sessions) -> FloatArray:
    """(sessions,) how often the items of each occur on average; −1 for one without items."""
    total = np.bincount(sessions.rows, counts[sessions.items], len(sessions))
    return np.where(sessions.lengths > 0, total / np.maximum(sessions.lengths, 1), -1)


def merge(
    lists: Sequence[Recommendations], weight: float, how: Literal["rank", "confidence"], k: int
) -> Recommendations:
    """Merge two lists of each session to one of at most `k` items; see `Blend`."""
    used = [(share, part) for share, part in zip((1 - weight, weight), lists, strict=True) if share]
    n = len(lists[0])
    value = _reciprocal if how == "rank" else _scaled
    row = np.concatenate([np.repeat(np.arange(n), np.diff(part.offsets)) for _, part in used])
    item = np.concatenate([part.items for _, part in used]).astype(np.int64)
    worth = np.concatenate([share * value(part) for share, part in used])
    provenance = np.concatenate([part.provenances for _, part in used])
    width = int(item.max(initial=0)) + 1
    pairs, first, same = np.unique(row * width + item, return_index=True, return_inverse=True)
    row, item = np.divmod(pairs, width)
    score: FloatArray = np.bincount(same, worth, len(pairs)).astype(np.float64)
    order = np.lexsort((item, -score, row))  # keeps the rows where they are
    keep = order[places(np.bincount(row, minlength=n)) < k]
    return Recommendations(
        lists[0].session_ids,
        offsets_of(np.bincount(row[keep], minlength=n)),
        item[keep].astype(np.int32),
        score[keep],
        np.all([part.certified for _, part in used], axis=0),
        np.max([part.gap for _, part in used], axis=0),
        provenance[first][keep],
    )


def _reciprocal(lists: Recommendations) -> FloatArray:
    return 1 / (OFFSET + 1 + places(np.diff(lists.offsets)))


def _scaled(lists: Recommendations) -> FloatArray:
    lengths = np.diff(lists.offsets)
    filled = lengths > 0
    best = np.repeat(lists.scores[lists.offsets[:-1][filled]], lengths[filled])
    last = np.repeat(lists.scores[lists.offsets[1:][filled] - 1], lengths[filled])
    # Where all are equally sure, all are as sure as the best.
    return np.where(best > last, (lists.scores - last) / np.where(best > last, best - last, 1), 1)


def _ndcg(lists: Recommendations, targets: IntArray) -> float:
    """Mean over the sessions of 1/log₂(rank of the target + 1), 0 where the list lacks it."""
    lengths = np.diff(lists.offsets)
    hit = lists.items == np.repeat(targets, lengths)
    return float((1 / np.log2(places(lengths)[hit] + 2)).sum() / len(lists))
