"""Lists of items by session, from any table with the columns session_id and item_id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.readers import open_source
from seqrec_prompt.data.sessions import IdArray
from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import IntArray, TokenLists, offsets_of

METADATA_KEY = b"seqrec_prompt"


@dataclass(frozen=True, eq=False)
class Candidates:
    """What another recommender would give: ranked items, best first, by session id."""

    path: Path
    lists: dict[str, IntArray]

    @classmethod
    def load(cls, path: Path, data: Dataset, part: str) -> Candidates:
        """Read a recommendation file, or any table of session_id and item_id, in order or with the rank.

        part: 'train' or 'test', the sessions it is asked for. Raises DataError when 'recommend' made the file of other
        data or of the other part, or when it cannot be read.
        """
        lists = item_lists(path, data.catalog)
        made = parquet_manifest(path) if path.suffix in (".parquet", ".pq") else {}
        how = f"Make it with: seqrec-prompt recommend --part {part} --data … --out {path}"
        if made and made.get("inputs", {}).get("data") != data.hash:
            raise DataError([f"{path} was made from other data ('{made.get('config', {}).get('data')}')"], how)
        if made and made.get("config", {}).get("part", "test") != part:
            raise DataError([f"{path} holds lists of the {made['config'].get('part', 'test')} part"], how)
        return cls(path, lists)

    def of(self, ids: IdArray) -> TokenLists:
        """The lists of these sessions, in their order, each item once; empty where there is none."""
        none = np.empty(0, np.int32)
        found = [self.lists.get(name, none) for name in ids]
        found = [items[np.sort(np.unique(items, return_index=True)[1])] for items in found]
        return TokenLists(np.concatenate([*found, none]), offsets_of([len(items) for items in found]))


def parquet_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest that a Parquet file carries; {} when another tool wrote it. Raises pyarrow's errors."""
    metadata = pq.read_schema(path).metadata or {}
    manifest = json.loads(metadata.get(METADATA_KEY, b"{}"))
    return manifest if isinstance(manifest, dict) else {}


def item_lists(path: Path, catalog: Catalog) -> dict[str, IntArray]:
    """Read a table of session_id and item_id: the known items of each session, in the table's order.

    Items that the catalog does not have are counted on the screen. Raises DataError when a column is missing or none
    of the items is in the catalog.
    """
    items, names = read_items(path, catalog, "session_id")
    found: dict[str, list[int]] = {name: [] for name in names}  # also those of which no item is known
    for name, item in zip(names, items.tolist(), strict=True):
        if item >= 0:
            found[name].append(item)
    return {name: np.array(positions, np.int32) for name, positions in found.items()}


def read_items(path: Path, catalog: Catalog, session_column: str | None = None) -> tuple[IntArray, list[str]]:
    """Positions of a table's items, -1 where the catalog does not have one, and their sessions; by rank, if it has."""
    wanted = ["item_id"] if session_column is None else [session_column, "item_id"]
    source = open_source(str(path))
    wanted += ["rank"] if session_column and "rank" in source.columns else []
    missing = [name for name in wanted if name not in source.columns]
    if missing:
        known = ", ".join(source.columns)
        raise DataError([f"{path}: no column '{name}' (it has: {known})" for name in missing])
    table = source.read(wanted)
    if table.ragged:
        raise DataError([f"{path}: row {row}: {found} cells, not {cells}" for row, cells, found in table.ragged])
    columns = table.columns
    texts = columns["item_id"].to_pylist()
    items = np.array([catalog.index.get(text, -1) for text in texts], np.int32)
    if not (items >= 0).any():
        raise DataError([f"{path}: column item_id: none of its {len(items):,} items is in the catalog"])
    # No item at all is how a recommendation file says that a list is empty.
    if strange := [row for row, text in enumerate(texts) if text and items[row] < 0]:
        print(f"{path}: {len(strange):,} of {len(items):,} items are not in the catalog, e.g. '{texts[strange[0]]}'")
    if session_column is None:
        return items, []
    names = np.array(columns[session_column].to_pylist(), dtype=object)
    if "rank" in wanted:
        ranks = columns["rank"].to_pylist()
        if wrong := [row for row, rank in enumerate(ranks) if not rank.isdecimal()]:
            number = table.numbers[wrong[0]]
            raise DataError([f"{path}: row {number}, column rank: '{ranks[wrong[0]]}' is no rank, which is 1, 2, …"])
        order = np.argsort(np.array(ranks, np.int64), kind="stable")
        items, names = items[order], names[order]
    return items, names.tolist()
