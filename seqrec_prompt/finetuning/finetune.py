"""`finetune`: fine-tune a local LLM on prepared sessions, by an adapter or as a whole (TRL and PEFT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import hash_json, manifest, refuse_inputs_inside
from seqrec_prompt.config import Config
from seqrec_prompt.finetuning.training import TrainingConfig, losses, require_reporter, run
from seqrec_prompt.locks import locked
from seqrec_prompt.prompting.cases import NEEDS, check_needs, input_hashes
from seqrec_prompt.prompting.templates import TemplateConfig


class LoraConfig(Config):
    """The adapter's shape (Hu et al., 2021); method 'full' has none."""

    r: int = Field(16, ge=1, description="rank of the update")
    alpha: int = Field(32, ge=1, description="scale: the update is multiplied by alpha/r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the update")
    target_modules: tuple[str, ...] = Field(
        ("all-linear",), description="layers that get an update, by name; all-linear: every one but the LM head"
    )
    blocks: int | None = Field(
        None, ge=1, description="only so many of the model's blocks, the last ones, get an update: no gradient need go "
        "through those before, which saves time; unset: all"
    )  # fmt: skip


class FinetuneConfig(TrainingConfig):
    """Settings of `finetune`."""

    objective: Literal["last_item", "all_items", "catalog"] = Field(
        "catalog",
        description="what is learned: the last item's tokens, all items' tokens, or every decision in the catalog's "
        "trie on the way to each item",
    )
    method: Literal["lora", "dora", "qlora", "full"] = Field(
        "lora",
        description="what is trained: a LoRA adapter; one that also learns the length of each column (DoRA, Liu et "
        "al., 2024); a LoRA adapter over a base model in 4 bits (QLoRA, Dettmers et al., 2023); every weight, which "
        "wants a learning rate about ten times smaller",
    )
    packing: bool = Field(
        False,
        description="lay short examples of a batch side by side in one row, none seeing another: the same loss, less "
        "padding",
    )
    template: TemplateConfig = TemplateConfig()
    candidates: Path | None = Field(
        None, description="GenList and Rank only: lists for the train sessions, made by 'recommend --part train'"
    )
    embeddings: Path | None = Field(None, description="Classify only: directory made by 'embed' of this catalog")
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _layout_fits(self) -> FinetuneConfig:
        if self.objective == "all_items" and self.template.layout != "continue":
            raise ValueError("objective 'all_items' needs template.layout 'continue': one sequence teaches every item")
        if self.validation.steps and self.template.name != "GenItem":
            raise ValueError(f"'validation.steps' judges GenItem only: leave it out with {self.template.name}")
        check_needs(self.template, self.candidates, self.embeddings)
        return self


@locked
def finetune(config: FinetuneConfig) -> Path:
    """Train an adapter, or with method 'full' a model; returns its directory.

    It holds the weights (safetensors), manifest.json (resolved config, hashes of data, template and base model) and
    log.json. A stopped run goes on from its last checkpoint; a finished one is not repeated; a directory of another run
    is refused unless `overwrite`.
    """
    from seqrec_prompt.data.dataset import Dataset

    refuse_inputs_inside(config.out, {name: getattr(config, name) for name in ("data", "model", *NEEDS.values())})
    require_reporter(config)
    data = Dataset.load(config.data)  # before the heavy imports: a wrong path is told at once

    from seqrec_prompt.engines.models import model_hash
    from seqrec_prompt.finetuning.setup import build_trainer

    inputs = {
        "data": data.hash,
        "catalog": data.catalog.hash,
        "template": hash_json(config.template.resolved()),
        "model": model_hash(config.model, config.revision),
        **input_hashes(config.candidates, config.embeddings),
    }
    made = "model" if config.method == "full" else "adapter"
    unit = "nats an item" if config.objective == "catalog" else "nats a token"

    def summary(facts: dict[str, Any]) -> str:
        return f"{made}: {config.out}  ({losses(facts, unit)})"

    return run(config, manifest("finetune", config.resolved(), inputs), lambda: build_trainer(config, data), summary)
