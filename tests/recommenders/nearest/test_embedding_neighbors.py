"""SKNN over embeddings against a loop in float64, and a case worked by hand."""

import math

import numpy as np
import pytest

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.recommenders.nearest import rows as nearest
from seqrec_prompt.recommenders.nearest.embedding_neighbors import EmbeddingNeighborsConfig, EmbeddingSKNN

N, DIM = 40, 5
DRAW = np.random.default_rng(3)
ROWS = DRAW.normal(size=(N, DIM)).astype(np.float32)
TRAIN = [DRAW.integers(N, size=size).tolist() for size in [*DRAW.integers(1, 9, 60), 0, 0]]
PROMPTS = [*(DRAW.integers(N, size=size).tolist() for size in DRAW.integers(1, 9, 25)), []]


def sessions_of(lists):
    return Sessions.build([f"s{i}" for i in range(len(lists))], lists)


def build(rows=ROWS, train=TRAIN, **settings):
    catalog = Catalog([str(i) for i in range(len(rows))], [""] * len(rows))
    table = EmbeddingTable(np.asarray(rows, np.float32), manifest("embed", {}, {}))
    return EmbeddingSKNN.fit(table, catalog, sessions_of(train), EmbeddingNeighborsConfig(**settings))


def vector(items):
    weights = [1 / (len(items) - position) for position in range(len(items))]
    return sum(w * ROWS[item].astype(np.float64) for w, item in zip(weights, items, strict=True)) / sum(weights)


def scores_of(prompt, kind, k_neighbors, idf):
    """{item: score} of one prompt, a train session after the other."""
    similar = []
    for age, other in enumerate(reversed(TRAIN)):
        if not other or not prompt:
            continue
        one, two = vector(prompt), vector(other)
        value = {
            "cosine": one @ two / (math.sqrt(one @ one) * math.sqrt(two @ two)),
            "dot": one @ two,
            "euclidean": 1 / (1 + math.dist(one, two)),
        }[kind]
        similar.append((value, -age, set(other)))
    scores = {}
    for value, _, other in sorted(similar, key=lambda entry: entry[:2], reverse=True)[:k_neighbors]:
        for item in other if value > 0 else ():
            scores[item] = scores.get(item, 0) + value
    filled = [set(session) for session in TRAIN if session]
    having = {item: sum(item in session for session in filled) for item in scores}
    return {item: score * (1 + idf * math.log(len(filled) / having[item])) for item, score in scores.items()}


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize(("k_neighbors", "idf"), [(1, 0), (7, 0.5), (200, 0)])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_lists_are_those_of_a_loop(kind, k_neighbors, idf, exclude_seen):
    made = build(similarity=kind, k_neighbors=k_neighbors, idf=idf)
    for model in (made, EmbeddingSKNN.from_arrays(made.arrays(), N, made.config)):
        found = model.recommend(sessions_of(PROMPTS), 10, exclude_seen=exclude_seen)
        for session, prompt in enumerate(PROMPTS):
            scores = scores_of(prompt, kind, k_neighbors, idf)
            wanted = sorted((s for i, s in scores.items() if not (exclude_seen and i in prompt)), reverse=True)[:10]
            own = found.scores[found.offsets[session] : found.offsets[session + 1]]
            assert own == pytest.approx(wanted, rel=1e-4)
            assert own == pytest.approx([scores[item] for item in found[session].tolist()], rel=1e-4)
            assert not (exclude_seen and set(found[session].tolist()) & set(prompt))


def test_neighbours_need_no_item_in_common():
    # Items 0 and 1 point one way, 2 the other; the prompt holds 0, the first session 1 and 3, the second 2 and 3.
    rows = [[1, 0], [3, 0], [-1, 0], [0, 1]]
    made = build(rows, [[3, 1], [3, 2]], weighting="last", k_neighbors=5)
    found = made.recommend(sessions_of([[0]]), 9, exclude_seen=True)
    assert found[0].tolist() == [1, 3]
    assert found.scores.tolist() == pytest.approx([1, 1])


def test_ties_go_to_the_most_recent_session():
    made = build([[1, 0], [1, 0], [1, 0]], [[0], [1], [2]], k_neighbors=1)
    assert made.recommend(sessions_of([[0]]), 3, exclude_seen=False)[0].tolist() == [2]


def test_blocks_make_no_difference_and_nothing_gives_nothing(monkeypatch):
    whole = build().recommend(sessions_of(PROMPTS), 6, exclude_seen=True)
    monkeypatch.setattr(nearest, "BLOCK", 50)
    monkeypatch.setattr(nearest, "ROWS", 9)
    cut = build().recommend(sessions_of(PROMPTS), 6, exclude_seen=True)
    assert np.array_equal(whole.offsets, cut.offsets)
    assert whole.scores == pytest.approx(cut.scores, rel=1e-5)
    assert len(build().recommend(sessions_of([]), 6, exclude_seen=True)) == 0
    assert len(build(train=[[]]).recommend(sessions_of([[1]]), 6, exclude_seen=True).items) == 0
