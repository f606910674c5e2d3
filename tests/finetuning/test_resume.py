"""A stopped training goes on from its last checkpoint and ends where an unbroken one ends."""

import io
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from seqrec_prompt import console
from seqrec_prompt.artifacts import read_manifest
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.trainers import CatalogTrainer
from seqrec_prompt.finetuning.validation import Validation


@pytest.fixture(scope="module")
def config_of(tiny_model, dataset_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")

    def build(out, **changes):
        settings = {
            "data": dataset_dir,
            "out": folder / out,
            "model": str(tiny_model),
            "context": 1024,
            "batch_size": 8,  # four steps an epoch: the stop and the end are in different epochs
            "max_steps": 6,
            "save_steps": 3,
            "logging_steps": 1,
            "dtype": "float32",
            "lora": {"r": 2, "alpha": 4, "dropout": 0.2},
        }
        return FinetuneConfig(**settings | changes)

    return build


def stop_at(monkeypatch, step, error=KeyboardInterrupt):
    """Let the optimizer steps before `step` (from 1, in this run) pass, then raise; returns the steps begun."""
    real, steps = CatalogTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        steps.append(len(steps) + 1)
        if len(steps) == step:
            raise error("pulled the plug")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(CatalogTrainer, "training_step", training_step)
    return steps


def losses(config):
    return {e["step"]: e["loss"] for e in json.loads((config.out / "log.json").read_text()) if "loss" in e}


def assert_same_weights(one, other):
    final, expected = (load_file(config.out / "adapter_model.safetensors") for config in (one, other))
    for name, tensor in expected.items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-6, atol=1e-8)


def interrupted(*_):
    raise KeyboardInterrupt


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def unbroken(config_of):
    config = config_of("unbroken")
    finetune(config)
    return config


@pytest.mark.parametrize("step", [2, 5])
def test_a_stopped_run_ends_like_an_unbroken_one(config_of, unbroken, monkeypatch, capsys, step):
    config = config_of(f"stopped-{step}")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    assert not (config.out / "manifest.json").exists()
    assert (config.out / "checkpoints" / "checkpoint-3").exists() == (step > 3)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        steps = stop_at(patch, None)
        finetune(config)
    assert len(steps) == (3 if step > 3 else 6)  # what stands in a checkpoint is not done again
    shown = capsys.readouterr().out
    assert (f"going on: 3/6 steps are done ({config.out / 'checkpoints' / 'checkpoint-3'})" in shown) == (step > 3)
    assert losses(config) == pytest.approx(losses(unbroken), rel=1e-6)
    assert sorted(losses(config)) == [1, 2, 3, 4, 5, 6]
    assert_same_weights(config, unbroken)
    assert not (config.out / "checkpoints").exists()


def test_a_run_that_crashes_again_and_again_arrives(config_of, unbroken, monkeypatch):
    config = config_of("crashing", save_steps=1)
    for _ in range(2):
        with monkeypatch.context() as patch:
            stop_at(patch, 3, RuntimeError)
            with pytest.raises(RuntimeError, match="pulled the plug"):
                finetune(config)
    finetune(config)
    assert losses(config) == pytest.approx(losses(unbroken), rel=1e-6)


def test_a_stopped_run_is_not_taken_over_by_other_settings(config_of, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            finetune(config_of("stopped"))
    with pytest.raises(ArtifactError, match=r"config\.learning_rate: was 0\.0005, is 0\.1"):
        finetune(config_of("stopped", learning_rate=0.1))
    assert (config_of("stopped").out / "checkpoints" / "checkpoint-3").exists()


@pytest.mark.parametrize("kept", [None, 40])
def test_a_torn_newest_checkpoint_is_not_the_end(config_of, unbroken, monkeypatch, kept):
    """The process died while it wrote a checkpoint: the one before it counts."""
    config = config_of(f"torn-{kept}", save_steps=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    checkpoints = sorted((config.out / "checkpoints").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-2", "checkpoint-4"]
    state = checkpoints[-1] / "trainer_state.json"  # transformers writes it last
    state.write_bytes(state.read_bytes()[:kept]) if kept else state.unlink()
    finetune(config)
    assert losses(config) == pytest.approx(losses(unbroken), rel=1e-6)


def test_a_run_stopped_after_its_last_step_learns_nothing_more(config_of, unbroken, monkeypatch):
    """Six steps end in the middle of an epoch: another batch would be there to be learned from."""
    config = config_of("written-no-more")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("seqrec_prompt.finetuning.training._tidy", interrupted)
        finetune(config)
    with monkeypatch.context() as patch:
        steps = stop_at(patch, None)
        finetune(config)
    assert not steps
    assert losses(config) == losses(unbroken)
    assert_same_weights(config, unbroken)


@pytest.mark.parametrize("stop", [4, 6, "end"])
def test_patience_goes_on_where_it_was(config_of, monkeypatch, stop):
    """Judged best after step 2, the run ends with step 6, wherever it was stopped."""
    judged = {"ndcg@10": iter([0.5, 0.4, 0.3, 0.2, 0.1])}
    monkeypatch.setattr(Validation, "__call__", lambda self, model: {name: next(v) for name, v in judged.items()})
    config = config_of(f"patient-{stop}", max_steps=10, save_steps=2, validation={"steps": 2, "patience": 2})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stop == "end":
            patch.setattr("seqrec_prompt.finetuning.training._tidy", interrupted)
        else:
            stop_at(patch, stop)
        finetune(config)
    if stop == 4:
        judged["ndcg@10"] = iter([0.4, 0.3, 0.2, 0.1])
    finetune(config)
    facts = read_manifest(config.out, "finetune")["facts"]
    assert (facts["steps"], facts["best_step"], facts["validation"]) == (6, 2, 0.5)


def test_the_seconds_are_those_of_the_whole_run(config_of, monkeypatch):
    """By a clock that a step puts on by 100: those that stand in the checkpoint count, and those after it once."""
    now, real = [0.0], CatalogTrainer.training_step
    config = config_of("timed")

    def training_step(self, *args, **kwargs):
        now[0] += 100
        return real(self, *args, **kwargs)

    monkeypatch.setattr(CatalogTrainer, "training_step", training_step)
    monkeypatch.setattr("seqrec_prompt.finetuning.training.time", SimpleNamespace(monotonic=lambda: now[0]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 5)
        finetune(config)
    assert now == [400]
    finetune(config)
    assert read_manifest(config.out, "finetune")["facts"]["seconds"] == 600


def test_a_training_that_fails_leaves_no_thread(config_of, monkeypatch):
    """And no bar: the terminal is given back."""
    monkeypatch.setattr("sys.stderr", Terminal())
    bars, real = [], console.Bar.__init__
    monkeypatch.setattr(console.Bar, "__init__", lambda self, **settings: bars.append(self) or real(self, **settings))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="pulled the plug"):
        stop_at(patch, 2, RuntimeError)
        finetune(config_of("failed"))
    assert [bar.desc for bar in bars] == ["train"]
    assert bars[0] not in console.Bar._instances
    ours = [thread.name for thread in threading.enumerate() if getattr(thread, "tqdm_cls", None) is console.Bar]
    assert not ours
