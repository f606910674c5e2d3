"""`ground`: turn what any LLM answered, as text, into recommendations of real items."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from seqrec_prompt.artifacts import hash_file, is_done, manifest
from seqrec_prompt.config import Config
from seqrec_prompt.errors import DataError
from seqrec_prompt.locks import locked

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.recommenders.base import Recommendations


class GroundConfig(Config):
    """Settings of `ground`."""

    data: Path = Field(description="directory made by 'prepare'")
    answers: Path = Field(
        description="table (CSV, TSV, Parquet) with a row an answer, best first in each session; an answer of several "
        "lines names an item a line"
    )
    out: Path = Field(description="Parquet file to write")
    session_column: str = Field("session_id", description="column of the session id")
    text_column: str = Field("text", description="column of the answer")
    k: int = Field(20, ge=1, description="items a session at most")
    threshold: float = Field(
        90, ge=0, le=100, description="least similarity of a fuzzy match, 0 to 100; at 100 only equal titles count"
    )
    exclude_seen: bool = Field(False, description="leave out the items of the session itself")
    overwrite: bool = Field(False, description="replace recommendations made with other settings")


@dataclass
class Tally:
    """What became of the titles that were named: by provenance, given twice in a session, seen before, left over."""

    named: Counter[str]
    duplicate: int = 0
    seen: int = 0
    beyond_k: int = 0

    def facts(self, lists: Recommendations, k: int) -> dict[str, Any]:
        """Return counts and, of all titles named, the shares that users ask for."""
        total = max(sum(self.named.values()), 1)
        short = int((lists.offsets[1:] - lists.offsets[:-1] < k).sum())
        return {
            "sessions": len(lists),
            "titles": sum(self.named.values()),
            "provenance": dict(sorted(self.named.items())),
            "hallucinated_share": self.named["rejected"] / total,
            "duplicate_share": self.duplicate / total,
            "seen": self.seen,
            "beyond_k": self.beyond_k,
            "short_lists": short,
        }


@locked
def ground(config: GroundConfig) -> Path:
    """Write the items that answers name, each once a session, with how it was found; returns the Parquet file.

    Every test session that has an answer gets a list; hallucinated titles and repeated ones are left out and counted.
    Raises DataError for columns that are missing and for sessions that are none of the test part's.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.recommenders import files

    data = Dataset.load(config.data)
    if not config.answers.exists():
        raise DataError([f"{config.answers}: no such file"], "Give --answers a table of session_id and text.")
    wanted = manifest("ground", config.resolved(), {"data": data.hash, "answers": hash_file(config.answers)})
    if is_done(config.out, files.read_file_manifest(config.out), wanted, overwrite=config.overwrite):
        print(f"already grounded: {config.out}")
        return config.out
    lists, tally = ground_answers(_read(config, data), data, config)
    facts = tally.facts(lists, config.k)
    files.write(config.out, [lists], data.catalog, wanted | {"facts": facts})
    found = ", ".join(f"{count:,} {name}" for name, count in facts["provenance"].items())
    print(
        f"recommendations: {config.out}  ({facts['sessions']:,} sessions; {facts['titles']:,} titles named: {found}; "
        f"{tally.duplicate:,} named twice; {facts['short_lists']:,} lists shorter than {config.k})"
    )
    return config.out


def ground_answers(answers: dict[int, list[str]], data: Dataset, config: GroundConfig) -> tuple[Recommendations, Tally]:
    """Ground the titles named for each test session (position → texts, best first).

    Scores are 0, −1, −2, …: text has an order, no probability. Nothing is certified.
    """
    import numpy as np

    from seqrec_prompt.prompting.grounding import Grounder
    from seqrec_prompt.ragged import offsets_of, places
    from seqrec_prompt.recommenders.base import Recommendations

    grounder = Grounder(data.catalog, data.popularity, config.threshold)
    prompts = data.split.test.prompts
    tally, lengths = Tally(Counter()), []
    kept: list[tuple[int, str]] = []
    for session, texts in answers.items():
        found = grounder(texts)
        tally.named.update(found.provenance.tolist())
        given: dict[int, str] = {}
        seen = set(prompts[session].tolist()) if config.exclude_seen else set()
        for item, how in zip(found.items.tolist(), found.provenance.tolist(), strict=True):
            if item in given:
                tally.duplicate += 1
            elif item in seen:
                tally.seen += 1
            elif item >= 0 and len(given) == config.k:
                tally.beyond_k += 1
            elif item >= 0:
                given[item] = how
        kept += given.items()
        lengths.append(len(given))
    n = len(answers)
    lists = Recommendations(
        prompts.ids[np.fromiter(answers, np.int64, n)],
        offsets_of(lengths),
        np.array([item for item, _ in kept], np.int32),
        -places(np.array(lengths, np.int64)).astype(np.float64),
        np.zeros(n, np.bool_),
        np.full(n, np.inf),
        np.array([how for _, how in kept], dtype=np.object_),
    )
    return lists, tally


def _read(config: GroundConfig, data: Dataset) -> dict[int, list[str]]:
    """Titles named for each session, by its position in the test part."""
    from seqrec_prompt.data.readers import open_source
    from seqrec_prompt.prompting.grounding import entries

    source = open_source(str(config.answers))
    columns = (config.session_column, config.text_column)
    if missing := [name for name in columns if name not in source.columns]:
        known = ", ".join(source.columns)
        raise DataError([f"{config.answers}: no column '{name}' (it has: {known})" for name in missing])
    table = source.read(columns)
    if table.ragged:
        raise DataError([f"{config.answers}: row {row}: {found} cells, not {n}" for row, n, found in table.ragged])
    position = {name: row for row, name in enumerate(data.split.test.prompts.ids.tolist())}
    answers: dict[int, list[str]] = {}
    strange = []
    pairs = zip(*(table.columns[name].to_pylist() for name in columns), strict=True)
    for row, (session, text) in enumerate(pairs, start=1):
        if session not in position:
            strange.append(f"{config.answers}: answer {row}: session '{session}' is not in the test part of the data")
        else:
            answers.setdefault(position[session], []).extend(entries(text or ""))
    if strange:
        more = [f"… and {len(strange) - 5:,} more"] if len(strange) > 5 else []
        raise DataError(strange[:5] + more, "Give --data of the directory that the prompts were made from.")
    if not answers:
        raise DataError([f"{config.answers}: no answers"])
    return answers
