"""`seqrec-prompt reproduce`: a paper's whole table from raw files, by the verbs that a plan lists."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from seqrec_prompt.artifacts import MANIFEST, hash_json, manifest, write_json, write_text
from seqrec_prompt.config import Config, listing
from seqrec_prompt.errors import ConfigError, SeqrecError, StageError, met_limit
from seqrec_prompt.locks import locked

if TYPE_CHECKING:
    from seqrec_prompt.reproduction.plans import Expanded, Stage
    from seqrec_prompt.steps import Step

RESULTS_JSON, RESULTS_MD = "results.json", "results.md"
# Flags that fill in a name of the plan.
FLAGS = ("max_sessions", "epochs", "max_steps", "model", "embedder")


class ReproduceConfig(Config):
    """Settings of `reproduce`."""

    plan: str = Field(description="recsys23-beauty, online-retail, amazon-scientific, or a YAML file like theirs")
    data: Path = Field(description="directory of the raw files that the plan names")
    out: Path = Field(description="directory for everything that is made")
    only: tuple[str, ...] = Field((), description="make these rows, and what they need; the others stay as they are")
    skip: tuple[str, ...] = Field((), description="make all rows but these")
    seeds: tuple[int, ...] = Field((), description="of ties and training; unset: the plan's")
    embeddings: tuple[str, ...] = Field(
        (), description="NAME=DIR: embeddings that 'embed' made already, in place of the plan's of that name"
    )
    epochs: int | None = Field(None, ge=1, description="of all sequential models at most; unset: the plan's")
    max_steps: int | None = Field(None, ge=1, description="training steps of the LLM at most; unset: the plan's")
    max_sessions: int | None = Field(None, ge=1, description="only so many test sessions, for all rows; unset: all")
    model: str | None = Field(None, description="LLM of LLMSeqPrompt and of embeddings; unset: the plan's")
    embedder: str | None = Field(
        None, description="sentence-transformers model, a hub name or a directory; unset: the plan's"
    )

    @field_validator("embeddings")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [one for one in value if not all(one.partition("="))]:
            raise ValueError(f"'{bad[0]}' is not NAME=DIR")
        return value

    def expanded(self) -> Expanded:
        """The plan with its names filled in; ConfigError for names, verbs and settings that there are not."""
        from seqrec_prompt.reproduction.plans import expand, load_plan

        plan = load_plan(self.plan)
        chosen = {name: value for name in FLAGS if (value := getattr(self, name)) is not None}
        if self.epochs is not None:
            chosen |= {name: self.epochs for name in plan.settings if name.endswith("_epochs")}
        given = {name: Path(place) for name, _, place in (one.partition("=") for one in self.embeddings)}
        return expand(plan, self.data, self.out, tuple(dict.fromkeys(self.seeds or plan.seeds)), chosen, given)

    def rows(self, expanded: Expanded) -> list[str]:
        """The rows to make."""
        from seqrec_prompt.reproduction.plans import unknown

        known = expanded.plan.rows
        if problems := unknown("row", (*self.only, *self.skip), known):
            raise ConfigError(listing(problems))
        return [name for name in known if name in (self.only or known) and name not in self.skip]

    def steps(self) -> list[Step]:
        """The calls of other verbs."""
        expanded = self.expanded()
        rows = self.rows(expanded)
        tables = expanded.tables(_lists(expanded, rows))
        return [stage.step for stage in [*expanded.needed(rows), *tables]]


@locked
def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Make the plan's rows for every seed, then the tables; returns what results.json holds.

    Each stage is a verb that does not repeat what is done, so a stopped run goes on, and rows may be made on several
    days. Rows that were not asked for are in the table if they are there, made with the plan's settings. Raises
    ConfigError for a plan or a row that cannot be, StageError naming the stage that failed and how to go on.
    """
    from seqrec_prompt.reproduction.page import page, result_of

    expanded = config.expanded()
    rows = config.rows(expanded)
    for stage in expanded.needed(rows):
        _run(stage)
    tables = [(stage, _run(stage)) for stage in expanded.tables(_lists(expanded, rows))]
    evaluated = {stage.seed: made for stage, made in tables if stage.step.verb == "evaluate"}
    result = result_of(expanded, config.plan, evaluated)
    text = page(result)
    write_json(config.out / RESULTS_JSON, result)
    write_text(config.out / RESULTS_MD, text)
    inputs = {"plan": expanded.plan.hash, "data": hash_json(result["data"])}
    facts = {"rows": {name: row["seeds"] for name, row in result["rows"].items()}}
    write_json(config.out / MANIFEST, manifest("reproduce", config.resolved(), inputs, facts))
    print(f"\n{text}\nwrote {config.out / RESULTS_MD}, {config.out / RESULTS_JSON}")
    return result


def _lists(expanded: Expanded, rows: Sequence[str]) -> dict[int, list[Path]]:
    """The lists of each seed: of these rows, and of others where they are there, made with the plan's settings."""
    from seqrec_prompt.dry_run import is_made

    def there(row: str, seed: int) -> bool:
        stages = expanded.needed([row], [seed])
        return all(is_made(stage.step.config, stage.step.verb) for stage in stages)

    return {
        seed: [expanded.lists(row, seed) for row in expanded.plan.rows if row in rows or there(row, seed)]
        for seed in expanded.seeds
    }


def _run(stage: Stage) -> Any:
    try:
        return stage.step.run()
    except (SeqrecError, OSError) as error:
        raise StageError(_told(stage, str(error))) from error
    except Exception as error:
        if (limit := met_limit(error)) is None:
            raise
        raise StageError(_told(stage, limit)) from error


def _told(stage: Stage, message: str) -> str:
    leave_out = f" Or leave the row out: --skip {shlex.quote(stage.row)}" if stage.row else ""
    return (
        f"{stage} stopped: {message}\nIts command: {stage.step.command}\n"
        f"Run the same command again to go on: what is done is kept.{leave_out}"
    )
