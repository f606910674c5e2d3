"""`recommend`: lists for the sessions of a part, from an LLM or from what `fit` made, into a Parquet file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import hash_file, hash_json, is_done, manifest
from seqrec_prompt.console import progress
from seqrec_prompt.journal import Journal
from seqrec_prompt.locks import locked
from seqrec_prompt.recommenders.llm.settings import PASSING, LLMConfig

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Sessions
    from seqrec_prompt.prompting.templates import TemplateConfig
    from seqrec_prompt.recommenders.base import Recommendations
    from seqrec_prompt.recommenders.fitted import Kept

FILTERS = ("deny", "allow", "out_of_stock")
WINDOW = 1024  # sessions sorted by length, so that like ones are decoded together; no batch is larger
BLOCK = WINDOW  # sessions that a recommender without an LLM answers between two looks at the clock
EVERY = 10.0  # seconds of its work that a kill may cost
# Settings that mean something to every recommender; the others are the LLM's.
SHARED = ("data", "out", "recommender", "part", "k", "max_sessions", "exclude_seen", "seed", "overwrite")


class RecommendConfig(LLMConfig):
    """Settings of `recommend`."""

    data: Path = Field(description="directory made by 'prepare'")
    out: Path = Field(description="Parquet file to write")
    recommender: Path | None = Field(
        None, description="directory made by 'fit', to recommend without an LLM; excludes all settings of the LLM"
    )
    part: Literal["test", "train"] = Field(
        "test", description="sessions to continue; 'train': without their last item, for what 'prefer' learns to avoid"
    )
    k: int = Field(20, ge=1, description="items a session")
    max_sessions: int | None = Field(None, ge=1, description="only this many of the sessions, drawn with --seed")
    exclude_seen: bool = Field(False, description="leave out the items of the session itself")
    deny: Path | None = Field(None, description="table of session_id and item_id: items a session is not given")
    allow: Path | None = Field(
        None, description="table of session_id and item_id: the only items given to the sessions it names"
    )
    out_of_stock: Path | None = Field(None, description="table of item_id: items that no session is given")
    candidates: Path | None = Field(
        None, description="template Rank only: recommendations for the same sessions, which are put in order"
    )
    seed: int = Field(0, ge=0, description="draws the sessions for --max-sessions")
    overwrite: bool = Field(False, description="begin again although the output holds another run")

    @model_validator(mode="after")
    def _llm_or_fitted(self) -> RecommendConfig:
        strange = [name for name in type(self).model_fields if name in self.model_fields_set - set(SHARED)]
        if self.recommender is not None and strange:
            raise ValueError(
                f"'recommender' has no use for {', '.join(map(repr, strange))}: leave out one or the other"
            )
        return self


@locked
def recommend(config: RecommendConfig) -> Path:
    """Recommend k items for every session of a part; returns the Parquet file.

    Lists go into a journal beside the file as they are made; a stopped run goes on there, and the file appears when
    all are done.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.recommenders import files, fitted

    data = Dataset.load(config.data)  # before the heavy imports: a wrong path is told at once
    sessions = _drawn(config, data)
    fill: Callable[[Journal], tuple[list[Recommendations], dict[str, Any]]]
    if config.recommender is not None:
        recommender, identity = fitted.load(config.recommender, data)
        settings = {name: value for name, value in config.resolved().items() if name in SHARED}
        wanted = manifest("recommend", settings, {"data": data.hash, "recommender": identity})
        fill = partial(_answer, config, recommender, sessions)
    else:
        template, inputs = _llm(config)
        fill = partial(_decode, config, data, template, sessions)
        settings = {name: value for name, value in config.resolved().items() if name not in PASSING}
        wanted = manifest("recommend", settings, inputs | {"data": data.hash})
    found = files.read_file_manifest(config.out)
    journal_file = config.out.with_name(config.out.name + ".journal")
    if is_done(config.out, found, wanted, overwrite=config.overwrite):
        print(f"already recommended: {config.out}")
        journal_file.unlink(missing_ok=True)
        return config.out
    journal = Journal(journal_file, wanted, overwrite=config.overwrite)
    facts: dict[str, Any] = {"sessions": len(sessions), "part_sessions": len(data.split.cases(config.part))}
    try:
        last, found_out = fill(journal)
        facts |= found_out
        files.write(config.out, chain(_read(journal), last), data.catalog, wanted | {"facts": facts})
    finally:
        journal.close(remove=not journal.count)  # with nothing done there is nothing to go on from
    journal.close(remove=True)
    print(_summary(config, facts))
    return config.out


