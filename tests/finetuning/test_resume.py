"""A stopped training goes on from its last checkpoint and ends where an unbroken one ends."""

import json

import pytest
import torch
from safetensors.torch import load_file

from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.trainers import CatalogTrainer


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
    final, expected = (load_file(c.out / "adapter_model.safetensors") for c in (config, unbroken))
    for name, tensor in expected.items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-6, atol=1e-8)
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
