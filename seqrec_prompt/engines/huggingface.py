"""A transformers model behind the search.

The engine reads a prompt once and then whole bundles of title prefixes as one packed tree per session: each open branch
sees the prompt and its own ancestors through a 4-D attention mask, so no key or value is ever copied or reordered for a
branch, and the LM head runs only where a decision is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from seqrec_prompt.engines import packed
from seqrec_prompt.engines.models import Dtype, device, load_model, load_tokenizer, torch_dtype, with_adapter
from seqrec_prompt.errors import ModelError
from seqrec_prompt.ragged import IntArray, LongArray, TokenLists, places

# Rows of the LM head computed at once: bounds the logits to about 64 MB at any vocabulary.
LOGITS_ELEMENTS = 1 << 24
# Tokens of a prompt batch read in one forward: enough to keep the device busy, few enough to pad little.
PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}


@dataclass
class _Tree:
    """What the engine remembers of the sessions it has begun. C counts the columns read after the prompts."""

    cache: Any
    rows: LongArray  # (rows of the cache,) the session of each
    prompt_length: LongArray  # (sessions,)
    prompt_columns: int
    hidden: torch.Tensor  # (slots, hidden) last hidden state of each slot
    length: LongArray  # (slots,) tokens up to and including the slot, prompt included
    visible: npt.NDArray[np.bool_]  # (slots, C) columns after the prompt that a slot sees, itself included


class HuggingFaceEngine:
    """Scores title prefixes with a transformers model (protocol `decoding.search.PrefixScorer`)."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.body = model.base_model
        self.head = model.get_output_embeddings()
        self.device = next(model.parameters()).device
        self.context = _context(model.config)
        self._tree: _Tree | None = None
        self._shared: tuple[IntArray, DynamicCache] | None = None
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
    def prefill(self, prompts: Sequence[IntArray], shared: int = 0) -> LongArray:
        """Read the prompts; slots 0..n-1 are their last tokens.

        Prompts of like length are read together, so that little is padding. Keys and values of the `shared` first
        tokens are kept from one call to the next.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self._require_room(lengths)
        shared = min(shared, int(lengths.min()) - 1)  # each row needs a token of its own to begin from
        columns, n = int(lengths.max()), len(prompts)
        cache, hidden = packed.PackedCache(), self.head.weight.new_empty((n, self.head.weight.shape[1]))
        for rows in _alike(lengths, PREFILL_TOKENS[self.device.type]):
            part = self._opening(prompts[0][:shared], len(rows))
            states = self._read([prompts[row][shared:] for row in rows], part)
            hidden[self._tensor(rows)] = states[torch.arange(len(rows)), self._tensor(lengths[rows] - 1 - shared)]
            _place(part, cache, self._tensor(rows), n, columns)
        sessions = np.arange(n)
        self._tree = _Tree(cache, sessions, lengths, columns, hidden, lengths, np.zeros((n, 0), np.bool_))
        return sessions

    @torch.inference_mode()
    def extend(self, session: LongArray, slot: LongArray, runs: TokenLists) -> LongArray:
        """Read every run after its slot, all sessions as one row of tokens; every token gets a slot."""
        tree = self._begun()
        self._require_room(tree.length[slot] + runs.lengths)
        self._drop_finished(tree, session)
        row_of_run = np.searchsorted(tree.rows, session)
        # Place the tokens of all runs of a row side by side: (rows, columns) with padding at the end.
        run = np.repeat(np.arange(len(runs)), runs.lengths)
        order = np.argsort(row_of_run[run], kind="stable")
        run, tokens = run[order], runs.tokens[order]
        within = places(runs.lengths)[order]
        row = row_of_run[run]
        column = np.arange(len(row)) - np.searchsorted(row, np.arange(len(tree.rows)))[row]
        shape = (len(tree.rows), int(column.max()) + 1)
        position = tree.length[slot[run]] + within
        run_at = np.full(shape, -1)
        run_at[row, column] = run

        # A token sees its session's prompt, what its run's slot sees, and its own run up to itself.
        prompt = np.arange(tree.prompt_columns) < tree.prompt_length[tree.rows][:, None]
        earlier = tree.visible[slot[run_at]] & (run_at >= 0)[:, :, None]
        own = (run_at[:, :, None] == run_at[:, None, :]) & np.tri(shape[1], dtype=np.bool_)
        seen = np.concatenate([np.broadcast_to(prompt[:, None], (*shape, prompt.shape[1])), earlier, own], axis=2)
        dtype = tree.hidden.dtype
        mask = torch.zeros((shape[0], 1, *seen.shape[1:]), dtype=dtype, device=self.device)
        mask.masked_fill_(~self._tensor(seen)[:, None], torch.finfo(dtype).min)
        packing = packed.Packing(self._tensor(row), self._tensor(column), shape)
        tree.cache.packing = packing
        states = self.body(
            input_ids=self._tensor(tokens[None].astype(np.int64)),
            attention_mask=mask,
            position_ids=self._tensor(position[None]),
            past_key_values=tree.cache,
            use_cache=True,
            packing=packing,
        ).last_hidden_state

        back = np.argsort(order)  # from side by side to the order of the runs
        row, column = row[back], column[back]
        slots = len(tree.length) + np.arange(len(row))
        tree.hidden = torch.cat([tree.hidden, states[0, self._tensor(back)]])
        tree.length = np.concatenate([tree.length, position[back] + 1])
        visible = np.concatenate([earlier[row, column], own[row, column]], axis=1)
        before = np.pad(tree.visible, ((0, 0), (0, shape[1])))
        tree.visible = np.concatenate([before, visible])
        return slots

    @torch.inference_mode()
    def logprobs(self, slot: LongArray, tokens: TokenLists) -> npt.NDArray[np.float32]:
        """Log-softmax over the vocabulary after each slot, gathered at the wanted tokens."""
        hidden = self._begun().hidden[self._tensor(slot)]
        step = max(1, LOGITS_ELEMENTS // self.head.weight.shape[0])
        parts = []
        for start in range(0, len(slot), step):
            stop = min(start + step, len(slot))
            logits = self.head(hidden[start:stop]).float()
            norm = torch.logsumexp(logits, dim=-1)
            owner = self._tensor(np.repeat(np.arange(stop - start), tokens.lengths[start:stop]))
            wanted = self._tensor(tokens.tokens[tokens.offsets[start] : tokens.offsets[stop]].astype(np.int64))
            parts.append((logits[owner, wanted] - norm[owner]).cpu().numpy())
        return np.concatenate(parts)

    def _read(self, texts: Sequence[IntArray], cache: DynamicCache) -> torch.Tensor:
        """(rows, columns, hidden) last hidden states of one right-padded forward."""
        # Padding stands after a text, where causal attention never sees it: no mask is needed.
        lengths = np.array([len(text) for text in texts])
        ids = np.zeros((len(texts), lengths.max()), np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(texts)
        states: torch.Tensor = self.body(
            input_ids=self._tensor(ids), past_key_values=cache, use_cache=True
        ).last_hidden_state
        return states

    def _opening(self, tokens: IntArray, rows: int) -> DynamicCache:
        """A cache that has read `tokens` in every row; they are computed only when they differ from the last call's."""
        cache = DynamicCache()
        if not len(tokens):
            return cache
        if self._shared is None or not np.array_equal(self._shared[0], tokens):
            fresh = DynamicCache()
            self._read([tokens], fresh)
            self._shared = (tokens, fresh)
        for index, layer in enumerate(self._shared[1].layers):
            cache.update(*(part.expand(rows, -1, -1, -1) for part in (layer.keys, layer.values)), index)
        return cache

    def _drop_finished(self, tree: _Tree, session: LongArray) -> None:
        """Shrink the cache to the sessions that go on."""
        going = np.unique(session)
        if len(going) < len(tree.rows):
            tree.cache.batch_select_indices(self._tensor(np.searchsorted(tree.rows, going)))
            tree.rows = going

    def _require_room(self, lengths: LongArray) -> None:
        if lengths.max() > self.context:
            raise ModelError(
                f"A prompt with its title takes {lengths.max()} tokens, but {type(self.model).__name__} is read "
                f"here up to {self.context}. Shorten prompts with --context {self.context}."
            )

    def _begun(self) -> _Tree:
        if self._tree is None:
            raise RuntimeError("prefill comes first")
        return self._tree

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
        """Make sure that a branch read beside another is what a plain forward of it gives."""
        texts = [[5, 6, 7], [5, 8]]
        try:
            self.prefill([np.array([5], np.int32)])
            self.extend(np.zeros(2, np.int64), np.zeros(2, np.int64), TokenLists.of([[6, 7], [8]]))
            tree = self.head(self._begun().hidden[[2, 3]]).float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"{type(self.model).__name__} cannot be read as a tree here: {error}") from None
        plain = torch.stack([self.model(input_ids=torch.tensor([t], device=self.device)).logits[0, -1] for t in texts])
        allowed = 0.01 if tree.dtype == self.head.weight.dtype else 0.3  # rounding of float32, of half precision
        if (tree - plain.float()).abs().max() > allowed * plain.float().std():
            raise ModelError(
                f"{type(self.model).__name__} gives other probabilities when read as a tree: its attention or its "
                "positions are of a kind that constrained decoding here does not support."
            )


def _alike(lengths: LongArray, most: int) -> list[LongArray]:
    """Positions grouped by falling length, each group at most `most` tokens when padded, or one text."""
    groups: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > most:
            groups.append([])
        groups[-1].append(row)
    return [np.array(group) for group in groups]


def _place(part: DynamicCache, whole: DynamicCache, rows: torch.Tensor, n: int, columns: int) -> None:
    """Copy the cache of some rows into that of all `n`, which has `columns` columns."""
    for index, layer in enumerate(part.layers):
        if index == len(whole.layers):
            _, heads, _, size = layer.keys.shape
            whole.update(*(layer.keys.new_zeros((n, heads, columns, size)) for _ in range(2)), index)
        for name in ("keys", "values"):
            mine = getattr(layer, name)
            getattr(whole.layers[index], name)[rows, :, : mine.shape[2]] = mine


def _context(config: Any) -> int:
    """Most tokens the engine reads. The tree's mask knows no sliding window: up to its width there is none."""
    context = int(getattr(config, "max_position_embeddings", None) or 4096)
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return min(context, int(window)) if window and slides else context
