"""Recommendations as Parquet files: one row a recommended item.

Columns: session_id, rank (from 1), item_id, score, provenance, and, of the whole list, certified, gap, outside. A
session with an empty list keeps one row with a null item and rank 0, so that no session is lost. The file's metadata
carries the manifest of its making.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqrec_prompt.artifacts import atomic_file
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.lists import METADATA_KEY, parquet_manifest
from seqrec_prompt.errors import ArtifactError, DataError
from seqrec_prompt.ragged import LongArray, offsets_of, places
from seqrec_prompt.recommenders.base import Recommendations

SCHEMA = pa.schema(
    [
        ("session_id", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float64()),
        ("provenance", pa.string()),
        ("certified", pa.bool_()),
        ("gap", pa.float64()),
        ("outside", pa.float64()),
    ]
)


@dataclass(frozen=True, eq=False)
class RecommendationFile:
    """Lists read back from a file, with the manifest it carries ({} when another tool wrote it)."""

    path: Path
    lists: Recommendations
    manifest: dict[str, Any]


def write(path: Path, batches: Iterable[Recommendations], catalog: Catalog, manifest: dict[str, Any]) -> None:
    """Stream batches of lists into one Parquet file, which appears whole or not at all."""
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(manifest, ensure_ascii=False).encode()})
    with atomic_file(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for batch in batches:
            writer.write_table(_table(batch, catalog).cast(schema))


def read_file_manifest(path: Path) -> dict[str, Any] | None:
    """Read only the manifest of a recommendation file; None when there is no such file."""
    if not path.exists():
        return None
    if path.is_dir():
        raise ArtifactError(f"{path} is a directory; a recommendation file is a Parquet file.")
    try:
        return parquet_manifest(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} is not a Parquet file ({error}).") from None


def read(path: Path, catalog: Catalog, unknown: int | None = None) -> RecommendationFile:
    """Read a recommendation file; needs only the columns session_id, rank and item_id, so other tools can write it.

    unknown: what to read an id as that is not in the catalog; without it such an id is an error. Raises ArtifactError
    when the file is missing or no Parquet, DataError naming columns or items that do not fit.
    """
    manifest = read_file_manifest(path)
    if manifest is None:
        raise ArtifactError(f"{path}: no such file. Make it with: seqrec-prompt recommend --out {path}")
    table = pq.read_table(path)
    missing = [name for name in ("session_id", "rank", "item_id") if name not in table.column_names]
    if missing:
        raise DataError([f"{path}: no column '{name}' (it has: {', '.join(table.column_names)})" for name in missing])
    table = _typed(table, path)
    for name in ("session_id", "item_id"):
        # Other tools often write ids as numbers; here ids are texts.
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
    return RecommendationFile(path, _lists(table, _positions(table, catalog, path, unknown)), manifest)


def _typed(table: pa.Table, path: Path) -> pa.Table:
    """Cast the columns to the types of SCHEMA, whatever tool wrote them; raises DataError naming column and row."""
    for index, name in enumerate(table.column_names):
        if name not in SCHEMA.names:
            continue
        try:
            column = table[name].cast(SCHEMA.field(name).type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError([f"{path}: column {name} does not hold what it should: {error}"]) from None
        if name in ("session_id", "rank") and column.null_count:
            row = column.is_null().to_pylist().index(True) + 1
            raise DataError([f"{path}: row {row}, column {name}: no value"])
        table = table.set_column(index, name, column)
    return table


def _table(lists: Recommendations, catalog: Catalog) -> pa.Table:
    lengths = np.diff(lists.offsets)
    shown = np.maximum(lengths, 1)  # an empty list keeps one row
    session = np.repeat(np.arange(len(lists)), shown)
    within = places(shown)
    empty = (lengths == 0)[session]
    entry = np.where(empty, 0, lists.offsets[:-1][session] + within)
    ids = pa.array(catalog.ids, pa.string())
    item = pa.array(lists.items[entry] if len(lists.items) else np.zeros(len(session), np.int32), mask=empty)
    how = lists.provenances
    score = pa.array(lists.scores[entry] if len(lists.scores) else np.zeros(len(session)), mask=empty)
    return pa.table(
        {
            "session_id": pa.array(lists.session_ids[session], pa.string()),
            "rank": np.where(empty, 0, within + 1),
            "item_id": pc.take(ids, item),
            "score": score,
            "provenance": pa.array(how[entry] if len(how) else [None] * len(session), pa.string(), mask=empty),
            "certified": lists.certified[session],
            "gap": lists.gap[session],
            "outside": pa.nulls(len(session), pa.float64()) if lists.outside is None else lists.outside[session],
        }
    )


def _lists(table: pa.Table, positions: LongArray) -> Recommendations:
    """Lists of a table, sessions in order of first appearance; positions: of each row's item, -1 for none."""
    group, session_ids = _encoded(table["session_id"])
    first = np.full(len(session_ids), len(group), np.int64)
    np.minimum.at(first, group, np.arange(len(group)))
    rank = table["rank"].to_numpy()
    order = np.lexsort((rank, group))
    items, group = positions[order], group[order]
    real = items >= 0
    counts = np.bincount(group[real], minlength=len(first))
    score = table["score"].to_numpy()[order] if "score" in table.column_names else -rank[order].astype(float)
    certified = (
        table["certified"].to_numpy()[first] if "certified" in table.column_names else np.zeros(len(first), bool)
    )
    gap = table["gap"].to_numpy()[first] if "gap" in table.column_names else np.full(len(first), np.nan)
    outside = None
    if "outside" in table.column_names and not table["outside"].null_count:
        outside = table["outside"].to_numpy()[first]
    provenance: Any = "exact"
    if "provenance" in table.column_names:
        which, names = _encoded(table["provenance"])
        provenance = names[which[order][real]]
    offsets = offsets_of(counts)
    score, found = score[real].astype(float), items[real].astype(np.int32)
    return Recommendations(session_ids, offsets, found, score, certified, gap, provenance, outside)


def _encoded(column: pa.ChunkedArray) -> tuple[LongArray, npt.NDArray[np.object_]]:
    """Number texts in order of first appearance: (number of each row, the distinct texts); a null is one of them."""
    encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), np.array(encoded.dictionary.to_pylist(), dtype=object)


def _positions(table: pa.Table, catalog: Catalog, path: Path, unknown: int | None) -> LongArray:
    """(rows,) catalog positions, -1 for a row without an item."""
    ids = table["item_id"]
    found = pc.index_in(ids, value_set=pa.array(catalog.ids, pa.string()))
    positions: LongArray = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    strange = (positions < 0) & ids.is_valid().to_numpy()
    if unknown is None and strange.any():
        row = int(strange.argmax())
        raise DataError(
            [f"{path}: row {row + 1}, column item_id: '{ids[row]}' is not in the catalog"],
            "These recommendations belong to other data: give --data of the directory they were made from. Where a "
            "model makes up items, evaluate with --invalid count.",
        )
    if unknown is not None:
        positions[strange] = unknown
    return positions
