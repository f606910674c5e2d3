"""What all seeds came to, and how far that is from what papers say."""

from __future__ import annotations

import importlib.metadata
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrec_prompt.artifacts import peek_manifest
from seqrec_prompt.evaluation.tables import HEADINGS, SUPERSCRIPT, aligned, cutoffs, letters, lower_rows
from seqrec_prompt.finetuning.training import LOG, hardware
from seqrec_prompt.reproduction.pairs import compare_pairs, pairs_section
from seqrec_prompt.reproduction.plans import Expanded, Stage, load_paper

VERSIONED = ("seqrec_prompt", "torch", "transformers", "numpy", "scipy", "scikit-learn")
NOT_RUN = "not run"
Result = Mapping[str, Any]  # what results.json holds


def result_of(expanded: Expanded, name: str, found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Gather the evaluations of all seeds, and the papers' figures. found: seed → what its metrics.json holds."""
    plan = expanded.plan
    rows: dict[str, Any] = {}
    for row in plan.rows:
        of_row = {
            seed: one
            for seed, result in found.items()
            for one in result["recommenders"]
            if one["file"] == str(expanded.lists(row, seed))
        }
        rows[row] = {
            "seeds": list(of_row),
            "metrics": _per_seed([one["metrics"] for one in of_row.values()]),
            "higher_than": _higher_than(row, [found[seed] for seed in of_row]),
            "lists": [one["sha256"] for one in of_row.values()],
            "made_from": [one["made_from"] for one in of_row.values()],
            "commands": [stage.step.command for stage in expanded.needed([row], expanded.seeds[:1])],
        }
        if training := [
            one for stage in expanded.stages if stage.row == row and stage.seed in of_row for one in _training(stage)
        ]:
            rows[row]["training"] = training
    papers = {}
    for paper, table in plan.papers.items():
        published = load_paper(paper)
        papers[paper] = {"cite": published["cite"], "about": published["about"], "figures": published["tables"][table]}
    first = next(iter(found.values()), {})
    return {
        "plan": name,
        "plan_hash": plan.hash,
        "title": plan.title,
        "about": plan.about,
        "settings": {key: expanded.names[key] for key in plan.settings},
        "embeddings": {name: made["inputs"]["model"] for name, made in _embeddings(expanded)},
        "seeds": list(expanded.seeds),
        "data": {str(seed): result["inputs"]["data"] for seed, result in found.items()},
        "sessions": first.get("sessions"),
        "cutoffs": cutoffs(first) if first else [],
        "confidence": first["config"]["statistics"]["confidence"] if first else None,
        "rows": rows,
        "pairs": compare_pairs(expanded, found),
        "papers": papers,
        "hardware": hardware(),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONED},
    }


def _training(stage: Stage) -> Iterator[dict[str, Any]]:
    """Yield what is known of an LLM's training: its facts and its losses, which outlive the adapter."""
    log = stage.out / LOG
    if log.exists() and (made := peek_manifest(stage.out)):
        losses = [[one["step"], one["loss"]] for one in json.loads(log.read_text(encoding="utf-8")) if "loss" in one]
        yield {"seed": stage.seed, "stage": made["stage"], "facts": made["facts"], "losses": losses}


