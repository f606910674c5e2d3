"""Attention for tokens that lie side by side: many sessions' tokens as one row, without padding.

A forward over a padded batch spends most of its time multiplying padding. Here the tokens of all sessions are one row
(1, tokens) wherever each is computed for itself; only inside attention they are spread to (rows, longest), to meet the
keys of their own session. Keys and values of a prompt are written once and never copied, moved or repeated per head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from seqrec_prompt.ragged import LongArray, TokenLists, offsets_of, places

NAME = "seqrec_packed"
# Attention scores that exist at once, in numbers: bounds them to 128 MB in float32.
SCORES = 1 << 25

Layer = tuple[torch.Tensor, torch.Tensor]  # keys and values (rows, heads, columns, size)


@dataclass(eq=False)
class Group:
    """Sessions whose prompts are of like length, with keys and values of all their tokens, per layer.

    sessions, lengths: (rows,) rising session numbers and tokens of their prompts. A slot is a token that was read: the
    last of each prompt first, then those of the branches. visible: (slots, columns) which columns of `branches` each
    slot sees, itself included.
    """

    sessions: LongArray
    lengths: LongArray
    prompts: list[Layer] = field(default_factory=list)
    branches: list[Layer] = field(default_factory=list)
    visible: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.visible = np.zeros((len(self.sessions), 0), np.bool_)

    def begin(self, device: torch.device, opening: Group | None = None) -> Reading:
        """Lay out the prompts, less the tokens of `opening`, a group of one that all of them begin with."""
        own = self.lengths - (0 if opening is None else opening.lengths[0])
        row, shape = np.repeat(np.arange(len(own)), own), (len(own), int(own.max()))
        return Prompts(_tensor(device, row), _tensor(device, places(own)), shape, self, opening)

    def branch(self, device: torch.device, session: LongArray, slot: LongArray, runs: TokenLists) -> Reading:
        """Lay out run i to be read after slot[i] of session[i]; each of its tokens becomes a slot, in their order."""
        run = np.repeat(np.arange(len(runs)), runs.lengths)
        row = np.searchsorted(self.sessions, session)[run]
        order = np.argsort(row, kind="stable")
        counts = np.bincount(row, minlength=len(self.sessions))
        column = np.empty(len(row), np.int64)
        column[order] = np.arange(len(row)) - offsets_of(counts)[:-1][row[order]]
        shape = (len(self.sessions), int(counts.max()))
        run_at = np.full(shape, -1)
        run_at[row, column] = run

        # A token sees its session's prompt, what its run's slot sees, and its own run up to itself.
        earlier = self.visible[slot[run_at]] & (run_at >= 0)[:, :, None]
        own = (run_at[:, :, None] == run_at[:, None, :]) & np.tri(shape[1], dtype=np.bool_)
        seen = np.concatenate([earlier, own], axis=2)
        before = np.pad(self.visible, ((0, 0), (0, shape[1])))
        self.visible = np.concatenate([before, seen[row, column]])
        prompt = np.arange(self.prompts[0][0].shape[2]) < self.lengths[:, None]
        at = _tensor(device, row), _tensor(device, column)
        kept, sees_kept = _looked_at(earlier)
        seen = seen if kept is None else np.concatenate([sees_kept, own], axis=2)
        columns = None if kept is None else _tensor(device, kept)
        return Branches(*at, shape, self, _tensor(device, ~prompt), _tensor(device, ~seen), columns)

    def forget(self) -> None:
        """Free keys and values: no session of the group goes on."""
        self.prompts, self.branches = [], []

    def drop_finished(self, session: LongArray) -> None:
        """Free keys and values of most sessions that are not in `session` (runs,), which go on."""
        going = np.unique(session)
        if 2 * len(going) > len(self.sessions):  # dropping copies what stays: not for each session that ends
            return
        stay = np.searchsorted(self.sessions, going)
        self.sessions, self.lengths = going, self.lengths[stay]
        for layers in (self.prompts, self.branches):
            for index, (keys, values) in enumerate(layers):
                rows = torch.from_numpy(stay).to(keys.device)
                layers[index] = keys[rows], values[rows]


@dataclass(frozen=True, eq=False)
class Reading(ABC):
    """Tokens of one group in a forward: `row` and `column` (tokens,) say where each belongs in `shape`."""

    row: torch.Tensor
    column: torch.Tensor
    shape: tuple[int, int]
    group: Group

    @abstractmethod
    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """(rows, columns, heads, size) from (rows, heads, columns, size); keys and values are kept in the group."""

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, size) → (rows, heads, columns, size), zeros where there is no token."""
        _, heads, _, size = states.shape
        batch = states.new_zeros((self.shape[0], heads, self.shape[1], size))
        batch[self.row, :, self.column] = states[0].transpose(0, 1)
        return batch

    def gather(self, batch: torch.Tensor) -> torch.Tensor:
        """(rows, columns, …) → (tokens, …)."""
        return batch[self.row, self.column]


