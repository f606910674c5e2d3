"""Each reduction against its definition in plain numpy."""

import numpy as np
import pytest
import scipy.linalg

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.reduce import AffineMap, ReduceConfig, fit_reduction
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


def test_a_fitted_map_comes_back_as_it_was(tmp_path):
    fitted = fit_reduction(ReduceConfig(method="whiten_pca", dimensions=4), ROWS, CATALOG)
    fitted.save(tmp_path / "map.safetensors")
    assert np.array_equal(AffineMap.load(tmp_path / "map.safetensors")(ROWS), fitted(ROWS))
    (tmp_path / "map.safetensors").write_bytes(b"{}")
    with pytest.raises(ArtifactError, match=r"map\.safetensors is no fitted reduction"):
        AffineMap.load(tmp_path / "map.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "pca"}, "'pca' needs 'dimensions'"),
        ({"method": "whiten_zca", "dimensions": 3}, "'whiten_zca' keeps all dimensions: leave out 'dimensions'"),
        ({"method": "lda", "dimensions": 3}, "'lda' needs 'attribute'"),
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
