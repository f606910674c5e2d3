"""`ground`: turn what any LLM answered, as text, into recommendations of real items.

With embeddings of the catalog this is the paper's way (Harte et al., RecSys'23): a text that names no item becomes the
item nearest to it, and where an item is named again, a neighbour of it takes the place.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import hash_file, is_done, manifest
from seqrec_prompt.config import Config
from seqrec_prompt.errors import DataError
from seqrec_prompt.locks import locked

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.embeddings.table import EmbeddingTable
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
    embeddings: Path | None = Field(
        None,
        description="directory made by 'embed' of this catalog: a text that names no item is read by the same model, "
        "and becomes the nearest item",
    )
    least_cosine: float = Field(
        -1,
        ge=-1,
        le=1,
        description="cosine to the nearest item below which a text is rejected all the same; what is near depends on "
        "the model, the manifest shows what was found. At -1 no text is rejected, as in the paper",
    )
    refill: Literal["none", "duplicates", "full"] = Field(
        "duplicates",
        description="with embeddings, what neighbours of named items are put in: 'duplicates': where an item is named "
        "again; 'full': there, and at the end of lists shorter than k",
    )
    exclude_seen: bool = Field(False, description="leave out the items of the session itself")
    overwrite: bool = Field(False, description="replace recommendations made with other settings")

    @model_validator(mode="after")
    def _embeddings_are_there(self) -> GroundConfig:
        if self.embeddings is None and (self.refill == "full" or self.least_cosine != -1):
            name = "refill" if self.refill == "full" else "least_cosine"
            raise ValueError(f"'{name}' needs --embeddings, a directory made by 'embed'")
        return self


@locked
def ground(config: GroundConfig) -> Path:
    """Write the items that answers name, each once a session, with how it was found; returns the Parquet file.

    Every test session that has an answer gets a list. Hallucinated titles and repeated ones are counted, and left out
    or, with embeddings, replaced. Raises DataError for columns that are missing and for sessions that are none of the
    test part's, ArtifactError for embeddings of another catalog.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.recommenders import files

    data = Dataset.load(config.data)
    if not config.answers.exists():
        raise DataError([f"{config.answers}: no such file"], "Give --answers a table of session_id and text.")
    inputs, table = {"data": data.hash, "answers": hash_file(config.answers)}, None
    if config.embeddings is not None:
        from seqrec_prompt.embeddings.table import VECTORS, EmbeddingTable

        table = EmbeddingTable.load(config.embeddings, data.catalog)
        inputs["embeddings"] = hash_file(config.embeddings / VECTORS)
    wanted = manifest("ground", config.resolved(), inputs)
    if is_done(config.out, files.read_file_manifest(config.out), wanted, overwrite=config.overwrite):
        print(f"already grounded: {config.out}")
        return config.out
    lists, facts = ground_answers(_read(config, data), data, config, table)
    files.write(config.out, [lists], data.catalog, wanted | {"facts": facts})
    found = ", ".join(f"{count:,} {name}" for name, count in facts["provenance"].items())
    put_in = "".join(f"{facts[name]:,} {name}, " for name in ("replaced", "filled") if facts[name])
    print(
        f"recommendations: {config.out}  ({facts['sessions']:,} sessions; {facts['titles']:,} titles named: {found}; "
        f"{facts['duplicate']:,} named twice; {put_in}{facts['short_lists']:,} lists shorter than {config.k})"
    )
    return config.out


def ground_answers(
    answers: dict[int, list[str]], data: Dataset, config: GroundConfig, table: EmbeddingTable | None = None
) -> tuple[Recommendations, dict[str, Any]]:
    """Ground the titles named for each test session (position → texts, best first); returns lists and figures.

    Scores are 0, −1, −2, …: text has an order, no probability. Nothing is certified.
    """
    import numpy as np

    from seqrec_prompt.prompting.grounding import Grounder
    from seqrec_prompt.ragged import offsets_of, places
    from seqrec_prompt.recommenders.base import Recommendations
    from seqrec_prompt.recommenders.llm.answers import Tally, list_of, neighbours

    nearest = None
    if table is not None:
        from seqrec_prompt.engines.nearest import NearestTitle

        nearest = NearestTitle(table)
    grounder = Grounder(data.catalog, data.popularity, config.threshold, nearest, config.least_cosine)
    found = grounder([text for texts in answers.values() for text in texts])
    named = iter(zip(found.items.tolist(), found.provenance.tolist(), strict=True))
    prompts = data.split.test.prompts
    history = {session: set(prompts[session].tolist()) if config.exclude_seen else set() for session in answers}
    near: dict[int, list[int]] = {}
    if table is not None and config.refill != "none":
        most = max(len(texts) + len(history[session]) for session, texts in answers.items())
        near = neighbours(np.unique(found.items[found.items >= 0]), table, data.catalog, config.k + most)
    title = np.unique(data.catalog.texts(), return_inverse=True)[1].tolist()
    tally, lengths = Tally(), []
    kept: list[tuple[int, str]] = []
    for session, texts in answers.items():
        own = list(islice(named, len(texts)))
        given = list_of(own, history[session], config.k, near, tally, fill=config.refill == "full", title=title)
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
    facts: dict[str, Any] = {
        "sessions": n,
        **tally.facts(),
        "short_lists": sum(length < config.k for length in lengths),
    }
    cosine = found.cosine[np.isfinite(found.cosine)]
    if len(cosine):
        facts["nearest_cosine"] = {
            str(q): round(float(np.quantile(cosine, q)), 4) for q in (0.05, 0.25, 0.5, 0.75, 0.95)
        }
    return lists, facts


def _read(config: GroundConfig, data: Dataset) -> dict[int, list[str]]:
    """Titles named for each session, by its position in the test part."""
    import numpy as np

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
    for row, (session, text) in zip(table.numbers[np.arange(len(table))].tolist(), pairs, strict=True):
        if session not in position:
            strange.append(f"{config.answers}: row {row}: session '{session}' is not in the test part of the data")
        else:
            answers.setdefault(position[session], []).extend(entries(text or ""))
    if strange:
        more = [f"… and {len(strange) - 5:,} more"] if len(strange) > 5 else []
        raise DataError(strange[:5] + more, "Give --data of the directory that the prompts were made from.")
    if not answers:
        raise DataError([f"{config.answers}: no answers"])
    return answers
