"""Texts become vectors: which are read together, what is kept of a stopped run, what is refused.

Done batches go into the journal that `recommend` uses too, as base64 of float32: it already knows torn tails, other
settings and fsync, a batch is one line, and no float passes through decimal digits.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from seqrec_prompt.console import progress
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.embeddings.table import VectorArray
from seqrec_prompt.errors import ModelError, TemplateError, is_out_of_memory
from seqrec_prompt.journal import Journal
from seqrec_prompt.ragged import LongArray

ITEM = "{item}"  # stands in a prompt where the item's text goes
# A batch of so many tokens uses a CPU as well as a larger one does; in a larger one this share is padding at most.
LEAST, PADDING = 256, 0.05


class Embedder(Protocol):
    """What reads texts and answers with vectors; `engines` holds those that do.

    dimension: numbers a vector. context: most tokens it reads of a text.
    """

    dimension: int
    context: int

    def lengths(self, texts: Sequence[str]) -> LongArray:
        """(texts,) tokens of each text, special ones included, nothing cut off."""
        ...

    def embed(self, texts: Sequence[str]) -> VectorArray:
        """(texts, dimension) one vector a text, whatever stands beside it; all are read at once."""
        ...


def fit_texts(
    embedder: Embedder, items: Sequence[str], prompt: str | None, most: int
) -> tuple[list[str], LongArray, int]:
    """Put each item's text into the prompt and cut, at its end, what would pass `most` tokens.

    The item's text is cut, never the prompt around it: its last token is where `last` pooling reads. Returns the
    texts, (items,) their lengths in tokens, and how many were cut. Raises TemplateError when the prompt alone does
    not fit.
    """
    frame = prompt or ITEM
    shown = list(items)
    texts = [frame.replace(ITEM, item) for item in shown]
    lengths = embedder.lengths(texts)
    long = np.flatnonzero(lengths > most)
    cut = len(long)
    while len(long):
        for i in long.tolist():
            if not shown[i]:
                raise TemplateError(f"The prompt alone takes {lengths[i]} tokens, but {most} are read. Shorten it.")
            shown[i] = shown[i][: min(int(len(shown[i]) * most / lengths[i]), len(shown[i]) - 1)]
            texts[i] = frame.replace(ITEM, shown[i])
        lengths[long] = embedder.lengths([texts[i] for i in long.tolist()])
        long = long[lengths[long] > most]
    return texts, lengths, cut


def encode(
    embedder: Embedder,
    texts: Sequence[str],
    lengths: LongArray,
    catalog: Catalog,
    journal: Journal,
    batch_tokens: int,
    note: Callable[[], dict[str, Any]] = dict,
) -> tuple[VectorArray, float]:
    """Embed one text an item, going on from what the journal holds.

    Returns (items, dim) vectors and the seconds that they took, those of stopped runs included. lengths: (items,)
    tokens of each text. note: more to keep of each batch. Each distinct text is read once, so equal texts have equal
    vectors to the last bit. Texts of like length are read together, the longest first: what does not fit the memory is
    met at once.
    Raises ModelError naming the item whose vector is not finite; its batch is not kept.
    """
    first: dict[str, int] = {}
    owner = np.array([first.setdefault(text, i) for i, text in enumerate(texts)], np.int64)
    vectors = np.empty((len(texts), embedder.dimension), np.float32)
    done, seconds = np.zeros(len(texts), np.bool_), 0.0
    for record in journal.records():
        vectors[record["items"]] = vectors_of(record)
        done[record["items"]] = True
        seconds += record["seconds"]
    unique = np.unique(owner)
    todo = unique[~done[unique]]
    if done.any():
        print(f"going on: {done.sum():,}/{len(unique):,} texts are done")
    todo = todo[np.argsort(-lengths[todo], kind="stable")]
    started = time.monotonic()
    with progress(len(unique), "embed", "texts", int(done.sum())) as bar:
        for batch, found in read(embedder, texts, todo, lengths, batch_tokens):
            _require_finite(found, batch, texts, catalog)
            vectors[batch] = found
            spent, started = time.monotonic() - started, time.monotonic()
            seconds += spent
            journal.append(record_of(batch, found, spent) | note())
            bar.update(len(batch))
    return vectors[owner], seconds


def batches(items: LongArray, lengths: LongArray, most: int) -> Iterator[LongArray]:
    """Cut items of falling length into runs of one item or, padded, of at most `most` tokens.

    Of more than LEAST tokens no more than the share PADDING is padding: it is read like text, and costs as much.
    """
    start, tokens = 0, 0
    for at, length in enumerate(lengths[items].tolist()):
        padded = (at + 1 - start) * int(lengths[items[start]])
        if at > start and (padded > most or (padded > LEAST and padded - tokens - length > PADDING * padded)):
            yield items[start:at]
            start, tokens = at, 0
        tokens += length
    if len(items):
        yield items[start:]


def read(
    embedder: Embedder, texts: Sequence[str], order: LongArray, lengths: LongArray, batch_tokens: int
) -> Iterator[tuple[LongArray, VectorArray]]:
    """Yield the batches of `order`, positions of texts of falling length, with their vectors.

    When memory runs out, the batch is halved, which is said. Raises ModelError naming the text that does not fit alone.
    """
    start = 0
    while start < len(order):
        for batch in batches(order[start:], lengths, batch_tokens):
            try:
                found = embedder.embed([texts[i] for i in batch.tolist()])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                batch_tokens = _fewer(batch, texts, lengths)
                print(f"out of memory with {len(batch):,} texts at once: going on with {batch_tokens:,} tokens")
                break
            yield batch, found
            start += len(batch)


def _fewer(batch: LongArray, texts: Sequence[str], lengths: LongArray) -> int:
    """Half the tokens of a batch that did not fit the memory, padding included; its first text is the longest."""
    first = int(batch[0])
    if len(batch) == 1:
        raise ModelError(
            f"Out of memory on one text, of {lengths[first]:,} tokens: '{texts[first][:60]}…'. Read fewer with "
            "--max-tokens, or take a --dtype of half the size."
        )
    return len(batch) // 2 * int(lengths[first])


def _require_finite(vectors: VectorArray, items: LongArray, texts: Sequence[str], catalog: Catalog) -> None:
    broken = items[~np.isfinite(vectors).all(axis=1)].tolist()
    if broken:
        others = f" and {len(broken) - 1} beside it" if len(broken) > 1 else ""
        raise ModelError(
            f"The vector of item '{catalog.ids[broken[0]]}' (text '{texts[broken[0]]}'){others} is not finite: the "
            "model's or the adapter's weights are damaged, or its numbers overflow in this --dtype (try float32)."
        )


def record_of(items: LongArray, vectors: VectorArray, seconds: float) -> dict[str, Any]:
    """The journal's record of the vectors (items, dimension) of `items`, and of the time they took."""
    packed = base64.b64encode(vectors.astype("<f4").tobytes()).decode("ascii")
    return {"items": items.tolist(), "vectors": packed, "seconds": seconds}


def vectors_of(record: Mapping[str, Any]) -> VectorArray:
    """(items, dimension) vectors of a journal's record."""
    return np.frombuffer(base64.b64decode(record["vectors"]), "<f4").reshape(len(record["items"]), -1)
