"""LLM embeddings as the start of the items: scale, what is frozen, the permuted control, items that train never saw."""

import numpy as np
import pytest
import torch

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.embeddings.reduce import ReduceConfig, fit_reduction
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.recommenders.sequential import recommender as recommenders
from seqrec_prompt.recommenders.sequential.embedding import build_items
from seqrec_prompt.recommenders.sequential.recommender import BERT4Rec, SASRec
from seqrec_prompt.recommenders.sequential.settings import ItemsConfig, SequentialConfig

N, WIDE, DIM = 200, 24, 8
DRAW = np.random.default_rng(2)
VECTORS = (DRAW.normal(size=(N, WIDE)) * np.linspace(3, 0.2, WIDE) + 5).astype(np.float32)
CATALOG = Catalog([str(i) for i in range(N)], [f"t{i}" for i in range(N)], {"class": [str(i % 30) for i in range(N)]})
STARTS = ["llm_init", "adapter", "alphafuse"]


def config(start, **changes):
    items = {"start": start} | changes.pop("items", {})
    return SequentialConfig.model_validate({"dim": DIM, "items": items} | changes)


def matrix(settings, vectors=VECTORS):
    torch.manual_seed(0)
    return build_items(settings, CATALOG, vectors)().detach().numpy()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("factor", [0.01, 100])
def test_the_scale_is_that_of_a_random_start(start, factor):
    random = matrix(config("random"), None)
    found = matrix(config(start), VECTORS * factor)
    assert found.shape == random.shape
    assert found.std() == pytest.approx(random.std(), rel=0.1)
    assert random.std() == pytest.approx((2 / (N + DIM)) ** 0.5, rel=0.1)


def test_llm_embeddings_may_be_longer_than_a_random_start():
    short, long = (matrix(config("llm_init", items={"scale": s})) for s in (1, 8))
    assert long == pytest.approx(8 * short, rel=1e-5)
    short, long = (matrix(config("alphafuse", items={"scale": s})) for s in (1, 8))
    half = DIM // 2
    assert long[:, :half] == pytest.approx(8 * short[:, :half], rel=1e-5)
    assert np.array_equal(long[:, half:], short[:, half:]), "what is learned starts as it always does"
    for start in ("random", "adapter"):
        with pytest.raises(ValueError, match=f"not of '{start}'"):
            config(start, items={"scale": 8})


