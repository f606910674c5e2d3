"""`seqrec-prompt evaluate`: recommendation files and three baselines in one table, over the same test sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from seqrec_prompt.artifacts import (
    MANIFEST,
    is_done,
    manifest,
    peek_manifest,
    staged_directory,
    write_json,
    write_text,
)
from seqrec_prompt.config import Config
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.locks import locked

# numpy and pyarrow are imported where they are used: `--help` imports this module.
if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.evaluation.comparable import Comparison, Row
    from seqrec_prompt.evaluation.metrics import ListMetrics

METRICS_JSON, TABLE_MD, TABLE_CSV, PER_SESSION = "metrics.json", "table.md", "table.csv", "per_session.parquet"
OUTPUTS = (METRICS_JSON, TABLE_MD, TABLE_CSV, PER_SESSION, MANIFEST)
BASELINES = ("MostPopular", "TransitionCounts", "LastItemRepeat")


class EvaluateConfig(Config):
    """Settings of `evaluate`."""

    data: Path = Field(description="directory that prepare made")
    recommendations: tuple[Path, ...] = Field(
        description="recommendation files (Parquet); other tools' files need session_id, rank and item_id",
        min_length=1,
    )
    out: Path = Field(description="directory for metrics.json, table.md, table.csv and per_session.parquet")
    cutoffs: tuple[int, ...] = Field((10, 20), description="list lengths to compute the metrics at", min_length=1)
    popularity: Literal["train", "all"] = Field(
        "train", description="interactions counted for novelty and serendipity; published tables count all"
    )
    baselines: bool = Field(True, description=f"add {', '.join(BASELINES)}")
    examples: int = Field(0, ge=0, description="example sessions to show, with the lists of the last file")
    overwrite: bool = Field(False, description="replace an evaluation made with other settings")

    @field_validator("recommendations", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("cutoffs")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError("cut-offs are whole numbers from 1")
        return tuple(sorted(set(value)))


@locked
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Compute the metrics of every file and baseline, write them to `config.out`, print the table.

    Returns what metrics.json holds. Raises DataError when the files do not belong to the data or do not compare,
    ArtifactError when something cannot be read or `out` is not ours to write.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.evaluation.comparable import load_comparison
    from seqrec_prompt.evaluation.tables import comma_separated, examples, markdown

    found = _own_output(config.out)
    dataset = Dataset.load(config.data)
    comparison = load_comparison(config.recommendations, config.data, dataset, BASELINES if config.baselines else ())
    inputs = {"data": dataset.hash}
    inputs |= {f"recommendations:{row.name}": row.sha256 for row in comparison.rows if row.sha256}
    # How many examples are shown changes nothing that is written.
    settings = {key: value for key, value in config.resolved().items() if key != "examples"}
    # An evaluation of the same files is simply made again; one of other files stays unless told otherwise.
    is_done(config.out, found, manifest("evaluate", settings, inputs), overwrite=config.overwrite)

    rows = [*comparison.rows, *(_baselines(comparison, dataset, max(config.cutoffs)) if config.baselines else [])]
    metrics = _measure(rows, comparison, dataset, config)
    result = _result(rows, metrics, comparison, dataset, config) | {"config": settings, "inputs": inputs}
    means = {row.name: found.means for row, found in zip(rows, metrics, strict=True)}
    table = markdown(means, config.cutoffs)
    facts = {"sessions": len(comparison.holdout), "recommenders": [row.name for row in rows]}
    with staged_directory(config.out) as staged:
        write_json(staged / METRICS_JSON, result)
        write_text(staged / TABLE_MD, "\n".join([table, *(f"- {note}" for note in result["notes"]), ""]))
        write_text(staged / TABLE_CSV, comma_separated(means, config.cutoffs))
        _write_per_session(staged / PER_SESSION, rows, metrics, comparison, dataset)
        write_json(staged / MANIFEST, manifest("evaluate", settings, inputs, facts))

    print(table)
    print("\n".join(result["notes"]))
    if config.examples:
        last = len(comparison.rows) - 1
        shown = (rows[last].name, rows[last].lists, comparison.holdout, metrics[last].ranks)
        print("\n" + examples(*shown, dataset.catalog, config.examples))
    print(_places(config, comparison))
    return result


def _places(config: EvaluateConfig, comparison: Comparison) -> str:
    """Say where everything that went into the table lies, and what came out."""
    places = [("data", str(config.data))]
    for row in comparison.rows:
        adapter = row.manifest.get("config", {}).get("adapter")
        places.append((row.name, f"{row.path}  (adapter: {adapter})" if adapter else str(row.path)))
    places += [("wrote", str(config.out / name)) for name in OUTPUTS]
    width = max(len(name) for name, _ in places)
    return "\n".join(["files", *(f"  {name:<{width}}  {place}" for name, place in places)])


def _own_output(out: Path) -> dict[str, Any] | None:
    """Return the manifest of an earlier evaluation at `out`; raises when anything else is there, even to overwrite."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise ArtifactError(f"{out} is a file. --out names a directory.")
    foreign = sorted(file.name for file in out.iterdir() if file.name not in OUTPUTS)
    found = peek_manifest(out)
    if foreign or (found is None and any(out.iterdir())) or (found and found.get("stage") != "evaluate"):
        holds = f" (it holds {', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''})" if foreign else ""
        raise ArtifactError(f"{out} is not a directory that evaluate made{holds}. Choose another --out.")
    return found


