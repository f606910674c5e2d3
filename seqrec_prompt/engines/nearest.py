"""The item whose embedding is nearest to a text's, for texts that name no item (`prompting.grounding.Nearest`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from seqrec_prompt.console import progress
from seqrec_prompt.embeddings.encode import Embedder, fit_texts, read
from seqrec_prompt.embeddings.table import EmbeddingTable, VectorArray
from seqrec_prompt.engines.embed import EmbedConfig, load_embedder, model_inputs
from seqrec_prompt.errors import ArtifactError, ModelError
from seqrec_prompt.prompting.grounding import FloatArray
from seqrec_prompt.ragged import LongArray

BLOCK = 256  # texts compared with all items at once


class NearestTitle:
    """Reads texts as the items of a table were read: same model, adapter, pooling and prompt around them.

    The model is loaded when the first text comes: where every text names an item, none is.
    """

    def __init__(self, table: EmbeddingTable) -> None:
        """Raises ArtifactError when the table's model or adapter is not what it was, ModelError when it is gone."""
        self.config = EmbedConfig.model_validate(table.manifest["config"])
        self.units = _units(table.vectors)
        found = model_inputs(self.config)
        if changed := [name for name, value in found.items() if table.manifest["inputs"].get(name) != value]:
            raise ArtifactError(
                f"The embeddings were made with another {' and '.join(changed)} than is in its place now "
                f"({', '.join(str(getattr(self.config, name)) for name in changed)}). Run 'seqrec-prompt embed' again."
            )

    @cached_property
    def embedder(self) -> Embedder:
        """The table's model; for a few texts it is not worth to start vLLM, and the vectors are the same."""
        engine = "transformers" if self.config.engine == "vllm" else self.config.engine
        return load_embedder(self.config.model_copy(update={"engine": engine}))

    def __call__(self, texts: Sequence[str]) -> tuple[LongArray, FloatArray]:
        """(texts,) the nearest item of each text, the first of equally near ones, and their cosine."""
        most = min(self.config.max_tokens, self.embedder.context)
        shown, lengths, _ = fit_texts(self.embedder, texts, self.config.prompt, most)
        order = np.argsort(-lengths, kind="stable")
        vectors = np.empty((len(texts), self.embedder.dimension), np.float32)
        with progress(len(texts), "embed answers", "texts") as bar:
            for batch, found in read(self.embedder, shown, order, lengths, self.config.batch_tokens):
                vectors[batch] = found
                bar.update(len(batch))
        if not np.isfinite(vectors).all():
            broken = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise ModelError(
                f"The vector of the answer '{texts[broken]}' is not finite: the model's or the adapter's weights are "
                "damaged, or its numbers overflow in the dtype of the embeddings (embed in float32)."
            )
        queries = _units(vectors)
        items, cosine = np.empty(len(texts), np.int64), np.empty(len(texts))
        for start in range(0, len(texts), BLOCK):
            likeness = queries[start : start + BLOCK] @ self.units.T
            items[start : start + BLOCK] = likeness.argmax(axis=1)
            cosine[start : start + BLOCK] = likeness.max(axis=1)
        return items, cosine


def _units(vectors: VectorArray) -> VectorArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: VectorArray = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return units