def _llm(config: RecommendConfig) -> tuple[TemplateConfig, dict[str, str]]:
    """The template, and hashes of what the lists are made from beside the data."""
    from seqrec_prompt.engines.models import model_hash
    from seqrec_prompt.prompting.cases import input_hashes
    from seqrec_prompt.recommenders.llm.variants import check_variant, template_of

    template, inputs = template_of(config, model_hash(config.model, config.revision))
    inputs["template"] = hash_json(template.resolved())
    inputs |= {name: hash_file(file) for name in FILTERS if (file := getattr(config, name)) and file.exists()}
    inputs |= input_hashes(config.candidates, config.embeddings)
    check_variant(config, template, config.candidates)
    return template, inputs


def _drawn(config: RecommendConfig, data: Dataset) -> Sessions:
    """The sessions of the part, or max_sessions of them in the order of the data."""
    import numpy as np

    sessions = data.split.cases(config.part).prompts
    if config.max_sessions is None or config.max_sessions >= len(sessions):
        return sessions
    drawn = np.random.default_rng(config.seed).choice(len(sessions), config.max_sessions, replace=False)
    return sessions.take(np.sort(drawn))


def _answer(
    config: RecommendConfig, recommender: Kept, sessions: Sessions, journal: Journal
) -> tuple[list[Recommendations], dict[str, Any]]:
    """Answer what the journal still lacks; returns the last lists, and how long a session took.

    The journal gets what took longer than EVERY to make. The last lists are not written twice: a short run has no
    others.
    """
    import numpy as np

    done, seconds = 0, 0.0
    for record in journal.records():
        done += len(record["positions"])
        seconds += record["effort"]["seconds"]
    _tell(done, len(sessions))
    lists: list[Recommendations] = []
    with progress(len(sessions), "recommend", "sessions", done) as bar:
        kept, started = done, time.monotonic()
        for start in range(done, len(sessions), BLOCK):
            end = min(start + BLOCK, len(sessions))
            block = sessions.take(np.arange(start, end))
            lists.append(recommender.recommend(block, config.k, exclude_seen=config.exclude_seen))
            spent = time.monotonic() - started
            if spent > EVERY and end < len(sessions):
                starts = range(kept, end, BLOCK)
                records = [_record(part, np.arange(at, at + len(part))) for part, at in zip(lists, starts, strict=True)]
                journal.append(*(record | {"effort": {"seconds": spent / len(records)}} for record in records))
                lists, kept, seconds, started = [], end, seconds + spent, time.monotonic()
            bar.update(len(block))
        seconds += time.monotonic() - started
    return lists, {"seconds_a_session": seconds / max(len(sessions), 1)}


