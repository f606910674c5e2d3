"""How much there is to compute: counted from the very examples and prompts, in tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqrec_prompt.errors import DataError
from seqrec_prompt.ragged import LongArray

if TYPE_CHECKING:
    from seqrec_prompt.planning.plan import PlanConfig

ORDERS = 5  # shufflings over which the padding is averaged


@dataclass(frozen=True)
class Work:
    """examples: training examples. steps: optimizer steps. step_tokens: tokens of a step, padding included, on average.

    longest: tokens of the longest example. sessions: to recommend for. prompt_tokens: of a prompt, on average.
    """

    examples: int
    steps: int
    step_tokens: float
    longest: int
    sessions: int
    prompt_tokens: float
    longest_prompt: int

    @property
    def tokens(self) -> float:
        """Of the whole training, padding included."""
        return self.steps * self.step_tokens


def work_of(config: PlanConfig, sizes: LongArray, asked: LongArray) -> Work:
    """sizes: (examples,) tokens of each training example; asked: (test sessions,) tokens of each prompt.

    Raises DataError when there is nothing to train on, or nobody to recommend for.
    """
    if not len(sizes) or not len(asked):
        what = "no training examples" if not len(sizes) else "no test sessions"
        raise DataError([f"there are {what}"], "Prepare longer or more sessions.")
    an_epoch = math.ceil(math.ceil(len(sizes) / config.batch_size) / config.gradient_accumulation)
    steps = config.max_steps or math.ceil(an_epoch * config.epochs)
    padded = padded_tokens(sizes, config.batch_size)
    return Work(
        len(sizes),
        steps,
        padded / an_epoch,
        int(sizes.max()),
        config.wanted(len(asked)),
        float(asked.mean()),
        int(asked.max()),
    )


def padded_tokens(sizes: LongArray, batch: int) -> float:
    """Tokens of one pass in random order, every example padded to the longest of its batch; a mean over ORDERS."""
    draw, total = np.random.default_rng(0), 0
    for _ in range(ORDERS):
        shuffled = draw.permutation(sizes)
        starts = np.arange(0, len(sizes), batch)
        counts = np.minimum(batch, len(sizes) - starts)
        total += int((np.maximum.reduceat(shuffled, starts) * counts).sum())
    return total / ORDERS
