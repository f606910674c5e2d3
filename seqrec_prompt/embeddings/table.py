"""One vector an item, on disk with what it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import MANIFEST, read_manifest, staged_directory, write_json
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
        manifest = read_manifest(directory, "embed")
        if manifest["inputs"].get("data") != catalog.hash:
            raise ArtifactError(
                f"{directory} holds the items of another catalog (that of {manifest['config'].get('data')}, hash "
                f"{str(manifest['inputs'].get('data'))[:12]}) than is asked for (hash {catalog.hash[:12]}, "
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
        return cls(vectors, manifest)
