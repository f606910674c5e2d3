"""What a training run is made of: examples, model, adapter, TRL's trainer and, if wanted, its validation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import peft
import torch
from datasets import Dataset as HuggingFaceDataset
from transformers.pytorch_utils import Conv1D
from trl import SFTConfig

from seqrec_prompt.data.lists import Candidates
from seqrec_prompt.data.sessions import Holdout, Sessions
from seqrec_prompt.data.splits import latest
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.engines.hardware import device, torch_dtype
from seqrec_prompt.engines.models import load_model, load_tokenizer
from seqrec_prompt.errors import ConfigError, DataError, ModelError
from seqrec_prompt.finetuning.examples import Collator, training_examples
from seqrec_prompt.finetuning.packing import PackingCollator, refuse_mixing
from seqrec_prompt.finetuning.trainers import CatalogTrainer, SessionTrainer
from seqrec_prompt.finetuning.training import CHECKPOINTS, TrainingConfig
from seqrec_prompt.finetuning.validation import METRIC, Validation, decoding, hold_out
from seqrec_prompt.finetuning.watch import Patience
from seqrec_prompt.prompting.cases import Cases, load_clusters
from seqrec_prompt.prompting.prompter import compile_template

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.finetuning.finetune import FinetuneConfig, LoraConfig


def build_trainer(config: FinetuneConfig, data: Dataset) -> tuple[Any, dict[str, Any]]:
    """Return TRL's trainer, ready to run, and facts about what it will train on.

    Raises DataError when there is nothing to train on, ConfigError for layers that the model does not have.
    """
    if config.method == "qlora" and device().type == "cpu" and (config.validation.steps or config.packing):
        # Seen with bitsandbytes 0.50 on AVX512: after a forward without gradients, later gradients are wrong.
        name = "validation.steps" if config.validation.steps else "packing"
        raise ConfigError(f"'{name}' with method 'qlora' needs a GPU: 4-bit training goes wrong after it.")
    tokenizer = load_tokenizer(config.model, config.revision)
    clusters = load_clusters(config.template, config.embeddings, data)
    names = clusters.names(data.catalog) if clusters else ()
    prompter = compile_template(
        config.template, data.catalog, tokenizer, names, data.companions(config.template.companions)
    )
    trie = compile_trie(prompter.answers, None if clusters else data.popularity)
    train, holdout = train_and_holdout(data, config)
    candidates = Candidates.load(config.candidates, data, "train") if config.candidates else None
    examples = training_examples(train, prompter, config.context, config.objective, candidates, clusters)
    if not len(examples):
        raise DataError(["no training examples: every train session has a single item"], "Prepare longer sessions.")
    facts = {"examples": len(examples), "trie": trie.describe()}
    print(f"{len(examples):,} training examples from {len(train):,} sessions; {trie.describe()}")
    if isinstance(examples, Cases) and config.template.lists:
        facts["lists"] = examples.describe()
        print(f"lists of {facts['lists']}")
    arguments = SFTConfig(
        **training_arguments(config, validated=holdout is not None), dataset_kwargs={"skip_prepare_dataset": True}
    )
    # Weights that are trained are float32 unless told otherwise: small steps are lost in half precision.
    whole = config.method == "full" and config.dtype == "auto"
    dtype = torch.float32 if whole else torch_dtype(config.dtype, training=True)
    model = load_model(config.model, dtype, config.revision, four_bits=config.method == "qlora")
    if config.packing:
        refuse_mixing(model)
    adapter = None
    if config.method != "full":
        adapter = peft.LoraConfig(
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=_target_modules(config.lora, model),
            layers_to_transform=_last_blocks(config.lora.blocks, model),
            use_dora=config.method == "dora",
            task_type="CAUSAL_LM",
        )
    options: dict[str, Any] = {"trie": trie} if config.objective == "catalog" else {}
    options["clusters"] = clusters
    if holdout is not None:
        options |= judged_by(Validation(holdout, prompter, trie, tokenizer, config.validation))
    collator: Any = Collator(prompter, config.objective, trie, tokenizer.pad_token_id or 0)
    trainer = (CatalogTrainer if config.objective == "catalog" else SessionTrainer)(
        model=model,
        args=arguments,
        data_collator=PackingCollator(collator) if config.packing else collator,
        train_dataset=_as_dataset(examples),
        processing_class=tokenizer,
        peft_config=adapter,
        **options,
    )
    if holdout is not None:
        refuse_shards(trainer)
    _warn_of_refusal(config, trainer, tokenizer)
    return trainer, facts


def _warn_of_refusal(config: FinetuneConfig, trainer: Any, tokenizer: Any) -> None:
    """Say before hours of training what `recommend` would say after them; other engines may read the model."""
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    spoils = config.method == "qlora" and device().type == "cpu"  # see `build_trainer`
    if spread or spoils or not trainer.accelerator.is_main_process:
        return
    model = trainer.model
    try:
        with decoding(model.get_base_model() if isinstance(model, peft.PeftModel) else model, tokenizer):
            pass
    except ModelError as error:
        print(f"warning: recommend --engine transformers will refuse this model: {error}", file=sys.stderr)


def judged_by(validation: Validation) -> dict[str, Any]:
    """Options that let a trainer be judged by `validation` and end when that no longer rises."""
    return {
        "validation": validation,
        "eval_dataset": _as_dataset(validation.holdout.prompts),
        "callbacks": [Patience(METRIC, validation.config.patience)],
    }


def refuse_shards(trainer: Any) -> None:
    """Raise ConfigError when no device holds the whole model, which a validation needs."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "'validation.steps' needs the whole model on each device: leave it out with FSDP or DeepSpeed."
        )


