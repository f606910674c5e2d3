"""What the parts of on_vllm.py share: prompts of test sessions, an adapter merged into a copy of its model, a clock."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.decoding.compiled import compile_catalog
from seqrec_prompt.decoding.search import Found, PrefixScorer, Scoring, search
from seqrec_prompt.engines.models import load_model, with_adapter
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import IntArray

K = 20
BUDGET = 2_000


class Bench:
    """A compiled catalog, and prompts of test sessions drawn with the seed."""

    def __init__(self, given: argparse.Namespace, tokenizer: Any, sessions: int) -> None:
        self.data = Dataset.load(given.data)
        template = TemplateConfig()
        if given.adapter:
            made = json.loads((given.adapter / "manifest.json").read_text(encoding="utf-8"))
            template = TemplateConfig.model_validate(made["config"]["template"])
        self.compiled = compile_catalog(
            template, self.data.catalog, tokenizer, self.data.popularity, self.data.companions(template.companions)
        )
        test = self.data.split.test.prompts
        drawn = np.random.default_rng(given.seed).permutation(len(test))[:sessions]  # fewer are the first of more
        prompter = self.compiled.prompter
        self.prompts: list[IntArray] = [prompter.prompt(items) for items in prompter.fitting(test.take(drawn), 2048)]

    def ours(self, engine: PrefixScorer, scoring: Scoring, budget: int, which: slice = slice(None)) -> Found:
        """The lists of all prompts or of those told, decoded together."""
        shared = len(self.compiled.prompter.head)
        return search(engine, self.compiled.trie, self.prompts[which], K, scoring=scoring, budget=budget, shared=shared)

    def about(self) -> dict[str, Any]:
        """Of the catalog and the prompts."""
        tokens = float(np.mean([len(prompt) for prompt in self.prompts]))
        return {"catalog": self.compiled.trie.describe(), "sessions": len(self.prompts), "prompt_tokens": tokens}


def merged(model: str, adapter: Path, out: Path) -> Path:
    """Write a copy of the model with the adapter merged into it, laid out as `finetune --method full` does."""
    with_adapter(load_model(model, torch.float32), adapter).save_pretrained(out)
    return out


def as_asked(given: argparse.Namespace) -> Path | None:
    """The adapter as vLLM is to have it: itself, or the directory of a merged copy."""
    if given.adapter is None or given.adapter_as == "served":
        return given.adapter  # type: ignore[no-any-return]
    return merged(given.model, given.adapter, given.scratch / "merged")


def clock() -> float:
    """Seconds: the processor's where it does the work, so that nothing counts that others do there meanwhile."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()
