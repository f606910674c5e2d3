"""One vector an item, on disk with what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import (
    MANIFEST,
    hash_file,
    hash_json,
    manifest,
    read_manifest,
    staged_directory,
    write_json,
)
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.errors import ArtifactError

VectorArray = npt.NDArray[np.float32]

VECTORS = "embeddings.safetensors"


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """The vectors of a catalog's items and the manifest of the stage that made them.

    vectors: (items, dim) float32, row i is the catalog's item i. The manifest holds the settings of the text, the
    hashes of model and adapter and, as `inputs.data`, of the catalog.
    """

    vectors: VectorArray
    manifest: dict[str, Any]

    def __len__(self) -> int:
        return len(self.vectors)

    def save(self, directory: Path) -> None:
        """Write DIRECTORY/embeddings.safetensors and manifest.json; they appear together or not at all."""
        with staged_directory(directory) as staged:
            save_file({"vectors": np.ascontiguousarray(self.vectors, np.float32)}, staged / VECTORS)
            write_json(staged / MANIFEST, self.manifest)

    @classmethod
    def load(cls, directory: Path, catalog: Catalog) -> EmbeddingTable:
        """Read a directory that `embed` made of this very catalog.

        Raises ArtifactError when it is no such directory, is damaged, or holds the items of another catalog.
        """
        made = read_manifest(directory, "embed")
        if made["inputs"].get("data") != catalog.hash:
            raise ArtifactError(
                f"{directory} holds the items of another catalog (that of {made['config'].get('data')}, hash "
                f"{str(made['inputs'].get('data'))[:12]}) than is asked for (hash {catalog.hash[:12]}, "
                f"{len(catalog):,} items). Give --data it was made of, or run 'seqrec-prompt embed' for this one."
            )
        try:
            vectors = load_file(directory / VECTORS)["vectors"]
        except (OSError, KeyError, SafetensorError) as error:
            raise ArtifactError(
                f"{directory / VECTORS} is missing or damaged ({error}). Run 'seqrec-prompt embed --overwrite' again."
            ) from None
        if vectors.ndim != 2 or len(vectors) != len(catalog):
            raise ArtifactError(
                f"{directory / VECTORS} has the shape {vectors.shape}, but the catalog has {len(catalog):,} items. "
                "Run 'seqrec-prompt embed --overwrite' again."
            )
        return cls(vectors, made)

    @classmethod
    def joined(cls, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """Several tables of one catalog side by side: (items, dim of all together).

        Each is centred and divided by the root mean square length of its rows first, so that each has the same say in
        a distance or a principal component, however long its vectors are and whatever they have in common.
        """
        side = np.concatenate([_standardised(table.vectors) for table in tables], axis=1, dtype=np.float32)
        manifests = [table.manifest for table in tables]
        return cls(side, manifest("embed", {"joined": manifests}, {"data": manifests[0]["inputs"]["data"]}))


def load_tables(directories: Sequence[Path], catalog: Catalog) -> tuple[EmbeddingTable, str]:
    """Read a table, or several as one (`EmbeddingTable.joined`), and the hash of what was read.

    Raises ArtifactError as `EmbeddingTable.load` does.
    """
    tables = [EmbeddingTable.load(directory, catalog) for directory in directories]
    hashes = [hash_file(directory / VECTORS) for directory in directories]
    if len(tables) == 1:
        return tables[0], hashes[0]
    return EmbeddingTable.joined(tables), hash_json(hashes)


def _standardised(vectors: VectorArray) -> npt.NDArray[np.float64]:
    centred: npt.NDArray[np.float64] = vectors - vectors.mean(axis=0, dtype=np.float64)
    return centred / float(np.sqrt((centred**2).sum(axis=1).mean()) or 1)
