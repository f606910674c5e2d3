"""Other ways from a causal LM to k catalog items a session, behind one signature, to compare `seqrec_prompt` with.

All use `model.generate`, on a CPU or a GPU, in batches of the order given; the tokenizer needs a padding token.
catalog_texts: (catalog,) what the tokens of each item in the trie say before the end token; of items that share a title
the first stands for all. time_limit: seconds of decoding; a batch that it cuts off costs its time but gives no lists.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PrefixConstrainedLogitsProcessor

from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.errors import MissingExtraError
from seqrec_prompt.ragged import IntArray

SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
Prompts = Sequence[IntArray]
Row = tuple[int, ...]  # a completion's tokens up to its end token


@dataclass(frozen=True)
class PeerResult:
    """What one peer found for all sessions, and what it cost."""

    name: str
    lists: list[list[int]]  # a session: catalog positions, best first; invalid completions dropped, duplicates kept
    completions: int
    invalid: int  # completions that are no catalog title: as tokens in beam_search, as text in the other two
    starved: int  # decoded sessions with fewer than k distinct items
    seconds: float  # decoding, without the set-up
    setup_seconds: float
    new_tokens: int  # of a sample up to its end token; of a beam in every step
    steps: int  # forward passes of the model in generate
    constraint_seconds: float  # the part of `seconds` that finds and applies what is allowed
    finished: bool  # False: stopped at a limit, `seconds` is then a lower bound
    respelled: int = 0  # completions that are a title as text, but not in the catalog's own tokens


def beam_search(
    model: Any, tokenizer: Any, trie: CatalogTrie, prompts: Prompts, k: int, *, time_limit: float, batch_size: int = 8
) -> PeerResult:
    """Beam search along a trie of the titles, as in generative retrieval; joint log-probability, no length penalty.

    A token that ends one title may stand inside no other: `generate` would end that one there, as an invalid one.
    """
    started = time.perf_counter()
    items, ends = _titles(trie)
    root: dict[int, Any] = {}  # token → what may follow it, likewise
    for title in items:
        reduce(lambda node, token: node.setdefault(token, {}), title, root)
    setup = time.perf_counter() - started
    beams = min(k, trie.n_leaves)  # with more, generate would fill up with rows that are no titles

    def constraint(width: int) -> Any:
        def allowed(_: int, tokens: torch.Tensor) -> list[int]:
            node: dict[int, Any] = reduce(lambda node, token: node.get(token, {}), tokens[width:].tolist(), root)
            return list(node) or [tokenizer.pad_token_id]  # generate carries rows on that have ended or are no titles

        return PrefixConstrainedLogitsProcessor(allowed, beams)  # what prefix_allowed_tokens_fn becomes in generate

    rows, cost = _decode(
        model, tokenizer, prompts, beams, constraint, ends, tokenizer.pad_token_id, time_limit, batch_size,
        num_beams=beams, length_penalty=0.0, early_stopping="never", max_new_tokens=int(trie.sequences.lengths.max()),
    )  # fmt: skip
    return _result("beam_search", rows, lambda row: row, items, items, items, prompts, k, setup, cost)


def grammar_sampling(
    model: Any, tokenizer: Any, catalog_texts: Sequence[str], trie: CatalogTrie, prompts: Prompts, k: int, *,
    time_limit: float, backend: Literal["xgrammar", "llguidance"] = "xgrammar", setup_limit: float = 600,
    batch_size: int = 8, seed: int = 0,
) -> PeerResult:  # fmt: skip
    """k samples a session at temperature 1 under a grammar that enumerates all titles; most frequent items first.

    setup_limit: seconds for compiling, in xgrammar's case with start and end of a process; past it all lists are empty.
    Both backends run on a CPU; xgrammar on a GPU needs triton. xgrammar compiles in time that grows with the square
    of the catalog, two minutes for 12,000 titles, and keeps the last grammar for the next call; llguidance in half a
    second. Raises MissingExtraError when the backend is not installed, RuntimeError when it refuses the grammar.
    """
    items, ends = _titles(trie)
    exact = {catalog_texts[item]: item for item in items.values()}
    # A common end token ends the grammar, too: no step is lost on another. Some tokenizers join it with what is before.
    stop, closing = (ends[0], "") if len(ends) == 1 else (tokenizer.eos_token_id, "\n")
    ends, says = _reader(tokenizer, ends, breaks=len(ends) > 1)
    choice = " | ".join(json.dumps(text + closing, ensure_ascii=False) for text in exact)
    compiled = _xgrammar if backend == "xgrammar" else _llguidance
    processor, setup = compiled(tokenizer, choice, stop, model.get_output_embeddings().weight.shape[0], setup_limit)
    rows, cost = _decode(
        model, tokenizer, prompts if processor else [], k, lambda _: processor(), ends, stop, time_limit, batch_size,
        seed=seed, max_new_tokens=1 + max(len(text.encode()) for text in exact), **SAMPLED,  # byte by byte at worst
    )  # fmt: skip
    cost["finished"] &= processor is not None
    return _result(f"grammar_sampling ({backend})", rows, says, exact, exact, items, prompts, k, setup, cost)


def sample_and_ground(
    model: Any, tokenizer: Any, catalog_texts: Sequence[str], trie: CatalogTrie, prompts: Prompts, k: int, *,
    time_limit: float, batch_size: int = 8, seed: int = 0, cache: Path | None = None,
) -> PeerResult:  # fmt: skip
    """k free samples a session at temperature 1, each moved to a title (Harte et al., RecSys'23), most frequent first.

    A sample ends at a line break, at an end token or after 64 tokens. One that is no title becomes the nearest by the
    cosine of `_embed`; those decoded before `time_limit` are moved after it. cache: file for the titles' embedding and
    the seconds it took; it belongs to one model and one catalog.
    """
    items, ends = _titles(trie)
    exact = {catalog_texts[item]: item for item in items.values()}
    kept = torch.load(cache, map_location=model.device) if cache and cache.exists() else None
    vectors, setup = kept or _timed(lambda: _embed(model, tokenizer, list(exact)))
    if cache and not kept:
        torch.save((vectors, setup), cache)
    ends, says = _reader(tokenizer, [*ends, tokenizer.eos_token_id], breaks=True)
    rows, cost = _decode(
        model, tokenizer, prompts, k, lambda _: None, ends, ends[0], time_limit, batch_size,
        seed=seed, max_new_tokens=64, **SAMPLED,
    )  # fmt: skip
    started = time.perf_counter()
    texts = sorted({says(row) for part in rows for row in part}.difference(exact))
    nearest = (_embed(model, tokenizer, texts) @ vectors.T).argmax(1).cpu().numpy()
    grounded = exact | dict(zip(texts, np.array([*exact.values()])[nearest].tolist(), strict=True))
    cost["seconds"] += time.perf_counter() - started
    return _result("sample_and_ground", rows, says, exact, grounded, items, prompts, k, setup, cost)


def _decode(
    model: Any, tokenizer: Any, prompts: Prompts, k: int, constraint: Callable[[int], Any], ends: list[int], pad: int,
    time_limit: float, batch_size: int, *, seed: int = 0, **settings: Any,
) -> tuple[list[list[Row]], dict[str, Any]]:  # fmt: skip
    """k rows a decoded prompt, and their cost; `constraint` makes a logits processor from a batch's prompt columns."""
    rows: list[list[Row]] = []
    spent: list[float] = []  # on the constraint, an entry a step
    started, new_tokens, last = time.perf_counter(), 0, set(ends)
    processor: Any = None

    def watched(input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        allowed, seconds = _timed(lambda: processor(input_ids, scores)) if processor else (scores, 0.0)
        spent.append(seconds)
        return allowed

    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for first in range(0, len(prompts), batch_size):
            batch = {"input_ids": [prompt.tolist() for prompt in prompts[first : first + batch_size]]}
            inputs = tokenizer.pad(batch, padding_side="left", return_tensors="pt").to(model.device)
            columns, before = inputs["input_ids"].shape[1], len(spent)
            processor = constraint(columns)
            made = model.generate(
                **inputs, logits_processor=[watched], num_return_sequences=k, eos_token_id=ends, pad_token_id=pad,
                max_time=max(0.0, started + time_limit - time.perf_counter()), do_sample="num_beams" not in settings,
                repetition_penalty=1.0, **settings,
            )[:, columns:].tolist()  # fmt: skip
            cut = [tuple(row[: next((n for n, token in enumerate(row, 1) if token in last), None)]) for row in made]
            new_tokens += len(cut) * (len(spent) - before) if "num_beams" in settings else sum(map(len, cut))
            if time.perf_counter() > started + time_limit:
                break
            rows += [cut[i : i + k] for i in range(0, len(cut), k)]
    cost = {"seconds": time.perf_counter() - started, "steps": len(spent), "constraint_seconds": sum(spent)}
    return rows, cost | {"new_tokens": new_tokens, "finished": len(rows) == len(prompts)}


@lru_cache(maxsize=1)
def _xgrammar(tokenizer: Any, choice: str, stop: int, width: int, limit: float) -> tuple[Any, float]:
    """What makes a logits processor for one generate, None past the limit; and the seconds of compiling."""
    xgrammar, contrib = _extra("xgrammar"), _extra("xgrammar.contrib.hf")
    words = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=width, stop_token_ids=[stop])
    task = json.dumps([words.serialize_json(), f"root ::= {choice}"])
    command = [sys.executable, __file__]  # the end of this file, in a process: it can be given up as no thread can
    try:
        done = subprocess.run(command, input=task, timeout=limit, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        return None, limit
    if done.returncode:
        raise RuntimeError(f"xgrammar did not compile the titles: {done.stderr.strip()[-500:]}")
    text, seconds = json.loads(done.stdout)
    return partial(contrib.LogitsProcessor, xgrammar.CompiledGrammar.deserialize_json(text, words)), seconds


def _llguidance(tokenizer: Any, choice: str, stop: int, width: int, limit: float) -> tuple[Any, float]:
    """As `_xgrammar`, but in this process, within the library's limits; control tokens named in a title mislead it."""
    llguidance, contrib = _extra("llguidance"), _extra("llguidance.hf")
    started = time.perf_counter()
    words = contrib.from_tokenizer(tokenizer, n_vocab=width, eos_token=stop)
    # One terminal: as alternatives of a rule, over 2,000 titles are refused. The fuel is for all rows ever decoded.
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: TITLE\nTITLE: {choice}")
    matcher = llguidance.LLMatcher(words, grammar, limits=llguidance.LLParserLimits(initial_lexer_fuel=10**9))
    seconds = time.perf_counter() - started
    if matcher.is_error():
        raise RuntimeError(f"llguidance did not compile the titles: {matcher.get_error()[:500]}")

    def mask(rows: list[Any], input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, token in zip(rows, input_ids[:, -1].tolist(), strict=False):  # no rows before the first token
            row.consume_token(token)  # past its end a row is in error, and what it allows is of no account
        rows.extend(matcher.deep_copy() for _ in range(len(input_ids) - len(rows)))
        bits = np.stack([np.frombuffer(row.compute_bitmask(), np.uint8) for row in rows])
        banned = np.unpackbits(bits, axis=1, count=scores.shape[1], bitorder="little") == 0
        return scores.masked_fill(torch.from_numpy(banned).to(scores.device), -torch.inf)

    return (lambda: partial(mask, [])) if seconds <= limit else None, seconds


def _titles(trie: CatalogTrie) -> tuple[dict[Row, int], list[int]]:
    """The first item of every title by its tokens, and the tokens that end titles."""
    items = {tuple(tokens.tolist()): int(trie.items_at(leaf)[0]) for leaf, tokens in enumerate(trie.sequences)}
    return items, sorted({tokens[-1] for tokens in items})


def _reader(tokenizer: Any, ends: list[int], *, breaks: bool) -> tuple[list[int], Callable[[Row], str]]:
    """The tokens that end a row, with `breaks` all that hold a line break, too; and what a row says before its end."""
    pieces = {token: tokenizer.decode([token]) for token in (range(len(tokenizer)) if breaks else ends)}
    endings = {t: piece[max(piece.find("\n"), 0) :] for t, piece in pieces.items() if t in ends or "\n" in piece}
    return sorted(endings), lambda row: tokenizer.decode(list(row)).removesuffix(endings.get(row[-1], ""))


def _result(
    name: str, rows: list[list[Row]], key: Callable[[Row], Any], exact: dict[Any, int], known: dict[Any, int],
    items: dict[Row, int], prompts: Prompts, k: int, setup: float, cost: dict[str, Any],
) -> PeerResult:  # fmt: skip
    """Lists of the items `known` by the keys of rows, equally frequent ones as found; keys in `exact` are titles."""
    keys = [[key(row) for row in part] for part in rows]
    counts = [Counter(known[one] for one in part if one in known) for part in keys]
    lists = [[item for item, times in count.most_common() for _ in range(times)] for count in counts]
    titles = [one in exact for part in keys for one in part]
    return PeerResult(
        name, lists + [[] for _ in range(len(prompts) - len(lists))], completions=len(titles),
        invalid=titles.count(False), starved=sum(len(count) < k for count in counts), setup_seconds=setup,
        respelled=sum(titles) - sum(row in items for part in rows for row in part), **cost,
    )  # fmt: skip


@torch.inference_mode()
def _embed(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """(texts, hidden) the mean of the last hidden states over the tokens of each text, as unit vectors."""
    vectors = torch.empty(len(texts), model.config.hidden_size, device=model.device)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for part in (order[i : i + 64] for i in range(0, len(order), 64)):
        batch = tokenizer(
            [texts[i] or " " for i in part], padding=True, padding_side="right", return_tensors="pt",
            add_special_tokens=False, split_special_tokens=True,
        ).to(model.device)  # fmt: skip
        states = model.base_model(**batch).last_hidden_state.float()
        vectors[part] = torch.nn.functional.normalize((states * batch["attention_mask"][:, :, None]).sum(1), dim=1)
    return vectors


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else int  # else work is billed for what others queued
    wait()
    started = time.perf_counter()
    made = work()
    wait()
    return made, time.perf_counter() - started


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(package := name.partition(".")[0], f"pip install {package}") from None


if __name__ == "__main__":  # for `_xgrammar`
    tokens, ebnf = json.load(sys.stdin)
    compiler = _extra("xgrammar").GrammarCompiler(_extra("xgrammar").TokenizerInfo.deserialize_json(tokens))
    compiled, taken = _timed(lambda: compiler.compile_grammar(ebnf))
    json.dump([compiled.serialize_json(), taken], sys.stdout)
