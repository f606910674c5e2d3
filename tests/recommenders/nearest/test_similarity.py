"""LLMSeqSim against a brute-force loop in float64, and each weighting worked by hand."""

import importlib.util
import math
import sys
import threading
from typing import get_args

import numpy as np
import pytest
import threadpoolctl
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.embeddings.reduce import ReduceConfig, fit_reduction
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.errors import MissingExtraError
from seqrec_prompt.recommenders.nearest import rows as nearest
from seqrec_prompt.recommenders.nearest import similarity
from seqrec_prompt.recommenders.nearest.similarity import LLMSeqSim, SimilarityConfig

N, DIM = 70, 8
DRAW = np.random.default_rng(1)
ROWS = (DRAW.normal(size=(N, DIM)) * DRAW.uniform(0.5, 2, (N, 1)) + 0.5).astype(np.float32)
CATALOG = Catalog([str(i) for i in range(N)], [f"title {i}" for i in range(N)])
LISTS = [DRAW.integers(N, size=size).tolist() for size in [*DRAW.integers(1, 15, 40), 30]]
SESSIONS = Sessions.build([f"s{i}" for i in range(len(LISTS))], LISTS)

# From the last item back, of a session of four and, for the floor, of twelve.
WORKED = {
    "none": ([1, 1, 1, 1], 1),
    "constant_linear": ([1, 0.9, 0.8, 0.7], 1e-5),
    "scaling_linear": ([1, 0.75, 0.5, 0.25], 1 / 12),
    "scaling_quadratic": ([1, 0.5625, 0.25, 0.0625], 1 / 144),
    "scaling_cubic": ([1, 0.421875, 0.125, 0.015625], 1 / 1728),
    "log": ([1, 0.590616, 0.476505, 0.419060], 0.286952),
    "harmonic": ([1, 1 / 2, 1 / 3, 1 / 4], 1 / 12),
    "harmonic_squared": ([1, 1 / 4, 1 / 9, 1 / 16], 1 / 144),
    "last": ([1, 0, 0, 0], 0),
}


def build(rows=ROWS, catalog=CATALOG, **params):
    return LLMSeqSim.fit(EmbeddingTable(rows, manifest("embed", {}, {})), catalog, SimilarityConfig(**params))


@pytest.mark.parametrize("weighting", WORKED)
def test_weightings_worked_by_hand(weighting):
    """A session's weights, newest first, as shares: one of four items and one of twelve, for the floor."""
    four, twelfth = WORKED[weighting]
    model = build(weighting=weighting)
    sessions = Sessions.build(["a", "b"], [[0, 1, 2, 3], [0] * 12])
    weights = model._weights(sessions)
    assert weights[:4][::-1] == pytest.approx(np.array(four) / np.sum(four), rel=1e-5)
    assert weights[4] / weights[-1] == pytest.approx(twelfth, rel=1e-5)


def test_no_weighting_is_without_a_worked_case():
    assert set(WORKED) == set(get_args(similarity.Weighting))


def loop(rows, items, weighting, kind):
    """(items,) similarities of one session, one number at a time."""
    n = len(items)
    query, total = [0.0] * len(rows[0]), 0.0
    for position, item in enumerate(items):
        i = n - position
        falling = max(1e-5, 1 - (i - 1) / n)
        weight = {
            "none": 1.0,
            "constant_linear": max(1e-5, 1 - 0.1 * (i - 1)),
            "scaling_linear": falling,
            "scaling_quadratic": falling**2,
            "scaling_cubic": falling**3,
            "log": 1 / (math.log(i) + 1),
            "harmonic": 1 / i,
            "harmonic_squared": 1 / i**2,
            "last": float(i == 1),
        }[weighting]
        total += weight
        query = [q + weight * x for q, x in zip(query, rows[item], strict=True)]
    query = [q / total for q in query]
    found = []
    for row in rows:
        dot = math.fsum(q * x for q, x in zip(query, row, strict=True))
        if kind == "cosine":
            dot /= math.sqrt(math.fsum(q * q for q in query)) * math.sqrt(math.fsum(x * x for x in row))
        elif kind == "euclidean":
            dot = 1 / (1 + math.dist(query, row))
        found.append(dot)
    return found


@pytest.mark.parametrize("weighting", WORKED)
@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean"])
def test_lists_are_those_of_a_brute_force_loop(weighting, kind):
    found = build(weighting=weighting, similarity=kind).recommend(SESSIONS, 10, exclude_seen=True)
    rows = ROWS.astype(np.float64).tolist()
    for session, items in enumerate(LISTS):
        scores = loop(rows, items, weighting, kind)
        best = sorted((j for j in range(N) if j not in items), key=lambda j: (-scores[j], j))[:10]
        assert found[session].tolist() == best
        part = found.scores[found.offsets[session] : found.offsets[session + 1]]
        assert part == pytest.approx([scores[j] for j in best], rel=1e-5, abs=1e-5)
    assert found.provenance == "embedding"
    assert found.certified.all()


