"""Where losses are sent: tensorboard gets those of the log, what is not installed is refused before anything loads."""

import contextlib
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys

import pytest

from seqrec_prompt import cli
from seqrec_prompt.errors import MissingExtraError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.recommenders.llm.prefer import PreferConfig, prefer


@pytest.fixture
def settings(tiny_model, dataset_dir, tmp_path):
    return {"data": dataset_dir, "out": tmp_path / "adapter", "model": str(tiny_model), "context": 1024}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_the_losses_of_the_log_and_keeps_them(settings, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    config = FinetuneConfig(**settings, max_steps=3, logging_steps=1, report_to="tensorboard", dtype="float32")
    finetune(config)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    log = json.loads((config.out / "log.json").read_text())
    assert found == pytest.approx({entry["step"]: entry["loss"] for entry in log if "loss" in entry}, rel=1e-6)
    assert sorted(found) == [1, 2, 3]
    assert {path.name for path in config.out.iterdir()} >= {"tensorboard", "manifest.json"}


def losses(config):
    log = json.loads((config.out / "log.json").read_text())
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_gets_the_losses_of_the_log(settings, tmp_path, monkeypatch):
    import wandb

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    sent, log = {}, wandb.sdk.wandb_run.Run.log

    def keep(run, data, *args, **kwargs):
        if "train/loss" in data:
            sent[data["train/global_step"]] = data["train/loss"]
        return log(run, data, *args, **kwargs)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "log", keep)
    config = FinetuneConfig(**settings, max_steps=2, logging_steps=1, report_to="wandb", dtype="float32")
    finetune(config)
    wandb.finish()
    assert sent == pytest.approx(losses(config))
    assert sorted(sent) == [1, 2]
    assert list((tmp_path / "wandb").glob("offline-run-*"))


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_keeps_the_losses_of_the_log(settings, tmp_path):
    """In a process of its own: where trackio writes is settled when it is imported."""
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += ["--max-steps=2", "--logging-steps=1", "--report-to=trackio", "--dtype=float32"]
    given = os.environ | {"TRACKIO_DIR": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "seqrec_prompt", "finetune", *flags]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = {}
    for file in (tmp_path / "kept").glob("*.db"):
        with contextlib.closing(sqlite3.connect(file)) as base:
            kept |= {row[0]: json.loads(row[1]) for row in base.execute("SELECT step, metrics FROM metrics")}
    found = {values["train/global_step"]: values["train/loss"] for values in kept.values() if "train/loss" in values}
    assert found == pytest.approx(losses(FinetuneConfig(**settings)))
    assert sorted(found) == [1, 2]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_before_the_model_loads(settings, tmp_path, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    monkeypatch.setattr("seqrec_prompt.engines.models.model_hash", lambda *_: pytest.fail("the model was looked at"))
    with pytest.raises(
        MissingExtraError, match=rf"'report_to' is {name}, .* with: pip install .seqrec_prompt\[{name}\].$"
    ):
        finetune(FinetuneConfig(**settings, report_to=name))
    second = {"adapter": tmp_path / "first", "negatives": tmp_path / "train.parquet"}
    with pytest.raises(MissingExtraError, match=rf"seqrec_prompt\[{name}\]"):
        prefer(PreferConfig(**settings, **second, report_to=name))
    assert not settings["out"].exists()


def test_an_unknown_tracker_is_named_with_the_known_ones(settings, capsys):
    flags = [f"--{name}={value}" for name, value in settings.items()]
    assert cli.run("finetune", [*flags, "--report-to", "mlfow"]) == cli.EXIT_ERROR
    shown = capsys.readouterr().err
    assert "'report_to' = 'mlfow'" in shown
    for name in ("none", "tensorboard", "wandb", "trackio"):
        assert f"'{name}'" in shown
