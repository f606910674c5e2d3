"""Each reduction against its definition in plain numpy."""

import math

import numpy as np
import pytest
import scipy.linalg
from safetensors.numpy import save_file

from seqrec_prompt.artifacts import manifest, write_json
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.reduce import ReduceConfig, fit_reduction
from seqrec_prompt.errors import ArtifactError, ConfigError, DataError

N, DIM = 400, 12
DRAW = np.random.default_rng(0)
KIND = DRAW.integers(4, size=N)
# Correlated, far from the origin, of different scales, with four classes that differ.
ROWS = ((DRAW.normal(size=(N, DIM)) + DRAW.normal(size=(4, DIM))[KIND]) @ DRAW.normal(size=(DIM, DIM)) + 5).astype(
    np.float32
)
CATALOG = Catalog([str(i) for i in range(N)], [""] * N, {"kind": [f"k{kind}" for kind in KIND]})
CENTRED = ROWS.astype(np.float64) - ROWS.mean(axis=0, dtype=np.float64)


def reduced(method, rows=ROWS, catalog=CATALOG, **settings):
    return fit_reduction(ReduceConfig(method=method, **settings), rows, catalog)(rows)


@pytest.mark.parametrize("dimensions", [1, 5, DIM])
def test_pca_is_the_svd_of_the_centred_rows(dimensions):
    _, _, axes = np.linalg.svd(CENTRED, full_matrices=False)
    wanted = CENTRED @ axes[:dimensions].T
    found = reduced("pca", dimensions=dimensions)
    sign = np.sign((wanted * found).sum(axis=0))
    assert found == pytest.approx(wanted * sign, abs=1e-4)


@pytest.mark.parametrize(("method", "dimensions"), [("whiten_pca", 5), ("whiten_pca", DIM), ("whiten_zca", None)])
def test_whitened_covariance_is_the_identity(method, dimensions):
    found = reduced(method, dimensions=dimensions).astype(np.float64)
    assert np.cov(found.T) == pytest.approx(np.eye(dimensions or DIM), abs=1e-5)
    assert found.mean(axis=0) == pytest.approx(0, abs=1e-5)


def test_zca_is_the_inverse_square_root_of_the_covariance():
    root = scipy.linalg.inv(scipy.linalg.sqrtm(np.cov(CENTRED.T)))
    assert reduced("whiten_zca") == pytest.approx(CENTRED @ root, abs=1e-4)


def test_whitening_leaves_out_directions_that_do_not_vary():
    flat = np.concatenate([ROWS, ROWS[:, :3] * 2], axis=1)
    covariance = np.cov(reduced("whiten_zca", flat).astype(np.float64).T)
    assert np.sort(np.linalg.eigvalsh(covariance)) == pytest.approx([0] * 3 + [1] * DIM, abs=1e-4)
    with pytest.raises(ConfigError, match=f"'reduce.dimensions' = 13: 'whiten_pca' finds {DIM}"):
        reduced("whiten_pca", flat, dimensions=13)


def test_lda_solves_the_generalised_eigenproblem_of_fisher():
    """Oracle: axes a with S_between a = λ S_within a, the pooled within-class covariance of unit size along each."""
    means = np.stack([CENTRED[kind == KIND].mean(axis=0) for kind in range(4)])
    inner = CENTRED - means[KIND]
    within = inner.T @ inner / (N - 4)
    between = means.T @ (np.bincount(KIND)[:, None] * means)
    _, axes = scipy.linalg.eigh(between, within)
    wanted = CENTRED @ axes[:, ::-1][:, :3]
    found = reduced("lda", dimensions=3, attribute="kind")
    sign = np.sign((wanted * found).sum(axis=0))
    scale = np.linalg.norm(found) / np.linalg.norm(wanted)
    assert scale == pytest.approx(1, abs=0.01)  # within is divided by N in some versions of scikit-learn
    assert found == pytest.approx(wanted * sign * scale, abs=1e-4)


def test_items_without_a_class_are_mapped_but_not_learned_from():
    labels = [f"k{kind}" if i < 300 else "" for i, kind in enumerate(KIND)]
    some = Catalog(CATALOG.ids, CATALOG.titles, {"kind": labels})
    first = Catalog(CATALOG.ids[:300], CATALOG.titles[:300], {"kind": labels[:300]})
    config = ReduceConfig(method="lda", dimensions=2, attribute="kind")
    assert reduced("lda", catalog=some, dimensions=2, attribute="kind") == pytest.approx(
        fit_reduction(config, ROWS[:300], first)(ROWS), abs=1e-5
    )


def test_a_random_projection_is_gaussian_linear_and_drawn_by_its_seed():
    config = ReduceConfig(method="random_projection", dimensions=200)
    wide = DRAW.normal(size=(30, 500)).astype(np.float32)
    fitted = fit_reduction(config, wide, CATALOG)
    assert fitted(wide) == pytest.approx(wide.astype(np.float64) @ fitted.components.T, abs=1e-4)
    entries = fitted.components.ravel() * np.sqrt(200)
    assert fitted.components.shape == (200, 500)
    assert (entries.mean(), entries.std()) == pytest.approx((0, 1), abs=0.02)
    assert (np.abs(entries) < 1).mean() == pytest.approx(0.683, abs=0.01)
    again = fit_reduction(config, wide, CATALOG)
    other = fit_reduction(config.model_copy(update={"seed": 1}), wide, CATALOG)
    assert np.array_equal(again.components, fitted.components)
    assert not np.allclose(other.components, fitted.components)


