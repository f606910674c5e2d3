"""A training run as it is seen: its steps and loss, the time it has taken, and when it is over.

What is learned of a run stands in its checkpoints, so that one that was stopped ends as an unbroken one does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from seqrec_prompt.console import Progress


@contextlib.contextmanager
def watched(trainer: Any, seconds: Callable[[], float]) -> Iterator[None]:
    """Let `trainer`, any of transformers', count its steps inside with `console.Progress`, not with its own bar.

    seconds: that the run has taken; its checkpoints keep them.
    """
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    steps = _Steps(seconds)
    trainer.add_callback(steps)
    try:
        yield
    finally:
        if steps.progress is not None:
            steps.progress.close()


def seconds_at(state: dict[str, Any]) -> float:
    """What a run had taken when it wrote the trainer state of a checkpoint; 0 where another version wrote it."""
    kept = state["stateful_callbacks"].get(_Steps.__name__)
    return float(kept["attributes"]["seconds"]) if kept else 0.0


class _Steps(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Counts optimizer steps of the main process, with the latest loss beside them."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.seconds = seconds
        self.progress: Progress | None = None
        self.note = ""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"seconds": self.seconds()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.stateful_callbacks.setdefault(_Steps.__name__, self.state())
        if state.is_world_process_zero:
            self.progress = Progress(state.max_steps, "train", "steps", state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.update(state.global_step - self.progress.done, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        shown = {name: value for name, value in (logs or {}).items() if name == "loss" or name.startswith("eval_")}
        if shown:
            self.note = ", ".join(f"{name.removeprefix('eval_')} {float(value):.4g}" for name, value in shown.items())


class Patience(TrainerCallback):  # type: ignore[misc]
    """Ends a training after so many judgements without a better one, counted in its log, which checkpoints keep."""

    def __init__(self, metric: str, patience: int) -> None:
        self.metric, self.patience = f"eval_{metric}", patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at what a stopped run was judged."""
        self._look(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the log, which the new judgement stands in."""
        self._look(state, control)

    def _look(self, state: Any, control: Any) -> None:
        judged = [entry[self.metric] for entry in state.log_history if self.metric in entry]
        if judged and len(judged) - 1 - judged.index(max(judged)) >= self.patience:
            control.should_training_stop = True
