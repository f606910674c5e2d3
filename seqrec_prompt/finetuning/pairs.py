"""`pairs`: write prompt–completion pairs as JSON lines, in the columns that TRL's trainers read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import atomic_file, is_done, manifest, peek_manifest, write_json
from seqrec_prompt.config import Config
from seqrec_prompt.locks import locked
from seqrec_prompt.prompting.templates import TemplateConfig, compile_template, messages, text

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Holdout


class PairsConfig(Config):
    """Settings of `pairs`."""

    data: Path = Field(description="directory made by 'prepare'")
    out: Path = Field(description="JSON lines file to write")
    part: Literal["train", "test"] = Field("train", description="sessions to write")
    targets: Literal["last", "all"] = Field(
        "last", description="'last': one pair a session; 'all': one for every item after a session's first"
    )
    conversational: bool = Field(False, description="chat messages instead of plain text")
    model: str = Field("smollm2", description="whose tokens are counted: hub name, directory, or 'smollm2'")
    context: int = Field(2048, ge=16, description="longest prompt with its completion, in tokens")
    overwrite: bool = Field(False, description="replace pairs made with other settings")
    template: TemplateConfig = TemplateConfig(layout="ask")

    @model_validator(mode="after")
    def _messages_alternate(self) -> PairsConfig:
        if self.conversational and self.template.layout != "ask":
            raise ValueError(
                "conversational pairs need template.layout 'ask': a session in one message, then the answer"
            )
        return self


@locked
def pairs(config: PairsConfig) -> Path:
    """Write one JSON object a line with `prompt` and `completion`, and a manifest beside it; returns the file.

    Load it with `datasets.load_dataset("json", data_files=…)` and give it to TRL's SFTTrainer, which ends each
    completion with the end token and trains on completions only.
    """
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.models import load_tokenizer

    data = Dataset.load(config.data)
    sidecar = config.out.with_name(config.out.name + ".manifest.json")
    wanted = manifest("pairs", config.resolved(), {"data": data.hash})
    found = peek_manifest(sidecar.parent, sidecar.name) if config.out.exists() else None
    if is_done(config.out, found, wanted, overwrite=config.overwrite):
        print(f"already written: {config.out}")
        return config.out
    template = config.template.model_copy(update={"chat": config.conversational})
    count = 0
    with atomic_file(config.out) as partial, partial.open("w", encoding="utf-8") as stream:
        for pair in build_pairs(data, _cases(data, config), template, load_tokenizer(config.model), config.context):
            stream.write(json.dumps(pair, ensure_ascii=False) + "\n")
            count += 1
        stream.flush()
        write_json(sidecar, wanted | {"facts": {"pairs": count}})  # before the file appears: it never lacks one
    print(f"{count:,} pairs: {config.out}")
    return config.out


def build_pairs(
    data: Dataset, cases: Holdout, template: TemplateConfig, tokenizer: Any, context: int
) -> Iterator[dict[str, Any]]:
    """Yield {"prompt", "completion"} for each case, as text or, where `template.chat`, as chat messages.

    When a prompt with its longest possible answer would pass `context` tokens, the oldest items go first; a completion
    is never cut. Whoever tokenises this text may read special tokens in it, so those inside titles are broken up by a
    space. Raises TemplateError when nothing fits.
    """
    prompter = compile_template(template, data.catalog, tokenizer)
    lines = [_harmless(line, tokenizer) for line in data.catalog.texts(template.attributes)]
    answers = lines if template.layout == "continue" else [_harmless(t, tokenizer) for t in data.catalog.texts()]
    for items, target in zip(prompter.fitting(cases.prompts, context), cases.targets.tolist(), strict=True):
        history = [lines[item] for item in items.tolist()]
        if template.chat:
            answer: Any = [{"role": "assistant", "content": answers[target]}]
            yield {"prompt": messages(template, history), "completion": answer}
        else:
            yield {"prompt": text(template, history), "completion": answers[target]}


def _cases(data: Dataset, config: PairsConfig) -> Holdout:
    import numpy as np

    from seqrec_prompt.data.sessions import Holdout, Sessions
    from seqrec_prompt.ragged import offsets_of, ranges

    if config.part == "test":
        return data.split.test
    train = data.split.train.take(data.split.train.lengths >= 2)
    if config.targets == "last":
        return Holdout.of_last_items(train)
    # Every entry but a session's first is a target; its prompt is what stands before it.
    start = train.offsets[:-1][train.rows]
    entry = np.flatnonzero(np.arange(len(train.items)) > start)
    lengths = entry - start[entry]
    offsets = offsets_of(lengths)
    flat = ranges(start[entry], lengths)
    return Holdout(Sessions(train.ids[train.rows[entry]], offsets, train.items[flat]), train.items[entry])


def _harmless(line: str, tokenizer: Any) -> str:
    for token in tokenizer.all_special_tokens:
        if token in line:
            line = line.replace(token, f"{token[0]} {token[1:]}")
    return line