@pytest.mark.parametrize("method", ["pca", "whiten_pca", "lda"])
def test_llm_init_is_the_reduction_but_for_its_scale(method):
    items = {"reduction": method} | ({"attribute": "class"} if method == "lda" else {})
    found = matrix(config("llm_init", items=items))
    reduce = ReduceConfig(method=method, dimensions=DIM, attribute=items.get("attribute"))
    right = fit_reduction(reduce, VECTORS, CATALOG)(VECTORS)
    assert found / found.std() == pytest.approx(right / right.std(), abs=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_the_control_has_the_same_vectors_at_other_items(start):
    plain, permuted = (matrix(config(start, items={"permuted": p})) for p in (False, True))
    if start == "alphafuse":
        plain, permuted = plain[:, : DIM // 2], permuted[:, : DIM // 2]
    if start == "llm_init":  # the sign of a direction depends on the order of the rows
        plain, permuted = abs(plain), abs(permuted)
    near = np.abs(plain[:, None] - permuted[None]).max(axis=2) < 1e-4
    place = near.argmax(axis=1)
    assert near.any(axis=1).all()
    assert sorted(place) == list(range(N))
    assert (place == np.arange(N)).mean() < 0.1


def sessions(known, n=80):
    lists = [(start + 7 * np.arange(4)) % known for start in DRAW.integers(known, size=n)]
    return Sessions.build([str(i) for i in range(n)], [items.tolist() for items in lists])


@pytest.mark.parametrize("cls", [SASRec, BERT4Rec])
@pytest.mark.parametrize("start", STARTS)
def test_what_is_frozen_stays_and_the_rest_moves(cls, start):
    settings = config(start, epochs=2, patience=None, learning_rate=0.05, batch_size=16)
    torch.manual_seed(settings.seed)
    before = {name: part.numpy().copy() for name, part in build_items(settings, CATALOG, VECTORS).state_dict().items()}
    model = cls.fit(sessions(N), CATALOG, settings, vectors=VECTORS)
    after = model.arrays()
    assert ("items.frozen" in after) == (start != "llm_init")
    for name, part in before.items():
        assert np.array_equal(after[f"items.{name}"], part) == (name == "frozen"), name
    assert model.name == f"LLM2{cls.__name__}"
    again = cls.from_arrays(after, N, settings)
    prompts = sessions(N)
    one, other = (m.recommend(prompts, 9, exclude_seen=True) for m in (model, again))
    assert np.array_equal(one.items, other.items)
    assert np.array_equal(one.scores, other.scores)
    assert again.name == model.name


@pytest.mark.parametrize("start", STARTS)
def test_a_cold_item_ranks_beside_the_warm_one_it_reads_like(start):
    """Items 150 and up are not in train; each has the text of one that is, 150 places before it."""
    vectors = VECTORS.copy()
    vectors[150:] = vectors[:50]
    train = sessions(150, 300)
    settings = config(start, epochs=12, patience=None, learning_rate=0.01, batch_size=32, dim=16, dropout=0.1)
    model = SASRec.fit(train, CATALOG, settings, vectors=vectors)
    lists = model.recommend(train, N, exclude_seen=False)
    places = np.empty((len(train), N), int)
    np.put_along_axis(places, lists.items.reshape(-1, N), np.arange(N)[None].repeat(len(train), 0), axis=1)
    top_warm = [int(np.argmin(row[:50])) for row in places]
    cold = np.array([row[150:].argsort().argsort()[item] for row, item in zip(places, top_warm, strict=True)])
    assert cold.mean() < 12, (
        "the cold twin of the best of the fifty is among the better of the fifty cold ones: 24.5 by chance"
    )
    assert places[:, 150:].mean() < 160, "cold items are not all behind"


def test_without_an_llm_cold_items_are_learned_to_be_unlikely():
    train = sessions(150, 300)
    settings = config("random", epochs=12, patience=None, learning_rate=0.01, batch_size=32, dim=16)
    lists = SASRec.fit(train, CATALOG, settings).recommend(train, 20, exclude_seen=False)
    assert (lists.items < 150).mean() > 0.95


def test_embeddings_that_are_too_narrow_are_told():
    with pytest.raises(ConfigError, match="wants 64 directions of the embeddings, which have 24"):
        matrix(config("llm_init", dim=64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "random", "permuted": True}, "start 'random' has none"),
        ({"start": "llm_init", "reduction": "lda"}, "need each other"),
        ({"start": "llm_init", "attribute": "class"}, "need each other"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ItemsConfig(**changes)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="'dim' 10 is no multiple of 'heads' 3"):
        SequentialConfig(dim=10, heads=3)


def test_cold_items_have_their_place_when_the_model_is_judged(monkeypatch):
    judged = []

    def judge(recommender, holdout, **options):
        judged.append(recommender.arrays()["items.weight"][150:].copy())
        return float(len(judged) == 1)  # the first epoch is the best

    monkeypatch.setattr(recommenders, "ndcg", judge)
    settings = config("llm_init", epochs=3, patience=3, learning_rate=0.05, batch_size=16)
    model = SASRec.fit(sessions(150), CATALOG, settings, Holdout.of_last_items(sessions(150)), VECTORS)
    assert len(judged) == 3
    assert np.abs(judged[1] - judged[0]).min() > 0
    assert model.arrays()["items.weight"][150:] == pytest.approx(judged[0], abs=1e-6)


@pytest.mark.parametrize("frozen", [0.01, 0.99])
def test_alphafuse_has_something_of_both(frozen):
    torch.manual_seed(0)
    parts = build_items(config("alphafuse", items={"frozen": frozen}), CATALOG, VECTORS).state_dict()
    assert parts["frozen"].shape[1] == (1 if frozen < 0.5 else DIM - 1)
    assert parts["weight"].shape[1] == DIM - parts["frozen"].shape[1]
    with pytest.raises(ValueError, match="needs a 'dim' of 2 or more"):
        config("alphafuse", dim=1)
