"""`validate`: look at titles, prompts and their lengths in tokens before any training."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from seqrec_prompt.artifacts import read_manifest
from seqrec_prompt.config import Config
from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.data.sessions import Holdout
from seqrec_prompt.data.suspicious import describe, suspicious
from seqrec_prompt.errors import DataError
from seqrec_prompt.prompting.cases import Cases, check_needs, load_clusters, questions
from seqrec_prompt.prompting.prompter import Prompter, compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
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
    candidates: Path | None = Field(
        None, description="GenList and Rank only: lists for the train sessions, made by 'recommend --part train'"
    )
    embeddings: Path | None = Field(None, description="Classify only: directory made by 'embed' of this catalog")
    context: int = Field(512, ge=16, description="longest training example in tokens, as for 'finetune'")
    prompt_context: int = Field(2048, ge=16, description="longest prompt with a title, as for 'recommend'")
    adapter: Path | None = Field(None, description="adapter made by 'finetune', to see whether it fits these prompts")
    k: int = Field(20, ge=1, description="items a session, as for 'recommend'")
    batch_size: int = Field(8, ge=1, description="examples a step, as for 'finetune'; for the estimate")

    @model_validator(mode="after")
    def _variant_is_possible(self) -> ValidateConfig:
        check_needs(self.template, self.candidates, self.embeddings)
        return self


def validate(config: ValidateConfig) -> dict[str, Any]:
    """Print what a training run would see; nothing is written and no weights are loaded.

    The catalog's titles that are shared, missing, suspicious, or begin another; how many tokens titles, examples and
    test prompts take; what a context cuts off; three filled-in prompts, the shortest, the median and the longest: of
    test sessions, or for variants whose answers are made (lists, clusters) of the training examples; what the checks
    found, memory and time of the training, and what to change. Returns all that as 'text', the 'findings', each with
    its advice, "" where nothing is to be done, and by sign the 'suspicious' titles, all of them by item id. Raises the
    errors that `finetune` and `recommend` would raise for this template, tokenizer and context.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.decoding.trie import compile_trie
    from seqrec_prompt.engines.models import load_tokenizer
    from seqrec_prompt.finetuning.checks import check, taught_short
    from seqrec_prompt.finetuning.estimate import estimate
    from seqrec_prompt.finetuning.examples import tokens_of, training_examples

    data = Dataset.load(config.data)
    template, tokenizer = config.template, load_tokenizer(config.model, config.revision)
    clusters = load_clusters(template, config.embeddings, data)
    names = clusters.names(data.catalog) if clusters else ()
    prompter = compile_template(template, data.catalog, tokenizer, names, data.companions(template.companions))
    candidates = Candidates.load(config.candidates, data, "train") if config.candidates else None
    train, test = data.split.train.take(data.split.train.lengths >= 2), data.split.test
    if not len(train):
        raise DataError(["no training examples: every train session has a single item"], "Prepare longer sessions.")
    strange = suspicious(data.catalog.titles)
    blocks = [_titles(data, prompter, strange), f"trie: {compile_trie(prompter.answers).describe()}"]
    if clusters is not None:
        blocks += [histogram("items of a cluster", np.bincount(clusters.of))]
    blocks += [histogram("tokens of a cluster's name" if clusters else "tokens of a title", prompter.answers.lengths)]
    examples = training_examples(train, prompter, config.context, config.objective, candidates, clusters)
    sizes = tokens_of(examples, prompter)
    if isinstance(examples, Cases) and template.lists:
        blocks += [f"{len(examples):,} training examples, with answers of {examples.describe()}"]
    blocks += [histogram(f"tokens of a training example, at most {config.context}", sizes)]
    if template.name != "Rank":  # which has candidates of their own for test sessions
        asked = questions(prompter, test, config.prompt_context, None, clusters, "--prompt-context")
        blocks += _test_prompts(prompter, asked, test, config.prompt_context)
    shown = asked if template.name == "GenItem" or not isinstance(examples, Cases) else examples
    lengths = np.array([len(shown.prompt(i, prompter)) for i in range(len(shown))])
    chosen = np.argsort(lengths, kind="stable")[[0, len(lengths) // 2, -1]][: min(SHOWN, len(lengths))]
    for name, row in zip(("shortest", "median", "longest"), chosen.tolist(), strict=False):
        answer = shown.answer(row, prompter)
        blocks.append(
            f"--- {name} prompt: session {shown.shown.ids[row]}, {lengths[row]} tokens\n"
            f"{tokenizer.decode(shown.prompt(row, prompter))}"
            f"\n--- to be answered, {len(answer)} tokens\n{tokenizer.decode(answer)}"
        )
    trained = read_manifest(config.adapter, "finetune", "prefer") if config.adapter else None
    titles = prompter.lines if clusters else prompter.answers  # a cluster's name is no title
    findings = check(data, prompter, tokenizer, compile_trie(titles, data.popularity), config.k, trained)
    findings += list(taught_short(examples)) if isinstance(examples, Cases) else []
    findings += estimate(config.model, config.revision, sizes, config.batch_size, config.objective)
    blocks.append("\n".join(["findings (! asks for a change):", *(f"  {finding}" for finding in findings)]))
    report = "\n\n".join(blocks)
    print(report)
    catalog = data.catalog
    return {
        "findings": [asdict(finding) for finding in findings],
        "suspicious": {
            sign: {catalog.ids[i]: catalog.titles[i] for i in positions} for sign, positions in strange.items()
        },
        "text": report,
    }


def _test_prompts(prompter: Prompter, asked: Cases, test: Holdout, context: int) -> list[str]:
    most = prompter.template.max_items
    lengths = np.array([len(asked.prompt(i, prompter)) for i in range(len(asked))])
    cut = int((asked.shown.lengths < np.minimum(test.prompts.lengths, most)).sum())
    older = int((test.prompts.lengths > most).sum())
    return [
        histogram(f"tokens of a test prompt, without the title to come, at most {context}", lengths),
        f"{older:,} of {len(test):,} test sessions are longer than template.max_items {most}; "
        f"{cut:,} more lose items to the context. The most recent items stay.",
    ]


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


def _titles(data: Dataset, prompter: Prompter, strange: dict[str, list[int]]) -> str:
    texts, titles = data.catalog.texts(), prompter.lines if prompter.template.name == "Classify" else prompter.answers
    shared = len(texts) - len(set(texts))
    missing = sum(not title.strip() for title in data.catalog.titles)
    ordered = sorted(set(texts))
    begin = sum(later.startswith(text) for text, later in pairwise(ordered))
    longest = int(titles.lengths.argmax())
    return (
        f"{len(texts):,} items: {shared:,} share an earlier one's title (told apart by popularity), {missing:,} have "
        f"none (written as their id), {begin:,} titles begin another; all stay reachable.\n"
        f"The longest title, {int(titles.lengths[longest]):,} tokens, is that of item "
        f"{data.catalog.ids[longest]}: every prompt leaves room for it.\n"
        + describe(data.catalog.ids, data.catalog.titles, strange)
    )
