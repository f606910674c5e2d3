"""A few real steps and a few real sessions on this machine, timed."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.lists import Candidates
    from seqrec_prompt.data.sessions import Sessions
    from seqrec_prompt.finetuning.finetune import FinetuneConfig
    from seqrec_prompt.prompting.templates import TemplateConfig
    from seqrec_prompt.ragged import LongArray
    from seqrec_prompt.recommenders.llm.settings import LLMConfig

LOOKED = 0.02  # seconds between two looks at the memory


@dataclass
class Peak:
    """Bytes that a process, or a GPU, held at most."""

    bytes: int = 0


@dataclass(frozen=True)
class Trained:
    """start: seconds until the first step. rate: seconds a token, padding included. bytes: at most, longest batch."""

    start: float
    rate: float
    bytes: int
    steps: int


@dataclass(frozen=True)
class Decoded:
    """start: seconds until the first session. rate: seconds a token read, of prompt and titles. bytes: at most.

    tree_tokens, rounds: of a session after its prompt, on average.
    """

    start: float
    rate: float
    bytes: int
    tree_tokens: float
    rounds: float
    sessions: int


def probe_training(config: FinetuneConfig, data: Dataset, steps: int, sizes: LongArray) -> Trained:
    """Train `steps` steps on random batches, after one to warm up, and then one on the longest examples.

    sizes: (examples,) tokens of each. Nothing is kept.
    """
    from seqrec_prompt.finetuning.setup import build_trainer

    draw, at_once = np.random.default_rng(config.seed), config.batch_size * config.gradient_accumulation
    random = [draw.choice(len(sizes), min(at_once, len(sizes)), replace=False) for _ in range(steps + 1)]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, peak_memory() as peak:
        trainer, _ = build_trainer(config.model_copy(update={"out": Path(place)}), data)
        trainer.create_optimizer()
        trainer.model.train()
        start = time.perf_counter() - started
        _step(trainer, random[0], config.batch_size)
        begun = _now()
        tokens = sum(_step(trainer, rows, config.batch_size) for rows in random[1:])
        seconds = _now() - begun
        _step(trainer, np.argsort(-sizes, kind="stable")[:at_once], config.batch_size)
    return Trained(start, seconds / tokens, peak.bytes, steps)


def _step(trainer: Any, rows: LongArray, size: int) -> int:
    """One optimizer step on these examples, `size` at once; returns the tokens read, padding included."""
    import torch

    tokens = 0
    for first in range(0, len(rows), size):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in rows[first : first + size].tolist()])
        tokens += batch["input_ids"].numel()
        batch = {name: values.to(trainer.args.device) for name, values in batch.items()}
        trainer.accelerator.backward(trainer.compute_loss(trainer.model, batch))
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return tokens


def _now() -> float:
    """Seconds, once everything is computed that was asked for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def probe_decoding(
    config: LLMConfig,
    prompts: Sessions,
    data: Dataset,
    template: TemplateConfig,
    sessions: int,
    k: int,
    candidates: Candidates | None = None,
) -> Decoded:
    """Recommend k items for `sessions` random ones of `prompts`, after one to warm up.

    candidates: for Rank, which is asked about the sessions that have some.
    """
    from seqrec_prompt.recommenders.llm.prompt import Effort
    from seqrec_prompt.recommenders.llm.variants import build_recommender

    started = time.perf_counter()
    if candidates is not None:
        prompts = prompts.take(np.flatnonzero(candidates.of(prompts.ids).lengths))
    drawn = np.random.default_rng(0).choice(len(prompts), min(sessions, len(prompts)), replace=False)
    drawn = drawn[np.argsort(prompts.lengths[drawn], kind="stable")]  # as `recommend` orders them
    with peak_memory() as peak:
        recommender = build_recommender(config, data, template, candidates=candidates)
        start = time.perf_counter() - started
        recommender.recommend(prompts.take(drawn[:1]), k, exclude_seen=False)
        recommender.effort = Effort()
        begun = _now()
        recommender.recommend(prompts.take(drawn), k, exclude_seen=False)
        seconds = _now() - begun
    effort, means = recommender.effort, recommender.effort.means()
    read = effort.prompt_tokens + effort.tree_tokens
    return Decoded(start, seconds / read, peak.bytes, means["tree_tokens"], means["rounds"], len(drawn))


@contextlib.contextmanager
def peak_memory() -> Iterator[Peak]:
    """Fill in, at the end, what was held at most inside: of the GPU if there is one, else by this process."""
    import psutil
    import torch

    peak, done = Peak(), threading.Event()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = int(torch.cuda.max_memory_allocated())
        return
    process: Any = psutil.Process()

    def look() -> None:
        while not done.wait(LOOKED):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        done.set()
        watching.join()
