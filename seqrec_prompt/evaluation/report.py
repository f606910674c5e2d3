"""`seqrec-prompt report`: one self-contained page about an evaluation, its tables, and a card of the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from seqrec_prompt.artifacts import (
    MANIFEST,
    hash_file,
    is_done,
    manifest,
    own_directory,
    read_manifest,
    staged_directory,
    write_json,
    write_text,
)
from seqrec_prompt.config import Config
from seqrec_prompt.errors import ArtifactError, ConfigError
from seqrec_prompt.evaluation.evaluate import METRICS_JSON, PER_SESSION
from seqrec_prompt.locks import locked

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from seqrec_prompt.data.dataset import Dataset

PAGE, TABLE_MD, TABLE_CSV, TABLE_TEX, CARD = "report.html", "table.md", "table.csv", "table.tex", "MODEL_CARD.md"
OUTPUTS = (PAGE, TABLE_MD, TABLE_CSV, TABLE_TEX, CARD, MANIFEST)
LOG = "log.json"  # of 'finetune'


class ReportConfig(Config):
    """Settings of `report`."""

    evaluation: Path = Field(description="directory that evaluate made")
    out: Path = Field(description="directory for report.html, table.md, table.csv, table.tex and MODEL_CARD.md")
    title: str = Field("Recommendations compared", min_length=1, description="of the page")
    recommender: str | None = Field(
        None, description="row whose lists are shown; unset: the file with the highest NDCG"
    )
    adapter: Path | None = Field(
        None, description="directory that finetune made, for the training curve and MODEL_CARD.md; unset: the row's own"
    )
    license: str | None = Field(None, description="licence of the adapter, as MODEL_CARD.md is to name it")
    examples: int = Field(3, ge=0, description="sessions of each kind to show: as they come, hits, worst misses")
    overwrite: bool = Field(False, description="replace a report made with other settings")


@locked
def report(config: ReportConfig) -> Path:
    """Write the report of an evaluation into `config.out`; returns the page.

    The lists that are shown come from the files that were evaluated. Raises ArtifactError when these are gone or have
    changed since, or when `out` is not ours to write; ConfigError for a recommender that the evaluation does not have.
    """
    from seqrec_prompt.evaluation import page, tables
    from seqrec_prompt.evaluation.card import model_card

    made = read_manifest(config.evaluation, "evaluate")
    found = own_directory(config.out, "report", OUTPUTS)
    result = _read_json(config.evaluation / METRICS_JSON)
    if not isinstance(result, dict) or not {"pairs", "segments", "targets"} <= set(result):
        raise ArtifactError(f"{config.evaluation} was made by an older version. Run 'seqrec-prompt evaluate' again.")
    row = _shown(config, result)
    adapter = _adapter(config, row)
    trained: dict[str, Any] | None = None
    inputs = {"evaluation": hash_file(config.evaluation / METRICS_JSON)}
    if adapter is not None:
        from seqrec_prompt.engines.models import adapter_hash

        trained = read_manifest(adapter, "finetune")
        inputs["adapter"] = adapter_hash(adapter)
    is_done(config.out, found, manifest("report", config.resolved(), inputs), overwrite=config.overwrite)

    context = page.results(result) | {"title": config.title, "subtitle": _subtitle(result, made), "training": None}
    context |= {"made": _made(result, made), "groups": [], "shown": row and row["name"], "list_length": page.LIST}
    if row is not None and config.examples:
        context["groups"] = _examples(config, result, row)
    if trained is not None and adapter is not None:
        log = adapter / LOG
        context["training"] = page.training(trained, _read_json(log) if log.exists() else [])
    files = {
        PAGE: page.render(context),
        TABLE_MD: tables.page(result),
        TABLE_CSV: tables.comma_separated(result),
        TABLE_TEX: tables.latex(result),
    }
    if trained is not None and adapter is not None:
        files[CARD] = model_card(adapter, inputs["adapter"], trained, result, config.license)
    with staged_directory(config.out) as staged:
        for name, text in files.items():
            write_text(staged / name, text)
        write_json(staged / MANIFEST, manifest("report", config.resolved(), inputs))
    print("\n".join(["wrote", *(f"  {config.out / name}" for name in files)]))
    return config.out / PAGE


def _shown(config: ReportConfig, result: dict[str, Any]) -> dict[str, Any] | None:
    """The row whose lists are shown; None when no file was evaluated by that name and none was asked for."""
    of_files = {row["name"]: row for row in result["recommenders"] if row["file"]}
    if config.recommender is None:
        at = f"@{result['config']['cutoffs'][0]}"
        return max(of_files.values(), key=lambda row: row["metrics"][at]["ndcg"], default=None)
    if config.recommender not in of_files:
        raise ConfigError(
            f"'recommender': {config.evaluation} has no file '{config.recommender}' (it has: {', '.join(of_files)})."
        )
    found: dict[str, Any] = of_files[config.recommender]
    return found


def _adapter(config: ReportConfig, row: dict[str, Any] | None) -> Path | None:
    """The adapter that was named, or else that of the row, if it is still there."""
    if config.adapter is not None:
        return config.adapter
    named = row and row["made_by"].get("adapter")
    return Path(named) if named and (Path(named) / MANIFEST).exists() else None


def _examples(config: ReportConfig, result: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.evaluation.comparable import load_comparison
    from seqrec_prompt.evaluation.page import example_groups

    again = "Run 'seqrec-prompt evaluate' again, or leave out the sessions: --examples 0."
    path, data = Path(row["file"]), Path(result["config"]["data"])
    if not path.exists():
        raise ArtifactError(f"{path}: no such file, but {config.evaluation} was made from it. {again}")
    if hash_file(path) != row["sha256"]:
        raise ArtifactError(f"{path} has changed since {config.evaluation} was made from it. {again}")
    dataset: Dataset = Dataset.load(data)
    if dataset.hash != result["inputs"]["data"]:
        raise ArtifactError(f"{data} has changed since {config.evaluation} was made from it. {again}")
    comparison = load_comparison([path], data, dataset, (), result["config"]["invalid"])
    ranks = _ranks(config.evaluation, [row["name"] for row in result["recommenders"]])
    holdout = comparison.holdout
    counts = dataset.popularity[holdout.targets]
    lists = comparison.rows[0].lists
    return example_groups(lists, row["name"], ranks, holdout, counts, dataset.catalog, config.examples)


def _ranks(evaluation: Path, names: list[str]) -> dict[str, npt.NDArray[np.int64]]:
    """(n,) of each recommender: ranks of the targets, 0 on a miss, in the order of the test part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(evaluation / PER_SESSION, columns=["recommender", "rank"])
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(
            f"{evaluation / PER_SESSION} is missing or damaged ({error}). Run 'evaluate' again."
        ) from None
    ranks = table["rank"].fill_null(0).to_numpy().astype("int64").reshape(len(names), -1)
    return dict(zip(names, ranks, strict=True))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}). Make it again.") from None


def _subtitle(result: dict[str, Any], made: dict[str, Any]) -> str:
    sessions = result["sessions"]
    return (
        f"{sessions['evaluated']:,} of {sessions['test']:,} test sessions · {result['items']:,} items · "
        f"evaluated {made['created'][:10]}"
    )


def _made(result: dict[str, Any], made: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("data", f"{result['config']['data']} ({result['inputs']['data'][:16]})")]
    for row in result["recommenders"]:
        if row["file"]:
            how = "".join(f"; {key} {value}" for key, value in sorted(row["made_by"].items()))
            lines.append((row["name"], f"{row['file']} ({row['sha256'][:16]}){how}"))
    statistics = ", ".join(f"{key} {value}" for key, value in result["config"]["statistics"].items())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(made["versions"].items()))
    return [*lines, ("statistics", statistics), ("versions", versions)]
