"""Packed batches: the same examples, loss and gradients in fewer rows; models that would mix them are refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, GPT2LMHeadModel, MambaConfig

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ConfigError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.packing import WIDTH, PackingCollator, pack, refuse_mixing
from seqrec_prompt.finetuning.setup import build_trainer
from seqrec_prompt.prompting.templates import TemplateConfig

CASES = [("last_item", "ask"), ("last_item", "continue"), ("all_items", "continue"), ("catalog", "continue")]


@pytest.fixture
def config_of(tiny_model, dataset_dir, tmp_path):
    def build(out="adapter", **changes):
        settings = {"data": dataset_dir, "out": tmp_path / out, "model": str(tiny_model), "context": 1024}
        return FinetuneConfig(**settings | {"dtype": "float32", "lora": {"r": 2}, "logging_steps": 1} | changes)

    return build


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12))
@settings(max_examples=300, deadline=None)
def test_every_example_stands_once_and_whole_in_a_row(lengths):
    width = max(lengths)
    batch = {name: torch.full((len(lengths), width), fill) for name, fill in (("input_ids", 0), ("labels", -100))}
    batch["attention_mask"] = torch.zeros((len(lengths), width), dtype=torch.long)
    wanted = []
    for i, n in enumerate(lengths):
        tokens = torch.arange(n) + 100 * (i + 1)
        batch["input_ids"][i, :n], batch["labels"][i, :n], batch["attention_mask"][i, :n] = tokens, tokens, 1
        wanted.append(tokens.tolist())
    batch["decisions"] = torch.tensor([[i, n - 1, 7, 5] for i, n in enumerate(lengths)])
    packed = pack(batch)
    rows, positions = packed["input_ids"].tolist(), packed["position_ids"].tolist()
    assert packed["input_ids"].shape == packed["labels"].shape == packed["position_ids"].shape
    found = []
    for ids, places in zip(rows, positions, strict=True):
        starts = [i for i, (token, place) in enumerate(zip(ids, places, strict=True)) if token and place == 0]
        real = sum(token > 0 for token in ids)
        for start, stop in zip(starts, [*starts[1:], real], strict=True):
            found.append(ids[start:stop])
            assert places[start:stop] == list(range(stop - start))
        assert not any(ids[real:] + places[real:])
    assert sorted(found) == sorted(wanted)
    # Few rows, and of the lengths that differ no more than one example makes out.
    used = [sum(token > 0 for token in row) for row in rows]
    assert len(rows) <= sum(lengths) / (WIDTH * max(lengths)) + 1
    assert len(rows[0]) == max(used) <= min(used) + max(lengths)
    firsts = {tokens[0] for tokens in wanted}
    expected = torch.tensor([[-100 if t == 0 or t in firsts else t for t in row] for row in rows])
    assert torch.equal(packed["labels"], expected)
    for (row, at, node, right), tokens in zip(packed["decisions"].tolist(), wanted, strict=True):
        assert (rows[row][at], node, right) == (tokens[-1], 7, 5)


@pytest.mark.parametrize(("objective", "layout"), CASES)
def test_loss_and_gradients_are_those_of_the_padded_batch(config_of, dataset_dir, objective, layout):
    config = config_of(objective=objective, template=TemplateConfig(layout=layout), packing=True)
    trainer, _ = build_trainer(config, Dataset.load(dataset_dir))
    collator = trainer.data_collator
    assert isinstance(collator, PackingCollator)
    examples = [{"items": items} for items in ([16, 17], [18, 19, 20, 21, 22, 23], [24, 25], [26, 27, 28], [3, 10])]
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    found = []
    for batch in (collator(examples), collator.padded(examples)):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}))
    assert len(collator(examples)["input_ids"]) < len(examples)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("objective", ["all_items", "catalog"])
def test_a_packed_run_is_the_padded_run(config_of, objective):
    packed, padded = (
        config_of(str(packing), objective=objective, packing=packing, max_steps=3, gradient_accumulation=2)
        for packing in (True, False)
    )
    finetune(packed)
    finetune(padded)
    logs = [
        [entry for entry in json.loads((c.out / "log.json").read_text()) if "loss" in entry] for c in (packed, padded)
    ]
    assert [e["loss"] for e in logs[0]] == pytest.approx([e["loss"] for e in logs[1]], abs=1e-4)
    assert not any("num_tokens" in entry for entry in logs[0])
    weights = [load_file(config.out / "adapter_model.safetensors") for config in (packed, padded)]
    for name, tensor in weights[1].items():
        assert (weights[0][name] - tensor).abs().max() < 2e-4, name


SHAPE = {"vocab_size": 50, "hidden_size": 16, "initializer_range": 0.5, "num_hidden_layers": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_are_packed(tiny_model, dtype):
    refuse_mixing(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype))
    torch.manual_seed(0)
    learned_positions = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5)
    refuse_mixing(GPT2LMHeadModel(learned_positions).to(dtype))


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(**SHAPE, state_size=4),  # goes on with its state
        BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.5),  # takes no positions
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_would_mix_examples_are_refused(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    with pytest.raises(ConfigError, match=f"in a {type(model).__name__} an example is not independent"):
        refuse_mixing(model)
    assert model.training


def test_what_four_bits_on_a_cpu_cannot_is_said(config_of, dataset_dir, monkeypatch):
    monkeypatch.setattr("seqrec_prompt.finetuning.setup.device", lambda: torch.device("cpu"))
    with pytest.raises(ConfigError, match="'packing' with method 'qlora' needs a GPU"):
        build_trainer(config_of(method="qlora", packing=True), Dataset.load(dataset_dir))
