"""Fewer dimensions, or whiter ones: every reduction here is one affine map, fitted by scikit-learn.

Whoever uses a table fits its own reduction (`reduce` among its settings) and the table on disk stays whole: fitting
takes seconds where embedding takes hours, and a search over dimensions reads one table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import atomic_file
from seqrec_prompt.config import Config
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError

DoubleArray = npt.NDArray[np.float64]

# Directions whose variance is below this share of the largest are rounding, which whitening would blow up.
NEGLIGIBLE = 1e-10


class ReduceConfig(Config):
    """How vectors are reduced."""

    method: Literal["pca", "whiten_pca", "whiten_zca", "lda", "random_projection"] = Field(
        "pca",
        description="principal components; the same with unit variance; whitened but turned back to the old axes; "
        "what tells classes apart; Gaussian random projection",
    )
    dimensions: int | None = Field(None, ge=1, description="dimensions that are left; whiten_zca keeps all")
    attribute: str | None = Field(None, description="catalog attribute that holds the classes of lda")
    seed: int = Field(0, ge=0, lt=2**32, description="draws the random projection")

    @model_validator(mode="after")
    def _belongs_together(self) -> ReduceConfig:
        if (self.method == "whiten_zca") != (self.dimensions is None):
            wanted = "keeps all dimensions: leave out" if self.method == "whiten_zca" else "needs"
            raise ValueError(f"reduction '{self.method}' {wanted} 'dimensions'")
        if (self.method == "lda") != (self.attribute is not None):
            wanted = "needs" if self.method == "lda" else "knows no classes: leave out"
            raise ValueError(f"reduction '{self.method}' {wanted} 'attribute'")
        return self


@dataclass(frozen=True, eq=False)
class AffineMap:
    """A fitted reduction: x ↦ components · (x − mean). mean: (dim,), components: (reduced dim, dim), float64."""

    mean: DoubleArray
    components: DoubleArray

    def __call__(self, vectors: VectorArray) -> VectorArray:
        """Reduce (n, dim) to (n, reduced dim), computed in float64."""
        return ((vectors - self.mean) @ self.components.T).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write the map as safetensors."""
        with atomic_file(path) as partial:
            save_file({"mean": self.mean, "components": np.ascontiguousarray(self.components)}, partial)

    @classmethod
    def load(cls, path: Path) -> AffineMap:
        """Read what `save` wrote. Raises ArtifactError when it is missing or damaged."""
        try:
            tensors = load_file(path)
            return cls(tensors["mean"], tensors["components"])
        except (OSError, KeyError, SafetensorError) as error:
            raise ArtifactError(f"{path} is no fitted reduction ({error}). Fit it again.") from None


def fit_reduction(config: ReduceConfig, vectors: VectorArray, catalog: Catalog) -> AffineMap:
    """Fit a reduction on the vectors of a catalog, (items, dim).

    Raises ConfigError when there are not as many dimensions to keep, DataError when lda lacks classes.
    """
    data = vectors.astype(np.float64)
    dimensions = config.dimensions or data.shape[1]
    match config.method:
        case "random_projection":
            # Johnson and Lindenstrauss, 1984: entries N(0, 1/dimensions), so that lengths are kept on average.
            from sklearn.random_projection import GaussianRandomProjection

            _require(dimensions, data.shape[1], config.method)
            fitted = GaussianRandomProjection(dimensions, random_state=config.seed).fit(data)
            return AffineMap(np.zeros(data.shape[1]), fitted.components_)
        case "lda":
            return _discriminants(data, _classes(catalog, str(config.attribute)), dimensions)
        case _:
            return _principal(data, config.method, dimensions)


def _principal(data: DoubleArray, method: str, dimensions: int) -> AffineMap:
    from sklearn.decomposition import PCA

    fitted: Any = PCA(svd_solver="covariance_eigh").fit(data)
    axes, variance = fitted.components_, fitted.explained_variance_
    if method == "pca":
        _require(dimensions, len(axes), method)
        return AffineMap(fitted.mean_, axes[:dimensions])
    varies = int((variance > NEGLIGIBLE * variance[0]).sum())
    scale = 1 / np.sqrt(variance[:varies])
    if method == "whiten_zca":
        return AffineMap(fitted.mean_, (axes[:varies].T * scale) @ axes[:varies])
    _require(dimensions, varies, method)
    return AffineMap(fitted.mean_, (axes[:varies] * scale[:, None])[:dimensions])


def _discriminants(data: DoubleArray, classes: npt.NDArray[np.str_], dimensions: int) -> AffineMap:
    """Fisher's axes, scaled to unit variance within classes; items without a class are mapped, not learned from."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    known = classes != ""
    found = np.unique(classes[known])
    if len(found) < 2:
        raise DataError([f"lda needs items of two classes or more; the attribute holds {len(found)}"])
    fitted = LinearDiscriminantAnalysis(solver="svd").fit(data[known], classes[known])
    axes = fitted.scalings_[:, : len(found) - 1].T
    _require(dimensions, len(axes), "lda")
    return AffineMap(fitted.xbar_, axes[:dimensions])


def _classes(catalog: Catalog, attribute: str) -> npt.NDArray[np.str_]:
    if attribute not in catalog.attributes:
        known = ", ".join(catalog.attributes) or "none"
        raise DataError([f"the catalog has no attribute '{attribute}' (it has: {known})"])
    return np.array(catalog.attributes[attribute], dtype=np.str_)


def _require(dimensions: int, available: int, method: str) -> None:
    if dimensions > available:
        raise ConfigError(
            f"'reduce.dimensions' = {dimensions}: '{method}' finds {available} in these embeddings. Ask for at most "
            f"{available}."
        )
