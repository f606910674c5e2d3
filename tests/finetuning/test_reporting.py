"""Where losses are sent: tensorboard gets those of the log, what is not installed is refused before anything loads."""

import importlib.util
import json

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
