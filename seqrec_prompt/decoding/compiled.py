"""A catalog compiled for one template and tokenizer, and kept: the second time it is there at once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from seqrec_prompt.artifacts import atomic_file, cache_directory, hash_json
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.decoding.trie import CatalogTrie, compile_trie
from seqrec_prompt.errors import TemplateError
from seqrec_prompt.prompting.prompter import Prompter, compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import LongArray, TokenLists

LAYOUT = 3  # of the file; another number finds no old file
ARRAYS = tuple(field.name for field in fields(CatalogTrie) if field.name != "sequences")
FRAME = ("head", "tail", "offer")


@dataclass(frozen=True, eq=False)
class CompiledCatalog:
    """Every item as tokens, and the trie of them."""

    prompter: Prompter
    trie: CatalogTrie

    def add(self, items: Catalog, tokenizer: Any, popularity: LongArray | None = None) -> CompiledCatalog:
        """Append `items` to the catalog; only they are tokenised, the trie is built anew from all tokens.

        popularity: (all items,) as for `compile_catalog`. Positions of the earlier items stay as they are. Raises
        TemplateError where titles are cut or have companions: what is written of each depends on all others.
        """
        if self.prompter.template.title_tokens is not None:
            raise TemplateError("Titles are cut (template.title_tokens): compile the whole catalog with its new items.")
        if self.prompter.template.companions:
            raise TemplateError(
                "Titles have companions (template.companions): compile the whole catalog with new items."
            )
        old, new = self.prompter, compile_template(self.prompter.template, items, tokenizer)
        lines = TokenLists.join([old.lines, new.lines])
        answers = lines if old.answers is old.lines else TokenLists.join([old.answers, new.answers])
        prompter = replace(old, lines=lines, answers=answers)
        return CompiledCatalog(prompter, compile_trie(answers, popularity))


def compile_catalog(
    template: TemplateConfig,
    catalog: Catalog,
    tokenizer: Any,
    popularity: LongArray | None = None,
    companions: TokenLists | None = None,
    *,
    cache: Path | None = None,
) -> CompiledCatalog:
    """Compile a catalog, or read it back if it was compiled before.

    Not for Classify, whose answers are no items.
    popularity: (items,) orders items that share a title. companions: as for `compile_template`. cache: folder of
    compiled catalogs, by default `catalogs` in the package's cache; a file there is named by the hash of catalog,
    template, tokenizer, popularity and companions.
    """
    directory = cache or cache_directory() / "catalogs"
    file = directory / f"{_key(template, catalog, tokenizer, popularity, companions)}.safetensors"
    if found := _load(file, template):
        return found
    prompter = compile_template(template, catalog, tokenizer, companions=companions)
    compiled = CompiledCatalog(prompter, compile_trie(prompter.answers, popularity))
    try:
        _save(file, compiled)
    except OSError as error:  # a full or read-only disk costs time, not the result
        print(f"the compiled catalog is not kept: {error}")
    return compiled


def _key(
    template: TemplateConfig,
    catalog: Catalog,
    tokenizer: Any,
    popularity: LongArray | None,
    companions: TokenLists | None,
) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    words = fast.to_str() if fast is not None else sorted(tokenizer.get_vocab().items())
    ranks = [_hash(popularity)]
    if companions is not None:
        ranks += [_hash(companions.tokens), _hash(companions.offsets)]
    settings = [template.resolved(), tokenizer.chat_template, tokenizer.eos_token_id, type(tokenizer).__name__]
    return hash_json([LAYOUT, catalog.hash, settings, words, ranks])[:32]


def _hash(array: npt.NDArray[Any] | None) -> str | None:
    return None if array is None else hashlib.sha256(array.tobytes()).hexdigest()


def _save(file: Path, compiled: CompiledCatalog) -> None:
    prompter, trie = compiled.prompter, compiled.trie
    arrays = {name: getattr(trie, name) for name in ARRAYS} | {name: getattr(prompter, name) for name in FRAME}
    lists = {"sequences": trie.sequences, "lines": prompter.lines}
    if prompter.answers is not prompter.lines:
        lists["answers"] = prompter.answers
    for name, texts in lists.items():
        arrays |= {f"{name}.tokens": texts.tokens, f"{name}.offsets": texts.offsets}
    if prompter.end_token is not None:
        arrays["end_token"] = np.array([prompter.end_token])
    with atomic_file(file) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)


def _load(file: Path, template: TemplateConfig) -> CompiledCatalog | None:
    if not file.exists():
        return None
    try:
        arrays = load_file(file)
        lists = {
            name: TokenLists(arrays[f"{name}.tokens"], arrays[f"{name}.offsets"])
            for name in ("sequences", "lines", "answers")
            if f"{name}.tokens" in arrays
        }
        trie = CatalogTrie(sequences=lists["sequences"], **{name: arrays[name] for name in ARRAYS})
    except (SafetensorError, KeyError):
        return None  # damaged: it is compiled again and replaced
    end_token = int(arrays["end_token"][0]) if "end_token" in arrays else None
    lines = lists["lines"]
    frame = {name: arrays[name] for name in FRAME}
    prompter = Prompter(template, lines=lines, answers=lists.get("answers", lines), end_token=end_token, **frame)
    return CompiledCatalog(prompter, trie)
