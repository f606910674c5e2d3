"""The nearest-neighbour recommenders against plain loops written from their formulas."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.recommenders.nearest import neighbors, sparse
from seqrec_prompt.recommenders.nearest.neighbors import SFSKNN, SKNN, SSKNN, VSKNN
from seqrec_prompt.recommenders.settings import NeighborsConfig

N_ITEMS = 8
KINDS = (SKNN, SSKNN, SFSKNN, VSKNN)
DECAYS = {
    "none": lambda i, n: 1,
    "constant_linear": lambda i, n: max(1e-5, 1 - 0.1 * (i - 1)),
    "scaling_linear": lambda i, n: max(1e-5, 1 - (i - 1) / n),
    "scaling_quadratic": lambda i, n: max(1e-5, 1 - (i - 1) / n) ** 2,
    "log": lambda i, n: 1 / (math.log(i) + 1),
    "harmonic": lambda i, n: 1 / i,
    "harmonic_squared": lambda i, n: 1 / i**2,
}
item_lists = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=9), max_size=14)
configs = st.builds(
    NeighborsConfig,
    k_neighbors=st.integers(1, 6),
    similarity=st.sampled_from(["cosine", "dot", "binary"]),
    sample=st.none() | st.integers(1, 5),
    idf=st.sampled_from([0, 0.5, 2]),
    max_items=st.integers(1, 6),
    decay=st.sampled_from(list(DECAYS)),
    score_decay=st.sampled_from(list(DECAYS)),
)


def sessions_of(lists, times=None):
    built = Sessions.build([f"s{i}" for i in range(len(lists))], lists)
    return built if times is None else Sessions(built.ids, built.offsets, built.items, np.array(times, np.float64))


def oracle(kind, train, prompt, k, exclude_seen, config):
    """[(item, score)], best first; `train` is ordered from the oldest session to the most recent one."""
    known = prompt[-config.max_items :]
    n = len(known)
    place = {item: i for i, item in enumerate(reversed(known), 1) if item not in known[n - i + 1 :]}
    weight = dict.fromkeys(place, 1.0)
    if kind is VSKNN and config.similarity != "binary":
        weight = {item: DECAYS[config.decay](i, n) for item, i in place.items()}

    candidates = [(age, set(session)) for age, session in enumerate(reversed(train)) if set(session) & set(place)]
    if config.sample is not None:
        candidates = candidates[: config.sample]
    similar = []
    for age, other in candidates:
        shared = other & set(place)
        x = math.fsum(weight[item] for item in shared)
        value = {
            "dot": x,
            "cosine": x / (math.sqrt(math.fsum(w * w for w in weight.values())) * math.sqrt(len(other))),
            "binary": 2 * len(shared) / (2 * len(shared) + len(place) + len(other)),
        }[config.similarity]
        similar.append((np.float32(value), -age, value, other, min(place[item] for item in shared)))
    similar.sort(key=lambda entry: entry[:2], reverse=True)

    scores = dict.fromkeys(range(N_ITEMS), 0.0)
    for _, _, value, other, newest in similar[: config.k_neighbors]:
        factor = {SSKNN: (n - newest + 1) / n, VSKNN: DECAYS[config.score_decay](newest, n)}.get(kind, 1)
        for item in other:
            scores[item] += value * factor
    for item in scores:
        having = sum(item in session for session in train)
        scores[item] *= 1 + config.idf * math.log(len(train) / having) if having else 1
    if kind is SFSKNN:
        followers = {b for session in train for a, b in pairwise(session) if prompt and a == prompt[-1]}
        scores = {item: score for item, score in scores.items() if item in followers}
    given = [(item, score) for item, score in scores.items() if score and not (exclude_seen and item in prompt)]
    return sorted(given, key=lambda entry: (-np.float32(entry[1]), entry[0]))[:k]


def assert_lists(found, wanted):
    """The same scores place by place, and the same items wherever no other score is as near as rounding."""
    assert len(found) == len(wanted)
    for i, expected in enumerate(wanted):
        scores = found.scores[found.offsets[i] : found.offsets[i + 1]]
        assert scores == pytest.approx([score for _, score in expected], rel=1e-5)
        assert len(found[i]) == len(set(found[i].tolist()))
        for item, own in zip(found[i].tolist(), scores, strict=True):
            assert any(item == other and own == pytest.approx(score, rel=1e-5) for other, score in expected) or (
                own == pytest.approx(scores[-1], rel=1e-5)  # cut among equals
            )


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(train=item_lists, prompts=item_lists, k=st.integers(1, 9), exclude_seen=st.booleans(), config=configs)
def test_the_lists_are_those_of_the_formula(kind, train, prompts, k, exclude_seen, config):
    found = kind.fit(sessions_of(train), N_ITEMS, config).recommend(sessions_of(prompts), k, exclude_seen=exclude_seen)
    assert_lists(found, [oracle(kind, train, prompt, k, exclude_seen, config) for prompt in prompts])
    assert found.session_ids.tolist() == [f"s{i}" for i in range(len(prompts))]
    for prompt, items in zip(prompts, found, strict=True):
        assert not (exclude_seen and set(items.tolist()) & set(prompt))
    for start, stop in pairwise(found.offsets):
        assert (np.diff(found.scores[start:stop]) <= 0).all()


def test_figures_worked_by_hand():
    # Prompt 0 1 2; neighbours {1, 3} (shares the item at place 2) and {2, 4, 5} (shares the last one).
    train, prompt = sessions_of([[1, 3], [4, 2, 5]]), sessions_of([[0, 1, 2]])

    def scores(kind, **changes):
        found = kind.fit(train, 6, NeighborsConfig(**changes)).recommend(prompt, 9, exclude_seen=True)
        return dict(zip(found[0].tolist(), found.scores.tolist(), strict=True))

    one, other = 1 / math.sqrt(3 * 2), 1 / math.sqrt(3 * 3)
    assert scores(SKNN) == pytest.approx({3: one, 4: other, 5: other})
    assert scores(SSKNN) == pytest.approx({4: other, 5: other, 3: one * 2 / 3})
    assert scores(SFSKNN) == pytest.approx({5: other})
    length = math.sqrt(1 + 4 / 9 + 1 / 9)
    near, far = 1 / (length * math.sqrt(3)), (2 / 3) / (length * math.sqrt(2))
    assert scores(VSKNN) == pytest.approx({4: near, 5: near, 3: far / 2})
    assert scores(SKNN, similarity="binary") == pytest.approx({3: 2 / 7, 4: 2 / 8, 5: 2 / 8})
    assert scores(SKNN, k_neighbors=1) == pytest.approx({3: one})
    assert scores(SKNN, idf=2) == pytest.approx({i: s * (1 + 2 * math.log(2)) for i, s in scores(SKNN).items()})


def test_ties_and_samples_go_to_the_most_recent_session():
    prompt = sessions_of([[0]])
    lists, times = [[0, 1], [0, 2], [0, 3]], [1, 5, 9, 9, 2, 4]
    for config in (NeighborsConfig(k_neighbors=1), NeighborsConfig(sample=1)):
        timed = SKNN.fit(sessions_of(lists, times), 4, config).recommend(prompt, 3, exclude_seen=True)
        assert timed[0].tolist() == [2]
        untimed = SKNN.fit(sessions_of(lists), 4, config).recommend(prompt, 3, exclude_seen=True)
        assert untimed[0].tolist() == [3]


def random_sessions(n, seed, longest=12, n_items=60):
    draw = np.random.default_rng(seed)
    return sessions_of([draw.integers(0, n_items, draw.integers(0, longest)).tolist() for _ in range(n)])


def test_random_samples_are_random_even_and_the_same_for_the_same_prompt():
    train = sessions_of([[0, item] for item in range(1, 41)])
    drawn = np.zeros(41)
    for seed in range(200):
        fitted = SKNN.fit(train, 41, NeighborsConfig(sample=10, sampling="random", seed=seed))
        found = fitted.recommend(sessions_of([[0], [0, 0], [0]]), 41, exclude_seen=True)
        assert [len(items) for items in found] == [10, 10, 10]
        assert found[0].tolist() == found[2].tolist()
        drawn[found[0]] += 1
    assert drawn[0] == 0
    # Each is drawn 50 of 200 times on average, with a standard deviation of 6.
    assert drawn[1:].min() > 20
    assert drawn[1:].max() < 80
    assert drawn[1:].std() < 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", ["recent", "random"])
def test_blocks_make_no_difference(kind, sampling, monkeypatch):
    train, prompts = random_sessions(80, 0), random_sessions(50, 1)
    fitted = kind.fit(train, 60, NeighborsConfig(k_neighbors=9, sample=20, sampling=sampling))
    whole = fitted.recommend(prompts, 10, exclude_seen=True)
    assert len(whole.items) > 50
    for block, pairs in ((7, 2**21), (1024, 100)):
        monkeypatch.setattr(neighbors, "BLOCK", block)
        monkeypatch.setattr(neighbors, "PAIRS", pairs)
        cut = fitted.recommend(prompts, 10, exclude_seen=True)
        assert np.array_equal(cut.offsets, whole.offsets)
        assert np.array_equal(cut.items, whole.items)
        assert np.array_equal(cut.scores, whole.scores)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9), st.integers(1, 60))
def test_blocks_cover_all_prompts_within_their_bounds(pairs, block, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "BLOCK", block)
        patch.setattr(neighbors, "PAIRS", most)
        bounds = neighbors.block_bounds(np.array(pairs, np.int64))
    assert (bounds[0], bounds[-1]) == (0, len(pairs))
    for start, stop in pairwise(bounds):
        assert (stop - start <= 1) or (stop - start <= block and sum(pairs[start:stop]) <= most)
        assert stop > start or not pairs


@pytest.mark.parametrize("columns", [40, 2**40])
def test_best_entries_of_each_row(columns):
    """Columns that do not fit one number with row and value are sorted another way, to the same order."""
    from scipy.sparse import csr_array

    draw = np.random.default_rng(0)
    lists = [draw.permutation(40)[: draw.integers(0, 30)] for _ in range(20)]
    values = [draw.integers(1, 5, len(columns_of)) / 7 for columns_of in lists]
    offsets = np.cumsum([0, *map(len, lists)])
    matrix = csr_array((np.concatenate(values), np.concatenate(lists), offsets), shape=(20, columns))
    take = draw.integers(0, 9, 20)
    wanted = [
        offsets[row] + j
        for row in range(20)
        for j in sorted(range(len(lists[row])), key=lambda j: (-values[row][j], lists[row][j]))[: take[row]]
    ]
    assert sparse.best(matrix, take).tolist() == wanted


def test_a_session_longer_than_its_weights_can_tell_apart():
    """The newest shared item decides, though 499 older ones are shared as well."""
    train, prompt = sessions_of([list(range(500)), [0, 500], [499, 501]]), sessions_of([list(range(500))])
    config = NeighborsConfig(max_items=500, similarity="dot", decay="none", score_decay="harmonic")
    found = VSKNN.fit(train, 502, config).recommend(prompt, 2, exclude_seen=True)
    assert found[0].tolist() == [501, 500]
    assert found.scores.tolist() == pytest.approx([1, 1 / 500])


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_that_nobody_is_like_get_an_empty_list(kind):
    fitted = kind.fit(sessions_of([[0, 1], []]), 4)
    found = fitted.recommend(sessions_of([[], [3], [0]]), 5, exclude_seen=True)
    assert [items.tolist() for items in found] == [[], [], [1]]
    assert len(fitted.recommend(sessions_of([]), 5, exclude_seen=True)) == 0
