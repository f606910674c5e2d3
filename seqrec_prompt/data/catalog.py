"""The items that can be recommended."""

from __future__ import annotations

import hashlib
import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seqrec_prompt.artifacts import atomic_file
from seqrec_prompt.errors import DataError


@dataclass(frozen=True, eq=False)
class Catalog:
    """Items in a fixed order; everywhere else an item is its position in this order.

    ids: unique item ids. titles: one per item, as given (may repeat, may be empty). attributes: named columns, each
    with one text per item ("" where unknown).
    """

    ids: list[str]
    titles: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each item id."""
        return {item_id: position for position, item_id in enumerate(self.ids)}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over ids, titles and attributes in order."""
        digest = hashlib.sha256()
        for name, column in [("item_id", self.ids), ("title", self.titles), *sorted(self.attributes.items())]:
            digest.update(f"{name}\x1e".encode())
            digest.update("\x1f".join(column).encode())
        return digest.hexdigest()

    def texts(self, attributes: Sequence[str] = ()) -> list[str]:
        """Write every item as one line of text, shape (items,): the title and, in brackets, the wanted attributes.

        HTML entities are decoded and white space is folded, so a text never holds a line break. An item without a
        title is written as its id: it stays reachable. Raises DataError for an attribute the catalog does not have.
        """
        missing = [name for name in attributes if name not in self.attributes]
        if missing:
            known = ", ".join(self.attributes) or "none"
            raise DataError([f"the catalog has no attribute '{name}' (it has: {known})" for name in missing])
        lines = [one_line(title) or one_line(item_id) for title, item_id in zip(self.titles, self.ids, strict=True)]
        for name in attributes:
            values = (one_line(value) for value in self.attributes[name])
            lines = [f"{line} [{value}]" if value else line for line, value in zip(lines, values, strict=True)]
        return lines

    def take(self, positions: npt.NDArray[Any]) -> Catalog:
        """Select items by position, in the order given."""

        def pick(column: list[str]) -> list[str]:
            return [column[i] for i in positions]

        return Catalog(pick(self.ids), pick(self.titles), {n: pick(c) for n, c in self.attributes.items()})

    def save(self, path: Path) -> None:
        """Write the catalog as Parquet: item_id, title, then the attributes."""
        columns = {"item_id": self.ids, "title": self.titles, **self.attributes}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        with atomic_file(path) as partial:
            pq.write_table(table, partial)

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read a catalog that `save` wrote."""
        columns = pq.read_table(path).to_pydict()
        return cls(columns.pop("item_id"), columns.pop("title"), columns)


def one_line(text: str) -> str:
    """Decode HTML entities, read control characters as white space, fold every run of it to one space."""
    text = html.unescape(text)
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join(text.split())
