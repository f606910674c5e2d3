"""From free text to items: what an LLM wrote, where it could not be constrained to the catalog.

A text becomes an item by the first of these that applies, and keeps its name as provenance:
  exact        it is an item's text, letter for letter
  normalised   … once case, Unicode forms, HTML entities, white space, punctuation and list marks are left out
  fuzzy        … or the most similar one, where that is similar enough (normalised Indel similarity, 0 to 100)
  embedding    … or the one whose embedding is nearest, where items have embeddings and it is near enough (cosine)
Everything else is rejected: the model named something that the catalog does not have.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from seqrec_prompt.data.catalog import Catalog, one_line
from seqrec_prompt.ragged import IntArray, LongArray

REJECTED, EXACT, NORMALISED, FUZZY, EMBEDDING = "rejected", "exact", "normalised", "fuzzy", "embedding"
# What models write before an entry of a list: "3.", "3)", "-", "*", "•".
LIST_MARK = re.compile(r"^\s*(?:\d{1,3}[.)]|[-*•])\s+")
Names = npt.NDArray[np.object_]
FloatArray = npt.NDArray[np.float64]


class Nearest(Protocol):
    """What knows which item means the same as a text; `engines.nearest` holds one."""

    def __call__(self, texts: Sequence[str]) -> tuple[LongArray, FloatArray]:
        """(texts,) the nearest item of each text, and their cosine."""
        ...


@dataclass(frozen=True, eq=False)
class Grounded:
    """What became of texts.

    items: (texts,) catalog positions, -1 where rejected. provenance: (texts,) how each was found. cosine: (texts,) with
    the item whose embedding is nearest, NaN where another way applied before or items have no embeddings.
    """

    items: IntArray
    provenance: Names
    cosine: FloatArray


class Grounder:
    """Finds the items that texts name; of items that share a title the most popular one stands for all."""

    def __init__(
        self,
        catalog: Catalog,
        popularity: npt.NDArray[np.int64],
        threshold: float = 90,
        nearest: Nearest | None = None,
        least_cosine: float = -1,
    ) -> None:
        """popularity: (items,) decides between equal titles. threshold: least similarity of a fuzzy match, 0 to 100.

        nearest: the last way, left out when None; a text and an item must come to at least `least_cosine`.
        """
        self.threshold = threshold
        self.nearest = nearest
        self.least_cosine = least_cosine
        self._exact: dict[str, int] = {}
        self._plain: dict[str, int] = {}
        self._texts = catalog.texts()
        for item in np.argsort(-popularity, kind="stable").tolist():
            self._exact.setdefault(self._texts[item], item)
            if plain := normalise(self._texts[item]):
                self._plain.setdefault(plain, item)
        self._choices = list(self._plain)

    def __call__(self, texts: Sequence[str]) -> Grounded:
        """Ground texts of one item each; equal texts are looked up once."""
        known = {text: self._one(text) for text in dict.fromkeys(texts)}
        cosine: dict[str, float] = {}
        left = [text for text, (item, _) in known.items() if item < 0 and normalise(_entry(text))]
        if self.nearest is not None and left:
            items, found = self.nearest([_entry(text) for text in left])
            cosine = dict(zip(left, found.tolist(), strict=True))
            for text, item in zip(left, items.tolist(), strict=True):
                if cosine[text] >= self.least_cosine:
                    known[text] = self._exact[self._texts[item]], EMBEDDING
        return Grounded(
            np.array([known[text][0] for text in texts], np.int32),
            np.array([known[text][1] for text in texts], dtype=object),
            np.array([cosine.get(text, np.nan) for text in texts], np.float64),
        )

    def _one(self, text: str) -> tuple[int, str]:
        line = one_line(text)
        if line in self._exact:
            return self._exact[line], EXACT
        # A title may itself begin like an entry of a list ("7. Heaven"): it is taken as it stands first.
        forms = list(dict.fromkeys([normalise(line), normalise(_entry(text))]))
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


def _entry(text: str) -> str:
    """An entry of a list as one line, without what marks it as one."""
    return LIST_MARK.sub("", one_line(text))


def entries(text: str) -> list[str]:
    """Split an answer into the titles it lists: its lines, without the empty ones."""
    return [line for line in text.splitlines() if line.strip()]
