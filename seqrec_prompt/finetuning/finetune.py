"""`finetune`: LoRA-fine-tune a local LLM on prepared sessions (TRL and PEFT)."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from seqrec_prompt.artifacts import MANIFEST, hash_json, is_done, manifest, peek_manifest, write_json
from seqrec_prompt.config import Config
from seqrec_prompt.prompting.templates import TemplateConfig

CHECKPOINTS, STARTED, LOG = "checkpoints", "started.json", "log.json"


class LoraConfig(Config):
    """The adapter's shape (Hu et al., 2021)."""

    r: int = Field(16, ge=1, description="rank of the update")
    alpha: int = Field(32, ge=1, description="scale: the update is multiplied by alpha/r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the update")
    target_modules: str | tuple[str, ...] = Field("all-linear", description="layers that get an update")


class FinetuneConfig(Config):
    """Settings of `finetune`."""

    data: Path = Field(description="directory made by 'prepare'")
    out: Path = Field(description="directory for the adapter")
    model: str = Field("smollm2", description="hub name, directory, or 'smollm2' (bundled)")
    revision: str | None = Field(None, description="revision of a hub model")
    objective: Literal["last_item", "all_items", "catalog"] = Field(
        "catalog",
        description="what is learned: the last item's tokens, all items' tokens, or every decision in the catalog's "
        "trie on the way to each item",
    )
    template: TemplateConfig = TemplateConfig()
    lora: LoraConfig = LoraConfig()
    context: int = Field(512, ge=16, description="longest training example in tokens")
    epochs: float = Field(1.0, gt=0, description="passes over the training examples")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps")
    batch_size: int = Field(8, ge=1, description="examples a step and device")
    gradient_accumulation: int = Field(1, ge=1, description="batches summed before a step")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate (AdamW)")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps that warm up")
    scheduler: str = Field("linear", description="learning-rate schedule of transformers, e.g. linear or cosine")
    gradient_checkpointing: bool = Field(False, description="less memory, about a third slower")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the frozen base model")
    save_steps: int = Field(200, ge=1, description="steps between checkpoints; training goes on from the last one")
    logging_steps: int = Field(10, ge=1, description="steps between log lines")
    report_to: str = Field("none", description="none, tensorboard, wandb or trackio")
    seed: int = Field(0, description="order of the examples and start of the adapter")
    overwrite: bool = Field(False, description="begin again although the output directory holds another run")

    @model_validator(mode="after")
    def _layout_fits(self) -> FinetuneConfig:
        if self.objective == "all_items" and self.template.layout != "continue":
            raise ValueError("objective 'all_items' needs template.layout 'continue': one sequence teaches every item")
        return self


def finetune(config: FinetuneConfig) -> Path:
    """Train an adapter; returns its directory.

    It holds the adapter (safetensors), manifest.json (resolved config, hashes of data, template and base model) and
    log.json. A stopped run goes on from its last checkpoint; a finished one is not repeated; a directory of another run
    is refused unless `overwrite`.
    """
    from accelerate import PartialState

    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.engines.huggingface import model_hash

    main = PartialState().is_main_process
    data = Dataset.load(config.data)
    inputs = {
        "data": data.hash,
        "catalog": data.catalog.hash,
        "template": hash_json(config.template.resolved()),
        "model": model_hash(config.model),
    }
    wanted = manifest("finetune", config.resolved(), inputs)
    found = peek_manifest(config.out) or peek_manifest(config.out, STARTED)
    if is_done(config.out, found, wanted, overwrite=config.overwrite) and (config.out / MANIFEST).exists():
        print(f"already trained: {config.out}")
        return config.out
    PartialState().wait_for_everyone()
    if config.overwrite and main:
        shutil.rmtree(config.out, ignore_errors=True)
    if main:
        write_json(config.out / STARTED, wanted)
    started = time.monotonic()
    trainer, facts = _trainer(config, data)
    checkpoint = _last_checkpoint(config.out / CHECKPOINTS)
    if main and checkpoint:
        print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    # The adapter names its base as the user did, not as a path of this machine.
    trainer.accelerator.unwrap_model(trainer.model).peft_config["default"].base_model_name_or_path = config.model
    trainer.save_model(str(config.out))
    if main:
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        facts |= {
            "steps": trainer.state.global_step,
            "seconds": round(time.monotonic() - started, 1),
            "loss": [entry["loss"] for entry in history[:1] + history[-1:]],
            "hardware": _hardware(),
        }
        write_json(config.out / LOG, trainer.state.log_history)
        write_json(config.out / MANIFEST, wanted | {"facts": facts})
        shutil.rmtree(config.out / CHECKPOINTS, ignore_errors=True)
        (config.out / STARTED).unlink()
        print(_summary(config, facts))
    PartialState().wait_for_everyone()
    return config.out


def _trainer(config: FinetuneConfig, data: Any) -> tuple[Any, dict[str, Any]]:
    import peft
    from datasets import Dataset as HuggingFaceDataset
    from trl import SFTConfig, SFTTrainer

    from seqrec_prompt.decoding.trie import compile_trie
    from seqrec_prompt.engines.huggingface import device, load_model, load_tokenizer, torch_dtype
    from seqrec_prompt.finetuning.examples import Collator, windows
    from seqrec_prompt.finetuning.trainers import CatalogTrainer
    from seqrec_prompt.prompting.templates import compile_template

    tokenizer = load_tokenizer(config.model, config.revision)
    prompter = compile_template(config.template, data.catalog, tokenizer)
    trie = compile_trie(prompter.answers)
    objective = "last_item" if config.template.layout == "ask" else config.objective
    examples = windows(data.split.train, prompter, config.context, objective)
    facts = {"examples": len(examples), "trie": trie.describe()}
    print(f"{len(examples):,} training examples from {len(data.split.train):,} sessions; {trie.describe()}")
    arguments = SFTConfig(
        output_dir=str(config.out / CHECKPOINTS),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup,
        lr_scheduler_type=config.scheduler,
        gradient_checkpointing=config.gradient_checkpointing,
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=config.logging_steps,
        report_to=config.report_to,
        seed=config.seed,
        use_cpu=device().type == "cpu",
        bf16=False,  # the base model is loaded in its dtype, the adapter is float32
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device().type != "cpu",
    )
    adapter = peft.LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules
        if isinstance(config.lora.target_modules, str)
        else list(config.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    options: dict[str, Any] = {"trie": trie} if config.objective == "catalog" else {}
    trainer = (CatalogTrainer if options else SFTTrainer)(
        model=load_model(config.model, torch_dtype(config.dtype, training=True), config.revision),
        args=arguments,
        data_collator=Collator(prompter, config.objective, trie, tokenizer.pad_token_id or 0),
        train_dataset=HuggingFaceDataset.from_dict({"items": [items.tolist() for items in examples]}),
        processing_class=tokenizer,
        peft_config=adapter,
        **options,
    )
    return trainer, facts


def _last_checkpoint(directory: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(directory)) if directory.is_dir() else None


def _hardware() -> str:
    import os

    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def _summary(config: FinetuneConfig, facts: dict[str, Any]) -> str:
    unit = "nats an item" if config.objective == "catalog" else "nats a token"
    losses = " → ".join(f"{loss:.2f}" for loss in facts["loss"])
    return f"adapter: {config.out}  ({facts['steps']} steps, {facts['seconds']:.0f} s, loss {losses} {unit})"
