"""Transformers and sentence-transformers models that turn texts into vectors (`embeddings.encode.Embedder`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.engines.hardware import Dtype, device, torch_dtype
from seqrec_prompt.engines.models import load_model, load_tokenizer, resolve, with_adapter
from seqrec_prompt.errors import MissingExtraError, ModelError
from seqrec_prompt.ragged import LongArray

Pooling = Literal["mean", "weighted-mean", "last"]


class TokenisedTexts:
    """Texts as a language model reads them that embeds them."""

    tokenizer: Any

    def lengths(self, texts: Sequence[str]) -> LongArray:
        """(texts,) tokens of each text."""
        return np.array([len(ids) for ids in self.tokens(texts)], np.int64)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise; special tokens inside a text are plain text."""
        ids: list[list[int]] = self.tokenizer(list(texts), split_special_tokens=True)["input_ids"]
        return ids


class CausalEmbedder(TokenisedTexts):
    """Pools the last hidden states of a causal language model.

    `mean`: of all tokens; `weighted-mean`: token i of n weighs i/(1+…+n), since later tokens have seen more
    (Muennighoff, 2022, SGPT); `last`: the last token's, which has seen all.
    """

    def __init__(self, model: Any, tokenizer: Any, pooling: Pooling) -> None:
        self.body = model.base_model.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.device = next(model.parameters()).device
        self.dimension = int(model.config.get_text_config().hidden_size)
        self.context = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 4096)

    @classmethod
    def load(
        cls,
        model: str,
        adapter: Path | None = None,
        pooling: Pooling = "weighted-mean",
        dtype: Dtype = "float32",
        revision: str | None = None,
    ) -> CausalEmbedder:
        """Load a model, merge a LoRA adapter into it in float32 if one is given, and move it to the device."""
        if (Path(resolve(model)) / "modules.json").exists():
            raise ModelError(f"'{model}' is a sentence-transformers model, which pools itself. Give --pooling own.")
        loaded = load_model(model, torch.float32 if adapter else torch_dtype(dtype), revision)
        if adapter is not None:
            loaded = with_adapter(loaded, adapter)
        return cls(loaded.to(device=device(), dtype=torch_dtype(dtype)), load_tokenizer(model, revision), pooling)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> VectorArray:
        """(texts, hidden) float32. Texts are padded on the right: no token sees what comes after it, so no padding."""
        tokens = self.tokens(texts)
        lengths = torch.tensor([len(ids) for ids in tokens], device=self.device)
        width = int(lengths.max())
        padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in tokens], device=self.device)
        place = torch.arange(width, device=self.device)
        mask = place < lengths[:, None]  # (texts, width)
        states = self.body(input_ids=padded, attention_mask=mask.long(), use_cache=False).last_hidden_state.float()
        if self.pooling == "last":
            pooled = states[torch.arange(len(tokens), device=self.device), lengths - 1]
        else:
            weight = mask * (place + 1 if self.pooling == "weighted-mean" else torch.ones_like(place))
            # What stands at padding may be anything, also not finite: a weight of nought would not silence that.
            states = states.masked_fill(~mask[..., None], 0)
            pooled = torch.einsum("bt,bth->bh", weight.float(), states) / weight.sum(dim=1, keepdim=True)
        vectors: VectorArray = pooled.cpu().numpy()
        return vectors


class SentenceEmbedder:
    """A sentence-transformers model, which brings its own pooling."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.dimension = int(model.get_embedding_dimension())
        self.context = int(model.max_seq_length or 4096)
        # Some write a text as a chat message, which takes more tokens than the tokenizer alone says.
        self.frame = int(model.preprocess(["a"])["attention_mask"].sum()) - len(model.tokenizer("a")["input_ids"])

    @classmethod
    def load(cls, model: str, dtype: Dtype = "float32", revision: str | None = None) -> SentenceEmbedder:
        """Load a hub name or a directory. Raises MissingExtraError without the extra, ModelError without the model."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtraError(
                "sentence-transformers", 'pip install "seqrec_prompt[sentence-transformers]"'
            ) from None
        try:
            loaded = SentenceTransformer(
                resolve(model),
                revision=revision,
                device=str(device()),
                trust_remote_code=False,
                model_kwargs={"dtype": torch_dtype(dtype), "use_safetensors": True},
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"Cannot load the sentence-transformers model '{model}': {reason}") from None
        return cls(loaded)

    def lengths(self, texts: Sequence[str]) -> LongArray:
        """(texts,) tokens of each text, special ones included."""
        ids = self.model.tokenizer(list(texts), truncation=False)["input_ids"]
        return np.array([len(one) for one in ids], np.int64) + self.frame

    def embed(self, texts: Sequence[str]) -> VectorArray:
        """(texts, dimension) float32, all texts read at once."""
        vectors = self.model.encode(list(texts), batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)
