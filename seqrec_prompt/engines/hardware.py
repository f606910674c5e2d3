"""What computes here, and with which numbers."""

from __future__ import annotations

import sys
from functools import cache
from typing import Literal

import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bfloat16(where: torch.device) -> bool:
    """Whether bfloat16 is for speed there.

    A CPU without instructions for it, as are most without AVX-512, multiplies matrices about fifty times slower in it.
    """
    return where.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def torch_dtype(dtype: Dtype, *, training: bool = False) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU, where results should not depend on the machine.

    For the frozen weights under an adapter in training it is bfloat16 also on a CPU that computes with it. What is
    asked for is taken, with a warning on standard error where it is slow.
    """
    here = device()
    if dtype == "auto":
        fast = here.type == "cuda" or (training and computes_bfloat16(here))
        return torch.bfloat16 if fast else torch.float32
    asked = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if asked != torch.float32 and not computes_bfloat16(here):
        _warn(dtype)
    return asked


@cache  # once a process
def _warn(dtype: str) -> None:
    print(
        f"warning: this CPU has no instructions for {dtype}, which may take fifty times as long as float32 on it. "
        "Leave 'dtype' at auto, or set it to float32.",
        file=sys.stderr,
    )
