"""Attention for tokens that lie side by side: many sessions' prefixes as one row, without padding.

A forward over a batch of trees would pad each session to the longest; most of a small model's time is in its linear
layers, which then mostly multiply padding. Here the tokens of all sessions are one row (1, tokens); only inside
attention they are spread to (sessions, longest), to meet the keys of their own session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "seqrec_packed"


@dataclass(frozen=True)
class Packing:
    """Where each token of the row belongs: `row` and `column` (tokens,) of a (rows, columns) batch."""

    row: torch.Tensor
    column: torch.Tensor
    shape: tuple[int, int]

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, size) → (rows, heads, columns, size), zeros where there is no token."""
        _, heads, _, size = states.shape
        batch = states.new_zeros((self.shape[0], heads, self.shape[1], size))
        batch[self.row, :, self.column] = states[0].transpose(0, 1)
        return batch

    def gather(self, batch: torch.Tensor) -> torch.Tensor:
        """(rows, columns, …) → (1, tokens, …)."""
        return batch[self.row, self.column][None]


class PackedCache(DynamicCache):  # type: ignore[misc]
    """Keys and values per session; while `packing` is set, what is added comes as one row."""

    packing: Packing | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *more: Any, **named: Any
    ) -> Any:
        """Add the states of new tokens; returns all keys and values of the layer, (rows, heads, all columns, size)."""
        if self.packing is not None:
            key_states, value_states = self.packing.spread(key_states), self.packing.spread(value_states)
        return super().update(key_states, value_states, layer_idx, *more, **named)


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **named: Any
) -> tuple[torch.Tensor, None]:
    packing: Packing | None = named.pop("packing", None)
    if packing is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        return plain
    found, _ = sdpa_attention_forward(module, packing.spread(query), key, value, attention_mask, **named)
    return packing.gather(found), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
