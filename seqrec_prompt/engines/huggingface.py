"""A transformers model behind the search.

The engine reads a prompt once and then whole bundles of title prefixes as one packed tree per session: each open branch
sees the prompt and its own ancestors, no key or value is ever copied or reordered for a branch, and the LM head runs
only where a decision is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from seqrec_prompt.engines import packed
from seqrec_prompt.engines.hardware import Dtype, device, torch_dtype
from seqrec_prompt.engines.models import load_model, load_tokenizer, with_adapter
from seqrec_prompt.errors import ModelError
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, offsets_of, places, ranges

# Numbers of the LM head computed at once: bounds the logits to about 64 MB at any vocabulary.
LOGITS_ELEMENTS = 1 << 24
# A next token's logit is computed alone where it is one of fewer than a vocabulary's FEWth part that are wanted.
FEW = 16
# Tokens of a group of prompts, padded: enough to keep the device busy, few enough to pad little in attention.
PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}


@dataclass
class _Trees:
    """What the engine remembers of the sessions it has begun: groups of like prompts, and of each slot …"""

    groups: list[packed.Group]
    group_of: LongArray  # (sessions,) the group of each session
    place: LongArray  # (slots,) its number in its group
    length: LongArray  # (slots,) tokens up to and including it, prompt included
    hidden: torch.Tensor  # (slots, hidden) its last hidden state
    keep: bool  # whether sessions that an `extend` leaves out may come back


class HuggingFaceEngine:
    """Scores title prefixes with a transformers model (protocol `decoding.search.PrefixScorer`)."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.body = model.base_model
        self.head = model.get_output_embeddings()
        self.device = next(model.parameters()).device
        self.context = _context(model.config.get_text_config())
        self._trees: _Trees | None = None
        self._shared: tuple[IntArray, packed.Group] | None = None
        self._check()
        self.model.set_attn_implementation(packed.NAME)
        self._check_tree()

    @classmethod
    def load(
        cls, model: str, adapter: Path | None = None, dtype: Dtype = "auto", revision: str | None = None
    ) -> HuggingFaceEngine:
        """Load a base model, merge a LoRA adapter into it in float32 if one is given, and move it to the device."""
        loaded = load_model(model, torch.float32 if adapter else torch_dtype(dtype), revision)
        if adapter is not None:
            loaded = with_adapter(loaded, adapter)
        return cls(loaded.to(device=device(), dtype=torch_dtype(dtype)), load_tokenizer(model, revision))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[IntArray], shared: int = 0, *, keep: bool = False) -> LongArray:
        """Read the prompts; slots 0..n-1 are their last tokens.

        Prompts of like length are read together. Keys and values of the `shared` first tokens are kept from one call
        to the next, those of each session until it is left out of an `extend`, or with `keep` as long as the others.
        """
        self._trees = None  # what is over need not stand beside what begins
        lengths, n = np.array([len(prompt) for prompt in prompts], np.int64), len(prompts)
        self._require_room(lengths)
        shared = min(shared, int(lengths.min()) - 1)  # each session needs a token of its own to begin from
        opening = self._opening(prompts[0][:shared]) if shared > 0 else None
        hidden = self.head.weight.new_empty((n, self.head.weight.shape[1]))
        groups: list[packed.Group] = []
        group_of, place = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for rows in _alike(lengths, PREFILL_TOKENS[self.device.type]):
            group = packed.Group(rows, lengths[rows])
            own = _flat([prompts[row][shared:] for row in rows])
            states = self._read(own.tokens, shared + places(own.lengths), [group.begin(self.device, opening)])
            hidden[self._tensor(rows)] = states[self._tensor(own.offsets[1:] - 1)]
            group_of[rows], place[rows] = len(groups), np.arange(len(rows))
            groups.append(group)
        self._trees = _Trees(groups, group_of, place, lengths, hidden, keep)
        return np.arange(n)

    @torch.inference_mode()
    def extend(self, session: LongArray, slot: LongArray, runs: TokenLists) -> LongArray:
        """Read every run after its slot, all sessions as one row of tokens; every token gets a slot."""
        trees = self._begun()
        self._require_room(trees.length[slot] + runs.lengths)
        group_of_run = trees.group_of[session]
        readings, order, place = [], [], []
        for number, group in enumerate(trees.groups):
            mine = np.flatnonzero(group_of_run == number)
            if not len(mine):
                if not trees.keep:
                    group.forget()
                continue
            if not trees.keep:
                group.drop_finished(session[mine])
            part, first = runs.take(mine), len(group.visible)
            readings.append(group.branch(self.device, session[mine], trees.place[slot[mine]], part))
            order.append(ranges(runs.offsets[mine], part.lengths))
            place.append(first + np.arange(len(part.tokens)))
        read = np.concatenate(order)  # the tokens as they are read, group by group
        position = np.repeat(trees.length[slot], runs.lengths) + places(runs.lengths)
        states = self._read(runs.tokens[read], position[read], readings)
        back = np.argsort(read)
        slots: LongArray = len(trees.length) + np.arange(len(read))
        trees.hidden = torch.cat([trees.hidden, states[self._tensor(back)]])
        trees.length = np.concatenate([trees.length, position + 1])
        trees.place = np.concatenate([trees.place, np.concatenate(place)[back]])
        return slots

    @torch.inference_mode()
    def logprobs(self, slot: LongArray, tokens: TokenLists, *, relative: bool = False) -> npt.NDArray[np.float32]:
        """Log-softmax over the vocabulary after each slot, gathered at the wanted tokens.

        With `relative` the norm over the vocabulary may be missing: then only the wanted tokens' logits are computed
        where they are few.
        """
        found = np.empty(len(tokens.tokens), np.float32)
        few = np.zeros(len(slot), np.bool_)
        if relative and type(self.head) is torch.nn.Linear:
            few = tokens.lengths * FEW < self.head.weight.shape[0]
        for which, compute, elements in (
            (np.flatnonzero(few), self._logits_of, tokens.lengths * self.head.weight.shape[1]),
            (np.flatnonzero(~few), self._logprobs_of, np.full(len(slot), self.head.weight.shape[0])),
        ):
            block = np.cumsum(elements[which]) // LOGITS_ELEMENTS
            for part in np.split(which, np.flatnonzero(np.diff(block)) + 1):
                if len(part):
                    wanted = tokens.take(part)
                    found[ranges(tokens.offsets[part], wanted.lengths)] = compute(slot[part], wanted).cpu().numpy()
        return found

    def _logprobs_of(self, slot: LongArray, tokens: TokenLists) -> torch.Tensor:
        logits = self.head(self._begun().hidden[self._tensor(slot)]).float()
        norm = torch.logsumexp(logits, dim=-1)
        owner = self._tensor(np.repeat(np.arange(len(slot)), tokens.lengths))
        found: torch.Tensor = logits[owner, self._tensor(tokens.tokens.astype(np.int64))] - norm[owner]
        return found

    def _logits_of(self, slot: LongArray, tokens: TokenLists) -> torch.Tensor:
        wanted = self._tensor(tokens.tokens.astype(np.int64))
        states = self._begun().hidden[self._tensor(np.repeat(slot, tokens.lengths))]
        logits: torch.Tensor = (states.float() * self.head.weight[wanted].float()).sum(dim=-1)
        return logits if self.head.bias is None else logits + self.head.bias[wanted].float()

    def _read(self, tokens: IntArray, position: LongArray, readings: list[packed.Reading]) -> torch.Tensor:
        """(tokens, hidden) last hidden states of tokens read side by side."""
        states: torch.Tensor = self.body(
            input_ids=self._tensor(tokens[None].astype(np.int64)),
            position_ids=self._tensor(position[None]),
            attention_mask=self.head.weight.new_zeros((1, 1, 1, 1)),  # taken as it is, and not used: `readings` knows
            use_cache=False,
            readings=readings,
        ).last_hidden_state
        return states[0]

    def _opening(self, tokens: IntArray) -> packed.Group:
        """What all prompts begin with, as a group of one; it is computed only when it differs from the last call's."""
        if self._shared is None or not np.array_equal(self._shared[0], tokens):
            group = packed.Group(np.zeros(1, np.int64), np.array([len(tokens)]))
            self._read(tokens, np.arange(len(tokens)), [group.begin(self.device)])
            self._shared = (tokens, group)
        return self._shared[1]

    def _require_room(self, lengths: LongArray) -> None:
        if lengths.max() > self.context:
            raise ModelError(
                f"A prompt with its title takes {lengths.max()} tokens, but {type(self.model).__name__} is read "
                f"here up to {self.context}. Shorten prompts with --context {self.context}."
            )

    def _begun(self) -> _Trees:
        if self._trees is None:
            raise RuntimeError("prefill comes first")
        return self._trees

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @torch.inference_mode()
    def _check(self) -> None:
        """Make sure that body and head, run apart, are this model: some architectures scale or cap their logits."""
        ids = torch.arange(4, device=self.device)[None] + 5
        apart = self.head(self.body(input_ids=ids).last_hidden_state)
        if not apart.isfinite().all():
            raise ModelError(
                "The model's logits are not finite: its weights, or the adapter's, are damaged or diverged."
            )
        if not torch.equal(apart, self.model(input_ids=ids).logits):
            raise ModelError(
                f"{type(self.model).__name__} changes its logits after the LM head, which constrained decoding "
                "here does not support. Choose a model such as Llama, Qwen, Mistral or SmolLM."
            )

    @torch.inference_mode()
    def _check_tree(self) -> None:
        """Make sure that branches read beside each other are what a plain forward of each gives.

        Half precision rounds by more than any fixed bound, most after tokens the model hardly knows. So there the
        yardstick is the mistakes to be found: how far off a branch is that sees the one before it, or stands after it.
        """
        vocabulary = self.head.weight.shape[0]
        ids = np.linspace(vocabulary // 10, vocabulary // 2, 12).astype(np.int32)
        prompt, one, other = ids[: min(8, max(self.context - 2, 1))], ids[8:10], ids[10:]
        try:
            self.prefill([prompt])
            self.extend(np.zeros(2, np.int64), np.zeros(2, np.int64), TokenLists.of([one.tolist(), other.tolist()]))
            tree = self.head(self._begun().hidden[[2, 4]]).float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{type(self.model).__name__} cannot be read as a tree here: {error}") from None
        start, after = np.arange(len(prompt)), len(prompt) + np.arange(2)
        right = [self._read_plainly((prompt, one), (start, after)), self._read_plainly((prompt, other), (start, after))]
        seeing = self._read_plainly((prompt, one, other), (start, after, after))
        shifted = self._read_plainly((prompt, other), (start, after + 2))
        off = (tree - torch.stack(right)).square().mean().sqrt()
        mistake = min((wrong - right[1]).square().mean().sqrt() for wrong in (seeing, shifted))
        exact = self.head.weight.dtype == torch.float32
        if not off <= (0.01 * right[1].std() if exact else mistake / 2):
            raise ModelError(
                f"{type(self.model).__name__} gives other probabilities when read as a tree: its attention or its "
                "positions are of a kind that constrained decoding here does not support."
            )

    def _read_plainly(self, texts: Sequence[IntArray], positions: Sequence[LongArray]) -> torch.Tensor:
        """(vocabulary,) logits after texts in a row, each token at its position."""
        ids, at = (self._tensor(np.concatenate(parts))[None] for parts in (texts, positions))
        logits: torch.Tensor = self.model(input_ids=ids, position_ids=at).logits[0, -1].float()
        return logits


def _flat(texts: Sequence[IntArray]) -> TokenLists:
    return TokenLists(np.concatenate(texts), offsets_of([len(text) for text in texts]))


def _alike(lengths: LongArray, most: int) -> list[LongArray]:
    """Positions grouped by falling length, each group rising and at most `most` tokens when padded, or one text."""
    groups: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > most:
            groups.append([])
        groups[-1].append(row)
    return [np.sort(group) for group in groups]


def _context(config: Any) -> int:
    """Most tokens the engine reads. The tree's mask knows no sliding window: up to its width there is none."""
    context = int(getattr(config, "max_position_embeddings", None) or 4096)
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return min(context, int(window)) if window and slides else context
