"""`validate`: look at titles, prompts and their lengths in tokens before any training."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from seqrec_prompt.config import Config
from seqrec_prompt.data.suspicious import describe
from seqrec_prompt.prompting.templates import Prompter, TemplateConfig, compile_template
from seqrec_prompt.ragged import LongArray

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset

BAR, BINS, SHOWN = 40, 10, 3


class ValidateConfig(Config):
    """Settings of `validate`."""

    data: Path = Field(description="directory made by 'prepare'")
    model: str = Field("smollm2", description="whose tokens are counted: hub name, directory, or 'smollm2'")
    revision: str | None = Field(None, description="revision of a hub model")
    objective: Literal["last_item", "all_items", "catalog"] = Field("catalog", description="as for 'finetune'")
    template: TemplateConfig = TemplateConfig()
    context: int = Field(512, ge=16, description="longest training example in tokens, as for 'finetune'")
    prompt_context: int = Field(2048, ge=16, description="longest prompt with a title, as for 'recommend'")


def validate(config: ValidateConfig) -> str:
    """Print, and return, what a training run would see; nothing is written and no weights are loaded.

    The catalog's titles that are shared, missing, suspicious, or begin another; how many tokens titles, training
    examples and test prompts take; what a context cuts off; the shortest, the median and the longest test prompt filled
    in. Raises the errors that `finetune` and `recommend` would raise for this template, tokenizer and context.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.decoding.trie import compile_trie
    from seqrec_prompt.engines.models import load_tokenizer
    from seqrec_prompt.finetuning.examples import windows

    data = Dataset.load(config.data)
    tokenizer = load_tokenizer(config.model, config.revision)
    prompter = compile_template(config.template, data.catalog, tokenizer)
    objective = "last_item" if config.template.layout == "ask" else config.objective
    examples = windows(data.split.train, prompter, config.context, objective)
    frame = len(prompter.head) + len(prompter.tail)
    sizes = frame + np.add.reduceat(prompter.lines.lengths[examples.items], examples.offsets[:-1])
    test = data.split.test
    shown = prompter.fitting(test.prompts, config.prompt_context)
    prompts = [prompter.prompt(items) for items in shown]
    lengths = np.array([len(prompt) for prompt in prompts])
    cut = int((shown.lengths < np.minimum(test.prompts.lengths, config.template.max_items)).sum())
    older = int((test.prompts.lengths > config.template.max_items).sum())
    chosen = np.argsort(lengths, kind="stable")[[0, len(lengths) // 2, -1]][: min(SHOWN, len(lengths))]
    blocks = [
        _titles(data, prompter),
        f"trie: {compile_trie(prompter.answers).describe()}",
        histogram("tokens of a title", prompter.answers.lengths),
        histogram(f"tokens of a training example, at most {config.context}", sizes),
        histogram(f"tokens of a test prompt, without the title to come, at most {config.prompt_context}", lengths),
        f"{older:,} of {len(test):,} test sessions are longer than template.max_items {config.template.max_items}; "
        f"{cut:,} more lose items to the context. The most recent items stay.",
    ]
    for name, row in zip(("shortest", "median", "longest"), chosen.tolist(), strict=False):
        prompt, answer = prompts[row], prompter.answers[int(test.targets[row])]
        blocks.append(
            f"--- {name} prompt: session {test.prompts.ids[row]}, {len(prompt)} tokens\n{tokenizer.decode(prompt)}"
            f"\n--- to be answered, {len(answer)} tokens\n{tokenizer.decode(answer)}"
        )
    report = "\n\n".join(blocks)
    print(report)
    return report


def histogram(what: str, values: LongArray) -> str:
    """Draw counts of whole numbers in at most ten bins of equal width, under their median, 95th percentile, largest."""
    median, most = np.percentile(values, [50, 95])
    least, largest = int(values.min()), int(values.max())
    width = -(-(largest - least + 1) // BINS)
    counts = np.bincount((values - least) // width)
    lines = [f"{what}: median {median:.0f}, 95% up to {most:.0f}, longest {largest}"]
    digits = len(str(largest))
    for place, count in enumerate(counts.tolist()):
        low = least + place * width
        bar = "█" * -(-count * BAR // int(counts.max()))
        lines.append(f"  {low:>{digits}}–{low + width - 1:<{digits}} {bar:<{BAR}} {count:,}")
    return "\n".join(lines)


def _titles(data: Dataset, prompter: Prompter) -> str:
    texts = data.catalog.texts()
    shared = len(texts) - len(set(texts))
    missing = sum(not title.strip() for title in data.catalog.titles)
    ordered = sorted(set(texts))
    begin = sum(later.startswith(text) for text, later in pairwise(ordered))
    longest = int(prompter.answers.lengths.argmax())
    return (
        f"{len(texts):,} items: {shared:,} share an earlier one's title (told apart by popularity), {missing:,} have "
        f"none (written as their id), {begin:,} titles begin another; all stay reachable.\n"
        f"The longest title, {int(prompter.answers.lengths[longest]):,} tokens, is that of item "
        f"{data.catalog.ids[longest]}: every prompt leaves room for it.\n"
        + describe(data.catalog.ids, data.catalog.titles)
    )
