"""Constrained decoding against its peers, in one run: seconds a session, what is valid, what is proved.

python eval/benchmarks/decoding.py speed peers vocabulary --data runs/beauty/data --out eval/results/decoding
python eval/benchmarks/decoding.py beam_64 --limit 4200 --at-once 16
python eval/benchmarks/decoding.py proof --lists runs/beauty/all.parquet
python eval/benchmarks/decoding.py joint --lists runs/sample/joint.parquet runs/beauty/joint.parquet
python eval/benchmarks/decoding.py speed peers --keep-memory --on kept
python eval/benchmarks/decoding.py page --out eval/results/decoding

`proof` reads what `recommend` wrote for the test sessions: the share of lists that are certified; `tuned` the same of
lists by a tuned adapter, `joint` and `joint_companions` of such by --scoring joint. Each part writes one JSON file into
--out; `page` writes decoding.md from what is there. Times are wall clock on the machine the page names; compare them
within a table only. --on tells the files of a second kind of hardware, or of --keep-memory, from those of the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import psutil
import torch
from _measure import KEEPS, keep_memory, peak_gb, stamp, write_page

from seqrec_prompt.artifacts import write_json
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.decoding.compiled import CompiledCatalog, compile_catalog
from seqrec_prompt.decoding.search import Scoring, search
from seqrec_prompt.engines.hardware import Dtype
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import IntArray
from seqrec_prompt.recommenders import files

K = 20
LARGE_VOCABULARY = 151_936
PEER_SETTINGS = ("limit", "peers")
READ = ("proof", "tuned", "joint", "joint_companions")  # parts that read what `recommend` wrote
SETTINGS = {"peers": PEER_SETTINGS, "beam_64": ("limit", "at_once")} | dict.fromkeys(READ, ("lists",))
PEERS = ("llguidance", "xgrammar", "sample", "beam-alone", "beam")


class Clock:
    """Seconds spent inside the model's own modules, body and LM head, since `reset`."""

    def __init__(self, engine: HuggingFaceEngine) -> None:
        self.seconds = {"body": 0.0, "head": 0.0}
        self._begun = 0.0
        for name, module in (("body", engine.body), ("head", engine.head)):
            module.register_forward_pre_hook(self._start)
            module.register_forward_hook(lambda *_, name=name: self._stop(name))

    def reset(self) -> None:
        """Begin to count anew."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def _start(self, *_: Any) -> None:
        self._begun = _now()

    def _stop(self, name: str) -> None:
        self.seconds[name] += _now() - self._begun


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Bench:
    """A model, a compiled catalog and a fixed draw of test sessions."""

    def __init__(self, given: argparse.Namespace, vocabulary: int | None = None, dtype: Dtype = "auto") -> None:
        self.data = Dataset.load(given.data)
        self.engine = HuggingFaceEngine.load(given.model, given.adapter, dtype)
        if vocabulary:
            self.engine.model.resize_token_embeddings(vocabulary)
            self.engine = HuggingFaceEngine(self.engine.model, self.engine.tokenizer)
        template = TemplateConfig()
        if given.adapter:
            made = json.loads((given.adapter / "manifest.json").read_text(encoding="utf-8"))
            template = TemplateConfig.model_validate(made["config"]["template"])
        self.compiled: CompiledCatalog = compile_catalog(
            template,
            self.data.catalog,
            self.engine.tokenizer,
            self.data.popularity,
            self.data.companions(template.companions),
        )
        self.clock = Clock(self.engine)
        self.seed = given.seed

    def prompts(self, n: int) -> list[IntArray]:
        """Prompts of `n` test sessions drawn with the seed."""
        test = self.data.split.test.prompts
        drawn = np.sort(np.random.default_rng(self.seed).choice(len(test), n, replace=False))
        shown = self.compiled.prompter.fitting(test.take(drawn), 2048)
        return [self.compiled.prompter.prompt(items) for items in shown]

    def ours(self, n: int, batch: int, scoring: Scoring, repeats: int = 3) -> dict[str, Any]:
        """Decode `n` sessions in batches; of several repeats the one of median time."""
        return self.alternately(n, [batch], scoring, repeats)[0]

    def alternately(self, n: int, batches: list[int], scoring: Scoring, repeats: int) -> list[dict[str, Any]]:
        """The same for several batch sizes in turn: a slow minute of the machine is nobody's alone."""
        runs = [[self._once(n, batch, scoring) for batch in batches] for _ in range(repeats)]
        return [sorted(same, key=lambda run: run["seconds"])[repeats // 2] for same in zip(*runs, strict=True)]

    def _once(self, n: int, batch: int, scoring: Scoring, budget: int = 2000) -> dict[str, Any]:
        prompts = self.prompts(n)
        self.clock.reset()
        start, prefill, parts = _now(), 0.0, []
        for first in range(0, n, batch):
            some = prompts[first : first + batch]
            begun = _now()
            self.engine.prefill(some, len(self.compiled.prompter.head))
            prefill += _now() - begun
            parts.append(
                search(
                    self.engine, self.compiled.trie, some, K,
                    scoring=scoring, budget=budget, shared=len(self.compiled.prompter.head),
                )
            )  # fmt: skip
        # The prompts were read once more than a user's run reads them, to time that alone.
        seconds = _now() - start - prefill
        model = sum(self.clock.seconds.values()) - prefill
        return {
            "scoring": scoring,
            "sessions": n,
            "batch": batch,
            "seconds": seconds,
            "prefill_seconds": prefill,
            "constraint_share": max(0.0, 1 - model / seconds),
            "prompt_tokens": float(np.mean([len(prompt) for prompt in prompts])),
            "tree_tokens": float(np.concatenate([p.counts.tokens for p in parts]).mean()),
            "rounds": float(np.concatenate([p.counts.rounds for p in parts]).mean()),
            "certified": float(np.concatenate([p.certified for p in parts]).mean()),
            "median_gap": float(np.median(np.concatenate([p.gap for p in parts]))),
            "peak_gb": peak_gb(),
        }


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """Both scores, one to 64 sessions at a time."""
    bench = Bench(given)
    bench.ours(8, 8, "renormalised", repeats=1)  # the first run of a process is slower
    rows = bench.alternately(8, [1, 8], "renormalised", 7) + bench.alternately(64, [8, 64], "renormalised", 1)
    rows.append(bench.ours(8, 8, "joint", 1))
    return {"rows": rows, "catalog": bench.compiled.trie.describe()}


def vocabulary(given: argparse.Namespace) -> dict[str, Any]:
    """What the constraint costs when the vocabulary is three times as large; the added rows are never a title's."""
    bench = Bench(given, LARGE_VOCABULARY)
    bench.ours(8, 8, "renormalised", repeats=1)
    return {"rows": [bench.ours(8, 8, "renormalised")], "vocabulary": LARGE_VOCABULARY}


def against_peers(given: argparse.Namespace) -> dict[str, Any]:
    """The same eight sessions by this package and by each peer."""
    bench, rows = Bench(given), []
    bench.ours(8, 8, "renormalised", repeats=1)
    ours = [bench.ours(8, 8, "renormalised"), bench.ours(8, 8, "joint", 1)]
    model, tokenizer, trie = bench.engine.model, bench.engine.tokenizer, bench.compiled.trie
    texts, prompts = bench.data.catalog.texts(), bench.prompts(8)
    # Twenty rows a session are a batch already: on a CPU more of them at once only copy larger caches.
    alone, beam = {"time_limit": given.limit, "batch_size": 1}, partial(peers.beam_search, model, tokenizer, trie)
    grammar = partial(peers.grammar_sampling, model, tokenizer, texts, trie, prompts, K, **alone)
    runs = {
        "llguidance": partial(grammar, backend="llguidance"),
        "xgrammar": partial(grammar, backend="xgrammar"),
        "sample": partial(
            peers.sample_and_ground, model, tokenizer, texts, trie, prompts, K, cache=given.out / "embedding.pt",
            **alone,
        ),
        "beam-alone": partial(beam, prompts, K, **alone),
        "beam": partial(beam, prompts, K, time_limit=given.limit, batch_size=8),
    }  # fmt: skip
    for name in given.peers:
        torch.manual_seed(given.seed)
        rows.append(_cost(runs[name](), name, prompts, 8 if name == "beam" else 1))
        print(rows[-1], flush=True)
        found = {"ours": ours, "peers": rows, "time_limit": given.limit}
        write_json(_file(given, "peers"), found | stamp(given, "peers", *PEER_SETTINGS))  # a peer may take an hour
    return found


def beam_64(given: argparse.Namespace) -> dict[str, Any]:
    """64 sessions, both scores, and beam search in as large batches as the memory holds; in bfloat16."""
    bench, n = Bench(given, dtype="bfloat16"), 64
    bench.ours(8, 8, "renormalised", repeats=1)
    ours, prompts, batch = bench.alternately(n, [n, 8], "renormalised", 1), bench.prompts(n), given.at_once
    ours.append(bench.ours(n, 8, "joint", repeats=1))
    print(*ours, sep="\n", flush=True)
    beam = partial(peers.beam_search, bench.engine.model, bench.engine.tokenizer, bench.compiled.trie, prompts, K)
    memory = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 0.95), resource.RLIM_INFINITY))  # to fail, not be killed
    while True:
        try:
            rows = [_cost(beam(time_limit=given.limit, batch_size=batch), "beam", prompts, batch)]
            return {"ours": ours, "peers": rows, "time_limit": given.limit, "memory_gb": memory / 1e9}
        except (RuntimeError, MemoryError) as error:
            print(f"{batch} at once: {error}", flush=True)
            if batch == 1:
                raise
            batch //= 2


