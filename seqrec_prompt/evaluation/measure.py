"""From lists to everything that metrics.json says: metrics, intervals, paired tests, segments, shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrec_prompt.console import Progress, progress
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.evaluation.comparable import Comparison, Row
from seqrec_prompt.evaluation.metrics import METRICS, ListMetrics, count_everything, evaluate_lists
from seqrec_prompt.evaluation.segments import POPULARITY, popularity_classes, segmentations
from seqrec_prompt.evaluation.significance import (
    bootstrap_interval,
    coverage_interval,
    holm,
    randomisation_test,
    t_test,
)
from seqrec_prompt.evaluation.tables import letters
from seqrec_prompt.ragged import places
from seqrec_prompt.recommenders.base import FloatArray, Recommendations

if TYPE_CHECKING:
    from seqrec_prompt.evaluation.evaluate import EvaluateConfig, StatisticsConfig

ACCURACY = ("ndcg", "hr", "mrr")
# Means over sessions, so they have a value in each; coverage has none.
PER_SESSION_METRICS = tuple(name for name in METRICS if name != "coverage")
# What tells two runs of 'recommend' apart for the reader of a table.
MADE_BY = ("model", "adapter", "scoring", "prior_weight", "recommender")


def measure_lists(
    rows: Sequence[Row], comparison: Comparison, dataset: Dataset, config: EvaluateConfig
) -> list[ListMetrics]:
    """Compute the metrics of every row's lists."""
    n_items = len(dataset.catalog)
    counts, total = dataset.popularity, None
    if config.popularity == "all":
        counts = count_everything(dataset.split, n_items)
        # prepare drops items of test sessions that train lacks; the published total has them.
        total = dataset.manifest["facts"].get("interactions")
    targets = comparison.holdout.targets
    found = []
    with progress(len(rows), "measure", "recommenders") as bar:
        for row in rows:
            found.append(evaluate_lists(row.lists, targets, counts, n_items, config.cutoffs, total))
            bar.update(note=row.name)
    return found


