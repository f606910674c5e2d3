"""Example sessions: what was in them, what came next, what was recommended."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.catalog import Catalog, one_line
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.recommenders.base import Recommendations

EXAMPLE_HISTORY = 3
EXAMPLE_LIST = 5
TITLE_WIDTH = 90


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
    chosen = np.unique(np.linspace(0, len(holdout) - 1, min(count, len(holdout))).astype(int))
    return "\n".join(_example(name, lists[i], holdout, int(i), int(ranks[i]), catalog) for i in chosen)


def _example(name: str, items: npt.NDArray[np.int32], holdout: Holdout, i: int, rank: int, catalog: Catalog) -> str:
    prompt = holdout.prompts[i]
    target = holdout.targets[i]
    shown = prompt[-EXAMPLE_HISTORY:]
    count = f"{len(prompt):,} items" if len(prompt) != 1 else "1 item"
    lines = [f"session {one_line(holdout.prompts.ids[i])} ({count})"]
    lines += [f"  {'last items' if j == 0 else '':<12}{_title(catalog, item)}" for j, item in enumerate(shown)]
    lines.append(f"  {'came next':<12}{_title(catalog, target)}")
    outcome = f"the next item is at rank {rank}" if rank else "the next item is not in the list"
    lines.append(f"  {name}: {outcome}" if len(items) else f"  {name}: the list is empty")
    for place, item in enumerate(items[:EXAMPLE_LIST], start=1):
        lines.append(f"  {'hit' if item == target else '':>5} {place:>2}. {_title(catalog, item)}")
    return "\n".join(lines) + "\n"


def _title(catalog: Catalog, item: int) -> str:
    text = one_line(catalog.titles[item]) or one_line(catalog.ids[item])
    return text if len(text) <= TITLE_WIDTH else text[: TITLE_WIDTH - 1] + "…"
