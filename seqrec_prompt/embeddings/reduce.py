"""Fewer dimensions, or whiter ones, fitted by scikit-learn: one affine map, or the first half of an autoencoder.

Whoever uses a table fits its own reduction (`reduce` among its settings) and the table on disk stays whole: fitting
takes seconds where embedding takes hours, and a search over dimensions reads one table. What was fitted is kept with
the recommender, and the method 'fitted' applies it to the vectors of another catalog.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file

from seqrec_prompt.artifacts import read_manifest
from seqrec_prompt.config import Config
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError

DoubleArray = npt.NDArray[np.float64]

# Directions whose variance is below this share of the largest are rounding, which whitening would blow up.
NEGLIGIBLE = 1e-10
EPOCHS = 50  # of the autoencoder
ARRAYS = "arrays.safetensors"  # of a directory made by 'fit'


class ReduceConfig(Config):
    """How vectors are reduced."""

    method: Literal["pca", "whiten_pca", "whiten_zca", "lda", "random_projection", "autoencoder", "fitted"] = Field(
        "pca",
        description="principal components; the same with unit variance; whitened but turned back to the old axes; "
        "what tells classes apart; Gaussian random projection; the code of an autoencoder; the one that 'source' has",
    )
    dimensions: int | None = Field(
        None, ge=1, description="dimensions that are left; whiten_zca keeps all, fitted those of 'source'"
    )
    attribute: str | None = Field(None, description="catalog attribute that holds the classes of lda")
    source: Path | None = Field(
        None, description="fitted only: directory made by 'fit' with a reduction, of vectors of the same model"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="draws the random projection and the autoencoder's weights")

    @model_validator(mode="after")
    def _belongs_together(self) -> ReduceConfig:
        if (self.method in ("whiten_zca", "fitted")) != (self.dimensions is None):
            wanted = "keeps all dimensions" if self.method == "whiten_zca" else "has its dimensions"
            wanted = "needs" if self.dimensions is None else f"{wanted}: leave out"
            raise ValueError(f"reduction '{self.method}' {wanted} 'dimensions'")
        if (self.method == "fitted") != (self.source is not None):
            wanted = "needs" if self.method == "fitted" else "is fitted anew: leave out"
            raise ValueError(f"reduction '{self.method}' {wanted} 'source'")
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

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """What has to be kept of it."""
        return {"reduction.mean": self.mean, "reduction.components": self.components}


@dataclass(frozen=True, eq=False)
class Encoder:
    """The first half of an autoencoder: x ↦ second · tanh(first · (x − mean)/scale + bias) + bias.

    The code is taken before its own tanh, which would flatten what lies far out.

    mean: (dim,), scale: (1,), weights: (dim, hidden) and (hidden, reduced dim), biases: (hidden,) and (reduced dim,).
    """

    mean: DoubleArray
    scale: DoubleArray
    weights: tuple[DoubleArray, DoubleArray]
    biases: tuple[DoubleArray, DoubleArray]

    def __call__(self, vectors: VectorArray) -> VectorArray:
        """Reduce (n, dim) to (n, reduced dim), computed in float64."""
        hidden = np.tanh((vectors - self.mean) / self.scale @ self.weights[0] + self.biases[0])
        return (hidden @ self.weights[1] + self.biases[1]).astype(np.float32)

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """What has to be kept of it."""
        layers = {f"reduction.weight_{i}": weight for i, weight in enumerate(self.weights)}
        layers |= {f"reduction.bias_{i}": bias for i, bias in enumerate(self.biases)}
        return {"reduction.mean": self.mean, "reduction.scale": self.scale} | layers


Reduction = AffineMap | Encoder


def from_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> Reduction | None:
    """Build a reduction from arrays that hold what `tensors` gave, beside others; None when they hold none."""
    own = {name.removeprefix("reduction."): array for name, array in tensors.items() if name.startswith("reduction.")}
    if not own:
        return None
    if "components" in own:
        return AffineMap(own["mean"], own["components"])
    weights, biases = ((own[f"{name}_0"], own[f"{name}_1"]) for name in ("weight", "bias"))
    return Encoder(own["mean"], own["scale"], weights, biases)


def load_reduction(directory: Path) -> Reduction:
    """Read the reduction of a directory made by 'fit'. Raises ArtifactError when it has none or is damaged."""
    read_manifest(directory, "fit")
    try:
        found = from_tensors(load_file(directory / ARRAYS))
    except (OSError, KeyError, SafetensorError) as error:
        raise ArtifactError(f"{directory / ARRAYS} is missing or damaged ({error}). Run 'fit' again.") from None
    if found is None:
        raise ArtifactError(f"{directory} was fitted without a reduction. Give one that was fitted with 'reduce'.")
    return found


def fit_reduction(config: ReduceConfig, vectors: VectorArray, catalog: Catalog) -> Reduction:
    """Fit a reduction on the vectors of a catalog, (items, dim), or read the one that was fitted on others.

    Raises ConfigError when there are not as many dimensions to keep, DataError when lda lacks classes or the vectors
    are of other dimensions than those that the reduction was fitted on.
    """
    if config.source is not None:
        found = load_reduction(config.source)
        if len(found.mean) != vectors.shape[1]:
            raise DataError(
                [f"the reduction of {config.source} takes {len(found.mean)} dimensions, not {vectors.shape[1]}"],
                "Give one that was fitted on embeddings of the same model.",
            )
        return found
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
        case "autoencoder":
            _require(dimensions, data.shape[1], config.method)
            return _autoencoder(data, dimensions, config.seed)
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


def _autoencoder(data: DoubleArray, dimensions: int, seed: int) -> Encoder:
    """Learn to give back what came in, through fewer dimensions (Hinton & Salakhutdinov, Science 2006)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    mean, hidden = data.mean(axis=0), (data.shape[1] + dimensions) // 2
    scale = np.array([(data - mean).std() or 1.0])
    rows = (data - mean) / scale
    layers = (hidden, dimensions, hidden)
    network: Any = MLPRegressor(hidden_layer_sizes=layers, activation="tanh", max_iter=EPOCHS, tol=0, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is set, not found
        network.fit(rows, rows)
    first, second = network.coefs_[:2]
    return Encoder(mean, scale, (first, second), tuple(network.intercepts_[:2]))


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
