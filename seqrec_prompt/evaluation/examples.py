"""Example sessions: what was in them, what came next, what was recommended."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.catalog import Catalog, one_line
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.recommenders.base import Recommendations

EXAMPLE_HISTORY = 3
EXAMPLE_LIST = 5
TITLE_WIDTH = 90
NO_ITEM = "(not an item, or one named before)"


def examples(
    name: str,
    lists: Recommendations,
    holdout: Holdout,
    ranks: npt.NDArray[np.integer],
    catalog: Catalog,
    count: int,
) -> str:
    """Show `count` sessions, evenly spread over the holdout, hit or miss: last titles, target, first recommendations.

    lists: of recommender `name`, in the order of the holdout. ranks: (n,) rank of the target from 1, 0 for a miss.
    """
    chosen = spread(np.arange(len(holdout)), count)
    return "\n".join(_example(name, lists[i], holdout, i, int(ranks[i]), catalog) for i in chosen)


def _example(name: str, items: npt.NDArray[np.int32], holdout: Holdout, i: int, rank: int, catalog: Catalog) -> str:
    prompt = holdout.prompts[i]
    target = holdout.targets[i]
    shown = prompt[-EXAMPLE_HISTORY:]
    count = f"{len(prompt):,} items" if len(prompt) != 1 else "1 item"
    lines = [f"session {one_line(holdout.prompts.ids[i])} ({count})"]
    lines += [f"  {'last items' if j == 0 else '':<12}{title(catalog, item)}" for j, item in enumerate(shown)]
    lines.append(f"  {'came next':<12}{title(catalog, target)}")
    outcome = f"the next item is at rank {rank}" if rank else "the next item is not in the list"
    lines.append(f"  {name}: {outcome}" if len(items) else f"  {name}: the list is empty")
    for place, item in enumerate(items[:EXAMPLE_LIST], start=1):
        lines.append(f"  {'hit' if item == target else '':>5} {place:>2}. {title(catalog, item)}")
    return "\n".join(lines) + "\n"


def title(catalog: Catalog, item: int) -> str:
    """Write an item on one line of bounded width; the size of the catalog stands for what is no item of it."""
    if item == len(catalog):
        return NO_ITEM
    text = one_line(catalog.titles[item]) or one_line(catalog.ids[item])
    return text if len(text) <= TITLE_WIDTH else text[: TITLE_WIDTH - 1] + "…"


def spread(candidates: npt.NDArray[np.int64], count: int) -> list[int]:
    """Choose at most `count` of the candidates, evenly spread over them."""
    chosen = np.unique(np.linspace(0, len(candidates) - 1, min(count, len(candidates))).astype(int))
    return [int(i) for i in candidates[chosen]] if len(candidates) else []


def worst_misses(
    ranks: npt.NDArray[np.integer],
    others: Mapping[str, npt.NDArray[np.integer]],
    target_counts: npt.NDArray[np.integer],
    count: int,
) -> list[int]:
    """Choose the misses that were easiest to avoid, worst first.

    ranks: (n,) of the recommender in question, 0 on a miss. others: the same of other recommenders. A miss is the worse
    the more others hit the target, then the higher they rank it, then the more often train has it (target_counts,
    (n,)).
    """
    missed = np.flatnonzero(ranks == 0)
    table = np.array(list(others.values()), np.int64).reshape(len(others), len(ranks))[:, missed]
    hits = (table > 0).sum(axis=0)
    highest = np.where(table > 0, table, np.iinfo(np.int64).max).min(axis=0, initial=np.iinfo(np.int64).max)
    order = np.lexsort((-target_counts[missed], highest, -hits))
    return [int(i) for i in missed[order[:count]]]
