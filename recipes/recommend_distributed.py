"""Recommend for more sessions than one machine has time for, on Ray: Parquet in, Parquet out.

python recipes/recommend_distributed.py --data runs/data --model smollm2 --adapter runs/adapter \
    --sessions runs/sessions --out runs/lists --engine vllm --workers 8 --gpus 1

`sessions` is a folder of Parquet files with columns session_id and item_ids (a list of texts). Each becomes a file of
the same name in `out`, as `recommend` writes them, whole or not at all: a stopped run goes on with the files that are
missing. A file is what a worker loses when it dies, so cut them to some minutes of work. On a cluster (`ray start`, or
RAY_ADDRESS) every node needs the package, with the extra [ray], and the folders at the same paths.

Plain Ray Data with an actor an engine, not `ray.data.llm`: that sends each row through vLLM once, while the search asks
about a session several times, each time where the last answers lead, and proves a list by what it need not ask.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from seqrec_prompt.artifacts import hash_file, hash_json, is_done, manifest
from seqrec_prompt.config import parse
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.engines.models import model_hash
from seqrec_prompt.errors import ConfigError, DataError, MissingExtraError, SeqrecError
from seqrec_prompt.locks import lock
from seqrec_prompt.ragged import offsets_of
from seqrec_prompt.recommenders import files
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.llm.settings import PASSING, LLMConfig
from seqrec_prompt.recommenders.llm.variants import build_recommender, check_variant, template_of

NAME = "recommend_distributed"
COLUMNS = ("session_id", "item_ids")
OWN = ("sessions", "out", "workers", "gpus", "overwrite")  # settings that change no list, beside those of any LLM


class DistributedConfig(LLMConfig):
    """Settings of the recipe: where, how many, and those of the LLM."""

    data: Path = Field(description="directory made by 'prepare', whose catalog is recommended from")
    sessions: Path = Field(description="folder of Parquet files with columns session_id and item_ids")
    out: Path = Field(description="folder for a Parquet file of lists beside each")
    workers: int = Field(1, ge=1, description="engines at work together")
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of each, a fraction where several share one; unset: 1 with vllm, else an even share of those "
        "there are, and none where there are none",
    )
    k: int = Field(20, ge=1, description="items a session")
    exclude_seen: bool = Field(False, description="leave out the items of the session itself")
    overwrite: bool = Field(False, description="make every file again")

    @model_validator(mode="after")
    def _vllm_shares_no_gpu(self) -> DistributedConfig:
        if self.engine == "vllm" and self.gpus not in (None, 0, 1):
            raise ValueError(
                f"'gpus' {self.gpus:g}: vLLM takes one GPU whole, and nearly all of its memory. Give --gpus 1, or "
                "--engine transformers, of which several workers share a GPU"
            )
        return self

    def for_workers(self) -> dict[str, Any]:
        """What `Worker` is made from: every path absolute, for a worker begins in another directory."""
        llm = self.model_dump(exclude_unset=True, include=set(LLMConfig.model_fields))
        llm |= {name: value.resolve() for name, value in llm.items() if isinstance(value, Path)}
        if Path(self.model).is_dir():
            llm["model"] = str(Path(self.model).resolve())
        return {"llm": llm, "data": self.data.resolve(), "k": self.k, "exclude_seen": self.exclude_seen}


class Worker:
    """One engine: recommends for all sessions of a file, and writes theirs."""

    def __init__(self, llm: dict[str, Any], data: Path, k: int, exclude_seen: bool) -> None:
        self.k, self.exclude_seen, self.problem = k, exclude_seen, ""
        try:
            config = LLMConfig(**llm)
            template, _ = template_of(config, model_hash(config.model, config.revision))
            self.data = Dataset.load(data)
            self.recommender = build_recommender(config, self.data, template)
        except SeqrecError as error:  # told with the files: Ray makes a traceback of what is raised here
            self.problem = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Row: in, out, made (the manifest's JSON); returns how many sessions it has, and what is wrong with it."""
        if self.problem:
            return {"sessions": 0, "problem": self.problem}
        try:
            return {"sessions": self._make(row), "problem": ""}
        except DataError as error:  # the others are made all the same
            return {"sessions": 0, "problem": str(error)}
        except SeqrecError as error:
            return {"sessions": 0, "problem": f"{row['in']}: {error}"}

    def _make(self, row: dict[str, Any]) -> int:
        """Write the lists of a file; returns how many."""
        started = time.monotonic()
        sessions = read_sessions(Path(row["in"]), self.data.catalog)
        order = np.argsort(sessions.lengths, kind="stable")  # sessions of like length are decoded together
        lists = self.recommender.batches(sessions.take(order), self.k, exclude_seen=self.exclude_seen)
        found = [Recommendations.concatenate(list(lists)).take(np.argsort(order))] if len(sessions) else []
        seconds = time.monotonic() - started
        facts = {"sessions": len(sessions), "seconds_a_session": seconds / max(len(sessions), 1)}
        files.write(Path(row["out"]), found, self.data.catalog, json.loads(row["made"]) | {"facts": facts})
        return len(sessions)


