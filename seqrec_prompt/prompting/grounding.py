"""From free text to items: what an LLM wrote, where it could not be constrained to the catalog.

A text becomes an item by the first of these that applies, and keeps its name as provenance:
  exact        it is an item's text, letter for letter
  normalised   … once case, Unicode forms, HTML entities, white space, punctuation and list marks are left out
  fuzzy        … or the most similar one, where that is similar enough (normalised Indel similarity, 0 to 100)
Everything else is rejected: the model named something that the catalog does not have.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from seqrec_prompt.data.catalog import Catalog, one_line
from seqrec_prompt.ragged import IntArray

REJECTED, EXACT, NORMALISED, FUZZY = "rejected", "exact", "normalised", "fuzzy"
# What models write before an entry of a list: "3.", "3)", "-", "*", "•".
LIST_MARK = re.compile(r"^\s*(?:\d{1,3}[.)]|[-*•])\s+")
Names = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Grounded:
    """items: (texts,) catalog positions, -1 where rejected. provenance: (texts,) how each was found."""

    items: IntArray
    provenance: Names


class Grounder:
    """Finds the items that texts name; of items that share a title the most popular one stands for all."""

    def __init__(self, catalog: Catalog, popularity: npt.NDArray[np.int64], threshold: float = 90) -> None:
        """popularity: (items,) decides between equal titles. threshold: least similarity of a fuzzy match, 0 to 100."""
        self.threshold = threshold
        self._exact: dict[str, int] = {}
        self._plain: dict[str, int] = {}
        texts = catalog.texts()
        for item in np.argsort(-popularity, kind="stable").tolist():
            self._exact.setdefault(texts[item], item)
            if plain := normalise(texts[item]):
                self._plain.setdefault(plain, item)
        self._choices = list(self._plain)

    def __call__(self, texts: Sequence[str]) -> Grounded:
        """Ground texts of one item each; equal texts are looked up once."""
        known = {text: self._one(text) for text in dict.fromkeys(texts)}
        items = np.array([known[text][0] for text in texts], np.int32)
        return Grounded(items, np.array([known[text][1] for text in texts], dtype=object))

    def _one(self, text: str) -> tuple[int, str]:
        line = one_line(text)
        if line in self._exact:
            return self._exact[line], EXACT
        # A title may itself begin like an entry of a list ("7. Heaven"): it is taken as it stands first.
        forms = list(dict.fromkeys([normalise(line), normalise(LIST_MARK.sub("", line))]))
        for plain in forms:
            if plain in self._plain:
                return self._plain[plain], NORMALISED
        plain = forms[-1]
        found = process.extractOne(plain, self._choices, scorer=fuzz.ratio, score_cutoff=self.threshold)
        # Without a letter or digit there is nothing to be similar to.
        return (self._plain[found[0]], FUZZY) if plain and found else (-1, REJECTED)


def normalise(text: str) -> str:
    """Fold a text to what tells it apart: compatible Unicode forms made one, case folded, words by single spaces.

    Letters, digits and the marks on letters count; a title without any (of symbols only) keeps what it has.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", one_line(text)).casefold())
    kept = "".join(char if unicodedata.category(char)[0] in "LNM" else " " for char in folded)
    return " ".join(kept.split()) or "".join(folded.split())


def entries(text: str) -> list[str]:
    """Split an answer into the titles it lists: its lines, without the empty ones."""
    return [line for line in text.splitlines() if line.strip()]
