"""Memory and time of a training run on this machine, before it: arithmetic on shapes, and one matrix product timed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seqrec_prompt.engines.hardware import device, torch_dtype
from seqrec_prompt.engines.models import resolve
from seqrec_prompt.errors import ModelError
from seqrec_prompt.finetuning.checks import Finding

TIMED = 0.3  # seconds spent on the matrix product
REACHED = 0.5  # of that speed, by a whole training step: 0.35 in bfloat16, 0.6 in float32 on a CPU; no GPU was measured
LORA_BYTES = 16  # a trained parameter: weight, gradient and two moments of AdamW, in float32
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What costs: parameters, layers, width and vocabulary of a model."""

    parameters: int
    layers: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, model: str, revision: str | None = None) -> Shape:
        """Read off a model's config; no weights are loaded. Raises ModelError when there is no such model."""
        try:
            config = AutoConfig.from_pretrained(resolve(model), revision=revision)
        except (OSError, ValueError) as error:
            raise ModelError(f"Cannot load the config of '{model}': {str(error).splitlines()[0]}") from None
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()  # models that see pictures keep it apart
        return cls(empty.num_parameters(), text.num_hidden_layers, text.hidden_size, text.vocab_size)


def training_bytes(
    shape: Shape,
    batch: int,
    tokens: int,
    rank: int = 16,
    *,
    half: bool,
    whole_vocabulary: bool,
    method: str = "lora",
    checkpointing: bool = False,
) -> int:
    """Peak memory of training, roughly.

    batch, tokens: sequences in a batch and their padded length. Weights; adapters of `rank` on all linear layers with
    AdamW, or with method 'full' the weights' own gradients and moments; activations of 34·batch·tokens·hidden bytes a
    layer in half precision, twice that in single (Korthikanti et al., 2022, without attention scores), with
    checkpointing of one layer and the inputs of all; logits in float32 and their gradient, where a loss reads the
    vocabulary.
    """
    width = 2 if half else 4
    # Seven linear layers of a block; their widths add up to about 14 times the hidden size, in and out.
    adapters = 0 if method == "full" else shape.layers * rank * 14 * shape.hidden
    weights = shape.parameters * {"full": LORA_BYTES, "qlora": 0.55}.get(method, width)
    layer = 17 * width * batch * tokens * shape.hidden
    inputs = width * batch * tokens * shape.hidden
    activations = layer + shape.layers * inputs if checkpointing else shape.layers * layer
    logits = 8 * batch * tokens * shape.vocabulary if whole_vocabulary else 0
    return int(weights + adapters * LORA_BYTES + activations + logits)


def training_flops(shape: Shape, tokens: float, method: str = "lora", *, checkpointing: bool = False) -> float:
    """Operations of training on `tokens`: 2 a parameter forward, 2 back to the activations, with method 'full' 2 to the
    weights, and with checkpointing 2 forward again."""
    return (4 + 2 * (method == "full") + 2 * checkpointing) * shape.parameters * tokens


def bytes_a_second() -> float:
    """Bytes a second that this machine reads from its memory, by a sum of half a gigabyte."""
    long = torch.ones(2**27, dtype=torch.float32, device=device())
    _synchronised(long.sum())
    started, rounds = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < TIMED:
        _synchronised(long.sum())
        rounds += 1
    return rounds * long.numel() * 4 / passed


def operations_a_second(hidden: int, *, half: bool) -> float:
    """Floating-point operations a second of this machine, by a product of matrices as a layer of `hidden` has them."""
    kind = device()
    dtype = torch.bfloat16 if half else torch.float32
    a = torch.ones(512, hidden, dtype=dtype, device=kind)
    b = torch.ones(hidden, 4 * hidden, dtype=dtype, device=kind)
    _synchronised(a @ b)
    started, rounds = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < TIMED:
        _synchronised(a @ b)
        rounds += 1
    return rounds * 2 * 512 * hidden * 4 * hidden / passed


def free_bytes() -> int:
    """Memory that is free for a model: of the first GPU if there is one, else of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil  # comes with accelerate

    return int(psutil.virtual_memory().available)


def estimate(model: str, revision: str | None, sizes: Any, batch: int, objective: str) -> list[Finding]:
    """What one pass over the training examples takes here. sizes: (examples,) their lengths in tokens."""
    shape = Shape.of(model, revision)
    half = torch_dtype("auto", training=True) == torch.bfloat16
    longest, total = int(sizes.max()), int(sizes.sum())
    needed = training_bytes(shape, batch, longest, half=half, whole_vocabulary=objective != "catalog")
    free = free_bytes()
    seconds = training_flops(shape, total) / (REACHED * operations_a_second(shape.hidden, half=half))
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    told = (
        f"{shape.parameters / 1e6:,.0f} million parameters in {'bfloat16' if half else 'float32'} on {where}, as "
        f"busy as it is now: one pass over {len(sizes):,} examples, {total:,} tokens, takes {duration(seconds)} and "
        f"{needed / GIB:.1f} GiB ({free / GIB:.1f} are free); roughly, with method lora and batches of {batch}"
    )
    advice = []
    if needed > free:
        advice.append("lower --batch-size, add --gradient-checkpointing, or train a 4-bit base: --method qlora")
    if seconds > 3600:
        steps = max(1, int(len(sizes) / batch * 3600 / seconds))
        advice.append(f"--max-steps {steps} is about an hour")
    return [Finding(told, "; ".join(advice))]


def duration(seconds: float) -> str:
    """About how long, in the largest fitting unit."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(1, round(seconds))} seconds"


def _synchronised(result: torch.Tensor) -> None:
    if result.is_cuda:
        torch.cuda.synchronize()