def _decode(
    config: RecommendConfig, data: Dataset, template: TemplateConfig, sessions: Sessions, journal: Journal
) -> tuple[list[Recommendations], dict[str, Any]]:
    """Append all that the journal still lacks, by the LLM; returns no lists, and figures about the whole run."""
    import numpy as np

    from seqrec_prompt.data.lists import Candidates
    from seqrec_prompt.recommenders.llm.prompt import Effort
    from seqrec_prompt.recommenders.llm.variants import build_recommender
    from seqrec_prompt.recommenders.rules import load_rules

    done, effort = np.zeros(len(sessions), np.bool_), Effort()
    for record in journal.records():
        done[record["positions"]] = True
        effort += Effort(**record["effort"])
    _tell(n_done := int(done.sum()), len(sessions))
    recommender = None
    with progress(len(sessions), "recommend", "sessions", n_done) as bar:
        for start in range(0, len(sessions), WINDOW):
            window = np.arange(start, min(start + WINDOW, len(sessions)))
            # Sessions of like length are decoded together, so little is padded; the file keeps the data's order.
            left = window[np.argsort(sessions.lengths[window], kind="stable")]
            left = left[~done[left]]
            if not len(left):
                continue
            if recommender is None:
                rules = load_rules(data.catalog, config.deny, config.allow, config.out_of_stock)
                candidates = Candidates.load(config.candidates, data, config.part) if config.candidates else None
                recommender = build_recommender(config, data, template, rules, candidates)
            started = time.monotonic()
            for batch in recommender.batches(sessions.take(left), config.k, exclude_seen=config.exclude_seen):
                spent, recommender.effort = recommender.effort, Effort()
                spent.seconds, started = time.monotonic() - started, time.monotonic()
                effort += spent
                journal.append(_record(batch, left[: len(batch)]) | {"effort": asdict(spent)})
                left = left[len(batch) :]
                bar.update(len(batch))
    return [], effort.means() | {"batch_size": config.batch_size}


def _tell(done: int, total: int) -> None:
    if done:
        print(f"going on: {done:,}/{total:,} sessions are done")


def _record(lists: Recommendations, positions: Any) -> dict[str, Any]:
    """One journal record: the lists of a batch, and where their sessions stand in the data."""
    import numpy as np

    scores = np.split(lists.scores, lists.offsets[1:-1])
    return {
        "positions": positions.tolist(),
        "sessions": lists.session_ids.tolist(),
        "items": [items.tolist() for items in lists],
        "scores": [part.tolist() for part in scores],
        "certified": lists.certified.tolist(),
        "gap": lists.gap.tolist(),
        "outside": None if lists.outside is None else lists.outside.tolist(),
        "provenance": lists.provenance if isinstance(lists.provenance, str) else lists.provenance.tolist(),
    }


def _read(journal: Journal) -> Iterator[Recommendations]:
    """The lists in the order of the data, a window's at a time: no two windows mix in the journal."""
    import numpy as np

    from seqrec_prompt.recommenders.base import Recommendations

    for _, records in groupby(journal.records(), lambda record: record["positions"][0] // WINDOW):
        batches, positions = [], []
        for record in records:
            batches.append(_lists(record))
            positions += record["positions"]
        yield Recommendations.concatenate(batches).take(np.argsort(positions))


def _lists(record: dict[str, Any]) -> Recommendations:
    import numpy as np

    from seqrec_prompt.ragged import offsets_of
    from seqrec_prompt.recommenders.base import Recommendations

    return Recommendations(
        np.array(record["sessions"], dtype=object),
        offsets_of([len(items) for items in record["items"]]),
        np.array([item for items in record["items"] for item in items], np.int32),
        np.array([score for scores in record["scores"] for score in scores], np.float64),
        np.array(record["certified"], np.bool_),
        np.array(record["gap"], np.float64),
        found if isinstance(found := record["provenance"], str) else np.array(found, dtype=object),
        None if record["outside"] is None else np.array(record["outside"], np.float64),
    )


def _summary(config: RecommendConfig, facts: dict[str, Any]) -> str:
    text = f"recommendations: {config.out}  ({facts['sessions']:,} of {facts['part_sessions']:,} {config.part} sessions"
    if "prompt_tokens" in facts:
        text += (
            f"; {facts['seconds_a_session']:.2f} s each: {facts['prompt_tokens']:.0f} prompt tokens, then "
            f"{facts['tree_tokens']:.0f} in {facts['rounds']:.1f} rounds"
        )
    return text + ")"