def _baselines(comparison: Comparison, dataset: Dataset, k: int) -> list[Row]:
    from seqrec_prompt.evaluation.comparable import Row
    from seqrec_prompt.recommenders.markov import TransitionCounts
    from seqrec_prompt.recommenders.popularity import LastItemRepeat, MostPopular

    train, n_items = dataset.split.train, len(dataset.catalog)
    made = (
        MostPopular.fit(train, n_items),
        TransitionCounts.fit(train, n_items),
        LastItemRepeat.fit(train, n_items),
    )
    prompts = comparison.holdout.prompts
    return [Row(b.name, b.recommend(prompts, k, exclude_seen=comparison.exclude_seen)) for b in made]


def _measure(rows: list[Row], comparison: Comparison, dataset: Dataset, config: EvaluateConfig) -> list[ListMetrics]:
    from seqrec_prompt.evaluation.metrics import count_everything, evaluate_lists

    n_items = len(dataset.catalog)
    counts, total = dataset.popularity, None
    if config.popularity == "all":
        counts = count_everything(dataset.split, n_items)
        # prepare drops items of test sessions that train lacks; the published total has them.
        total = dataset.manifest["facts"].get("interactions")
    targets = comparison.holdout.targets
    return [evaluate_lists(row.lists, targets, counts, n_items, config.cutoffs, total) for row in rows]


def _result(
    rows: list[Row],
    metrics: list[ListMetrics],
    comparison: Comparison,
    dataset: Dataset,
    config: EvaluateConfig,
) -> dict[str, Any]:
    n, n_test, k = len(comparison.holdout), len(dataset.split.test), max(config.cutoffs)
    counted = "train interactions" if config.popularity == "train" else "all interactions, test included"
    notes = [
        f"{n:,} of {n_test:,} test sessions, {len(dataset.catalog):,} items in the catalog; "
        f"seen items {'left out' if comparison.exclude_seen else 'kept'}; novelty and serendipity count {counted}."
    ]
    recommenders = []
    for row, found in zip(rows, metrics, strict=True):
        short, empty = int((found.lengths < k).sum()), int((found.lengths == 0).sum())
        lists: dict[str, Any] = {"count": n, "short": short, "empty": empty, "items": int(found.lengths.sum())}
        if row.path is not None:
            # Reading refused ids outside the catalog, and the comparison refused repeated items.
            lists |= {"valid": 1.0, "distinct": 1.0}
            shares = ["valid 100%", "distinct 100%"]
            if row.manifest:
                lists["certified"] = float(row.lists.certified.mean())
                shares.append(f"certified {lists['certified']:.1%}")
            notes.append(f"{row.name}: {', '.join(shares)}.")
        if short:
            none = f", {empty:,} of them none" if empty else ""
            notes.append(
                f"{row.name}: {short:,} of {n:,} lists have fewer than {k} items{none}; judged on what is there."
            )
        means = {f"@{cutoff}": values for cutoff, values in found.means.items()}
        file = None if row.path is None else str(row.path)
        recommenders.append(
            {"name": row.name, "file": file, "sha256": row.sha256, "lists": lists, "metrics": means},
        )
    return {
        "recommenders": recommenders,
        "sessions": {"evaluated": n, "test": n_test},
        "items": len(dataset.catalog),
        "exclude_seen": comparison.exclude_seen,
        "notes": notes,
    }


def _write_per_session(
    path: Path, rows: list[Row], metrics: list[ListMetrics], comparison: Comparison, dataset: Dataset
) -> None:
    """Write one row a recommender and session: recommender, session_id, target (item id), rank (null on a miss)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(comparison.holdout)
    ranks = np.concatenate([found.ranks for found in metrics])
    target = [dataset.catalog.ids[item] for item in comparison.holdout.targets]
    table = pa.table(
        {
            "recommender": pa.array(np.repeat([row.name for row in rows], n).tolist(), pa.string()),
            "session_id": pa.array(comparison.holdout.prompts.ids.tolist() * len(rows), pa.string()),
            "target": pa.array(target * len(rows), pa.string()),
            "rank": pa.array(ranks, mask=ranks == 0),
        }
    )
    pq.write_table(table, path)
