"""vLLM's side of the search: a logits processor that answers a whole `Question` in one request.

A request names the tokens that it is made to write, `forced`, and those whose probability it asks for after them,
`choices`. vLLM reports log-probabilities of what it samples from, after the processors; so the answer is written into
the logits in a way that its log-softmax keeps. Both codes leave two or more tokens and make all others impossible:

- choices: log p at each of them, and log(1 - Σp), what is left, at one other token, the sink. The sum is one, so the
  log-softmax changes nothing, and the scores are the model's own over the whole vocabulary.
- a forced token: 0, so that it is the most probable and taken; and log p - 1 at the sink. The difference of the two is
  not changed by the log-softmax.

The interface is that of vLLM's first model runner (V1); the second has another, and the engine does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

FORCED, CHOICES = "seqrec_forced", "seqrec_choices"  # of SamplingParams.extra_args, lists of token ids


def sink(tokens: Sequence[int]) -> int:
    """The least token that is not among `tokens`."""
    taken = set(tokens)
    return next(token for token in range(len(taken) + 1) if token not in taken)


class CatalogProcessor(LogitsProcessor):  # type: ignore[misc]
    """Writes answers into the rows of requests that ask; leaves the others alone."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._asked: dict[int, _Asked] = {}

    def is_argmax_invariant(self) -> bool:
        """No: forced tokens are taken by greedy sampling."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they come, go and move between rows."""
        process_dict_updates(self._asked, batch_update, _Asked.of)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """(requests, vocabulary), changed in place; log p is of the logits as they come in."""
        if not self._asked:
            return logits
        steps = [asked.step() for asked in self._asked.values()]
        rows = torch.tensor(list(self._asked), device=logits.device)
        owner = torch.repeat_interleave(
            torch.arange(len(steps), device=logits.device),
            torch.tensor([len(wanted) for wanted, _, _ in steps], device=logits.device),
        )
        wanted = torch.tensor([token for tokens, _, _ in steps for token in tokens], device=logits.device)
        sinks = torch.tensor([sink for _, sink, _ in steps], device=logits.device)
        forced = torch.tensor([is_forced for _, _, is_forced in steps], device=logits.device)
        asked = logits[rows]
        logp = asked[owner, wanted] - asked.logsumexp(dim=-1)[owner]
        mass = torch.zeros(len(steps), device=logits.device).index_add_(0, owner, logp.exp())
        alone = torch.zeros_like(mass).index_copy_(0, owner, logp)  # log p of rows with one wanted token
        asked.fill_(-torch.inf)
        asked[owner, wanted] = torch.where(forced[owner], 0.0, logp)
        left = torch.log1p(-mass.clamp(max=1))
        asked[torch.arange(len(steps), device=logits.device), sinks] = torch.where(forced, alone - 1, left)
        logits[rows] = asked
        return logits


class _Asked:
    """What one request asks for, and where it stands: `written` is vLLM's list, which grows."""

    def __init__(self, forced: list[int], choices: list[int], written: list[int]) -> None:
        self.forced, self.choices, self.written = forced, choices, written
        self.sink = sink(choices)

    @classmethod
    def of(cls, params: Any, prompt: list[int] | None, written: list[int]) -> _Asked | None:
        extra = params.extra_args or {}
        return cls(extra.get(FORCED, []), extra[CHOICES], written) if CHOICES in extra else None

    def step(self) -> tuple[list[int], int, bool]:
        """Tokens wanted now, the sink beside them, and whether the one of them is forced."""
        at = len(self.written)
        if at < len(self.forced):
            token = self.forced[at]
            return [token], sink([token]), True
        return self.choices, self.sink, False
