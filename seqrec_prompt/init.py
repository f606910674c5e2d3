"""`init`: look at somebody's own table and write commented settings for every verb up to the first evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from seqrec_prompt.artifacts import write_text
from seqrec_prompt.config import Config, inline
from seqrec_prompt.errors import ArtifactError

if TYPE_CHECKING:
    from seqrec_prompt.data.columns import Facts, Found

STEPS = ("prepare", "validate", "finetune", "recommend", "evaluate")
OFTEN = 0.05  # share of repeats from which an item that was seen is worth recommending again

TEMPLATE = """\
# Settings for {interactions}: each verb reads its own section, in this order:
{commands}
# A flag beside --config wins; a setting left out has its default; seqrec-prompt VERB --help lists them all.
prepare:
  interactions: {interactions_value}   # {facts.rows:,} rows
{items_line}  session_column: {session}   # {facts.sessions:,} of them; {facts.median_length} rows in the median, {facts.longest} in the longest
  item_column: {item}   # {facts.items:,} of them
{time_line}{title_line}{split_lines}  # k_core: 5          # drops sessions and items with fewer rows than this
  # on_bad: drop       # bad rows stop prepare and are listed; this leaves them out and counts them
  out: {data}

validate:
  data: {data}
  model: {model}

finetune:
  data: {data}
  model: {model}   # a hub name, a directory, or smollm2, which is small and bundled
  max_steps: 150       # for a first look; take this line out to train on every session once (epochs: 1)
  # method: qlora      # a base model in 4 bits, for one GPU
  # validation: {{steps: 20}}   # judge by NDCG@10 on the way, and stop when it no longer rises
  out: {adapter}

recommend:
  data: {data}
  model: {model}
  adapter: {adapter}
  k: 10
  exclude_seen: {exclude_seen}   # {repeats_note}
  max_sessions: 200    # of the test sessions, drawn at random; take this line out for all of them
  out: {lists}

evaluate:
  data: {data}
  recommendations: {all_lists}
  cutoffs: [5, 10]
  examples: 5          # sessions shown with what was recommended
  out: {evaluation}
"""  # noqa: E501


class InitConfig(Config):
    """Settings of `init`."""

    interactions: str = Field(description="your table, one row an interaction: who, what, and if known when")
    items: str | None = Field(None, description="table of the items and their titles, if they are not in the first")
    session_column: str | None = Field(None, description="column of the session or user id; unset: looked for")
    item_column: str | None = Field(None, description="column of the item id; unset: looked for")
    time_column: str | None = Field(None, description="column of the time; unset: looked for")
    title_column: str | None = Field(None, description="column of the item's title; unset: looked for")
    model: str = Field("smollm2", description="hub name, directory, or 'smollm2' (bundled)")
    runs: Path = Field(Path("runs"), description="directory for what the verbs will make")
    out: Path = Field(Path("seqrec.yaml"), description="YAML file to write")
    overwrite: bool = Field(False, description="replace the file if it is there")


def init(config: InitConfig) -> dict[str, Any]:
    """Write `config.out` and print what was found and what to run next; returns the columns and what was measured.

    Raises DataError when the tables cannot be read or the session's or item's column cannot be told, ArtifactError
    when the file is there already.
    """
    from dataclasses import asdict

    from seqrec_prompt.data.columns import find_columns, look
    from seqrec_prompt.data.readers import open_source

    if config.out.is_dir() or (config.out.exists() and not config.overwrite):
        raise ArtifactError(f"{config.out} is there already. Choose another --out, or --overwrite.")
    interactions = open_source(config.interactions)
    items = open_source(config.items) if config.items else None
    given = {
        "session": config.session_column,
        "item": config.item_column,
        "time": config.time_column,
        "title": config.title_column,
    }
    found = find_columns(interactions, items, given)
    facts = look(interactions, items, found)
    write_text(config.out, _write(config, found, facts))
    print(_summary(config, found, facts, (items or interactions).columns))
    return {"columns": asdict(found), "facts": asdict(facts)}


def _write(config: InitConfig, found: Found, facts: Facts) -> str:
    title_line = "  # title_column: …    # no column looks like a title: items are written as their ids\n"
    if found.title:
        title_line = f"  title_column: {inline(found.title)}\n"
    if found.title and facts.capitals > 0.5:
        title_line += "  title_case: sentence   # titles in capitals cost a language model twice the tokens\n"
    time_line = "  # time_column: …     # no column of times was found: rows are taken in file order\n"
    if found.time:
        time_line = f"  time_column: {inline(found.time)}   # {facts.time_form}\n"
    if found.time and facts.ties > 0:
        time_line += (
            f"  ties: shuffle        # {facts.ties:.0%} of neighbours in a session have the same time; 'file' where "
            "rows stand in the order of events\n"
        )
    lists = config.runs / "recommendations.parquet"
    items_line = f"  items: {inline(config.items)}\n" if config.items else ""
    if config.items and not found.title:  # items are read for their titles
        items_line = f"  # items: {inline(config.items)}   # of no use without title_column\n"
    return TEMPLATE.format(
        interactions=config.interactions,
        interactions_value=inline(config.interactions),
        commands="\n".join(f"#   {command}" for command in _commands(config)),
        facts=facts,
        items_line=items_line,
        session=inline(found.session),
        item=inline(found.item),
        time_line=time_line,
        title_line=title_line,
        split_lines=_split_lines(found),
        data=inline(str(config.runs / "data")),
        adapter=inline(str(config.runs / "adapter")),
        lists=inline(str(lists)),
        all_lists=inline([str(lists)]),
        evaluation=inline(str(config.runs / "evaluation")),
        model=inline(config.model),
        exclude_seen="true" if facts.repeats < OFTEN else "false",
        repeats_note=f"{facts.repeats:.0%} of the rows repeat an item of their session",
    )


def _split_lines(found: Found) -> str:
    if found.split:
        return f"  split: column        # as {found.split} says\n  split_column: {inline(found.split)}\n"
    if found.time:
        return "  split: temporal      # the latest fifth of the sessions tests; or leave_one_out\n"
    return "  split: leave_one_out # the last item of every session tests\n"


def _commands(config: InitConfig) -> list[str]:
    import shlex

    return [f"seqrec-prompt {verb} --config {shlex.quote(str(config.out))}" for verb in STEPS]


def _summary(config: InitConfig, found: Found, facts: Facts, titled: Sequence[str]) -> str:
    from seqrec_prompt.data.columns import TIMES

    no_time = f"no column found, rows are taken in file order; --time-column names one. Times are {TIMES}"
    no_title = "no column found, items are written as their ids; --title-column names one of " + ", ".join(titled)
    told = [
        f"{facts.sessions:,} sessions ({found.session}), {facts.items:,} items ({found.item}), {facts.rows:,} rows",
        f"time: {found.time or no_time}",
        f"title: {found.title or no_title}",
    ]
    if facts.median_length < 2:
        told.append(f"most sessions have a single row: is {found.session} the right column? --session-column names it")
    lines = [f"{config.out}: written.", *(f"  {line}" for line in told), "Look through it, then run:"]
    return "\n".join([*lines, *(f"  {command}" for command in _commands(config))])
