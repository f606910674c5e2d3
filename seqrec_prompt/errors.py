"""Every error this package raises on purpose. Each message says what was wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class SeqrecError(Exception):
    """Base of all errors that are meant for the person at the keyboard."""


class ConfigError(SeqrecError):
    """A setting is unknown, missing or has an impossible value."""


class DataError(SeqrecError):
    """Input data cannot be used as it is. `problems` holds one line per finding."""

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        self.problems = list(problems)
        lines = self.problems if len(self.problems) == 1 else [f"{len(self.problems)} problems:", *self.problems]
        super().__init__("\n  ".join(lines) + (f"\n{hint}" if hint else ""))
        self._made_of = list(problems), hint

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes whole from another process."""
        return type(self), self._made_of


class ArtifactError(SeqrecError):
    """A file or directory made by an earlier stage is missing, damaged, or was made with other settings."""


class ModelError(SeqrecError):
    """A model or adapter cannot be found or does not fit what it is asked to do."""


class TemplateError(SeqrecError):
    """A prompt template does not fit the tokenizer or the context length."""


class MissingExtraError(SeqrecError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} is not installed. Install it with: {install}")
        self._made_of = what, install

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it comes whole from another process."""
        return type(self), self._made_of


class StageError(SeqrecError):
    """A verb that another one called has failed; the message says which, why, and how to go on."""


class CostError(SeqrecError):
    """A price is unknown, or higher than was allowed; nothing was sent."""


class HostedError(SeqrecError):
    """A hosted service refused, failed or did not answer.

    status: of its HTTP answer, None without one. reached: False where not even a connection was made. retry_after:
    seconds that it asked to wait. exhausted: the account has no money left, so that waiting does not help.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        reached: bool = True,
        retry_after: float | None = None,
        exhausted: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reached = reached
        self.retry_after = retry_after
        self.exhausted = exhausted


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: Python's, numpy's, or torch's on a GPU or a CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch.OutOfMemoryError, without importing torch
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error))  # torch on a CPU
    )


def met_limit(error: Exception) -> str | None:
    """What to tell when a library met a limit of the machine in words of its own; None when it is anything else."""
    told = str(error).partition("\n")[0]
    if is_out_of_memory(error):
        return "out of memory. Where --help lists --batch-size, a smaller one takes less"
    if type(error).__name__ == "SafetensorError" and "os error" in told:  # safetensors knows no OSError
        return told
    if isinstance(error, RuntimeError) and (
        "inline_container" in told or "PytorchStreamWriter" in told
    ):  # torch.save on a full disk
        return f"cannot write, is the disk full? ({told})"
    return None