def describe(
    rows: Sequence[Row],
    metrics: Sequence[ListMetrics],
    comparison: Comparison,
    dataset: Dataset,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Return what metrics.json holds but for settings and inputs: plain JSON values."""
    n_items, statistics = len(dataset.catalog), config.statistics
    classes = popularity_classes(dataset.popularity)
    parts = segmentations(comparison.holdout, dataset.popularity, dataset.catalog, config.category)
    recommenders, segments = [], []
    steps = len(rows) + len(rows) * (len(rows) - 1) // 2 + sum(len(part.labels) for part in parts)
    with progress(steps, "intervals and tests", "comparisons") as bar:
        for row, found in zip(rows, metrics, strict=True):
            made = row.manifest.get("config", {})
            recommenders.append(
                {
                    "name": row.name,
                    "file": None if row.path is None else str(row.path),
                    "sha256": row.sha256,
                    "made_by": {key: made[key] for key in MADE_BY if made.get(key) is not None},
                    "made_from": row.manifest.get("inputs", {}),
                    "lists": _shares(row, found, n_items),
                    "popularity": _class_shares(classes, row.lists.items[row.lists.items < n_items]),
                    "metrics": {f"@{k}": values for k, values in found.means.items()},
                    "intervals": _intervals(row.lists, found, n_items, statistics),
                }
            )
            bar.update()
        pairs = _pairs(rows, metrics, statistics, bar)
        for part in parts:
            for i, label in enumerate(part.labels):
                inside = _segment(rows, metrics, part.of == i, statistics)
                segments.append({"by": part.name, "segment": label, **inside})
                bar.update()
    return {
        "recommenders": recommenders,
        "pairs": pairs,
        "segments": segments,
        "targets": {"popularity": _class_shares(classes, comparison.holdout.targets)},
        "sessions": {"evaluated": len(comparison.holdout), "test": len(dataset.split.test)},
        "items": n_items,
        "exclude_seen": comparison.exclude_seen,
    }


def _shares(row: Row, found: ListMetrics, n_items: int) -> dict[str, Any]:
    """Counts of lists; of a file, the shares of its places that hold an item, none, or one once more."""
    lists, total = row.lists, len(row.lists.items)
    counts: dict[str, Any] = {
        "count": len(lists),
        "short": int((found.lengths < _deepest(found)).sum()),
        "empty": int((found.lengths == 0).sum()),
        "items": total,
    }
    if row.path is None:
        return counts
    counts["valid"] = (total - row.unknown - row.repeated) / max(total, 1)
    counts |= {"made_up": row.unknown / max(total, 1), "repeated": row.repeated / max(total, 1), "of": "places"}
    if row.manifest.get("stage") == "ground":  # which left them out of the lists, and counted them
        facts = row.manifest["facts"]
        counts |= {"made_up": facts["hallucinated_share"], "repeated": facts["duplicate_share"], "of": "titles named"}
    if row.manifest:  # another tool's file proves nothing
        counts["certified"] = float(row.lists.certified.mean())
        how = lists.provenance
        counts["provenance"] = {how: total} if isinstance(how, str) else dict(sorted(Counter(how.tolist()).items()))
    return counts


def _class_shares(classes: Any, items: Any) -> dict[str, float]:
    counts = np.bincount(classes[items], minlength=len(POPULARITY)) / max(len(items), 1)
    return dict(zip(POPULARITY, counts.tolist(), strict=True))


def _intervals(
    lists: Recommendations, found: ListMetrics, n_items: int, config: StatisticsConfig
) -> dict[str, dict[str, list[float]]]:
    lengths = np.diff(lists.offsets)
    session, place, real = np.repeat(np.arange(len(lists)), lengths), places(lengths), lists.items < n_items
    intervals = {}
    for k, values in found.per_session.items():
        inside = real & (place < k)
        shown = (session[inside], lists.items[inside], len(lists), n_items)
        made = {name: _bootstrap(values[name], config) for name in PER_SESSION_METRICS}
        made["coverage"] = list(coverage_interval(*shown, config.confidence))
        intervals[f"@{k}"] = {name: made[name] for name in METRICS}
    return intervals


def _bootstrap(values: FloatArray, config: StatisticsConfig) -> list[float]:
    # The same draws for every row: what differs between two rows is not chance.
    draw = np.random.default_rng(config.seed)
    return list(bootstrap_interval(values, config.resamples, config.confidence, draw))


def _pairs(
    rows: Sequence[Row], metrics: Sequence[ListMetrics], config: StatisticsConfig, bar: Progress
) -> list[dict[str, Any]]:
    """Compare every row with every other, session by session; Holm's family is all pairs in one metric at one cut-off.

    p-values as they are ('randomisation', 't_test') and corrected ('…_holm'); 'difference' is first minus second.
    """
    if len(rows) < 2:
        return []
    pairs = list(combinations(range(len(rows)), 2))
    keys = [(k, name) for k in metrics[0].per_session for name in PER_SESSION_METRICS]
    # Metrics of ranks share one set of sign flips; each novelty has its own.
    groups = [[key for key in keys if key[1] != "novelty"], *([key] for key in keys if key[1] == "novelty")]
    raw = {name: np.empty((len(pairs), len(keys))) for name in ("randomisation", "t_test")}
    result = []
    for i, (one, other) in enumerate(pairs):
        comparison: dict[str, Any] = {"first": rows[one].name, "second": rows[other].name}
        for group in groups:
            columns = [metrics[one].per_session[k][m] - metrics[other].per_session[k][m] for k, m in group]
            differences = np.stack(columns, axis=1)
            where = [keys.index(key) for key in group]
            draw = np.random.default_rng(config.seed)
            raw["randomisation"][i, where] = randomisation_test(differences, config.sign_flips, draw)
            raw["t_test"][i, where] = t_test(differences)
            for (k, name), values in zip(group, columns, strict=True):
                found = {"difference": float(values.mean()), "interval": _bootstrap(values, config)}
                comparison.setdefault(f"@{k}", {})[name] = found
        result.append(comparison)
        bar.update()
    for column, (k, name) in enumerate(keys):
        for test, p in raw.items():
            corrected = holm(p[:, column])
            for comparison, value, adjusted in zip(result, p[:, column], corrected, strict=True):
                comparison[f"@{k}"][name] |= {test: float(value), f"{test}_holm": float(adjusted)}
    return result


def _segment(
    rows: Sequence[Row], metrics: Sequence[ListMetrics], inside: Any, config: StatisticsConfig
) -> dict[str, Any]:
    recommenders = []
    for row, found in zip(rows, metrics, strict=True):
        values = {k: {name: v[inside] for name, v in kept.items()} for k, kept in found.per_session.items()}
        recommenders.append(
            {
                "name": row.name,
                "metrics": {
                    f"@{k}": {name: float(kept[name].mean()) for name in PER_SESSION_METRICS}
                    for k, kept in values.items()
                },
                "intervals": {
                    f"@{k}": {name: _bootstrap(kept[name], config) for name in ACCURACY} for k, kept in values.items()
                },
            }
        )
    return {"sessions": int(inside.sum()), "recommenders": recommenders}


def _deepest(found: ListMetrics) -> int:
    return max(found.per_session)


def notes(result: dict[str, Any], config: EvaluateConfig) -> list[str]:
    """Say in sentences what the reader of the table has to know."""
    n, k = result["sessions"]["evaluated"], max(config.cutoffs)
    counted = "train interactions" if config.popularity == "train" else "all interactions, test included"
    lines = [
        f"{n:,} of {result['sessions']['test']:,} test sessions, {result['items']:,} items in the catalog; "
        f"seen items {'left out' if result['exclude_seen'] else 'kept'}; novelty and serendipity count {counted}."
    ]
    if result["pairs"]:
        count = f"{len(result['pairs'])} pair{'s' if len(result['pairs']) > 1 else ''}"
        where = "Superscripts name the rows that a value is significantly higher than"
        if not letters(result):
            where = f"More rows than there are letters for superscripts: 'pairs' in metrics.json holds all {count}"
        lines.append(
            f"{where}: paired randomisation test ({config.statistics.sign_flips:,} sign flips), Holm over {count}, "
            f"p < {1 - config.statistics.confidence:.3g}. Coverage belongs to no session and has no test."
        )
    for row in result["recommenders"]:
        lists = row["lists"]
        if "valid" in lists:
            certified = f"; {lists['certified']:.1%} of lists certified" if "certified" in lists else ""
            lines.append(
                f"{row['name']}: {lists['valid']:.1%} of places hold a real item; of {lists['of']}, "
                f"{lists['made_up']:.1%} made up, {lists['repeated']:.1%} repeated{certified}."
            )
        if lists["short"]:
            none = f", {lists['empty']:,} of them none" if lists["empty"] else ""
            lines.append(
                f"{row['name']}: {lists['short']:,} of {n:,} lists have fewer than {k} items{none}; "
                "judged on what is there."
            )
    return lines
