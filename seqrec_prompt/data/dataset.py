"""A prepared data directory: what `prepare` writes and every later stage reads.

DATA/manifest.json, catalog.parquet, train.parquet, test.parquet and, where the split defines it, validation.parquet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seqrec_prompt.artifacts import MANIFEST, hash_json, read_manifest, write_json
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Split, load_holdout, load_sessions, save_sessions
from seqrec_prompt.data.successors import companions
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.ragged import TokenLists

CATALOG, TRAIN, VALIDATION, TEST = "catalog.parquet", "train.parquet", "validation.parquet", "test.parquet"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalog, its split, and the manifest of the stage that made them."""

    catalog: Catalog
    split: Split
    manifest: dict[str, Any]

    @property
    def hash(self) -> str:
        """Identity of the data: what `prepare` read and how it was configured."""
        return hash_json([self.manifest["facts"]["hash"], self.catalog.hash])

    @cached_property
    def popularity(self) -> npt.NDArray[np.int64]:
        """(items,) occurrences of each item in the train sessions."""
        return np.bincount(self.split.train.items, minlength=len(self.catalog)).astype(np.int64)

    def companions(self, most: int) -> TokenLists | None:
        """Of each item, the `most` items that most often stood next to it in train; None for 0 of them."""
        return companions(self.split.train, len(self.catalog), most) if most else None

    def save(self, directory: Path) -> None:
        """Write all files into an existing directory."""
        self.catalog.save(directory / CATALOG)
        save_sessions(directory / TRAIN, self.split.train)
        save_sessions(directory / TEST, self.split.test)
        if self.split.validation is not None:
            save_sessions(directory / VALIDATION, self.split.validation)
        write_json(directory / MANIFEST, self.manifest)

    @classmethod
    def load(cls, directory: Path) -> Dataset:
        """Read a directory that `prepare` or `distill` made.

        Raises ArtifactError when it is not one or a file is missing.
        """
        manifest = read_manifest(directory, "prepare", "distill")
        try:
            validation = directory / VALIDATION
            split = Split(
                load_sessions(directory / TRAIN),
                load_holdout(directory / TEST),
                load_holdout(validation) if validation.exists() else None,
            )
            return cls(Catalog.load(directory / CATALOG), split, manifest)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ArtifactError(f"{directory} is incomplete ({error}). Run 'seqrec-prompt prepare' again.") from None


def summary(made: dict[str, Any]) -> str:
    """Describe a prepared directory, from its manifest, in a few lines."""
    facts, settings = made["facts"], made["config"]
    validation = f"{facts['validation_sessions']:,} validation, " if facts["validation_sessions"] else ""
    lines = [
        f"{facts['sessions']:,} sessions, {facts['items']:,} items, {facts['interactions']:,} interactions",
        f"split {settings['split']}: {facts['train_sessions']:,} train, {validation}{facts['test_sessions']:,} test",
    ]
    if facts["left_out"]:
        lines.append("left out of the split: " + _listed(facts["left_out"]))
    if facts["dropped"]:
        lines.append("dropped: " + _listed(facts["dropped"]))
    if facts["filtered_sessions"] or facts["filtered_items"]:
        lines.append(
            f"filtered (k_core {settings['k_core']}, min_session {settings['min_session']}): "
            f"{facts['filtered_sessions']:,} sessions, {facts['filtered_items']:,} items"
        )
    if facts["items_sharing_a_title"] or facts["empty_titles"]:
        lines.append(
            f"titles: {facts['items_sharing_a_title']:,} items share theirs with another, {facts['empty_titles']:,} "
            "have none (written as their id)"
        )
    if facts["tied_test_share"]:
        order = "shuffled (--ties file where the file keeps the order of events)"
        if settings["ties"] == "file":
            order = "kept in file order (--ties shuffle where that order means nothing)"
        lines.append(
            f"ties: {facts['tied_test_share']:.1%} of test sessions end in two items of the same time, {order}"
        )
    return "\n".join(f"  {line}" for line in [*lines, *facts["notes"]])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind or '(empty)'}" for kind, count in counts.items())