def test_an_autoencoder_finds_what_varies_most():
    """Three directions of standard deviation 3 under noise of 1: the best that any code can tell of them is 90%."""
    latent = DRAW.normal(size=(2000, 3)) * 3
    turned = np.linalg.qr(DRAW.normal(size=(DIM, DIM)))[0]
    rows = (latent @ turned[:3] + DRAW.normal(size=(2000, DIM)) + 7).astype(np.float32)

    def told(method):
        code = fit_reduction(ReduceConfig(method=method, dimensions=3), rows, CATALOG)(rows).astype(np.float64)
        design = np.column_stack([code, np.ones(2000)])
        left = latent - design @ np.linalg.lstsq(design, latent, rcond=None)[0]
        return 1 - (left**2).sum() / ((latent - latent.mean(axis=0)) ** 2).sum()

    assert told("pca") == pytest.approx(0.9, abs=0.01)
    assert told("autoencoder") > 0.8
    assert told("random_projection") < 0.75


def test_an_encoder_is_two_layers_with_a_tanh_between_and_drawn_by_its_seed():
    config = ReduceConfig(method="autoencoder", dimensions=3)
    fitted = fit_reduction(config, ROWS, CATALOG)
    (first, second), (bias, other_bias) = fitted.weights, fitted.biases
    rows = [
        [math.tanh(math.fsum(x * w for x, w in zip(row, column, strict=True)) + b)
         for column, b in zip(first.T, bias, strict=True)]
        for row in CENTRED[:20] / CENTRED.std()
    ]  # fmt: skip
    rows = np.array(rows) @ second + other_bias
    assert fitted(ROWS)[:20] == pytest.approx(rows, abs=1e-5)
    again, other = (fit_reduction(config.model_copy(update={"seed": seed}), ROWS, CATALOG) for seed in (0, 1))
    assert np.array_equal(again(ROWS), fitted(ROWS))
    assert not np.allclose(other(ROWS), fitted(ROWS), atol=0.01)


def keep(directory, tensors):
    directory.mkdir()
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, directory / "arrays.safetensors")
    write_json(directory / "manifest.json", manifest("fit", {}, {}))
    return directory


@pytest.mark.parametrize("method", ["whiten_pca", "autoencoder"])
def test_a_fitted_reduction_is_applied_to_the_vectors_of_another_catalog(tmp_path, method):
    fitted = fit_reduction(ReduceConfig(method=method, dimensions=4), ROWS, CATALOG)
    source = keep(tmp_path / "made", fitted.tensors() | {"vectors": ROWS})
    others = DRAW.normal(size=(7, DIM)).astype(np.float32)
    found = fit_reduction(ReduceConfig(method="fitted", source=source), others, Catalog(list("abcdefg"), [""] * 7))
    assert np.array_equal(found(others), fitted(others))
    with pytest.raises(DataError, match=f"takes {DIM} dimensions, not 5"):
        fit_reduction(ReduceConfig(method="fitted", source=source), others[:, :5], CATALOG)


def test_a_source_without_a_reduction_is_named(tmp_path):
    def read(where):
        return fit_reduction(ReduceConfig(method="fitted", source=where), ROWS, CATALOG)

    with pytest.raises(ArtifactError, match="expected a directory made by 'fit'"):
        read(tmp_path / "nowhere")
    plain = keep(tmp_path / "plain", {"vectors": ROWS})
    with pytest.raises(ArtifactError, match="plain was fitted without a reduction"):
        read(plain)
    (plain / "arrays.safetensors").write_bytes(b"torn")
    with pytest.raises(ArtifactError, match=r"arrays\.safetensors is missing or damaged"):
        read(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "pca"}, "'pca' needs 'dimensions'"),
        ({"method": "whiten_zca", "dimensions": 3}, "'whiten_zca' keeps all dimensions: leave out 'dimensions'"),
        ({"method": "lda", "dimensions": 3}, "'lda' needs 'attribute'"),
        ({"method": "fitted"}, "'fitted' needs 'source'"),
        ({"method": "fitted", "source": "d", "dimensions": 3}, "'fitted' has its dimensions: leave out 'dimensions'"),
        ({"method": "pca", "dimensions": 3, "source": "d"}, "'pca' is fitted anew: leave out 'source'"),
        ({"method": "pca", "dimensions": 3, "attribute": "kind"}, "'pca' knows no classes: leave out 'attribute'"),
    ],
)
def test_settings_that_do_not_belong_together(settings, message):
    with pytest.raises(ValueError, match=message):
        ReduceConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "pca", "dimensions": 13}, ConfigError, "'reduce.dimensions' = 13: 'pca' finds 12"),
        ({"method": "random_projection", "dimensions": 13}, ConfigError, "finds 12"),
        ({"method": "autoencoder", "dimensions": 13}, ConfigError, "finds 12"),
        ({"method": "lda", "dimensions": 4, "attribute": "kind"}, ConfigError, "'lda' finds 3"),
        ({"method": "lda", "dimensions": 1, "attribute": "brand"}, DataError, r"no attribute 'brand' \(it has: kind\)"),
    ],
)
def test_what_the_embeddings_or_the_catalog_do_not_have(settings, error, message):
    with pytest.raises(error, match=message):
        fit_reduction(ReduceConfig(**settings), ROWS, CATALOG)


def test_lda_of_one_class_is_refused():
    one = Catalog(CATALOG.ids, CATALOG.titles, {"kind": ["same"] * N})
    with pytest.raises(DataError, match="two classes or more; the attribute holds 1"):
        reduced("lda", catalog=one, dimensions=1, attribute="kind")
