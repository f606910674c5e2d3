"""A training run as it is seen: steps and loss through the package's own progress, not a bar of each library."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from seqrec_prompt.console import Progress


def watch(trainer: Any) -> None:
    """Let `trainer`, any of transformers', count its steps with `console.Progress`."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Steps())


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Counts optimizer steps of the main process, with the latest loss beside them."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.progress = Progress(state.max_steps, "train", "steps", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.update(state.global_step - self.progress.done, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        shown = {name: value for name, value in (logs or {}).items() if name == "loss" or name.startswith("eval_")}
        if shown:
            self.note = ", ".join(f"{name.removeprefix('eval_')} {float(value):.4g}" for name, value in shown.items())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.close()
