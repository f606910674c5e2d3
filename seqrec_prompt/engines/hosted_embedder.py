"""Hosted embedding models (`embeddings.encode.Embedder`): quoted first, each distinct text paid for once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from seqrec_prompt.embeddings.encode import record_of, vectors_of
from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.engines.openai import Service
from seqrec_prompt.engines.pricing import MILLION, HostedConfig, approve, quote
from seqrec_prompt.engines.tokens import token_counter
from seqrec_prompt.errors import HostedError
from seqrec_prompt.journal import Journal
from seqrec_prompt.ragged import LongArray


class HostedEmbedder:
    """An embedding model behind a service. `agree` comes before `embed`: it quotes, and learns the dimension."""

    context = 8191  # tokens that OpenAI's embedding models read of a text

    def __init__(self, config: HostedConfig, model: str, dimensions: int | None = None) -> None:
        """dimensions: asked of the service, which then shortens its vectors; by default the model's own."""
        self.config, self.model, self.asked = config, model, dimensions
        self.service = Service(config)
        self.counter = token_counter(model, config.encoding)
        self.dimension = dimensions or 0
        self._price = 0.0
        self._bill: dict[str, Any] = {"quotes": [], "billed_tokens": 0, "cost": 0.0}  # of the whole run
        self._kept = deepcopy(self._bill)  # what of it the journal holds

    def lengths(self, texts: Sequence[str]) -> LongArray:
        """(texts,) tokens of each text."""
        return np.array([self.counter.count(text) for text in texts], np.int64)

    def agree(self, texts: Sequence[str], lengths: LongArray, journal: Journal) -> None:
        """Quote what `journal` lacks of `texts`, (texts,) `lengths`, ask, and learn how long the vectors are.

        Raises CostError when the quote may not be spent.
        """
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            first.setdefault(text, i)
        done: set[int] = set()
        for record in journal.records():
            done.update(record["items"])
            self.dimension = vectors_of(record).shape[1]
            for name in self._bill:
                self._bill[name] += record[name]
        self._kept = deepcopy(self._bill)
        todo = [i for i in first.values() if i not in done]
        if not todo:
            return
        tokens = int(lengths[todo].sum())
        offer = quote(self.config, self.model, {"input": tokens}, exact=self.counter.exact)
        approve(offer, self.config)
        self._price = offer.price["input"]
        self._bill["quotes"].append(offer.facts())
        if not self.dimension:
            # Only an answer tells. It is kept, so that its text is not paid for twice.
            started = time.monotonic()
            vectors = self.embed([texts[todo[0]]])
            journal.append(record_of(np.array(todo[:1]), vectors, time.monotonic() - started) | self.spent())
            self.dimension = vectors.shape[1]

    def spent(self) -> dict[str, Any]:
        """What was quoted and billed since this was asked last, to be kept in the journal."""
        before, self._kept = self._kept, deepcopy(self._bill)
        news = {name: self._kept[name] - before[name] for name in ("billed_tokens", "cost")}
        return news | {"quotes": self._kept["quotes"][len(before["quotes"]) :]}

    def facts(self) -> dict[str, Any]:
        """What the run was quoted and billed, in all its parts where it was stopped and gone on with."""
        return dict(self._bill)

    def embed(self, texts: Sequence[str]) -> VectorArray:
        """(texts, dimension) float32. Raises HostedError when vectors are missing or not of one length."""
        body: dict[str, Any] = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        if self.asked is not None:
            body["dimensions"] = self.asked
        answer = self.service.embeddings(body, int(self.lengths(texts).sum()))
        billed = (answer.get("usage") or {}).get("total_tokens") or 0
        self._bill["billed_tokens"] += billed
        self._bill["cost"] += billed * self._price / MILLION
        rows = {row["index"]: row["embedding"] for row in answer.get("data") or []}  # in whatever order they come
        sizes = {len(row) for row in rows.values()}
        if sorted(rows) != list(range(len(texts))) or len(sizes) != 1 or (self.dimension and sizes != {self.dimension}):
            raise HostedError(
                f"{self.service.url} answered {len(texts)} texts with {len(rows)} vectors of {sorted(sizes)} numbers"
                f"{f', not {self.dimension}' if self.dimension else ''}. Check --model and --dimensions."
            )
        return np.array([rows[i] for i in range(len(texts))], np.float32)
