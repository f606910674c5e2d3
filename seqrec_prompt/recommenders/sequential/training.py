"""The training loop: epochs, validation, early stopping, one checkpoint an epoch, one device or many."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from seqrec_prompt import console
from seqrec_prompt.artifacts import atomic_file, is_done, recover
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.errors import ArtifactError, DataError, ModelError
from seqrec_prompt.ragged import LongArray
from seqrec_prompt.recommenders.sequential.batches import Batch, masked_items, next_items, orders, shortened
from seqrec_prompt.recommenders.sequential.model import SequentialModel
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig

METRIC = "ndcg@20"
Weights = dict[str, torch.Tensor]


@dataclass
class Progress:
    """Where training stands after an epoch. history: one entry an epoch; best: weights of the best one.

    ema: the weights' exponential moving average, with `ema_decay` alone.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: Weights = field(default_factory=dict)
    ema: Weights = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """Epoch, from 1, of the highest validation metric; the last one without validation."""
        if METRIC not in self.history[-1]:
            return len(self.history)
        return 1 + int(np.argmax([entry[METRIC] for entry in self.history]))

    def is_over(self, config: SequentialConfig) -> bool:
        """Whether another epoch is not wanted."""
        done = len(self.history)
        if not done or config.patience is None:
            return done >= config.epochs
        return done >= config.epochs or done - self.best_epoch >= config.patience


