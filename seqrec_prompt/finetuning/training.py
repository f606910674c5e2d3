"""What training verbs share: settings of a run, and the run itself, which goes on where it was stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import MANIFEST, is_done, peek_manifest, same, write_json
from seqrec_prompt.config import Config
from seqrec_prompt.errors import ArtifactError, MissingExtraError, ModelError
from seqrec_prompt.finetuning.validation import METRIC, ValidationConfig

CHECKPOINTS, STARTED, LOG, EVENTS = "checkpoints", "started.json", "log.json", "tensorboard"


class TrainingConfig(Config):
    """Settings of every training run."""

    data: Path = Field(description="directory made by 'prepare'")
    out: Path = Field(description="directory for the adapter")
    model: str = Field("smollm2", description="hub name, directory, or 'smollm2' (bundled)")
    revision: str | None = Field(None, description="revision of a hub model")
    context: int = Field(512, ge=16, description="longest training example in tokens")
    epochs: float = Field(1.0, gt=0, description="passes over the training examples")
    latest: int | None = Field(
        None, ge=1, description="train on so many of the latest sessions alone, where time is too short for all"
    )
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps")
    batch_size: int = Field(8, ge=1, description="examples a step and device")
    gradient_accumulation: int = Field(1, ge=1, description="batches summed before a step")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate (AdamW)")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps that warm up")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="learning rate over the steps"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, about a third slower")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the frozen base model")
    validation: ValidationConfig = ValidationConfig()
    save_steps: int = Field(20, ge=1, description="steps between checkpoints; training goes on from the last one")
    logging_steps: int = Field(10, ge=1, description="steps between log lines")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="where losses are sent; tensorboard: files in 'out'/tensorboard, kept with the adapter"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="order of the examples and start of the adapter")
    overwrite: bool = Field(False, description="begin again although the output directory holds another run")

    @model_validator(mode="after")
    def _validation_falls_on_checkpoints(self) -> TrainingConfig:
        if self.validation.steps and self.save_steps % self.validation.steps:
            raise ValueError(
                f"'save_steps' is {self.save_steps}, no multiple of validation.steps {self.validation.steps}: the best "
                "step must be one that is kept"
            )
        return self


def require_reporter(config: TrainingConfig) -> None:
    """Raise MissingExtraError when the library that losses are to be sent to is not installed."""
    name = config.report_to
    if name != "none" and importlib.util.find_spec(name) is None:
        raise MissingExtraError(f"'report_to' is {name}, which", f'pip install "seqrec_prompt[{name}]"')


def run(
    config: TrainingConfig,
    wanted: Mapping[str, Any],
    build: Callable[[], tuple[Any, dict[str, Any]]],
    summary: Callable[[dict[str, Any]], str],
) -> Path:
    """Train what `build` returns, TRL's trainer and facts about it, unless `out` holds just that; returns `out`.

    wanted: the manifest of the run. A stopped run goes on from its last checkpoint; a directory of another run is
    refused unless `overwrite`. summary: facts → the line to print at the end.
    """
    import torch
    from accelerate import PartialState

    from seqrec_prompt.finetuning.watch import seconds_at, watched

    _use_all_cores()
    # Without a GPU it knows of the other processes only when told that it computes on the CPU.
    process, checkpoints = PartialState(cpu=not torch.cuda.is_available()), config.out / CHECKPOINTS
    if process.is_main_process:
        with contextlib.suppress(OSError):
            checkpoints.rmdir()  # empty: a run was stopped before it began
    process.wait_for_everyone()
    found = peek_manifest(config.out) or peek_manifest(config.out, STARTED)
    if is_done(config.out, found, wanted, overwrite=config.overwrite) and (config.out / MANIFEST).exists():
        if process.is_main_process:
            _forget(config.out)
            print(f"already trained: {config.out}")
        return config.out
    replaces = config.overwrite and not _is_unfinished(config.out, wanted)
    if not replaces:
        _require_as_many(config.out, process.num_processes)
    started, before = time.monotonic(), 0.0
    process.wait_for_everyone()  # every process has looked before one writes
    trainer, facts = build()  # what cannot be trained costs nothing that is there
    _keep_events(trainer, config.out / EVENTS)
    if process.is_main_process:
        _begin(config.out, dict(wanted) | {"facts": {"processes": process.num_processes}}, replaces=replaces)
    process.wait_for_everyone()
    checkpoint = _last_checkpoint(checkpoints)
    if checkpoint:
        state = json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))
        before = seconds_at(state)
        if process.is_main_process:
            print(f"going on: {state['global_step']:,}/{state['max_steps']:,} steps are done ({checkpoint})")

    def seconds() -> float:
        return before + time.monotonic() - started

    with watched(trainer, seconds):
        trainer.train(resume_from_checkpoint=checkpoint)
    if not all(weight.isfinite().all() for weight in trainer.model.parameters() if weight.requires_grad):
        raise ModelError("Training diverged: the trained weights are not finite. Lower --learning-rate.")
    trainer.save_model(str(config.out))
    if process.is_main_process:
        _tidy(config.out, config.model)
        facts |= _measured(trainer, config) | {"seconds": round(seconds(), 1), "processes": process.num_processes}
        write_json(config.out / LOG, trainer.state.log_history)
        write_json(config.out / MANIFEST, dict(wanted) | {"facts": facts})
        _forget(config.out)
        print(summary(facts))
    process.wait_for_everyone()
    return config.out


def _measured(trainer: Any, config: TrainingConfig) -> dict[str, Any]:
    """What a finished training says of itself."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    ends = history[:1] + history[-1:]
    facts = {
        "steps": trainer.state.global_step,
        "loss": [entry["loss"] for entry in ends],
        "dtype": str(trainer.model.dtype).removeprefix("torch."),
        "hardware": hardware(),
    }
    if "rewards/margins" in history[0]:  # of preferences: β times how much more the chosen gained than the rejected
        facts |= {"margin": [entry["rewards/margins"] for entry in ends]}
        facts |= {"right": [entry["rewards/accuracies"] for entry in ends]}
    if config.validation.steps:
        facts |= {"validation": trainer.state.best_metric, "best_step": trainer.state.best_global_step}
    return facts


