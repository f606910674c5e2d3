"""Pairs of rows that a plan names, compared over all seeds at once: is the one better than the other?

Every seed has its own models, and judges them by the same sessions. So a session's values are averaged over the seeds,
and the averages compared session by session: three seeds do not count as three times the sessions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqrec_prompt.evaluation.evaluate import PER_SESSION
from seqrec_prompt.evaluation.significance import bootstrap_interval, holm, randomisation_test
from seqrec_prompt.evaluation.tables import HEADINGS, aligned, cutoffs
from seqrec_prompt.recommenders.base import FloatArray
from seqrec_prompt.reproduction.plans import Expanded

METRICS = ("ndcg", "hr")
Result = Mapping[str, Any]


def compare_pairs(expanded: Expanded, found: Mapping[int, Result]) -> list[dict[str, Any]]:
    """Compare each pair of the plan over the seeds that have both rows. found: seed → what its metrics.json holds.

    Of a pair: `row`, `than`, `seeds` and cut-off → metric → mean of `than`, mean difference, its bootstrap interval and
    the p-value of a paired randomisation test, Holm-corrected over the pairs.
    """
    pairs: list[dict[str, Any]] = []
    for row, than in expanded.plan.pairs.items():
        names = {seed: [_named(found[seed], expanded.lists(one, seed)) for one in (row, than)] for seed in found}
        seeds = [seed for seed in found if None not in names[seed]]
        if not seeds:
            continue
        pair: dict[str, Any] = {"row": row, "than": than, "seeds": seeds}
        statistics = found[seeds[0]]["config"]["statistics"]
        draw = np.random.default_rng(statistics["seed"])
        for at in cutoffs(found[seeds[0]]):
            both = [_values(found[seed], names[seed], int(at[1:])) for seed in seeds]
            mine, others = np.mean(both, axis=0)
            p = randomisation_test(mine - others, statistics["sign_flips"], draw)
            pair[at] = {}
            for i, metric in enumerate(METRICS):
                apart = mine[:, i] - others[:, i]
                interval = bootstrap_interval(apart, statistics["resamples"], statistics["confidence"], draw)
                values = {"than": float(others[:, i].mean()), "difference": float(apart.mean())}
                pair[at][metric] = values | {"interval": list(interval), "p": float(p[i])}
        pairs.append(pair)
    for at in cutoffs(next(iter(found.values()))) if pairs else ():
        for metric in METRICS:
            for pair, p in zip(pairs, holm([pair[at][metric]["p"] for pair in pairs]), strict=True):
                pair[at][metric]["p_holm"] = float(p)
    return pairs


def pairs_section(pairs: Sequence[Mapping[str, Any]], at_cutoffs: Sequence[str], confidence: float) -> list[str]:
    """Write the pairs as Markdown, nothing if there are none."""
    if not pairs:
        return []
    about = (
        "A session's values are averaged over the seeds that both rows have. Difference: of the means, also in per "
        f"cent of the other row's, with a {confidence:.0%} bootstrap interval over sessions. p: paired randomisation "
        "test over sessions, Holm over the pairs that were made together."
    )
    parts = ["## Pairs, over all seeds\n", f"{about}\n"]
    for at in at_cutoffs:
        head = [f"top {at[1:]}", "against", "seeds"]
        for metric in METRICS:
            head += [f"{HEADINGS[metric][0]}, difference", "p"]
        body = []
        for pair in pairs:
            cells = [pair["row"], pair["than"], str(len(pair["seeds"]))]
            for metric in METRICS:
                one = pair[at][metric]
                low, high = one["interval"]
                relative = f" ({one['difference'] / one['than']:+.1%})" if one["than"] else ""
                cells += [f"{one['difference']:+.4f}{relative}, {low:+.4f} to {high:+.4f}", f"{one['p_holm']:.2g}"]
            body.append(cells)
        parts.append(aligned(head, body))
    return parts


def _named(result: Result, lists: Path) -> str | None:
    """What an evaluation calls these lists; None where it has none of them."""
    return next((one["name"] for one in result["recommenders"] if one["file"] == str(lists)), None)


def _values(result: Result, names: Sequence[str | None], k: int) -> FloatArray:
    """(rows, sessions, metrics) values of each session, sessions in the order of their ids."""
    table = pq.read_table(Path(result["config"]["out"]) / PER_SESSION, columns=["recommender", "session_id", "rank"])
    values = []
    for name in names:
        own = table.filter(pc.equal(table["recommender"].cast("string"), name)).sort_by("session_id")
        rank = own["rank"].fill_null(k + 1).to_numpy()
        hit = rank <= k
        values.append(np.stack([hit / np.log2(rank + 1.0), hit], axis=1))
    return np.stack(values)