@dataclass(frozen=True)
class Checkpoint:
    """One safetensors file, replaced after every epoch: weights, their average, best weights, moments of AdamW,
    history.

    identity: manifest of the run, without which a file is not gone on from.
    """

    path: Path
    identity: Mapping[str, Any]
    overwrite: bool = False

    def save(self, model: SequentialModel, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write the state after an epoch."""
        moments = optimizer.state_dict()["state"]
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in progress.best.items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in progress.ema.items()}
        tensors |= {f"optimizer.{i}.{name}": t for i, state in moments.items() for name, t in state.items()}
        metadata = {"identity": json.dumps(self.identity), "history": json.dumps(progress.history)}
        content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata)
        # `save_file` would write beside the file first, under a name that is nobody's to clear away after a kill.
        with atomic_file(self.path) as partial:
            partial.write_bytes(content)

    def load(self, model: SequentialModel, optimizer: torch.optim.Optimizer) -> Progress:
        """Put model and optimizer back to where the file left them; a fresh start without one.

        Raises ArtifactError when the file is damaged or of a run with other settings, unless `overwrite`.
        """
        if not self.path.exists():
            return Progress()
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found, history = json.loads(metadata["identity"]), json.loads(metadata["history"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ArtifactError(f"{self.path} is no checkpoint, or damaged ({error}). Remove it.") from None
        try:
            is_done(self.path, found, self.identity, overwrite=False)
        except ArtifactError:
            if self.overwrite:
                return Progress()
            raise
        parts: dict[str, Weights] = {"model": {}, "best": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        model.load_state_dict(parts["model"])
        moments: dict[int, Weights] = {}
        for name, tensor in parts["optimizer"].items():
            i, _, rest = name.partition(".")
            moments.setdefault(int(i), {})[rest] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        print(f"going on: {len(history):,}/{model.config.epochs:,} epochs are done")
        device = next(model.parameters()).device  # the average moves on there, with the weights
        return Progress(history, parts["best"], {name: tensor.to(device) for name, tensor in parts["ema"].items()})


def train(
    model: SequentialModel,
    sessions: Sessions,
    judge: Callable[[], float] | None,
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train `model` in place, which ends with the weights of its best epoch; returns the history.

    sessions: to learn from; those of a single item teach nothing. judge: validation metric of the model as it is, in
    place of which the last epoch counts. A step takes `batch_size` sessions over all processes of `accelerate launch`,
    each its share, and averages the loss over their positions, so the number of devices changes rounding and dropout
    alone. Every epoch has its own random numbers: what follows a checkpoint is what would have followed unbroken.

    Raises DataError when there is nothing to learn from, ModelError when the loss is no longer finite.
    """
    config = model.config
    # Frozen vectors are the same on every device: nothing to send around.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=handlers)
    sessions = sessions.take(sessions.lengths >= 2).last(config.max_items + int(model.mask is None))
    if len(sessions) < accelerator.num_processes:
        raise DataError([f"{len(sessions)} train sessions have two items or more: too few to train on"])
    model.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    if checkpoint and checkpoint.path.parent.exists() and accelerator.is_main_process:
        recover(checkpoint.path)  # a kill while one was written
    progress = checkpoint.load(model, optimizer) if checkpoint else Progress()
    network, optimizer = accelerator.prepare(model, optimizer)
    with console.progress(config.epochs, f"train {model.kind}", "epochs", len(progress.history)) as bar:
        while not progress.is_over(config):
            entry = _epoch(network, model, optimizer, sessions, accelerator, progress)
            with _averaged(model, progress.ema):
                if judge is not None:
                    model.eval()
                    shared = [judge() if accelerator.is_main_process else 0.0]
                    entry[METRIC] = broadcast_object_list(shared)[0]
                progress.history.append(entry)
                if progress.best_epoch == len(progress.history):
                    progress.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            if checkpoint and accelerator.is_main_process:
                checkpoint.save(model, optimizer, progress)
            bar.update(note=", ".join(f"{name} {value:.4f}" for name, value in entry.items() if name != "epoch"))
    model.load_state_dict(progress.best)
    model.eval()
    return progress


def _epoch(
    network: torch.nn.Module,
    model: SequentialModel,
    optimizer: torch.optim.Optimizer,
    sessions: Sessions,
    accelerator: Accelerator,
    progress: Progress,
) -> dict[str, float]:
    """One pass over all sessions; returns the epoch's number from 1, mean loss in nats a position, and seconds."""
    config, epoch, started = model.config, len(progress.history), time.monotonic()
    draw = np.random.default_rng([config.seed, epoch])
    torch.manual_seed(int(draw.integers(2**62)) + accelerator.process_index)
    network.train()
    total, positions = torch.zeros((), device=accelerator.device), 0
    last = np.zeros(len(sessions), np.bool_)
    if model.mask is not None:
        sessions, last = shortened(sessions, config.mask_last, draw)
    batches = orders(sessions.lengths, config.batch_size, draw)
    for step, which in enumerate(batches, epoch * len(batches)):
        # Every process makes the whole batch, from the same numbers, and takes its share.
        batch, share = _batch(model, sessions.take(which), last[which], draw, accelerator)
        loss = network(*share)
        # DDP averages gradients over processes; the sum of the shares is wanted.
        accelerator.backward(loss * (accelerator.num_processes / len(batch.asked)))
        if config.clip_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if config.ema_decay is not None:
            # A young average forgets faster, or the random start would stay in it.
            _average(model, progress.ema, min(config.ema_decay, (1 + step) / (10 + step)))
        total += loss.detach()
        positions += len(batch.asked)
    mean = float(accelerator.reduce(total)) / positions
    if not math.isfinite(mean):
        raise ModelError(f"Training diverged in epoch {epoch + 1}: the loss is {mean}. Lower the learning rate.")
    return {"epoch": epoch + 1, "loss": mean, "seconds": time.monotonic() - started}


@torch.no_grad()
def _average(model: SequentialModel, ema: Weights, kept: float) -> None:
    """Move the average `ema` towards the weights: the share `kept` of it stays."""
    for name, weight in model.named_parameters():
        if name in ema:
            ema[name].lerp_(weight, 1 - kept)
        else:
            ema[name] = weight.detach().clone()


@contextmanager
def _averaged(model: SequentialModel, ema: Weights) -> Iterator[None]:
    """Let the model have the weights `ema`, if there are any, for a while."""
    own = {name: weight.detach().clone() for name, weight in model.named_parameters() if name in ema}
    model.load_state_dict(ema, strict=False)
    try:
        yield
    finally:
        model.load_state_dict(own, strict=False)


def _batch(
    model: SequentialModel,
    sessions: Sessions,
    last: npt.NDArray[np.bool_],
    draw: np.random.Generator,
    accelerator: Accelerator,
) -> tuple[Batch, list[torch.Tensor]]:
    """The batch of all processes and the tensors of this one's sessions."""
    config = model.config
    if model.mask is None:
        batch = next_items(sessions)
    else:
        batch = masked_items(sessions, model.n_items, config.mask_probability, last, draw)
    mine = batch if accelerator.num_processes == 1 else _share(batch, accelerator)
    arrays: list[LongArray] = [mine.inputs, mine.lengths, mine.asked, mine.targets]
    return batch, [torch.from_numpy(array).to(accelerator.device, non_blocking=True) for array in arrays]


def _share(batch: Batch, accelerator: Accelerator) -> Batch:
    """Every n-th session of a batch; where there are fewer sessions than processes, one without a place asked."""
    rank, n, width = accelerator.process_index, accelerator.num_processes, batch.inputs.shape[1]
    rows = np.arange(rank, len(batch.lengths), n)
    row, place = np.divmod(batch.asked, width)
    mine = row % n == rank
    if not len(rows):
        rows = np.zeros(1, np.int64)
    return Batch(batch.inputs[rows], batch.lengths[rows], row[mine] // n * width + place[mine], batch.targets[mine])
