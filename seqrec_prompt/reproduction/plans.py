"""Plans: which verbs make a table, with which settings, for which rows and seeds. They lie in plans/*.yaml.

A stage is one verb with its settings. In its texts {raw} stands for the directory of the raw files, {out} for that of
everything made, {run} for the part of it that belongs to a seed, {lists} for the lists of all rows of a seed, {seed},
{row} and {title} for themselves; a name from `settings` for its value, a name from `embed` for that directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from seqrec_prompt.artifacts import hash_json
from seqrec_prompt.config import Config, did_you_mean, listing, load, read_yaml
from seqrec_prompt.dry_run import places
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.steps import Step

PLANS = Path(__file__).parent / "plans"
PAPERS = Path(__file__).parent / "papers"
ADDED = ("settings", "embed", "rows")  # to those of the plan that another begins with
PLACEHOLDER = re.compile(r"\{([\w-]+)\}")
Settings = dict[str, Any]
Value = str | int | float | None


class Plan(Config):
    """A table to make."""

    title: str = Field(min_length=1, description="of the page")
    about: str = Field(description="data and protocol, for the page")
    papers: dict[str, str] = Field({}, description="name in papers/ of a paper to compare with → its table")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each has its own data, models and lists")
    settings: dict[str, Value] = Field({}, description="what a name in braces stands for; flags of the name win")
    defaults: dict[str, Settings] = Field({}, description="settings of a verb wherever a stage does not say otherwise")
    prepare: Settings = Field(description="the data of a seed")
    embed: dict[str, Settings] = Field({}, description="embeddings of the items by name, made once for all seeds")
    rows: dict[str, list[dict[str, Settings | None]]] = Field(
        min_length=1, description="stages of a row, each {verb: settings}; the last one's output holds its lists"
    )
    pairs: dict[str, str] = Field({}, description="row → the row that it is compared with over all seeds at once")
    evaluate: Settings = Field(description="the table of a seed")
    report: Settings = Field(description="its page")

    @field_validator("rows")
    @classmethod
    def _files_can_be_named_so(cls, rows: dict[str, Any]) -> dict[str, Any]:
        bad = [name for name, stages in rows.items() if not re.fullmatch(r"[\w&+-][\w.&+ -]*", name) or not stages]
        if bad:
            raise ValueError(f"row '{bad[0]}' needs a stage, and a name of letters, digits and '&+-. ': it names files")
        return rows

    @model_validator(mode="after")
    def _pairs_are_of_rows(self) -> Plan:
        if problems := unknown("row", [name for pair in self.pairs.items() for name in pair], self.rows):
            raise ValueError(f"pairs: {problems[0]}")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 of what it says."""
        return hash_json(self.resolved())


@dataclass(frozen=True, eq=False)
class Stage:
    """A step of a row, or (row None) one that all rows need."""

    row: str | None
    seed: int
    step: Step

    def __str__(self) -> str:
        """Which it is, for messages."""
        return f"'{self.step.verb}' of {f'row {self.row}' if self.row else 'all rows'}, seed {self.seed}"

    @property
    def out(self) -> Path:
        """What it writes."""
        return next(path for name, path in places(self.step.config) if name == "out")

    @property
    def inputs(self) -> list[Path]:
        """What it reads."""
        return [path for name, path in places(self.step.config) if name != "out"]


@dataclass(frozen=True)
class Expanded:
    """A plan with its names filled in: the stages that make the rows, as the plan has them."""

    plan: Plan
    out: Path
    seeds: tuple[int, ...]
    names: Mapping[str, Any]
    stages: tuple[Stage, ...]

    def needed(self, rows: Sequence[str], seeds: Sequence[int] = ()) -> list[Stage]:
        """The stages of these rows, row by row, and all that they need, each once and before what needs it."""
        wanted = seeds or self.seeds
        makers = {stage.out: stage for stage in self.stages}
        seen: set[Stage] = set()
        found: list[Stage] = []

        def add(stage: Stage) -> None:
            if stage not in seen:
                seen.add(stage)
                for path in stage.inputs:
                    if path in makers:
                        add(makers[path])
                found.append(stage)

        for row in rows:
            for stage in self.stages:
                if stage.row == row and stage.seed in wanted:
                    add(stage)
        return found

    def lists(self, row: str, seed: int) -> Path:
        """Where a row's lists go."""
        return [stage.out for stage in self.stages if (stage.row, stage.seed) == (row, seed)][-1]

    def tables(self, lists: Mapping[int, Sequence[Path]]) -> list[Stage]:
        """Evaluation and report of each seed that has lists."""
        return [
            Stage(None, seed, Step(verb, _filled(self.plan, verb, settings, names | {"lists": list(files)})))
            for seed, files in lists.items()
            if files
            for names in [self.names_of(seed)]
            for verb, settings in (("evaluate", self.plan.evaluate), ("report", self.plan.report))
        ]

    def names_of(self, seed: int, row: str = "") -> Settings:
        """What the names in braces stand for in a stage."""
        return {**self.names, "seed": seed, "run": str(self.out / f"seed-{seed}"), "row": row}


