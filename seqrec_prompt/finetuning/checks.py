"""What is worth knowing before an hour of training: checks of a dataset, a template and a tokenizer together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.prompting.cases import Cases
from seqrec_prompt.prompting.prompter import Prompter
from seqrec_prompt.prompting.templates import NEWLINE, TemplateConfig
from seqrec_prompt.ragged import LongArray

FEW = 3  # examples named in a finding
BLOCK = 4096  # titles decoded at once


@dataclass(frozen=True)
class Finding:
    """Something found, and what to do about it; no `advice`: good to know, nothing to do."""

    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{'!' if self.advice else '·'} {self.what}" + (f"\n    → {self.advice}" if self.advice else "")


def check(
    data: Dataset,
    prompter: Prompter,
    tokenizer: Any,
    trie: CatalogTrie,
    k: int,
    trained: dict[str, Any] | None = None,
) -> list[Finding]:
    """Every check that needs no weights. trained: the manifest of an adapter that is to be used with this data."""
    found = [
        *round_trip(data, prompter, tokenizer),
        *capitals(data),
        *leakage(data),
        *short_lists(data, trie, k),
    ]
    return [*found, *mismatch(trained, data, prompter.template)] if trained else found


def round_trip(data: Dataset, prompter: Prompter, tokenizer: Any) -> Iterator[Finding]:
    """Titles that come back from the tokenizer as another text: an LLM can neither read nor write them as they are."""
    if prompter.template.title_tokens is not None:
        kept, whole = prompter.lines.lengths.mean(), "template.title_tokens"
        yield Finding(f"titles are cut ({whole}): {kept:.1f} tokens on average stand in a prompt")
        return
    texts = data.catalog.texts(prompter.template.attributes)
    before = tokenizer(NEWLINE, add_special_tokens=False)["input_ids"]
    broken = []
    for start in range(0, len(texts), BLOCK):
        block = range(start, min(start + BLOCK, len(texts)))
        back = tokenizer.batch_decode(
            [[*before, *prompter.lines[item].tolist()] for item in block], clean_up_tokenization_spaces=False
        )
        titles = [text.strip().partition(NEWLINE)[0] for text in back]  # what may stand below a title is none
        broken += [(item, text) for item, text in zip(block, titles, strict=True) if text != texts[item].strip()]
    if not broken:
        yield Finding(f"all {len(texts):,} titles come back from the tokenizer as they went in")
        return
    shown = ", ".join(f"{texts[item]!r} → {text.strip()!r}" for item, text in broken[:FEW])
    yield Finding(
        f"{len(broken):,} of {len(texts):,} titles come back from the tokenizer as another text: {shown}",
        "rewrite these titles with characters the tokenizer has, or take a model with a byte-level tokenizer",
    )


def capitals(data: Dataset) -> Iterator[Finding]:
    """Titles in capitals, which a language model reads letter by letter."""
    titles = [title for title in data.catalog.titles if title.upper() != title.lower()]
    loud = sum(title == title.upper() for title in titles)
    if titles and loud > len(titles) / 2:
        yield Finding(
            f"{loud:,} of {len(titles):,} titles are written in capitals, which takes about twice the tokens",
            "prepare with --title-case sentence",
        )


def leakage(data: Dataset) -> Iterator[Finding]:
    """Test sessions that training sees: the same id, the same sequence with its target, or a target from its past.

    With split leave_one_out every test session continues a train session, at whatever time: then only told.
    """
    train, test = data.split.train, data.split.test
    continues = data.manifest["config"].get("split") == "leave_one_out"
    both = int(np.isin(test.prompts.ids.astype(str), train.ids.astype(str)).sum())
    if both and not continues:
        yield Finding(
            f"{both:,} of {len(test):,} test sessions have the id of a train session",
            "split by session: with --split temporal no id is on both sides",
        )
    known = {items.tobytes() for items in train if len(items) >= 2}
    whole = sum(items.tobytes() in known for items in test.continued())
    if whole:
        yield Finding(
            f"{whole:,} of {len(test):,} test sessions, target included, are also a train session item by item",
            "chance with sessions of two or three items; otherwise drop doubled sessions from the raw data",
        )
    if train.times is not None and test.target_times is not None:
        early = float((test.target_times < train.times.max()).mean())
        if early and continues:
            yield Finding(f"{early:.0%} of the test targets are older than the newest train row, as in leave-one-out")
        elif early:
            yield Finding(
                f"{early:.0%} of the test targets are older than the newest train row: training knows their future",
                "split by time: --split temporal",
            )
    unseen = int((data.popularity[test.targets] == 0).sum())
    if unseen:
        yield Finding(f"{unseen:,} of {len(test):,} test targets are items that no train session has")
    if not (both and not continues) and not whole:
        yield Finding("no test session is a train session")


def short_lists(data: Dataset, trie: CatalogTrie, k: int) -> Iterator[Finding]:
    """Whether lists of k can be filled, and what a plain beam of that width would lose on the way."""
    if k > trie.n_items:
        yield Finding(
            f"lists of {k} cannot be filled: the catalog has {trie.n_items:,} items",
            f"recommend with --k {trie.n_items}",
        )
        return
    lost = starved(trie, data.popularity, min(k, trie.n_leaves))
    yield Finding(
        f"a plain beam of width {k} would lose {lost} of the {min(k, trie.n_leaves)} most popular titles on the way, "
        "their first words being rarer than others'; the certified search loses none"
        if lost
        else f"a plain beam of width {k} would keep the {min(k, trie.n_leaves)} most popular titles"
    )


def taught_short(examples: Cases) -> Iterator[Finding]:
    """Lists to learn from that the context cuts: a model does not write longer ones than it was taught."""
    if examples.cut:
        yield Finding(
            f"{examples.cut:,} of {len(examples):,} lists to learn from are cut short by the context: it has room for "
            f"{examples.answers.lengths.mean():.1f} titles on average",
            "raise --context, as for 'finetune'; lists get half of it",
        )


def starved(trie: CatalogTrie, popularity: LongArray, width: int) -> int:
    """How many of the `width` likeliest titles a beam of that width drops, were popularity the model.

    popularity: (items,) counts. A branch is as likely as all titles below it together; the beam goes down branching
    point by branching point and keeps the `width` likeliest, finished titles among them.
    """
    # One is added to each title: a title nobody took is unlikely, not impossible.
    mass = 1.0 + np.add.reduceat(popularity[trie.items].astype(np.float64), trie.item_ptr[:-1])
    below = np.concatenate([[0.0], np.cumsum(mass)])
    node_mass = below[trie.hi] - below[trie.lo]
    beam = np.zeros(1, np.int64)
    while (inner := trie.n_children[beam] > 0).any():
        opened = [trie.children(int(node)) for node in beam[inner]]
        beam = np.concatenate([beam[~inner], *opened])
        beam = beam[np.argsort(-node_mass[beam], kind="stable")[:width]]
    # Compared by likelihood, not by name: of equally likely titles either may stand in the list.
    return int((node_mass[beam] < np.sort(mass)[-width]).sum())


def mismatch(trained: dict[str, Any], data: Dataset, template: TemplateConfig) -> Iterator[Finding]:
    """Where an adapter was trained on other prompts, or other items, than it would be asked with."""
    # Read as a template: what settings have come since stand as they were without them.
    was, now = TemplateConfig.model_validate(trained["config"]["template"]).resolved(), template.resolved()
    if differing := [f"{key}: {was[key]!r} → {now[key]!r}" for key in now if was[key] != now[key]]:
        yield Finding(
            f"the adapter was trained with another template: {'; '.join(differing)}",
            "leave the template out: 'recommend' takes the adapter's own",
        )
    if trained["inputs"]["catalog"] != data.catalog.hash:
        yield Finding(
            "the adapter was trained on another catalog",
            "expect less of items that are new to it; train again when they are many",
        )
