"""Numbers are chosen by what the machine computes with, and a slow choice is told."""

import pytest
import torch

from seqrec_prompt.engines import hardware
from seqrec_prompt.engines.hardware import torch_dtype


@pytest.fixture(params=[False, True], ids=["no bfloat16", "bfloat16"])
def half(request, monkeypatch):
    """A CPU with or without instructions for bfloat16."""
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(hardware, "computes_bfloat16", lambda where: request.param)
    hardware._warn.cache_clear()
    return request.param


def test_auto_is_never_slow(half, capsys):
    assert torch_dtype("auto") == torch.float32
    assert torch_dtype("auto", training=True) == (torch.bfloat16 if half else torch.float32)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_asked_for_is_taken_and_told_once_where_it_is_slow(half, dtype, capsys):
    assert [torch_dtype(dtype), torch_dtype(dtype)] == [getattr(torch, dtype)] * 2
    said = capsys.readouterr().err
    assert said.count("warning:") == (0 if half else 1)
    assert half or (f"no instructions for {dtype}" in said and "auto" in said)
    assert torch_dtype("float32") == torch.float32
    assert capsys.readouterr().err == ""


def test_a_gpu_computes_with_it():
    assert hardware.computes_bfloat16(torch.device("cuda"))
