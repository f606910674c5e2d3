"""TRL's trainers, judged by what they would recommend, and one with the decoder's own score as its loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from trl import DPOTrainer, SFTTrainer

from seqrec_prompt.decoding.trie import CatalogTrie
from seqrec_prompt.embeddings.clusters import CLUSTERS, Clusters
from seqrec_prompt.finetuning.packing import PackingCollator


class _Judged:
    """A trainer whose evaluation is `validation`: the model, adapters in place → metrics."""

    accelerator: Any
    args: Any
    callback_handler: Any
    log: Any
    model: Any
    state: Any

    def __init__(self, *args: Any, validation: Callable[[Any], dict[str, float]] | None = None, **kwargs: Any) -> None:
        self.control: Any = None
        super().__init__(*args, **kwargs)
        self.validation = validation

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], Any]:
        """The batches of a step; none for a run that was stopped after its last, which trainers would go beyond."""
        over = self.control.should_training_stop or self.state.global_step >= self.state.max_steps
        return ([], None) if over else super().get_batch_samples(*args)  # type: ignore[misc]

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Judge the model; every process does the same work, so all come to the same decision."""
        if self.validation is None:
            raise RuntimeError("this trainer was made without a validation")
        model = self.accelerator.unwrap_model(self.model)
        found = self.validation(model.get_base_model() if isinstance(model, PeftModel) else model)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class SessionTrainer(_Judged, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on examples made of sessions; clusters: what prompt variant Classify answers with."""

    def __init__(self, *args: Any, clusters: Clusters | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clusters = clusters

    def save_model(self, output_dir: str | None = None, **named: Any) -> None:
        """Write the weights and, beside them, the clusters that the model answers with."""
        super().save_model(output_dir, **named)
        if self.clusters is not None and self.args.should_save:
            self.clusters.save(Path(output_dir or self.args.output_dir) / CLUSTERS)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log without TRL's count of tokens where examples are packed: it takes a batch to be of one row."""
        if isinstance(self.data_collator, PackingCollator):
            self._metrics["train"].pop("num_tokens", None)
        super().log(logs, start_time)


class PreferenceTrainer(_Judged, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on pairs that its collator turns into tokens, those of the compiled template."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class CatalogTrainer(SessionTrainer):
    """Trains on minus the renormalised log-probability that the search ranks by.

    At each branching token of a target, cross-entropy over the trie's allowed children; forced tokens cost nothing.
    The LLM with the trie is then a hierarchical softmax over items (Morin & Bengio, 2005). Loss: nats an item.
    """

    def __init__(self, *args: Any, trie: CatalogTrie, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_over_children = CatalogLoss(trie)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the batch's summed loss over the number of target items."""
        decisions = inputs.pop("decisions")
        row, position, node, right = decisions.unbind(dim=1)
        # The LM head reads only the states before decisions, and does so within the model's forward: what spreads
        # weights over devices (FSDP, ZeRO-3) gathers them there, once.
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        fewer = head.register_forward_pre_hook(lambda _, states: (states[0][row, position],))
        try:
            outputs = model(
                **{name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs},
                use_cache=False,
            )
        finally:
            fewer.remove()
        total = self.loss_over_children(outputs.logits, node, right)
        items = (inputs["labels"] >= 0).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(items).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class CatalogLoss:
    """Summed cross-entropy of decisions over the children of their trie nodes."""

    def __init__(self, trie: CatalogTrie) -> None:
        self.first_child = torch.from_numpy(trie.first_child.astype("int64"))
        self.n_children = torch.from_numpy(trie.n_children.astype("int64"))
        self.token = torch.from_numpy(trie.token.astype("int64"))

    def __call__(self, logits: torch.Tensor, node: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """`logits` (D, vocabulary) of each decision, at trie `node` (D,), whose child number `right` (D,) is right."""
        if self.token.device != logits.device:
            for name, table in vars(self).items():
                setattr(self, name, table.to(logits.device))
        logits = logits.float()
        counts = self.n_children[node]
        owner = torch.repeat_interleave(torch.arange(len(node), device=node.device), counts)
        start = counts.cumsum(0) - counts
        child = self.first_child[node][owner] + torch.arange(len(owner), device=node.device) - start[owner]
        allowed = logits[owner, self.token[child]]
        # log-sum-exp by segment, the peak taken out as a constant
        peak = torch.full_like(logits[:, 0], -torch.inf).scatter_reduce(0, owner, allowed.detach(), "amax")
        mass = torch.zeros_like(peak).index_add(0, owner, (allowed - peak[owner]).exp())
        return (peak + mass.log() - allowed[start + right]).sum()
