"""What training learns, when it stops, and that a run broken off and gone on with equals an unbroken one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.errors import ArtifactError, DataError, ModelError
from seqrec_prompt.recommenders.sequential import recommender as recommenders
from seqrec_prompt.recommenders.sequential.recommender import BERT4Rec, GRU4Rec, SASRec
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig
from seqrec_prompt.recommenders.sequential.training import Checkpoint, Progress

KINDS = [SASRec, BERT4Rec, GRU4Rec]
N = 20
CATALOG = Catalog([str(i) for i in range(N)], [f"title {i}" for i in range(N)])
SMALL = SequentialConfig(dim=16, layers=1, learning_rate=0.01, batch_size=16, epochs=3, patience=None)


def walk(n, seed, step=3):
    """Sessions in which each item is followed by the one `step` further on, around the catalog."""
    draw = np.random.default_rng(seed)
    starts, sizes = draw.integers(N, size=n), draw.integers(2, 7, n)
    lists = [(start + step * np.arange(size)) % N for start, size in zip(starts, sizes, strict=True)]
    return Sessions.build([f"{seed}-{i}" for i in range(n)], [items.tolist() for items in lists])


TRAIN, HELD_OUT = walk(150, 0), Holdout.of_last_items(walk(40, 1))


def equal(one, other):
    one, other = one.arrays(), other.arrays()
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("cls", "loss"),
    [(SASRec, "softmax"), (SASRec, "sampled_softmax"), (SASRec, "gbce"), (BERT4Rec, "softmax"), (GRU4Rec, "softmax")],
)
def test_a_rule_is_learned(cls, loss):
    # BERT4Rec is told fewer items an epoch, and makes up for it with more epochs.
    more = {"epochs": 40, "mask_last": 0.8, "dropout": 0.0} if cls is BERT4Rec else {"epochs": 15}
    config = SMALL.model_copy(update={"loss": loss, "negatives": 10, **more})
    model = cls.fit(TRAIN, CATALOG, config)
    lists = model.recommend(HELD_OUT.prompts, 1, exclude_seen=True)
    assert np.mean(lists.items == HELD_OUT.targets) > 0.9
    assert model.history[-1]["loss"] < 0.5 * model.history[0]["loss"]


@pytest.mark.parametrize("cls", KINDS)
def test_a_seed_decides_all(cls):
    one, same = (cls.fit(TRAIN, CATALOG, SMALL) for _ in range(2))
    other = cls.fit(TRAIN, CATALOG, SMALL.model_copy(update={"seed": 1}))
    assert equal(one, same)
    assert not equal(one, other)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("cls", "loss", "ema"),
    [(SASRec, "gbce", 0.9), (BERT4Rec, "softmax", None), (GRU4Rec, "sampled_softmax", 0.5)],
)
def test_going_on_equals_an_unbroken_run(cls, loss, ema, tmp_path, monkeypatch):
    config = SMALL.model_copy(update={"epochs": 6, "patience": 6, "loss": loss, "dropout": 0.3, "ema_decay": ema})
    unbroken = cls.fit(TRAIN, CATALOG, config, HELD_OUT)
    checkpoint = Checkpoint(tmp_path / "run.checkpoint", {"stage": "fit", "config": {}, "inputs": {}})
    judged = []
    right = recommenders.ndcg

    def breaks(*given, **options):
        judged.append(1)
        if len(judged) == 4:
            raise StoppedError
        return right(*given, **options)

    monkeypatch.setattr(recommenders, "ndcg", breaks)
    with pytest.raises(StoppedError):
        cls.fit(TRAIN, CATALOG, config, HELD_OUT, checkpoint=checkpoint)
    resumed = cls.fit(TRAIN, CATALOG, config, HELD_OUT, checkpoint=checkpoint)
    assert len(judged) == 4 + 3, "three epochs were done, the fourth was not"
    assert equal(resumed, unbroken)
    assert [e["ndcg@20"] for e in resumed.history] == [e["ndcg@20"] for e in unbroken.history]
    again = cls.fit(TRAIN, CATALOG, config, HELD_OUT, checkpoint=checkpoint)
    assert len(judged) == 7, "a finished run trains no more"
    assert equal(again, unbroken)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(monkeypatch):
    values = iter([0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    kept = []

    def judged(recommender, *given, **options):
        kept.append(recommender.arrays()["items.weight"].copy())
        return next(values)

    monkeypatch.setattr(recommenders, "ndcg", judged)
    config = SMALL.model_copy(update={"epochs": 50, "patience": 3})
    model = SASRec.fit(TRAIN, CATALOG, config, HELD_OUT)
    assert [entry["ndcg@20"] for entry in model.history] == [0.1, 0.3, 0.2, 0.3, 0.1]
    assert np.array_equal(model.arrays()["items.weight"], kept[1])


def test_ndcg_is_that_of_the_evaluation():
    from seqrec_prompt.evaluation.metrics import evaluate_lists

    model = SASRec.fit(TRAIN, CATALOG, SMALL.model_copy(update={"epochs": 1}))
    lists = model.recommend(HELD_OUT.prompts, 20, exclude_seen=True)
    right = evaluate_lists(lists, HELD_OUT.targets, np.ones(N, np.int64), N, (20,)).means[20]["ndcg"]
    assert recommenders.ndcg(model, HELD_OUT, exclude_seen=True) == pytest.approx(right)
    assert 0 < right < 1


def test_a_run_of_other_settings_or_a_torn_file_is_refused(tmp_path):
    one = Checkpoint(tmp_path / "c", {"stage": "fit", "config": {"seed": 0}, "inputs": {}})
    SASRec.fit(TRAIN, CATALOG, SMALL, checkpoint=one)
    other = replace(one, identity=one.identity | {"config": {"seed": 1}})
    with pytest.raises(ArtifactError, match=r"config.seed: was 0, is 1"):
        SASRec.fit(TRAIN, CATALOG, SMALL, checkpoint=other)
    SASRec.fit(TRAIN, CATALOG, SMALL, checkpoint=replace(other, overwrite=True))
    one.path.write_bytes(one.path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="no checkpoint, or damaged"):
        SASRec.fit(TRAIN, CATALOG, SMALL, checkpoint=one)


def test_no_epoch_is_wanted_after_the_last():
    done = Progress([{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 1.0}])
    assert not done.is_over(SMALL)
    assert done.is_over(SMALL.model_copy(update={"epochs": 2}))
    assert done.best_epoch == 2


@pytest.mark.parametrize("lists", [[], [[1], [2]]])
def test_nothing_to_learn_from_is_told(lists):
    with pytest.raises(DataError, match="too few to train on"):
        SASRec.fit(Sessions.build([str(i) for i in range(len(lists))], lists), CATALOG, SMALL)


def test_divergence_is_told():
    with pytest.raises(ModelError, match=r"diverged in epoch \d: the loss is nan"):
        GRU4Rec.fit(TRAIN, CATALOG, SMALL.model_copy(update={"learning_rate": 1e30}))


def test_long_gradients_are_clipped():
    """So short that AdamW's ε, 1e-8, outweighs them: nothing moves."""
    still = SASRec.fit(TRAIN, CATALOG, SMALL.model_copy(update={"clip_norm": 1e-12, "weight_decay": 0, "epochs": 1}))
    torch.manual_seed(SMALL.seed)
    start = torch.randn(N, SMALL.dim) * (2 / (N + SMALL.dim)) ** 0.5
    assert np.abs(still.arrays()["items.weight"] - start.numpy()).max() < 1e-3
    moved = SASRec.fit(TRAIN, CATALOG, SMALL.model_copy(update={"weight_decay": 0, "epochs": 1}))
    assert np.abs(moved.arrays()["items.weight"] - start.numpy()).max() > 1e-2


