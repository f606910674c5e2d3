"""Packing: short examples side by side in one row, each seeing only itself, so that less padding is computed.

A batch holds the same examples as without, and its loss is the same. Position ids that begin again tell transformers
(from 5 on) where one example ends: it then masks attention between them, with every attention implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from seqrec_prompt.errors import ConfigError
from seqrec_prompt.finetuning.examples import IGNORED

Batch = dict[str, torch.Tensor]
# Rows take about so many of the longest example. Attention is computed over whole rows: in much wider ones it costs
# more than the padding that they save.
WIDTH = 2


@dataclass(frozen=True)
class PackingCollator:
    """Packs what another collator pads."""

    padded: Callable[[Sequence[Mapping[str, Any]]], Batch]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Build the batch of `examples`."""
        return pack(self.padded(examples))


def pack(batch: Batch) -> Batch:
    """Lay the examples of a padded batch, (B, T), into few rows of about equal length, (R, W) with R ≤ B.

    Examples go, from the longest, into the row with the fewest tokens (Graham, 1969: the longest row has at most 4/3 of
    the tokens that it must have). position_ids take the place of attention_mask, 0 at what padding is left. `decisions`
    move along.
    """
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    used = [0] * math.ceil(sum(lengths) / (WIDTH * max(lengths)))
    row, start = torch.zeros(len(lengths), dtype=torch.long), torch.zeros(len(lengths), dtype=torch.long)
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = used.index(min(used))
        row[example], start[example] = place, used[place]
        used[place] += lengths[example]
    width = max(used)
    owner, position = batch["attention_mask"].nonzero(as_tuple=True)
    to = row[owner], start[owner] + position
    packed = {}
    for name, empty in (("input_ids", 0), ("labels", IGNORED)):
        packed[name] = torch.full((len(used), width), empty, dtype=torch.long)
        packed[name][to] = batch[name][owner, position]
    packed["position_ids"] = torch.zeros((len(used), width), dtype=torch.long)
    packed["position_ids"][to] = position
    # Nothing stands before an example's first token: it is no target, neither alone nor behind another example.
    packed["labels"][row, start] = IGNORED
    if "decisions" in batch:
        decisions = batch["decisions"].clone()
        decisions[:, 0] = row[batch["decisions"][:, 0]]
        decisions[:, 1] += start[batch["decisions"][:, 0]]
        packed["decisions"] = decisions
    return packed


def refuse_mixing(model: Any) -> None:
    """Raise ConfigError when what a model makes of an example depends on what stands before it in the row.

    Found by trying: an example must come out the same behind this one, behind that one, and alone. State-space models,
    for one, go on with their state. Where the weights are not whole (ZeRO-3, FSDP's other ranks) nothing can be tried.
    """
    if is_deepspeed_zero3_enabled() or model.device.type == "meta":
        return
    ids = torch.arange(12, device=model.device).reshape(2, 6) % model.config.get_text_config().vocab_size
    ids[1, 3:] = ids[0, 3:]
    places = torch.arange(3, device=model.device).repeat(2, 2)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            behind = model(input_ids=ids, position_ids=places, use_cache=False).logits[:, 3:].float()
            alone = model(input_ids=ids[:1, 3:], position_ids=places[:1, 3:], use_cache=False).logits.float()
    except TypeError:  # it takes no positions
        behind, alone = torch.zeros(2), torch.ones(1)
    model.train(training)
    # Alone, other kernels may do the sums: in half precision single logits of a good model then differ by a few per
    # cent of the largest, all of them together by far less than where examples are mixed.
    wrong = torch.linalg.vector_norm(behind - alone) / torch.linalg.vector_norm(alone.expand_as(behind)).clamp(min=1e-9)
    if not wrong <= (1e-3 if model.dtype == torch.float32 else 0.1):
        raise ConfigError(
            f"'packing': in a {type(model).__name__} an example is not independent of the others in its row. Leave "
            "packing out."
        )
