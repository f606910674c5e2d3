"""Metrics and examples as text: Markdown (which is also what the screen shows), CSV, example sessions."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from seqrec_prompt.data.catalog import Catalog, one_line
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.recommenders.base import Recommendations

# Metric → (heading, decimals).
HEADINGS = {
    "ndcg": ("NDCG", 4),
    "hr": ("hit rate", 4),
    "mrr": ("MRR", 4),
    "coverage": ("coverage", 4),
    "serendipity": ("serendipity", 4),
    "novelty": ("novelty (bits)", 3),
}
# Metric values of one recommender: cut-off → metric → value.
Means = Mapping[int, Mapping[str, float]]

EXAMPLE_HISTORY = 3
EXAMPLE_LIST = 5
TITLE_WIDTH = 90


def markdown(rows: Mapping[str, Means], cutoffs: Sequence[int]) -> str:
    """Write one Markdown table per cut-off, recommenders × metrics, whose columns also line up on a screen."""
    return "\n".join(_table(rows, k) for k in cutoffs)


def _table(rows: Mapping[str, Means], k: int) -> str:
    head = [f"top {k}", *(heading for heading, _ in HEADINGS.values())]
    body = [
        [name.replace("|", "\\|"), *(f"{means[k][m]:.{digits}f}" for m, (_, digits) in HEADINGS.items())]
        for name, means in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "".join(_line(cells, widths) for cells in (head, rule, *body))


def comma_separated(rows: Mapping[str, Means], cutoffs: Sequence[int]) -> str:
    """Write the same table as CSV with full names (`coverage@10`) and unrounded values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["recommender", *(f"{metric}@{k}" for k in cutoffs for metric in HEADINGS)])
    for name, means in rows.items():
        writer.writerow([name, *(repr(means[k][metric]) for k in cutoffs for metric in HEADINGS)])
    return text.getvalue()


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


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
    return f"| {' | '.join(padded)} |\n"
