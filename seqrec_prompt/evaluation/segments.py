"""Test sessions by kind: how long the session is, how popular its target, which category the target is of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.catalog import Catalog, one_line
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import LongArray

CATEGORIES = 10  # shown by name; the rest together
LENGTHS = {0: "0", 1: "1", 2: "2–3", 4: "4–7", 8: "8–15", 16: "16–31", 32: "32 and more"}  # first length → name
POPULARITY = ("head", "middle", "tail", "cold")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """One way to part the sessions: `of` (n,) says which of `labels` each belongs to; no label is without sessions."""

    name: str
    labels: list[str]
    of: LongArray


def segmentations(
    holdout: Holdout, popularity: LongArray, catalog: Catalog, category: str | None = None
) -> list[Segmentation]:
    """Part the sessions by length, by target popularity and, if wanted, by a catalog attribute of the target.

    Raises DataError for an attribute that the catalog does not have.
    """
    found = [
        by_length(holdout.prompts.lengths),
        _used("target popularity", list(POPULARITY), popularity_classes(popularity)[holdout.targets].astype(np.int64)),
    ]
    if category is not None:
        if category not in catalog.attributes:
            known = ", ".join(catalog.attributes) or "none; prepare keeps some with --attribute-columns"
            raise DataError([f"the catalog has no attribute '{category}' (it has: {known})"])
        values = [one_line(text) or "none" for text in catalog.attributes[category]]
        found.append(by_category(f"target {category}", [values[target] for target in holdout.targets]))
    return found


def by_length(lengths: LongArray) -> Segmentation:
    """Part sessions by their number of items, in steps that double; a session may be empty."""
    return _used("session length", list(LENGTHS.values()), np.searchsorted(list(LENGTHS), lengths, side="right") - 1)


def popularity_classes(popularity: LongArray) -> npt.NDArray[np.int8]:
    """Class each item, (items,) numbers into POPULARITY.

    The head are the most popular items that together have a third of all train interactions, the middle those that have
    the next third, the tail all others; an item without any is cold.
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    classes = np.empty(len(popularity), np.int8)
    classes[order] = np.minimum(2, before * 3 // max(int(popularity.sum()), 1))
    classes[popularity == 0] = POPULARITY.index("cold")
    return classes


def by_category(name: str, values: list[str]) -> Segmentation:
    """Part sessions by a text; the most frequent come first, those beyond CATEGORIES go together."""
    common = [value for value, _ in sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))]
    number = {value: min(i, CATEGORIES) for i, value in enumerate(common)}
    of = np.array([number[value] for value in values], np.int64)
    return _used(name, [*common[:CATEGORIES], "other categories"], of)


def _used(name: str, labels: list[str], of: LongArray) -> Segmentation:
    used, numbers = np.unique(of, return_inverse=True)
    return Segmentation(name, [labels[i] for i in used], numbers.astype(np.int64))
