"""The report's page: what metrics.json and the lists say, arranged for the template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from seqrec_prompt.data.catalog import Catalog, one_line
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.evaluation import charts
from seqrec_prompt.evaluation.charts import Band, Mark, Style
from seqrec_prompt.evaluation.examples import spread, title, worst_misses
from seqrec_prompt.evaluation.segments import POPULARITY
from seqrec_prompt.evaluation.tables import HEADINGS, Result, best, cutoffs, higher_than, interval, letters
from seqrec_prompt.recommenders.base import Recommendations

COLOURS = 8  # of files; baselines are grey
HISTORY, LIST = 5, 10  # items of a session, places of its list that are shown
LEAST_LABELLED = 0.08  # share of a bar below which its part has no room for a number


def render(context: Mapping[str, Any]) -> str:
    """Fill the template; every text in `context` that is not Markup is escaped."""
    template = files("seqrec_prompt.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(context)


def results(result: Result) -> dict[str, Any]:
    """Arrange everything that needs no lists: tables, charts, comparisons."""
    at = cutoffs(result)[0]
    styles = _styles(result)
    letter = letters(result)
    rows = {
        name: {"name": name, "letter": letter.get(name, ""), "mark": Markup(charts.legend_mark(style))}  # noqa: S704
        for name, style in styles.items()
    }
    curves = _prior_curves(result)
    popularity = [("came next", result["targets"]["popularity"])]
    popularity += [(row["name"], row["popularity"]) for row in result["recommenders"]]
    return {
        "rows": list(rows.values()),
        "k": at[1:],
        "confidence": f"{result['config']['statistics']['confidence']:.0%}",
        "headings": [heading for heading, _ in HEADINGS.values()],
        "tables": [_table(result, rows, at) for at in cutoffs(result)],
        "notes": result["notes"],
        "lead": _lead(result, at),
        "pairs": _pairs(result, at),
        "pair_metric": f"NDCG of the first {at[1:]} places",
        "segments": _segments(result, styles, at),
        "coverage": _against(result, styles, letter, curves, at, "coverage"),
        "novelty": _against(result, styles, letter, curves, at, "novelty"),
        "curves": bool(curves),
        "classes": [(i, kind) for i, kind in enumerate(POPULARITY) if any(shares[kind] for _, shares in popularity)],
        "popularity": [_bar(name, shares) for name, shares in popularity],
    }


def training(manifest: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arrange what 'finetune' kept: loss over steps and, where it validated, NDCG@10 over steps."""
    config, facts = manifest["config"], manifest["facts"]
    unit = "nats an item" if config.get("objective") == "catalog" else "nats a token"
    lines = [
        ("Loss", f"loss ({unit})", [(e["step"], e["loss"]) for e in log if "loss" in e and "step" in e], "c0"),
        ("Validation", "NDCG@10", [(e["step"], e["eval_ndcg@10"]) for e in log if "eval_ndcg@10" in e], "c2"),
    ]
    shown = [
        {"name": name, "svg": _svg(charts.curve(points, Style(colour, "circle"), "step", unit, f"{unit} over steps"))}
        for name, unit, points, colour in lines
        if points
    ]
    text = (
        f"{config['model']}, method {config.get('method', 'lora')}, objective {config.get('objective')}: "
        f"{facts.get('steps', 0):,} steps in {facts.get('seconds', 0):,.0f} s on {facts.get('hardware', 'unknown')}."
    )
    return {"text": text, "charts": shown}


def example_groups(
    lists: Recommendations,
    name: str,
    ranks: Mapping[str, npt.NDArray[np.integer]],
    holdout: Holdout,
    target_counts: npt.NDArray[np.integer],
    catalog: Catalog,
    count: int,
) -> list[dict[str, Any]]:
    """Choose `count` sessions of each kind and write out what recommender `name` did with them.

    lists: its lists, in the order of the holdout. ranks: (n,) of every recommender, 0 on a miss.
    """
    own = ranks[name]
    others = {other: found for other, found in ranks.items() if other != name}
    kinds = [
        (
            "As they come",
            "Evenly spread over the test sessions, whatever came of them.",
            spread(np.arange(len(own)), count),
        ),
        ("Hits", "Evenly spread over the sessions whose next item is in the list.", spread(np.flatnonzero(own), count)),
        (
            "Worst misses",
            "The next item is not in the list, but most of the other recommenders have it, or it is popular.",
            worst_misses(own, others, target_counts, count),
        ),
    ]
    return [
        {"name": kind, "how": how, "examples": [_example(lists[i], ranks, name, holdout, i, catalog) for i in chosen]}
        for kind, how, chosen in kinds
        if chosen
    ]


def _example(
    items: npt.NDArray[np.int32],
    ranks: Mapping[str, npt.NDArray[np.integer]],
    name: str,
    holdout: Holdout,
    i: int,
    catalog: Catalog,
) -> dict[str, Any]:
    prompt, target = holdout.prompts[i], int(holdout.targets[i])
    rank = int(ranks[name][i])
    found = [f"{other} at {found[i]}" for other, found in ranks.items() if found[i] and other != name]
    outcome = f"Hit at place {rank}." if rank else "Missed."
    if found:
        outcome += f" Also found by {', '.join(found)}." if rank else f" Found by {', '.join(found)}."
    more = f", the last {HISTORY} of {len(prompt):,} items" if len(prompt) > HISTORY else ""
    return {
        "id": one_line(holdout.prompts.ids[i]),
        "outcome": outcome,
        "history_name": f"Session{more}",
        "history": [title(catalog, item) for item in prompt[-HISTORY:]],
        "target": title(catalog, target),
        "places": [{"title": title(catalog, item), "hit": item == target} for item in items[:LIST]],
    }


