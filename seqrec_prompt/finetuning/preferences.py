"""What a DPO run is made of: pairs of titles after a session, the first stage's adapter twice, TRL's DPOTrainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset as HuggingFaceDataset
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.engines.hardware import torch_dtype
from seqrec_prompt.engines.models import load_model, load_tokenizer, peft_model
from seqrec_prompt.finetuning.examples import windows
from seqrec_prompt.finetuning.setup import judged_by, refuse_shards, training_arguments
from seqrec_prompt.finetuning.trainers import PreferenceTrainer
from seqrec_prompt.finetuning.training import TrainingConfig
from seqrec_prompt.finetuning.validation import Validation
from seqrec_prompt.prompting.prompter import Prompter, compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import IntArray

if TYPE_CHECKING:
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.data.sessions import Holdout, Sessions


@dataclass(frozen=True, eq=False)
class Preferences:
    """Pairs to learn from.

    sessions: one a pair, whose last item is the one that came, the chosen one. rejected: (pairs,) items that did not.
    """

    sessions: Sessions
    rejected: IntArray


@dataclass(frozen=True, eq=False)
class PreferenceCollator:
    """Turns pairs into padded batches as TRL's DPOTrainer reads them: the chosen in the first half of the rows."""

    prompter: Prompter
    pad_token: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Build the batch of `examples`, each {"items": catalog positions, "rejected": catalog position}."""
        rows = []
        for example in examples:
            *seen, chosen = example["items"]
            rows.append(
                {
                    "prompt_ids": self.prompter.prompt(np.array(seen, np.int32)).tolist(),
                    "chosen_ids": self.prompter.answers[chosen].tolist(),
                    "rejected_ids": self.prompter.answers[example["rejected"]].tolist(),
                }
            )
        batch: dict[str, torch.Tensor] = DataCollatorForPreference(pad_token_id=self.pad_token)(rows)
        return batch


def build_preference_trainer(
    config: TrainingConfig,
    data: Dataset,
    preferences: Preferences,
    holdout: Holdout | None,
    template: TemplateConfig,
    adapter: Path,
    beta: float,
) -> Any:
    """Return TRL's trainer, ready to run: it trains `adapter` and keeps a frozen copy of it as the reference.

    template: that of the adapter. Raises ModelError when the adapter is none, TemplateError when a prompt with the
    longest title does not fit the context.
    """
    tokenizer = load_tokenizer(config.model, config.revision)
    prompter = compile_template(template, data.catalog, tokenizer, companions=data.companions(template.companions))
    shown = windows(preferences.sessions, prompter, config.context, "last_item")
    options: dict[str, Any] = {}
    if holdout is not None:
        trie = compile_trie(prompter.answers, data.popularity)
        options = judged_by(Validation(holdout, prompter, trie, tokenizer, config.validation))
    dtype = torch_dtype(config.dtype, training=True)
    trainer = PreferenceTrainer(
        model=peft_model(load_model(config.model, dtype, config.revision), adapter, trainable=True),
        args=DPOConfig(**training_arguments(config, validated=holdout is not None), beta=beta),
        data_collator=PreferenceCollator(prompter, tokenizer.pad_token_id or 0),
        train_dataset=HuggingFaceDataset.from_dict(
            {"items": [items.tolist() for items in shown], "rejected": preferences.rejected.tolist()}
        ),
        processing_class=tokenizer,
        **options,
    )
    if holdout is not None:
        refuse_shards(trainer)
    return trainer