def test_the_average_of_the_weights_is_kept_and_changes_no_training():
    config = SMALL.model_copy(update={"ema_decay": 0.8})
    passed = []
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *given: passed.append(optimizer.param_groups[0]["params"][0].detach().double().clone())
    )
    try:
        averaged = SASRec.fit(TRAIN, CATALOG, config, HELD_OUT)
    finally:
        hook.remove()
    plain = SASRec.fit(TRAIN, CATALOG, SMALL, HELD_OUT)
    assert [e["loss"] for e in averaged.history] == [e["loss"] for e in plain.history]
    mean = passed[0]
    for n, weights in enumerate(passed[1:], 1):
        share = min(0.8, (1 + n) / (10 + n))
        mean = share * mean + (1 - share) * weights
    assert averaged.arrays()["items.weight"] == pytest.approx(mean.numpy(), abs=1e-6)
    assert plain.arrays()["items.weight"] == pytest.approx(passed[-1].numpy(), abs=0)


def test_a_checkpoint_is_one_file_of_plain_tensors(tmp_path):
    from safetensors import safe_open

    one = Checkpoint(tmp_path / "c", {"stage": "fit", "config": {}, "inputs": {}})
    SASRec.fit(TRAIN, CATALOG, SMALL, checkpoint=one)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    with safe_open(one.path, framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"model", "best", "optimizer"}  # noqa: SIM118
        assert len(json.loads(file.metadata()["history"])) == 3


def test_half_precision_is_left_out_where_it_is_slow(monkeypatch):
    half, single = (SMALL.model_copy(update={"precision": name}) for name in ("bfloat16", "float32"))

    def fitted(config, fast):
        monkeypatch.setattr("seqrec_prompt.recommenders.sequential.model.computes_bfloat16", lambda where: fast)
        return SASRec.fit(TRAIN, CATALOG, config)

    whole = fitted(single, True)
    assert equal(fitted(half, False), whole)
    assert not equal(fitted(half, True), whole)
