"""A sequential model as one module: items in, states of the sessions, summed loss or scores out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.engines.hardware import computes_bfloat16
from seqrec_prompt.ragged import IntArray
from seqrec_prompt.recommenders.base import FloatArray
from seqrec_prompt.recommenders.nearest.topk import first
from seqrec_prompt.recommenders.sequential.batches import by_length, padded
from seqrec_prompt.recommenders.sequential.embedding import Adapted, Fused, Learned
from seqrec_prompt.recommenders.sequential.encoders import build_encoder
from seqrec_prompt.recommenders.sequential.losses import CHUNK_ELEMENTS, gbce_loss, sampled_softmax_loss, softmax_loss
from seqrec_prompt.recommenders.sequential.settings import SequentialConfig


class SequentialModel(nn.Module):
    """Items, an encoder over them and, for BERT4Rec, the vector of a hidden item.

    kind: 'sasrec', 'bert4rec' or 'gru4rec'. items: a module that gives the (items, dim) matrix. candidates: the items
    that the loss compares, (n,) positions; None: all.
    """

    def __init__(
        self, kind: str, config: SequentialConfig, items: nn.Module, candidates: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.kind, self.config, self.items = kind, config, items
        self.encoder = build_encoder(kind, config)
        self.mask = nn.Parameter(torch.zeros(1, config.dim)) if kind == "bert4rec" else None
        with torch.no_grad():
            self.n_items = len(items())
        place = None
        if candidates is not None:  # where each item stands among them
            place = torch.full((self.n_items,), -1)
            place[candidates] = torch.arange(len(candidates))
        self.candidates: torch.Tensor | None
        self.place: torch.Tensor | None
        self.register_buffer("candidates", candidates, persistent=False)
        self.register_buffer("place", place, persistent=False)

    @classmethod
    def from_arrays(cls, kind: str, config: SequentialConfig, arrays: Mapping[str, np.ndarray]) -> SequentialModel:
        """Build the model that `state_dict` described."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        weight, frozen = tensors.get("items.weight"), tensors.get("items.frozen")
        if frozen is None:
            items: nn.Module = Learned(tensors["items.weight"])
        else:
            items = Adapted(frozen, config.dim) if weight is None else Fused(frozen, weight)
        model = cls(kind, config, items)
        model.load_state_dict(tensors)
        return model

    def states(self, matrix: torch.Tensor, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """matrix: (items, dim). inputs: (B, L), the number of items stands for the mask. Returns (B, L, dim)."""
        if self.mask is not None:
            matrix = torch.cat([matrix, self.mask])
        states: torch.Tensor = self.encoder(F.embedding(inputs, matrix), lengths, inputs == self.n_items)
        return states

    def forward(
        self, inputs: torch.Tensor, lengths: torch.Tensor, asked: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Loss summed over the places `asked`, in nats; see `Batch` for the arguments."""
        config, matrix = self.config, self.items()
        half = config.precision == "bfloat16" and computes_bfloat16(inputs.device)
        narrow = torch.bfloat16 if half else torch.float32
        on_gpu = inputs.device.type != "cpu"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=on_gpu and half):
            states = self.states(matrix, inputs, lengths)
        hidden = states.reshape(-1, config.dim)[asked].float()
        matrix, hidden = self.scored(matrix), self.scored(hidden)
        if self.candidates is not None and self.place is not None:
            matrix, targets = matrix[self.candidates], self.place[targets]
        if config.loss == "sampled_softmax":
            return sampled_softmax_loss(hidden, matrix, targets, config.negatives)
        if config.loss == "gbce":
            return gbce_loss(hidden, matrix, targets, config.negatives, config.calibration)
        return softmax_loss(hidden, matrix, targets, narrow)

    def scored(self, vectors: torch.Tensor) -> torch.Tensor:
        """Items or states, (n, dim), as their product is the score."""
        if self.config.temperature is None:
            return vectors
        units: torch.Tensor = F.normalize(vectors, dim=1) * self.config.temperature**-0.5
        return units

    @torch.no_grad()
    def best(self, sessions: Sessions, k: int, *, exclude_seen: bool) -> tuple[IntArray, FloatArray]:
        """Return (n, k) items and scores, best first; an item of -1 where no other is left. No session may be empty."""
        matrix = self.items()
        scored, device, n = self.scored(matrix), matrix.device, len(matrix)
        k = min(k, n)
        found, scores = np.full((len(sessions), k), -1, np.int32), np.zeros((len(sessions), k))
        short = sessions.last(self.config.max_items)
        for which in by_length(short, max(1, CHUNK_ELEMENTS // n)):
            values = self.scored(self.last_states(matrix, short.take(which))) @ scored.T
            if exclude_seen:
                seen = sessions.take(which)
                values[
                    torch.from_numpy(seen.rows).to(device), torch.from_numpy(seen.items).long().to(device)
                ] = -torch.inf
            value, item = first(values, k)
            item[value == -torch.inf] = -1
            found[which], scores[which] = item.cpu().numpy(), value.cpu().numpy()
        return found, scores

    def last_states(self, matrix: torch.Tensor, sessions: Sessions) -> torch.Tensor:
        """(n, dim) states from which the next item is told."""
        lengths, more = sessions.lengths, int(self.mask is not None)
        inputs = padded(sessions, more)
        if more:
            inputs[np.arange(len(inputs)), lengths] = len(matrix)
        told = torch.from_numpy(lengths + more).to(matrix.device)
        states = self.states(matrix, torch.from_numpy(inputs).to(matrix.device), told)
        return states[torch.arange(len(told), device=matrix.device), told - 1]
