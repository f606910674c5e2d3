"""Part `peers` of on_vllm.py: what the search costs on vLLM, beside vLLM's own ways to k titles."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from on_vllm_sessions import Bench, K, as_asked, clock

from seqrec_prompt.decoding.search import Scoring
from seqrec_prompt.engines.vllm import VLLMEngine
from seqrec_prompt.prompting.grounding import Grounder

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
        before, started = dict(self.counts), clock()
        made = work()
        seconds = clock() - started
        return made, {"seconds": seconds} | {name: self.counts[name] - before[name] for name in self.counts}


def peers(given: argparse.Namespace) -> dict[str, Any]:
    """Ours and vLLM's own ways on one engine, one after the other."""
    engine = VLLMEngine.load(given.model, as_asked(given), "float32")
    bench, meter = Bench(given, engine.tokenizer, given.peer_sessions), Meter(engine.llm)
    catalog = bench.data.catalog
    titles = list(dict.fromkeys(catalog.texts()))
    items_of, grounder = {text: i for i, text in enumerate(titles)}, Grounder(catalog, bench.data.popularity)
    prompts = [{"prompt_token_ids": prompt.tolist()} for prompt in bench.prompts]
    longest = int(bench.compiled.trie.sequences.lengths.max())
    engine.answer([])  # what is set up once is not measured
    bench.ours(engine, "renormalised", 50, slice(1))

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
    scorings: tuple[Scoring, ...] = ("renormalised", "joint")
    for scoring in scorings:
        found, cost = meter.measure(partial(bench.ours, engine, scoring, given.budget))
        lists = [part.tolist() for part in np.split(found.items, found.offsets[1:-1])]
        rows.append(row_of(f"**{scoring}**", lists, cost) | {"certified": float(found.certified.mean())})
        print(rows[-1], flush=True)
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
        row = row_of(name, exact, cost)
        if "free" in name:
            grounded = row_of("", [grounder(part).items.tolist() for part in named], cost)
            row |= {share: grounded[share] for share in ("distinct", "starved")}
        rows.append(row)
        print(row, flush=True)
    adapter = given.adapter_as if given.adapter else "none"
    return bench.about() | {"adapter": adapter, "budget": given.budget, "rows": rows}


def row_of(name: str, lists: list[list[int]], cost: dict[str, float]) -> dict[str, Any]:
    """Shares: of completions that are a title, of the K items wanted, of sessions that have fewer different ones.

    lists: an item a completion, -1 for what is none. cost: of all sessions.
    """
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


def _choice(titles: Sequence[str]) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(choice=[title for title in titles if title])