def test_the_last_item_is_its_own_nearest_unless_seen_items_are_left_out():
    recommender = build(weighting="last", similarity="euclidean")
    with_seen = recommender.recommend(SESSIONS, 1, exclude_seen=False)
    assert with_seen.items.tolist() == [items[-1] for items in LISTS]
    assert with_seen.scores == pytest.approx(np.ones(len(LISTS)), abs=1e-6)


def test_normalised_items_have_unit_length_after_the_reduction():
    config = ReduceConfig(method="pca", dimensions=4)
    recommender = build(normalise=True, reduce=config, similarity="dot", weighting="last")
    reduced = fit_reduction(config, ROWS, CATALOG)(ROWS).astype(np.float64)
    unit = reduced / np.sqrt((reduced**2).sum(axis=1, keepdims=True))
    found = recommender.recommend(SESSIONS, N, exclude_seen=False)
    for session, items in enumerate(LISTS):
        scores = unit @ unit[items[-1]]
        part = found.scores[found.offsets[session] : found.offsets[session + 1]]
        assert part == pytest.approx(np.sort(scores)[::-1], abs=1e-5)
        assert scores[found[session]] == pytest.approx(part, abs=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("k", [1, 3, 9, 40])
def test_ties_are_in_catalog_order(kind, k):
    """Each vector stands at several items, in no order; a list must hold the first of them, in order."""
    owner = DRAW.permutation(np.repeat(np.arange(10), 7))
    rows = ROWS[owner]
    found = build(rows, similarity=kind).recommend(SESSIONS, k, exclude_seen=True)
    for session, items in enumerate(LISTS):
        scores = loop(rows.astype(np.float64).tolist(), items, "harmonic", kind)
        best = sorted((j for j in range(N) if j not in items), key=lambda j: (-scores[j], j))[:k]
        assert found[session].tolist() == best


def test_it_is_rebuilt_from_its_arrays():
    made = build(reduce=ReduceConfig(method="whiten_pca", dimensions=3), weighting="log")
    again = LLMSeqSim.from_arrays(made.arrays(), N, made.config)
    wanted, found = (one.recommend(SESSIONS, 7, exclude_seen=True) for one in (made, again))
    assert np.array_equal(wanted.items, found.items)
    assert np.array_equal(wanted.scores, found.scores)


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize(("block", "rows"), [(3 * N, N), (100, 7), (1, 1), (1 << 24, 32)])
def test_blocks_of_sessions_and_of_items_change_nothing(monkeypatch, kind, block, rows):
    whole = build(similarity=kind).recommend(SESSIONS, 9, exclude_seen=True)
    monkeypatch.setattr(nearest, "BLOCK", block)
    monkeypatch.setattr(nearest, "ROWS", rows)
    cut = build(similarity=kind).recommend(SESSIONS, 9, exclude_seen=True)
    assert np.array_equal(whole.items, cut.items)
    assert whole.scores == pytest.approx(cut.scores, rel=1e-6, abs=1e-6)
    assert cut.session_ids.tolist() == SESSIONS.ids.tolist()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean"])
def test_a_block_a_thread_changes_nothing(monkeypatch, kind):
    """Also not how many threads torch and BLAS use afterwards, whether it ends well or not."""
    monkeypatch.setattr(nearest, "FEW", 1)
    monkeypatch.setattr(nearest, "BLOCK", 4 * N)
    before, product, names = threadpoolctl.threadpool_info(), nearest.product, set()

    def noted(*both):
        assert torch.get_num_threads() == 1
        names.add(threading.current_thread().name)
        return product(*both)

    monkeypatch.setattr(nearest, "product", noted)
    found = build(similarity=kind).recommend(SESSIONS, 9, exclude_seen=True)
    rows = ROWS.astype(np.float64).tolist()
    for session, items in enumerate(LISTS):
        scores = loop(rows, items, "harmonic", kind)
        best = sorted((j for j in range(N) if j not in items), key=lambda j: (-scores[j], j))[:9]
        assert found[session].tolist() == best
    assert threading.main_thread().name not in names
    monkeypatch.setattr(nearest, "product", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(similarity=kind).recommend(SESSIONS, 9, exclude_seen=True)
    assert torch.get_num_threads() == 2
    assert threadpoolctl.threadpool_info() == before


def test_no_more_than_a_block_of_similarities_stands_at_once(monkeypatch):
    made = []
    monkeypatch.setattr(nearest, "BLOCK", 60)
    monkeypatch.setattr(nearest, "ROWS", 20)
    product = nearest.product
    monkeypatch.setattr(nearest, "product", lambda *both: made.append(product(*both)) or made[-1])
    build().recommend(SESSIONS, 9, exclude_seen=True)
    assert {part.shape for part in made} == {(3, 20), (3, 10), (2, 20), (2, 10)}


@given(
    values=st.lists(st.lists(st.integers(0, 3), min_size=13, max_size=13), min_size=1, max_size=6),
    k=st.integers(1, 15),
    rows=st.integers(1, 14),
    left_out=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12))),
)
def test_ties_go_to_the_lower_row_whatever_the_blocks(values, k, rows, left_out):
    """Every similarity is a small whole number, so nearly all are tied; the oracle sorts them."""
    scores = np.array(values, np.float32)
    pairs = np.array(sorted({pair for pair in left_out if pair[0] < len(scores)}), np.int64).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "ROWS", rows)
        found, best = nearest.Nearest(scores.T.copy(), "dot")(
            np.eye(len(scores), dtype=np.float32), k, (pairs[:, 0], pairs[:, 1])
        )
    for query, own in enumerate(scores):
        gone = pairs[pairs[:, 0] == query, 1].tolist()
        wanted = sorted(set(range(13)) - set(gone), key=lambda row: (-own[row], row))[:k]
        assert found[query][: len(wanted)].tolist() == wanted
        assert best[query][: len(wanted)].tolist() == own[wanted].tolist()
        assert (found[query][len(wanted) :] == -1).all()


needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


@needs_faiss
@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_ivf_that_looks_through_all_cells_finds_what_exact_search_finds(kind, exclude_seen):
    exact = build(similarity=kind).recommend(SESSIONS, 9, exclude_seen=exclude_seen)
    made = build(similarity=kind, search="ivf", probes=N)
    for model in (made, LLMSeqSim.from_arrays(made.arrays(), N, made.config)):
        found = model.recommend(SESSIONS, 9, exclude_seen=exclude_seen)
        assert np.array_equal(found.offsets, exact.offsets)
        assert np.array_equal(found.items, exact.items)
        assert found.scores == pytest.approx(exact.scores, rel=1e-4, abs=1e-4)
        assert not found.certified.any()
        assert np.isnan(found.gap).all()


@needs_faiss
def test_ivf_with_few_cells_gives_fewer_but_right_items():
    exact = build().recommend(SESSIONS, N, exclude_seen=True)
    found = build(search="ivf", probes=1).recommend(SESSIONS, N, exclude_seen=True)
    assert (np.diff(found.offsets) < np.diff(exact.offsets)).all()
    for session in range(len(SESSIONS)):
        of = dict(zip(exact[session].tolist(), exact.scores[exact.offsets[session] :], strict=False))
        own = found.scores[found.offsets[session] : found.offsets[session + 1]]
        assert own == pytest.approx([of[item] for item in found[session].tolist()], abs=1e-5)
    assert len(build(search="ivf").recommend(Sessions.build(["none"], [[]]), 3, exclude_seen=True).items) == 0


def test_ivf_without_faiss_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r'pip install "seqrec_prompt\[faiss\]"'):
        build(search="ivf")
    with pytest.raises(ValueError, match="'probes' is used only by 'search' = 'ivf'"):
        SimilarityConfig(probes=3)


def test_rows_that_are_equal_as_numbers_are_one():
    rows = ROWS[[0, 1, 0, 2, 1]]
    rows[2, 3], rows[0, 3] = -0.0, 0.0
    distinct, place = similarity._distinct(rows)
    assert np.array_equal(distinct, rows[[0, 1, 3]])
    assert place.tolist() == [0, 1, 0, 2, 1]


def test_an_item_of_a_seen_text_is_recommended_unless_it_was_seen_itself():
    rows = ROWS[[0, 1, 0, 2, 0]]
    sessions = Sessions.build(["one", "all"], [[2], [0, 2, 4]])
    found = build(rows).recommend(sessions, 3, exclude_seen=True)
    assert found[0][:2].tolist() == [0, 4]
    assert sorted(found[1].tolist()) == [1, 3]


def test_a_list_is_short_only_where_no_item_is_left():
    sessions = Sessions.build(["all but two", "some", "none"], [list(range(2, N)), [3, 3, 4], []])
    found = build().recommend(sessions, N + 5, exclude_seen=True)
    assert sorted(found[0].tolist()) == [0, 1]
    assert sorted(found[1].tolist()) == [i for i in range(N) if i not in (3, 4)]
    assert found[2].tolist() == []
    assert np.isfinite(found.scores).all()


def test_no_sessions_give_no_lists():
    assert len(build().recommend(Sessions.build([], []), 5, exclude_seen=True)) == 0
