"""From the titles that an answer names to one list of distinct items, gaps filled with neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.prompting.grounding import EMBEDDING, REJECTED
from seqrec_prompt.ragged import IntArray
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SimilarityConfig

NEIGHBOUR = "neighbour"  # provenance of items that no text named


@dataclass
class Tally:
    """What became of the titles that were named.

    named: by provenance. duplicate: named again in an answer, whatever became of it; what only an embedding found does
    not count, so that this is a figure of the text. seen: of the session itself, left out. beyond_k: of a full list,
    left out. replaced, filled: neighbours put in for items named again, and at the ends of lists.
    """

    named: Counter[str] = field(default_factory=Counter)
    duplicate: int = 0
    seen: int = 0
    beyond_k: int = 0
    replaced: int = 0
    filled: int = 0

    def facts(self) -> dict[str, Any]:
        """Counts and, of all titles named, the shares that users ask for, the same with embeddings and without."""
        total = sum(self.named.values())
        return {
            "titles": total,
            "provenance": dict(sorted(self.named.items())),
            "hallucinated_share": (self.named[REJECTED] + self.named[EMBEDDING]) / max(total, 1),
            "duplicate": self.duplicate,
            "duplicate_share": self.duplicate / max(total, 1),
            "seen": self.seen,
            "beyond_k": self.beyond_k,
            "replaced": self.replaced,
            "filled": self.filled,
        }


def list_of(
    named: Sequence[tuple[int, str]],
    seen: set[int],
    k: int,
    near: Mapping[int, Sequence[int]],
    tally: Tally,
    *,
    fill: bool,
    title: Sequence[int] | None = None,
) -> dict[int, str]:
    """Return at most `k` items of distinct titles with how each was found, in the order in which an answer names them.

    named: items, -1 where rejected, and how they were found. seen: items that are left out. near: the neighbours of
    every item, nearest first; where there are none nothing is put in. An item that is named again leaves its place to
    its nearest neighbour that the answer does not name. `fill`: then each item in turn, from the best, gives its
    next neighbour until the list is full; an answer without any item has no neighbours, and stays empty. title: of
    every item a number, the same where items share one; not given: none do.
    """

    def of(item: int) -> int:
        return item if title is None else title[item]

    given: dict[int, str] = {}
    out = {of(item) for item in seen}
    taken = out | {of(item) for item, _ in named if item >= 0}  # and neighbours that were put in
    before: set[int] = set()
    in_words: set[int] = set()  # named, and found without an embedding

    def put_neighbour(item: int) -> bool:
        other = next((other for other in near.get(item, ()) if of(other) not in taken), None)
        if other is not None:
            given[other] = NEIGHBOUR
            taken.add(of(other))
        return other is not None

    for item, how in named:
        tally.named[how] += 1
        if item < 0:
            continue
        name = of(item)
        if how != EMBEDDING:
            tally.duplicate += name in in_words
            in_words.add(name)
        if name in out:
            tally.seen += 1
        elif name not in before and len(given) == k:
            tally.beyond_k += 1
        elif name not in before:
            given[item] = how
        elif len(given) < k:
            tally.replaced += put_neighbour(item)
        before.add(name)
    sources = list(given) if fill else []
    while len(given) < k and sources:
        sources = [item for item in sources if len(given) < k and put_neighbour(item)]
        tally.filled += len(sources)
    return given


def neighbours(items: IntArray, table: EmbeddingTable, catalog: Catalog, depth: int) -> dict[int, list[int]]:
    """The `depth` items nearest to each of `items` by cosine, itself left out."""
    search = LLMSeqSim.fit(table, catalog, SimilarityConfig(weighting="last"))
    alone = Sessions.build([str(item) for item in items], [[item] for item in items.tolist()])
    found = search.recommend(alone, depth, exclude_seen=True)
    return {item: others.tolist() for item, others in zip(items.tolist(), found, strict=True)}