def _svg(text: str) -> Markup:
    return Markup(text)  # noqa: S704  made by charts, which escapes what it writes


def _styles(result: Result) -> dict[str, Style]:
    """Files have colours, baselines are grey; neighbours differ in shape too."""
    names = [row["name"] for row in result["recommenders"]]
    of_files = [row["name"] for row in result["recommenders"] if row["file"]]
    colours = {name: f"c{i % COLOURS}" for i, name in enumerate(of_files)}
    return {
        name: Style(colours.get(name, "base"), charts.SHAPES[i % len(charts.SHAPES)]) for i, name in enumerate(names)
    }


def _table(result: Result, rows: Mapping[str, Any], at: str) -> dict[str, Any]:
    marks = {metric: higher_than(result, at, metric) for metric in HEADINGS}
    highest = {metric: best(result, at, metric) for metric in HEADINGS}
    lines = []
    for row in result["recommenders"]:
        cells = [
            {
                "value": f"{row['metrics'][at][metric]:.{digits}f}",
                "best": row["metrics"][at][metric] == highest[metric] and len(rows) > 1,
                "marks": marks[metric][row["name"]],
                "interval": interval(row, at, metric),
            }
            for metric, (_, digits) in HEADINGS.items()
        ]
        lines.append({"row": rows[row["name"]], "cells": cells})
    return {"k": at[1:], "lines": lines}


def _lead(result: Result, at: str) -> str:
    """Say in a sentence or two who is ahead in NDCG, and whether that is more than chance."""
    ranked = sorted(result["recommenders"], key=lambda row: -row["metrics"][at]["ndcg"])
    first = ranked[0]
    value = f"NDCG@{at[1:]} {first['metrics'][at]['ndcg']:.4f} ({interval(first, at, 'ndcg')})"
    if len(ranked) == 1:
        return f"{first['name']}: {value}."
    second = ranked[1]
    (pair,) = (p for p in result["pairs"] if {p["first"], p["second"]} == {first["name"], second["name"]})
    found = pair[at]["ndcg"]
    sure = found["randomisation_holm"] < 1 - result["config"]["statistics"]["confidence"]
    return (
        f"{first['name']} ranks highest: {value}. Its lead of {abs(found['difference']):.4f} over {second['name']} is "
        f"{'significant' if sure else 'not significant'} (p = {_p(found['randomisation_holm'])})."
    )


def _pairs(result: Result, at: str) -> list[dict[str, str]]:
    lines = []
    for pair in result["pairs"]:
        found = pair[at]["ndcg"]
        low, high = found["interval"]
        lines.append(
            {
                "first": pair["first"],
                "second": pair["second"],
                "difference": f"{found['difference']:+.4f}",
                "interval": f"{low:+.4f} to {high:+.4f}",
                "randomisation": _p(found["randomisation_holm"]),
                "t_test": _p(found["t_test_holm"]),
            }
        )
    return lines


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _segments(result: Result, styles: Mapping[str, Style], at: str) -> list[dict[str, Any]]:
    kinds: dict[str, list[Band]] = {}
    for part in result["segments"]:
        marks = []
        for row in part["recommenders"]:
            value, bounds = row["metrics"][at]["ndcg"], row["intervals"][at]["ndcg"]
            text = f"{row['name']}: {value:.4f} ({bounds[0]:.4f}–{bounds[1]:.4f})"
            marks.append(Mark(value, 0, styles[row["name"]], text, interval=(bounds[0], bounds[1])))
        kinds.setdefault(part["by"], []).append(Band(part["segment"], f"{part['sessions']:,} sessions", marks))
    return [
        {"name": name, "svg": _svg(charts.dots(bands, f"NDCG{at} by {name}; values are in segments.csv", 3))}
        for name, bands in kinds.items()
    ]


def _prior_curves(result: Result) -> list[list[str]]:
    """Rows that differ in nothing but the weight of the prior, each group by rising weight."""
    groups: dict[str, list[tuple[float, str]]] = {}
    for row in result["recommenders"]:
        made = dict(row["made_by"])
        weight = made.pop("prior_weight", None)
        if weight is not None:
            groups.setdefault(json.dumps([made, row["made_from"]], sort_keys=True), []).append((weight, row["name"]))
    return [[name for _, name in sorted(group)] for group in groups.values() if len({w for w, _ in group}) > 1]


def _against(
    result: Result,
    styles: Mapping[str, Style],
    letter: Mapping[str, str],
    curves: Sequence[Sequence[str]],
    at: str,
    metric: str,
) -> Markup:
    on_a_curve = {name for names in curves for name in names}
    heading = HEADINGS[metric][0]
    marks = {}
    for row in result["recommenders"]:
        name, x, y = row["name"], row["metrics"][at][metric], row["metrics"][at]["ndcg"]
        label = letter.get(name, "")
        if name in on_a_curve:
            label = f"{label} λ={row['made_by']['prior_weight']:g}".strip()
        marks[name] = Mark(x, y, styles[name], f"{name}: {heading} {x:.4f}, NDCG {y:.4f}", label)
    joined = [[marks[name] for name in names] for names in curves]
    description = f"NDCG against {heading}, first {at[1:]} places; values are in the table"
    return _svg(charts.scatter(list(marks.values()), joined, heading, "NDCG", description))


def _bar(name: str, shares: Mapping[str, float]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "number": i,
            "share": f"{shares[kind]:.4f}",
            "title": f"{kind}: {shares[kind]:.1%}",
            "label": f"{shares[kind]:.0%}" if shares[kind] >= LEAST_LABELLED else "",
        }
        for i, kind in enumerate(POPULARITY)
        if shares[kind] > 0
    ]
    return {"name": name, "parts": parts, "text": ", ".join(part["title"] for part in parts)}
