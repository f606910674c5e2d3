"""`seqrec-prompt evaluate`: recommendation files and three baselines in one table, over the same test sessions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from seqrec_prompt.artifacts import (
    MANIFEST,
    is_done,
    manifest,
    own_directory,
    staged_directory,
    write_json,
    write_text,
)
from seqrec_prompt.config import Config
from seqrec_prompt.locks import locked

# numpy and pyarrow are imported where they are used: `--help` imports this module.
if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.evaluation.comparable import Comparison, Row
    from seqrec_prompt.evaluation.metrics import ListMetrics

METRICS_JSON, TABLE_MD, TABLE_CSV = "metrics.json", "table.md", "table.csv"
SEGMENTS_CSV, PER_SESSION = "segments.csv", "per_session.parquet"
OUTPUTS = (METRICS_JSON, TABLE_MD, TABLE_CSV, SEGMENTS_CSV, PER_SESSION, MANIFEST)
BASELINES = ("MostPopular", "TransitionCounts", "LastItemRepeat")


class StatisticsConfig(Config):
    """How sure the numbers have to be; more draws change the last digits of intervals and p-values only."""

    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="of the intervals; 1 minus this is the level of the tests"
    )
    resamples: int = Field(1000, ge=100, description="bootstrap resamples of the sessions behind an interval")
    sign_flips: int = Field(10_000, ge=100, description="sign patterns behind a p-value of the randomisation test")
    seed: int = Field(0, ge=0, description="of resamples and sign flips")


class EvaluateConfig(Config):
    """Settings of `evaluate`."""

    data: Path = Field(description="directory that prepare made")
    recommendations: tuple[Path, ...] = Field(
        description="recommendation files (Parquet); other tools' files need session_id, rank and item_id",
        min_length=1,
    )
    out: Path = Field(description="directory for metrics.json, table.md, table.csv, segments.csv, per_session.parquet")
    cutoffs: tuple[int, ...] = Field((10, 20), description="list lengths to compute the metrics at", min_length=1)
    popularity: Literal["train", "all"] = Field(
        "train", description="interactions counted for novelty and serendipity; published tables count all"
    )
    category: str | None = Field(
        None,
        description="catalog attribute (kept by prepare --attribute-columns) to part the sessions by, of the target",
    )
    invalid: Literal["refuse", "count"] = Field(
        "refuse",
        description="ids that are not in the catalog and items that a list repeats: refuse the file, or count them, "
        "each a place lost",
    )
    statistics: StatisticsConfig = StatisticsConfig()
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
    from seqrec_prompt.evaluation import tables
    from seqrec_prompt.evaluation.comparable import load_comparison
    from seqrec_prompt.evaluation.examples import examples
    from seqrec_prompt.evaluation.measure import describe, measure_lists, notes

    found = own_directory(config.out, "evaluate", OUTPUTS)
    dataset = Dataset.load(config.data)
    taken = BASELINES if config.baselines else ()
    comparison = load_comparison(config.recommendations, config.data, dataset, taken, config.invalid)
    inputs = {"data": dataset.hash}
    inputs |= {f"recommendations:{row.name}": row.sha256 for row in comparison.rows if row.sha256}
    # How many examples are shown changes nothing that is written.
    settings = {key: value for key, value in config.resolved().items() if key != "examples"}
    # An evaluation of the same files is simply made again; one of other files stays unless told otherwise.
    is_done(config.out, found, manifest("evaluate", settings, inputs), overwrite=config.overwrite)

    rows = [*comparison.rows, *(_baselines(comparison, dataset, max(config.cutoffs)) if config.baselines else [])]
    metrics = measure_lists(rows, comparison, dataset, config)
    result = describe(rows, metrics, comparison, dataset, config) | {"config": settings, "inputs": inputs}
    result["notes"] = notes(result, config)
    table = tables.markdown(result)
    facts = {"sessions": len(comparison.holdout), "recommenders": [row.name for row in rows]}
    with staged_directory(config.out) as staged:
        write_json(staged / METRICS_JSON, result)
        write_text(staged / TABLE_MD, tables.page(result))
        write_text(staged / TABLE_CSV, tables.comma_separated(result))
        write_text(staged / SEGMENTS_CSV, tables.segments(result))
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


def _write_per_session(
    path: Path, rows: list[Row], metrics: list[ListMetrics], comparison: Comparison, dataset: Dataset
) -> None:
    """Write one row a recommender and session: what is known of the session, and the target's rank (null on a miss).

    Columns: recommender, session_id, session_length, target (item id), target_count (in train), list_length, rank.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    holdout = comparison.holdout
    ids = pa.array(dataset.catalog.ids, pa.string()).take(pa.array(holdout.targets))
    of_sessions = {
        "session_id": pa.array(holdout.prompts.ids, pa.string()),
        "session_length": pa.array(holdout.prompts.lengths, pa.int32()),
        "target": ids,
        "target_count": pa.array(dataset.popularity[holdout.targets]),
    }
    tables = []
    for row, found in zip(rows, metrics, strict=True):
        name = pa.DictionaryArray.from_arrays(np.zeros(len(holdout), np.int32), [row.name])
        own = {"list_length": found.lengths, "rank": pa.array(found.ranks, mask=found.ranks == 0)}
        tables.append(pa.table({"recommender": name, **of_sessions, **own}))
    pq.write_table(pa.concat_tables(tables).unify_dictionaries(), path)
