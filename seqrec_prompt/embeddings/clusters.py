"""Clusters of items near in embedding space, each named by its most popular title (Harte et al., RecSys'23)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import atomic_file
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError
from seqrec_prompt.ragged import IntArray, LongArray

CLUSTERS = "clusters.safetensors"  # in the directory of an adapter that was taught them
SEED = 0  # of k-means: clusters are part of the task, the same for every run on it


@dataclass(frozen=True, eq=False)
class Clusters:
    """of: (items,) the cluster of each item. heads: (clusters,) the item whose title names each cluster."""

    of: IntArray
    heads: IntArray

    def __len__(self) -> int:
        return len(self.heads)

    @classmethod
    def fit(cls, table: EmbeddingTable, n: int, catalog: Catalog, popularity: LongArray) -> Clusters:
        """Cut the catalog into n clusters by k-means over its embeddings, brought to unit length.

        A cluster's name is its most popular title, ties in catalog order, but of titles that clusters share each names
        one, as far as others are left. Raises ConfigError when the embeddings have fewer than n different rows,
        DataError when they are not finite.
        """
        from sklearn.cluster import KMeans

        if not np.isfinite(table.vectors).all():
            row = int(np.flatnonzero(~np.isfinite(table.vectors).all(axis=1))[0])
            raise DataError([f"the embedding of item '{catalog.ids[row]}' is not finite"], "Run 'embed' again.")
        lengths = np.linalg.norm(table.vectors, axis=1, keepdims=True)
        vectors = table.vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        different = len(np.unique(vectors, axis=0))
        if n > different:
            raise ConfigError(
                f"'template.clusters' = {n}: the catalog has {different} different embeddings. Ask for at most as many."
            )
        of = KMeans(n, n_init=1, random_state=SEED).fit_predict(vectors).astype(np.int32)
        heads, texts, taken = np.empty(n, np.int32), catalog.texts(), set[str]()
        for cluster in range(n):
            members = np.flatnonzero(of == cluster)
            ranked = members[np.argsort(-popularity[members], kind="stable")].tolist()
            heads[cluster] = next((item for item in ranked if texts[item] not in taken), ranked[0])
            taken.add(texts[heads[cluster]])
        return cls(of, heads)

    def names(self, catalog: Catalog) -> list[str]:
        """(clusters,) their names."""
        texts = catalog.texts()
        return [texts[item] for item in self.heads]

    def save(self, file: Path) -> None:
        """Write both arrays as safetensors."""
        with atomic_file(file) as partial:
            save_file({"of": self.of, "heads": self.heads}, partial)

    @classmethod
    def load(cls, file: Path) -> Clusters:
        """Read what `save` wrote. Raises ArtifactError when it is missing or damaged."""
        try:
            arrays = load_file(file)
            return cls(arrays["of"], arrays["heads"])
        except (OSError, KeyError, SafetensorError) as error:
            raise ArtifactError(f"{file} is missing or damaged ({error}). Run 'finetune' again.") from None
