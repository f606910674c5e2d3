"""Devices and their constants, each with where it is from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from seqrec_prompt.config import Config, read_table
from seqrec_prompt.errors import ConfigError

SHIPPED = Path(__file__).with_name("devices.yaml")
THIS = "this"
# Of a matrix product's speed, what SmolLM2 reaches on one CPU core: a whole step in bfloat16, and reading prompts and
# titles in float32, where the vocabulary is left out of most positions (the run of eval/results/planner.md).
TRAINING_SHARE, DECODING_SHARE = 0.5, 0.9


class Constant(Config):
    """A number and where it is from."""

    model_config = ConfigDict(populate_by_name=True)

    value: float = Field(gt=0)
    origin: Literal["measured", "datasheet", "assumed"] = Field(alias="from")

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.origin})"


class Device(Config):
    """What computes: operations a second, bytes, bytes a second, and the shares of the operations that are reached.

    libraries: bytes of its memory that Python and its libraries hold, whatever the model.
    """

    operations: Constant
    memory: Constant
    bandwidth: Constant
    training_share: Constant
    decoding_share: Constant
    dollars: float | None = Field(None, ge=0)
    libraries: int = Field(0, ge=0)

    @property
    def told_libraries(self) -> str:
        """The libraries' part of a formula of bytes."""
        return f" + {self.libraries / 1e9:.2f} GB of Python and its libraries" if self.libraries else ""


class Devices(Config):
    """A file of devices."""

    devices: dict[str, Device]


def device_of(name: str, file: Path | None, hidden: int, *, half: bool) -> Device:
    """A device by its name in a file; `this` is this machine, measured for a second.

    hidden, half: width of the model and type of its weights, for the product of matrices that is timed. Raises
    ConfigError for a file that is none, or a name that it does not have.
    """
    if name == THIS:
        return _this(hidden, half=half)
    known = read_table(Devices, file or SHIPPED, "devices", "--devices", SHIPPED).devices
    if name not in known:
        raise ConfigError(
            f"{file or SHIPPED} has no device '{name}'; it has: {', '.join(known)}, and there is '{THIS}'."
        )
    return known[name]


@cache
def _resident() -> int:
    """Bytes of memory that this process holds; asked once, so that training and recommending count the same."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _this(hidden: int, *, half: bool) -> Device:
    import torch

    from seqrec_prompt.finetuning.estimate import bytes_a_second, free_bytes, operations_a_second

    def measured(value: float) -> Constant:
        return Constant(value=value, origin="measured")

    # A model on a GPU does not share its memory with them.
    libraries = 0 if torch.cuda.is_available() else _resident()
    return Device(
        libraries=libraries,
        operations=measured(operations_a_second(hidden, half=half)),
        memory=measured(free_bytes()),
        bandwidth=measured(bytes_a_second()),
        training_share=measured(TRAINING_SHARE),
        decoding_share=measured(DECODING_SHARE),
    )