def _higher_than(row: str, found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Cut-off → metric → the rows that `row` is significantly higher than in every seed that both have."""
    higher: dict[str, dict[str, list[str]]] = {}
    for at in cutoffs(found[0]) if found else ():
        higher[at] = {}
        for metric in HEADINGS:
            kept: dict[str, bool] = {}
            for result in found:
                lower = lower_rows(result, at, metric)
                for name in lower:
                    kept[name] = kept.get(name, True) and name in lower[row]
            higher[at][metric] = [name for name, always in kept.items() if always]
    return higher


def _embeddings(expanded: Expanded) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the embeddings that are there with their manifests."""
    for name in expanded.plan.embed:
        if made := peek_manifest(Path(expanded.names[name])):
            yield name, made


def page(result: Result) -> str:
    """Write the result as Markdown: ours alone, then a section for each paper, whose columns are marked as its own."""
    rows, sessions = result["rows"], result["sessions"]
    about = result["about"]
    if sessions:
        about += f" {sessions['evaluated']:,} of {sessions['test']:,} test sessions."
    seeds = f"Mean ± standard deviation over the seeds that a row has, of {', '.join(map(str, result['seeds']))}; "
    seeds += "without ±: of one seed, or the same for each."
    measured = [{"name": name} for name, row in rows.items() if row["seeds"]]
    if letter := letters({"recommenders": measured}):
        seeds += " Superscripts name the rows that a value is significantly higher than in every seed that both have: "
        seeds += "paired randomisation test over sessions, Holm over all pairs, "
        seeds += f"p < {1 - result['confidence']:.3g}; coverage belongs to no session and has no test."
    elif len(measured) > 1:
        seeds += " More rows than there are letters for superscripts: 'higher_than' in the JSON file beside this page "
        seeds += "names the rows that each is significantly higher than."
    makings = _makings(rows)
    kept = {name: f"{name} [{makings.index(row['kept']) + 1}]" for name, row in rows.items() if "kept" in row}
    if kept:
        seeds += " Rows with a number in brackets were kept as an earlier run measured them, told at the end. They are "
        seeds += "compared with rows of the same number alone, the others with rows without one."
    missing = [name for name, row in rows.items() if not row["seeds"]]
    if missing:
        seeds += f" Not run: {', '.join(missing)}."
    parts = [f"# {result['title']}\n", f"{about}\n", f"{seeds}\n"]
    for at in result["cutoffs"]:
        head = [f"top {at[1:]}", "", "seeds", *(heading for heading, _ in HEADINGS.values())]
        body = [[kept.get(name, name), *_own(name, row, at, letter)] for name, row in rows.items()]
        parts.append(aligned(head, body))
    parts += pairs_section(result["pairs"], result["cutoffs"], result["confidence"])
    for name, paper in result["papers"].items():
        parts.append(f"## Beside {paper['cite'].partition(',')[0]}\n")
        marked = f"Columns that say {name} are that paper's figures, not measured here; Δ is ours less theirs."
        parts.append(f"{paper['cite']}. {paper['about']} {marked}\n")
        parts += [_beside(rows, name, at, figures) for at, figures in paper["figures"].items()]
    parts += [line for name, row in rows.items() for line in _trained(name, row)]
    parts += [
        f"{_made(result)} The commands and hashes of every row, and each LLM's losses, are in the JSON file beside "
        "this page."
    ]
    for number, how in enumerate(makings, 1):
        names = ", ".join(name for name in kept if rows[name]["kept"] == how)
        plan = "the same plan" if how["plan_hash"] == result["plan_hash"] else "an earlier plan"
        parts.append(f"\n[{number}] Kept, of {plan}: {names}. {_made({**result, **how, 'data': {}})}")
    return "\n".join(parts) + "\n"


def _makings(rows: Mapping[str, Any]) -> list[Any]:
    """How the kept rows were made, each way once."""
    found: list[Any] = []
    for row in rows.values():
        if "kept" in row and row["kept"] not in found:
            found.append(row["kept"])
    return found


def _own(name: str, row: Mapping[str, Any], at: str, letter: Mapping[str, str]) -> list[str]:
    if not row["seeds"]:
        return ["", NOT_RUN, *["–"] * len(HEADINGS)]
    cells = []
    for metric, (_, digits) in HEADINGS.items():
        marks = "".join(letter.get(lower, "") for lower in row["higher_than"][at][metric])
        cells.append(_spread(row["metrics"][at][metric], digits) + marks.translate(SUPERSCRIPT))
    return [letter.get(name, ""), str(len(row["seeds"])), *cells]


def _trained(name: str, row: Mapping[str, Any]) -> Iterator[str]:
    """Write a line for each training of an LLM: how long, on what, to which loss, and which adapter came of it."""
    for one in row.get("training", ()):
        facts, made = one["facts"], row["made_from"][row["seeds"].index(one["seed"])]
        adapter = f"; adapter {made['adapter'][:12]}" if "adapter" in made else ""
        yield (
            f"{name}, seed {one['seed']}, `{one['stage']}`: {facts['steps']:,} steps in {facts['seconds'] / 60:.0f} "
            f"minutes ({facts['hardware']}, {facts['dtype']}), loss {facts['loss'][0]:.2f} → {facts['loss'][-1]:.2f}"
            f"{adapter}.\n"
        )


def _beside(rows: Mapping[str, Any], paper: str, at: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    """Write NDCG and hit rate as ours, the paper's and the difference; the last line has the best of each side."""
    head, body = [f"top {at[1:]}"], [[name] for name in (*figures, "best of all rows")]
    means = {
        name: {metric: statistics.mean(values) for metric, values in row["metrics"][at].items()}
        for name, row in rows.items()
        if row["seeds"]
    }
    for metric in ("ndcg", "hr"):
        heading = HEADINGS[metric][0]
        head += [f"{heading}, ours", f"{heading}, {paper}", "Δ"]
        pairs = [(means[name][metric] if name in means else None, figures[name][metric]) for name in figures]
        pairs.append((max((row[metric] for row in means.values()), default=None), max(two for _, two in pairs)))
        for cells, (ours, theirs) in zip(body, pairs, strict=True):
            mine = (NOT_RUN, "–") if ours is None else (f"{ours:.4f}", f"{ours - theirs:+.4f}")
            cells.extend([mine[0], f"{theirs:.3f}", mine[1]])
    return aligned(head, body)


def _per_seed(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn one {cut-off: {metric: value}} a seed into {cut-off: {metric: values}}."""
    return {
        at: {metric: [one[at][metric] for one in found] for metric in metrics}
        for at, metrics in (found[0] if found else {}).items()
    }


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _made(result: Result) -> str:
    """Say what made it."""
    command = result.get("command", f"seqrec-prompt reproduce {result['plan']}")
    commit = f", commit {result['commit']}" if "commit" in result else ""
    facts = [f"{name} {value}" for name, value in result["settings"].items() if value is not None]
    facts += [f"vectors of {name} by the model {digest[:12]}" for name, digest in result["embeddings"].items()]
    facts += [f"data of seed {seed} {digest[:12]}" for seed, digest in result["data"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"`{command}`{commit}; plan {result['plan_hash'][:12]}; {'; '.join(facts)}; {result['hardware']}; {versions}."
    )