def _cost(result: peers.PeerResult, peer: str, prompts: list[IntArray], batch: int) -> dict[str, Any]:
    """What a peer cost, with the share of real, different items among those wanted, without its lists."""
    distinct = sum(len(set(items)) for items in result.lists)
    row = vars(result) | {"peer": peer, "batch": batch, "distinct_share": distinct / (K * len(prompts))}
    return {key: value for key, value in row.items() if key != "lists"}


def proof(given: argparse.Namespace) -> dict[str, Any]:
    """What `recommend` wrote for the test sessions: how many lists are full, real, distinct and certified."""
    return {"rows": [_proved(lists) for lists in given.lists]}


def _proved(path: Path) -> dict[str, Any]:
    made = files.read_file_manifest(path) or {}
    place = Path(made["config"]["data"])
    data = Dataset.load(place)
    lists = files.read(path, data.catalog).lists
    lengths = np.diff(lists.offsets)
    positions = np.repeat(np.arange(len(lists)), lengths)
    distinct = len(np.unique(positions * len(data.catalog) + lists.items))
    settings = ("model", "adapter", "dtype", "scoring", "budget", "batch_size", "exclude_seen")
    return {
        "sessions": len(lists),
        "of": len(data.split.test),
        "full": int((lengths == made["config"]["k"]).sum()),
        "certified": int(lists.certified.sum()),
        "median_gap": float(np.median(lists.gap)),
        "duplicates": len(lists.items) - distinct,
        "facts": made["facts"],
        "settings": {name: made["config"].get(name) for name in settings} | {"data": "/".join(place.parts[-2:])},
    }