@dataclass(frozen=True, eq=False)
class Prompts(Reading):
    """Prompts read from their beginning, or from where `opening` ends."""

    opening: Group | None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Causal attention; padding stands after a prompt, where its tokens do not look."""
        mask = None
        if self.opening is not None:
            opening = [part.expand(len(key), -1, -1, -1) for part in self.opening.prompts[layer]]
            key, value = (torch.cat([before, own], dim=2) for before, own in zip(opening, (key, value), strict=True))
            width, total = query.shape[2], key.shape[2]
            mask = torch.ones((width, total), dtype=torch.bool, device=key.device).tril(total - width)
        self.group.prompts.append((key, value))
        shared = query.shape[1] // key.shape[1]
        if shared > 1:
            key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale)
        return found.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Branches(Reading):
    """Runs of tokens that branch off after what was read before.

    earlier: (rows, kept) columns of the branches that any token of a row looks at, None for all. hidden_prompt: (rows,
    columns of the prompts) and hidden_branches: (rows, columns, kept and own columns): True where a token does not
    look.
    """

    hidden_prompt: torch.Tensor
    hidden_branches: torch.Tensor
    earlier: torch.Tensor | None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention over the prompt and the branches, without joining their keys."""
        group = self.group
        key, value = self._with_earlier(layer, key, value)
        prompt_key, prompt_value = group.prompts[layer]
        rows, heads, width, size = query.shape
        split = prompt_key.shape[2]
        # Heads that share keys stand beside each other: they are read as more queries of one head.
        query = query.view(rows, key.shape[1], -1, width, size)
        step = max(1, SCORES // (rows * heads * (split + key.shape[2])))
        parts = []
        for start in range(0, width, step):
            part = query[:, :, :, start : start + step]
            flat = part.flatten(2, 3)
            score = torch.cat([flat @ prompt_key.mT, flat @ key.mT], dim=-1).mul_(scale).view(*part.shape[:4], -1)
            least = torch.finfo(score.dtype).min
            score[..., :split].masked_fill_(self.hidden_prompt[:, None, None, None], least)
            score[..., split:].masked_fill_(self.hidden_branches[:, None, None, start : start + step], least)
            share = score.softmax(dim=-1, dtype=torch.float32).to(query.dtype).flatten(2, 3)
            found = share[..., :split] @ prompt_value + share[..., split:] @ value
            parts.append(found.view(part.shape).flatten(1, 2))
        return torch.cat(parts, dim=2).transpose(1, 2)

    def _with_earlier(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> Layer:
        """Keep keys and values for later rounds; return them after those of earlier rounds that are looked at."""
        kept = self.group.branches
        if layer == len(kept):
            kept.append((key, value))
            return key, value
        before = kept[layer]
        kept[layer] = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        if self.earlier is None:
            return kept[layer]
        at = self.earlier[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        return torch.cat([before[0].gather(2, at), key], dim=2), torch.cat([before[1].gather(2, at), value], dim=2)


def _looked_at(sees: npt.NDArray[np.bool_]) -> tuple[LongArray | None, npt.NDArray[np.bool_]]:
    """From (rows, tokens, columns): (rows, kept) the columns any token of a row sees, and who sees those.

    None where that would not save half: gathering copies keys.
    """
    any_sees = sees.any(axis=1)
    most = int(any_sees.sum(axis=1).max(initial=0))
    if 2 * most > sees.shape[2] or not most:
        return None, sees
    kept: LongArray = np.argsort(~any_sees, axis=1, kind="stable")[:, :most]
    return kept, np.take_along_axis(sees, kept[:, None, :], axis=2)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **named: Any
) -> tuple[torch.Tensor, None]:
    readings: list[Reading] | None = named.pop("readings", None)
    if readings is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        return plain
    scale = named.get("scaling") or query.shape[-1] ** -0.5
    found, start = [], 0
    for reading in readings:
        tokens = slice(start, start + len(reading.row))
        q, k, v = (reading.spread(states[:, :, tokens]) for states in (query, key, value))
        found.append(reading.gather(reading.attend(module.layer_idx, q, k, v, scale)))
        start = tokens.stop
    return torch.cat(found)[None], None


def _tensor(device: torch.device, array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