def _begin(out: Path, wanted: Mapping[str, Any], *, replaces: bool) -> None:
    """Say what is being trained, and take away what it replaces; killed anywhere here, the same command goes on."""
    if replaces:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)  # first: they are not this run's to go on from
    write_json(out / STARTED, dict(wanted))
    if replaces:
        (out / MANIFEST).unlink(missing_ok=True)
        for file in out.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != STARTED:
                file.unlink()


def _forget(out: Path) -> None:
    """Drop what an unfinished run goes on from."""
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    (out / STARTED).unlink(missing_ok=True)


def _keep_events(trainer: Any, directory: Path) -> None:
    """Let tensorboard write where it stays, unless TENSORBOARD_LOGGING_DIR says where: checkpoints go in the end."""
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = callback.logging_dir or str(directory)


def _is_unfinished(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether `out` holds the beginning of this very run: then there is nothing to overwrite, it goes on."""
    started = peek_manifest(out, STARTED)
    if started is None or (out / MANIFEST).exists():
        return False
    return same(started, wanted)


def _require_as_many(out: Path, processes: int) -> None:
    """Raise ArtifactError when a run that is to go on had another number of processes: `batch_size` is of each."""
    begun = (peek_manifest(out, STARTED) or {}).get("facts", {}).get("processes", processes)
    if begun != processes and _last_checkpoint(out / CHECKPOINTS):
        raise ArtifactError(
            f"{out}: this run was begun by {begun} processes and would go on with {processes}, with other batches and "
            f"in another order. Go on with {begun}, or remove {out / CHECKPOINTS} to begin anew."
        )


def _last_checkpoint(directory: Path) -> str | None:
    """The newest complete checkpoint: its trainer state is written last, a torn one lacks it or a part of it."""
    complete = [file.parent for file in directory.glob("checkpoint-*/trainer_state.json") if _is_json(file)]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


def _tidy(out: Path, model: str) -> None:
    """Let the adapter name its base as the user did (PEFT writes where this machine keeps it), and drop by-products."""
    shutil.rmtree(out / "ref", ignore_errors=True)  # the reference that DPOTrainer keeps: the first stage's adapter
    file = out / "adapter_config.json"
    if file.exists():
        write_json(file, json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": model})
    (out / "README.md").unlink(missing_ok=True)  # PEFT's card names that place too, and says nothing else
    (out / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest says what was set


def _use_all_cores() -> None:
    """Undo the one thread a process that `accelerate launch` and `torchrun` set unasked, where there is no GPU."""
    import torch

    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_WORLD_SIZE" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1" and not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def hardware() -> str:
    """Name the GPU, or how many CPU cores torch computes on, which may be fewer than there are."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = torch.get_num_threads()
    return f"CPU, {cores} core" + "s" * (cores > 1)


def losses(facts: dict[str, Any], unit: str) -> str:
    """First and last loss of a run and, if it was validated, what it came to."""
    found = " → ".join(f"{loss:.2f}" for loss in facts["loss"])
    best = f"; {METRIC} {facts['validation']:.4f} at step {facts['best_step']}" if "validation" in facts else ""
    return f"{facts['steps']} steps, {facts['seconds']:.0f} s, loss {found} {unit}{best}"