PARTS = {"speed": speed, "peers": against_peers, "beam_64": beam_64, "vocabulary": vocabulary}
PARTS |= dict.fromkeys(READ, proof)


def _file(given: argparse.Namespace, part: str) -> Path:
    """Where the result of a part is written."""
    return Path(given.out, f"{part}-{given.on}.json" if given.on else f"{part}.json")


def main() -> None:
    """Run the parts that were asked for, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "page"], help="what to measure")
    parser.add_argument("--data", type=Path, default=Path("runs/beauty/data"), help="directory made by 'prepare'")
    parser.add_argument("--model", default="smollm2", help="hub name, directory, or 'smollm2'")
    parser.add_argument("--adapter", type=Path, help="adapter made by 'finetune'")
    parser.add_argument("--out", type=Path, default=Path("eval/results/decoding"), help="directory of the results")
    parser.add_argument(
        "--lists", type=Path, nargs="+", help=f"Parquet files made by 'recommend', for {', '.join(READ)}"
    )
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a peer is stopped")
    parser.add_argument("--at-once", type=int, default=64, help="sessions that beam_64 tries first, then half as many")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS, help="which peers")
    parser.add_argument("--on", help="name of the hardware in that of the files, beside files of other hardware")
    parser.add_argument("--seed", type=int, default=0, help="draws the sessions")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="with an allocator that keeps freed memory (" + ", ".join(f"{a}={b}" for a, b in KEEPS.items()) + ")",
    )
    given = parser.parse_args()
    if given.keep_memory:
        keep_memory()
    for part in given.parts:
        if part != "page":
            found = PARTS[part](given)
            write_json(_file(given, part), found | stamp(given, part, *SETTINGS.get(part, ())))
            print(f"wrote {_file(given, part)}", flush=True)
    write_page(given.out)


if __name__ == "__main__":
    main()