def read_sessions(file: Path, catalog: Catalog) -> Sessions:
    """Read a file of sessions. Raises DataError naming column, session and item that do not fit."""
    require_columns(file)
    table = pq.read_table(file, columns=list(COLUMNS)).combine_chunks()
    ids, items = (table[name].combine_chunks() for name in COLUMNS)
    if ids.null_count or items.null_count:
        raise DataError([f"{file}: row {_first(pc.or_(pc.is_null(ids), pc.is_null(items))) + 1}: no value"])
    lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False)
    flat = pc.list_flatten(items).cast(pa.string())
    found = pc.index_in(flat, value_set=pa.array(catalog.ids, pa.string()))
    if found.null_count:
        at = _first(pc.is_null(found))
        row = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        raise DataError([f"{file}: row {row + 1}, session '{ids[row]}': '{flat[at]}' is not in the catalog"])
    names = np.array(ids.cast(pa.string()).to_pylist(), dtype=object)
    return Sessions(names, offsets_of(lengths), found.to_numpy(zero_copy_only=False).astype(np.int32))


def require_columns(file: Path) -> None:
    """Raise DataError for a file that is no Parquet or has not the columns of sessions."""
    try:
        schema = pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError([f"{file}: not a Parquet file ({error})"]) from None
    there = schema.names
    if missing := [name for name in COLUMNS if name not in there]:
        raise DataError([f"{file}: no column '{name}' (it has: {', '.join(there)})" for name in missing])
    kind = schema.field("item_ids").type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise DataError([f"{file}: column 'item_ids' holds {kind}; it must hold a list of item ids in each row"])


def _first(mask: pa.Array) -> int:
    return int(pc.index(mask, True).as_py())


def owed(config: DistributedConfig) -> list[dict[str, str]]:
    """The rows of the files that are not made yet. Raises ArtifactError for one of other settings."""
    template, inputs = template_of(config, model_hash(config.model, config.revision))
    check_variant(config, template)
    inputs |= {"data": Dataset.load(config.data).hash, "template": hash_json(template.resolved())}
    settings = {name: value for name, value in config.resolved().items() if name not in OWN + PASSING}
    rows = []
    for file in sorted(config.sessions.glob("*.parquet")):
        require_columns(file)
        wanted = manifest(NAME, settings, inputs | {"sessions": hash_file(file)})
        out = config.out / file.name
        if not is_done(out, files.read_file_manifest(out), wanted, overwrite=config.overwrite):
            rows.append({"in": str(file.resolve()), "out": str(out.resolve()), "made": json.dumps(wanted)})
    return rows


def main() -> int:
    """Make the files that are missing."""
    try:
        config = parse(DistributedConfig, verb=NAME, description="Recommend for folders of sessions, on Ray.")
        if not any(config.sessions.glob("*.parquet")):
            raise DataError([f"{config.sessions}: no Parquet files"])
        with lock(config.out):
            config.out.mkdir(parents=True, exist_ok=True)
            rows = owed(config)
            print(f"files to make: {len(rows):,}")
            made = _made(config, rows) if rows else []
        problems = list(dict.fromkeys(one["problem"] for one in made if one["problem"]))
        sessions, n = sum(one["sessions"] for one in made), sum(not one["problem"] for one in made)
        print(f"recommendations: {config.out}  ({sessions:,} sessions in {n:,} files)")
        if problems:
            hint = "The other files are made; correct this" if n else "No file was made; correct this"
            raise DataError(problems, f"{hint}, then run the same command again.")
    except SeqrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _made(config: DistributedConfig, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("Ray", 'pip install "seqrec_prompt[ray]"') from None
    ray.init(ignore_reinit_error=True)
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Worker,
        fn_constructor_kwargs=config.for_workers(),
        concurrency=min(config.workers, len(rows)),
        num_gpus=_gpus(config, ray.cluster_resources().get("GPU", 0)) or None,
    )
    return list(made.iter_rows())


def _gpus(config: DistributedConfig, there: float) -> float:
    """GPUs of a worker, where the cluster has so many. Raises ConfigError for more: Ray would wait for them."""
    if config.gpus is None and config.engine == "vllm":
        return float(there > 0)
    if config.gpus is None:
        return min(1.0, math.floor(1000 * there / config.workers) / 1000)
    if config.gpus > there:
        raise ConfigError(
            f"'gpus' is {config.gpus:g}, and the cluster has {there:g}. Leave it out, or give RAY_ADDRESS of another."
        )
    return config.gpus


if __name__ == "__main__":
    raise SystemExit(main())
