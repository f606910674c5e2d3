"""`distill`: a teacher's answers to train sessions become train sessions of their own, for a local student.

Each session, without its last item, is continued with what the teacher named: sequence-level distillation (Kim & Rush,
EMNLP 2016), on the items that its texts are grounded in. The result is a data directory like `prepare` makes, with the
same catalog and the same test part, so that `finetune`, `pairs` and `validate` read it as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from seqrec_prompt.artifacts import (
    hash_file,
    hash_json,
    is_done,
    manifest,
    peek_manifest,
    refuse_inputs_inside,
    staged_directory,
)
from seqrec_prompt.config import Config
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.readers import open_source
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.errors import DataError
from seqrec_prompt.locks import locked
from seqrec_prompt.prompting.grounding import REJECTED, Grounder, entries


class DistillConfig(Config):
    """Settings of `distill`."""

    data: Path = Field(description="directory made by 'prepare'")
    answers: Path = Field(
        description="table of session_id and text, best first in each train session, as 'hosted generate --part train' "
        "writes it"
    )
    out: Path = Field(description="directory for the data that the student learns from")
    per_session: int = Field(1, ge=1, description="items of each answer that are learned, from the best")
    threshold: float = Field(90, ge=0, le=100, description="least similarity of a fuzzy match, 0 to 100")
    with_truth: bool = Field(False, description="keep the sessions with their true last items beside them")
    overwrite: bool = Field(False, description="replace data made with other settings")


@locked
def distill(config: DistillConfig) -> Path:
    """Write the data directory; returns it. Raises DataError when answers fit no train session or name no item."""
    refuse_inputs_inside(config.out, {"data": config.data, "answers": config.answers})
    data = Dataset.load(config.data)
    if not config.answers.exists():
        raise DataError([f"{config.answers}: no such file"], "Make it with: seqrec-prompt hosted generate --part train")
    inputs = {"data": data.hash, "answers": hash_file(config.answers)}
    wanted = manifest("distill", config.resolved(), inputs)
    if is_done(config.out, peek_manifest(config.out), wanted, overwrite=config.overwrite):
        print(f"already distilled: {config.out}")
        return config.out
    train, counts = _taught(data, _read(config, data.split.cases("train")), config)
    if config.with_truth:
        train = Sessions.concatenate([data.split.train, train])
    settings = {"per_session": config.per_session, "threshold": config.threshold, "with_truth": config.with_truth}
    facts: dict[str, Any] = {"hash": hash_json([inputs, settings]), "provenance": dict(sorted(counts.items()))}
    facts["train_sessions"] = len(train)
    split = Split(train, data.split.test, data.split.validation)
    with staged_directory(config.out) as staged:
        Dataset(data.catalog, split, wanted | {"facts": facts}).save(staged)
    rejected = counts[REJECTED] / max(sum(counts.values()), 1)
    print(f"data: {config.out}  ({len(train):,} train sessions; {rejected:.1%} of the titles named are no items)")
    return config.out


def _taught(data: Dataset, answers: dict[int, list[str]], config: DistillConfig) -> tuple[Sessions, Counter[str]]:
    """The sessions, each continued with an item that the teacher named, and how the titles were found."""
    grounder = Grounder(data.catalog, data.popularity, config.threshold)
    cases = data.split.cases("train")
    rows, ids, named = [], [], []
    counts: Counter[str] = Counter()
    for position, texts in answers.items():
        found = grounder(texts)
        counts.update(found.provenance.tolist())
        items = [item for item in dict.fromkeys(found.items.tolist()) if item >= 0]
        for rank, item in enumerate(items[: config.per_session], start=1):
            rows.append(position)
            ids.append(f"{cases.prompts.ids[position]}#{rank}")
            named.append(item)
    if not rows:
        raise DataError([f"{config.answers}: none of its {sum(counts.values()):,} titles is an item of the catalog"])
    taught = cases.take(np.array(rows))
    prompts = replace(taught.prompts, ids=np.array(ids, dtype=object))
    return Holdout(prompts, np.array(named, np.int32), taught.target_times).continued(), counts


def _read(config: DistillConfig, cases: Holdout) -> dict[int, list[str]]:
    """Titles named for each train session, by its position among those of two items and more."""
    source = open_source(str(config.answers))
    if missing := [name for name in ("session_id", "text") if name not in source.columns]:
        known = ", ".join(source.columns)
        raise DataError([f"{config.answers}: no column '{name}' (it has: {known})" for name in missing])
    columns = source.read(["session_id", "text"]).columns
    position = {name: row for row, name in enumerate(cases.prompts.ids.tolist())}
    answers: dict[int, list[str]] = {}
    for session, text in zip(columns["session_id"].to_pylist(), columns["text"].to_pylist(), strict=True):
        if session not in position:
            raise DataError(
                [f"{config.answers}: session '{session}' is no train session of two items or more"],
                "Give answers made from this --data, with: seqrec-prompt hosted generate --part train",
            )
        answers.setdefault(position[session], []).extend(entries(text or ""))
    return answers