def train_and_holdout(data: Dataset, config: TrainingConfig) -> tuple[Sessions, Holdout | None]:
    """Return the sessions to train on and those to validate on, if wanted; DataError when there are too few."""
    train, holdout = hold_out(data.split, config.validation, config.seed)
    if config.validation.steps and holdout is None:
        raise DataError(["no train session can be held out: there are fewer than ten"], "Leave out validation.steps.")
    if config.latest is not None:
        train = latest(train.take(train.lengths >= 2), config.latest)  # one item alone gives no example
    return train, holdout


def training_arguments(config: TrainingConfig, *, validated: bool) -> dict[str, Any]:
    """Settings of a run in the words of TRL's configurations."""
    return {
        "output_dir": str(config.out / CHECKPOINTS),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "warmup_steps": config.warmup,
        "lr_scheduler_type": config.scheduler,
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "eval_strategy": "steps" if validated else "no",
        "eval_steps": config.validation.steps,
        "load_best_model_at_end": validated,
        "metric_for_best_model": METRIC if validated else None,
        "greater_is_better": True,
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "report_to": config.report_to,
        "run_name": config.out.name,
        "seed": config.seed,
        "use_cpu": device().type == "cpu",
        "bf16": False,  # the base model is loaded in its dtype, the adapter is float32
        "max_length": None,
        "remove_unused_columns": False,
        "dataloader_pin_memory": device().type != "cpu",
    }


def _as_dataset(examples: Sessions | Cases) -> Any:
    columns: dict[str, Any] = {"items": examples}
    if isinstance(examples, Cases):
        columns = {"items": examples.shown, "answers": examples.answers}
        columns |= {"candidates": examples.candidates} if examples.candidates is not None else {}
    return HuggingFaceDataset.from_dict({name: [row.tolist() for row in rows] for name, rows in columns.items()})


def _last_blocks(wanted: int | None, model: Any) -> list[int] | None:
    """Numbers of the last `wanted` blocks; none for all of them."""
    if wanted is None:
        return None
    number = model.config.get_text_config().num_hidden_layers
    if wanted > number:
        raise ConfigError(f"'lora.blocks' is {wanted}: the model has {number}. Leave it out for all of them.")
    return list(range(number - wanted, number))


def _target_modules(lora: LoraConfig, model: Any) -> str | list[str]:
    names = lora.target_modules
    if names == ("all-linear",):
        if lora.blocks is None:
            return "all-linear"
        head = model.get_output_embeddings()  # PEFT takes a number of blocks with names only, so here are all names
        linear = [
            name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head
        ]
        return sorted({name.rpartition(".")[2] for name in linear})
    able = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    known = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, able)}
    if unknown := [name for name in names if name.rpartition(".")[2] not in known]:
        layers = ", ".join(sorted(known))
        raise ConfigError(f"'lora.target_modules': the model has no layer {', '.join(unknown)}. It has: {layers}")
    return list(names)