def load_plan(name: str) -> Plan:
    """Read a plan: a shipped one by name, or a YAML file. Raises ConfigError naming what is wrong with it.

    `base` names a shipped plan that it begins with: what it says of `settings`, `embed` and `rows` is added to that
    plan's or replaces what has the same name there; everything else replaces that plan's as a whole.
    """
    shipped = {file.stem: file for file in sorted(PLANS.glob("*.yaml"))}
    file = shipped.get(name, Path(name))
    if not file.is_file():
        raise ConfigError(f"{unknown('plan', [name], shipped)[0]}; or name a YAML file")
    content = read_yaml(file)
    if (base := content.pop("base", None)) is not None:
        if problems := unknown("plan", [base], shipped):
            raise ConfigError(f"{file}: base: {problems[0]}")
        under = load_plan(base).model_dump()
        added = {key: under[key] | value for key in ADDED if isinstance(value := content.get(key), dict)}
        content = under | content | added
    try:
        return load(Plan, None, content, verb="plan")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def load_paper(name: str) -> dict[str, Any]:
    """Read a paper's published figures: `cite`, `about` and `tables`."""
    known = {file.stem: file for file in sorted(PAPERS.glob("*.yaml"))}
    if problems := unknown("paper", [name], known):
        raise ConfigError(problems[0])
    return read_yaml(known[name])


def unknown(what: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Say of each name that is not known which one may be meant, and which there are."""
    there = list(known)
    return [
        f"there is no {what} '{name}'{did_you_mean(name, there)} (there are: {', '.join(there) or 'none'})"
        for name in names
        if name not in there
    ]


def expand(
    plan: Plan, raw: Path, out: Path, seeds: Sequence[int], chosen: Mapping[str, Value], given: Mapping[str, Path]
) -> Expanded:
    """Fill in a plan's names.

    chosen: values that replace those of the plan's settings. given: embeddings that are there already, by name. Raises
    ConfigError listing every name, verb and setting that is not known.
    """
    problems = unknown("setting", chosen, plan.settings) + unknown("embeddings", given, plan.embed)
    if problems:
        raise ConfigError(listing(problems))
    names: Settings = {**plan.settings, **chosen, "title": plan.title, "raw": str(raw), "out": str(out)}
    bare = Expanded(plan, out, tuple(seeds), names, ())
    for name, settings in plan.embed.items():
        wanted = {"out": str(given[name])} if name in given else settings
        names[name] = _filled(plan, "embed", wanted, bare.names_of(seeds[0], name)).get("out")
    stages: list[Stage] = []
    for row, seed, verb, settings in _told(plan, seeds, given):
        try:
            filled = _filled(plan, verb, settings, bare.names_of(seed, row))
            stage = Stage(row if row in plan.rows else None, seed, Step(verb, filled))
            if not any(name == "out" for name, _ in places(stage.step.config)):
                raise ConfigError(f"'{verb}' has no --out")
            if stage.out in {other.out for other in stages}:
                raise ConfigError(f"another stage writes {stage.out}, too")
            stages.append(stage)
        except ConfigError as error:
            if seed == seeds[0]:  # the others have the same
                problems.append(f"{row or verb}: {verb}: {error}")
    try:
        for stage in bare.tables({seeds[0]: [out]}):
            stage.step.config  # noqa: B018 - looked at now, not when the rows are made
    except ConfigError as error:
        problems.append(f"evaluate, report: {error}")
    if problems:
        raise ConfigError(listing(problems))
    return Expanded(plan, out, tuple(seeds), names, tuple(stages))


def _told(plan: Plan, seeds: Sequence[int], given: Mapping[str, Path]) -> Iterator[tuple[str, int, str, Settings]]:
    """Yield name, seed, verb and settings of every stage, as the plan has them; embeddings with the first seed."""
    for seed in seeds:
        yield "", seed, "prepare", plan.prepare
    for name, settings in plan.embed.items():
        if name not in given:
            yield name, seeds[0], "embed", settings
    for row, stages in plan.rows.items():
        for seed in seeds:
            for stage in stages:
                for verb, asked in stage.items():
                    yield row, seed, verb, asked or {}


def _filled(plan: Plan, verb: str, settings: Settings, names: Mapping[str, Any]) -> Settings:
    filled: Settings = _fill(plan.defaults.get(verb, {}) | settings, names)
    return filled


def _fill(value: Any, names: Mapping[str, Any]) -> Any:
    """Replace names in braces in every text; a text that is nothing but a name becomes its value."""
    if isinstance(value, dict):
        return {key: _fill(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill(one, names) for one in value]
    if not isinstance(value, str):
        return value
    for name in PLACEHOLDER.findall(value):
        if name not in names:
            raise ConfigError(f"'{value}': nothing is called {{{name}}}{did_you_mean(name, names)}")
    if whole := PLACEHOLDER.fullmatch(value):
        return names[whole[1]]
    return PLACEHOLDER.sub(lambda match: str(names[match[1]]), value)
