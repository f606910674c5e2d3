"""What is trained is what is decoded: losses against the search, against plain cross-entropy, tokens against TRL."""

import numpy as np
import pytest
import torch
from tiny import as_lists, oracle_scores

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.decoding.search import search
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.finetuning.examples import windows
from seqrec_prompt.finetuning.finetune import FinetuneConfig
from seqrec_prompt.finetuning.setup import build_trainer
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig, messages, text

# Of the catalog fixture: the items from here on have ordinary titles.
ORDINARY = 16


@pytest.fixture
def trainer_of(tiny_model, dataset_dir, tmp_path):
    """Build the trainer that `finetune` uses; its fresh adapter changes nothing yet."""

    def build(**changes):
        settings = {"data": dataset_dir, "out": tmp_path / "out", "model": str(tiny_model), "context": 1024}
        data = Dataset.load(dataset_dir)
        return build_trainer(FinetuneConfig(**settings | changes, dtype="float32"), data)[0], data

    return build


def loss_of(trainer, batch, **options):
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval(), dict(batch), **options))


@pytest.mark.parametrize(("layout", "chat"), [("continue", False), ("continue", True), ("ask", False), ("ask", True)])
def test_the_catalog_loss_is_minus_the_score_that_ranks(trainer_of, tiny_engine, layout, chat):
    template = TemplateConfig(layout=layout, chat=chat)
    trainer, data = trainer_of(template=template)
    prompter = compile_template(template, data.catalog, tiny_engine.tokenizer)
    trie = compile_trie(prompter.answers)
    objective = "catalog" if layout == "continue" else "last_item"
    rows = [items.tolist() for items in windows(data.split.train, prompter, 1024, objective)][:3]
    rows += [[16, 10, 3, 6, 4], [5, 8]]  # the longest title, duplicates, an empty title, control tokens as text
    asked = [
        (row[:j], row[j]) for row in rows for j in (range(1, len(row)) if layout == "continue" else [len(row) - 1])
    ]
    found = search(
        tiny_engine, trie, [prompter.prompt(np.array(seen)) for seen, _ in asked], len(data.catalog), budget=10**9
    )
    assert found.certified.all()
    expected = []
    for i, (_, target) in enumerate(asked):
        part = slice(found.offsets[i], found.offsets[i + 1])
        assert sorted(found.items[part]) == list(range(len(data.catalog)))
        expected.append(-found.scores[part][found.items[part] == target].item())
    batch = trainer.data_collator([{"items": row} for row in rows])
    assert loss_of(trainer, batch) == pytest.approx(np.mean(expected), abs=1e-4)
    assert loss_of(trainer, batch, num_items_in_batch=torch.tensor(7)) == pytest.approx(sum(expected) / 7, abs=1e-3)
    for row in rows[:3]:  # one by one, so that errors cannot cancel
        alone = trainer.data_collator([{"items": row}])
        n = len(row) - 1 if layout == "continue" else 1
        at = sum(len(r) - 1 if layout == "continue" else 1 for r in rows[: rows.index(row)])
        assert loss_of(trainer, alone) == pytest.approx(np.mean(expected[at : at + n]), abs=1e-4)


@pytest.mark.parametrize(
    ("objective", "layout"), [("last_item", "ask"), ("last_item", "continue"), ("all_items", "continue")]
)
def test_the_token_losses_are_cross_entropy_over_the_targets_tokens(
    trainer_of, tiny_engine, objective, layout, tiny_model
):
    from transformers import AutoModelForCausalLM

    trainer, data = trainer_of(objective=objective, template=TemplateConfig(layout=layout))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer, titles = tiny_engine.tokenizer, data.catalog.texts()
    rows = [[16, 20], [25, 17, 30 - 1, 18], [19, 21, 22]]
    end = tokenizer.eos_token if layout == "ask" else "\n"
    total, count = 0.0, 0
    for row in rows:
        for j in range(1, len(row)) if objective == "all_items" else [len(row) - 1]:
            seen = "".join(f"{titles[i]}\n" for i in row[:j])
            question = "The next item of this session:\n" if layout == "ask" else ""
            prompt = f"One shopping session, one item per line:\n{seen}{question}"
            before, whole = (tokenizer(t)["input_ids"] for t in (prompt, prompt + titles[row[j]] + end))
            assert whole[: len(before)] == before
            with torch.no_grad():
                logp = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
            for at in range(len(before), len(whole)):
                total -= float(logp[at - 1, whole[at]])
                count += 1
    batch = trainer.data_collator([{"items": row} for row in rows])
    assert loss_of(trainer, batch) == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("layout", ["ask", "continue"])
def test_tokens_are_those_of_trl(trainer_of, tiny_engine, tmp_path, layout, chat):
    """TRL tokenises the same prompt and completion as text; it then adds what we do not train on: see below."""
    from datasets import Dataset as HuggingFaceDataset
    from trl import SFTConfig, SFTTrainer

    template = TemplateConfig(layout=layout, chat=chat)
    trainer, data = trainer_of(objective="last_item", template=template)
    titles = data.catalog.texts()
    draw = np.random.default_rng(0)
    rows = [draw.integers(ORDINARY, len(titles), size=n).tolist() for n in (2, 3, 5, 8)]
    # A continued assistant turn is no prompt that TRL knows: there the first item is the completion.
    rows = [row[:1] for row in rows] if chat and layout == "continue" else rows
    pairs = []
    for row in rows:
        seen, title = [titles[i] for i in row[:-1]], titles[row[-1]]
        if chat:
            pairs.append(
                {
                    "prompt": messages(template, seen),
                    "completion": [{"role": "assistant", "content": title + ("" if layout == "ask" else "\n")}],
                }
            )
        else:
            pairs.append({"prompt": text(template, seen), "completion": title + ("" if layout == "ask" else "\n")})
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=None)
    theirs = SFTTrainer(
        model=tiny_engine.model,
        args=arguments,
        train_dataset=HuggingFaceDataset.from_list(pairs),
        processing_class=tiny_engine.tokenizer,
    ).train_dataset
    prompter = trainer.data_collator.prompter
    for row, their in zip(rows, theirs, strict=True):
        prompt = prompter.prompt(np.array(row[:-1], np.int32)).tolist()
        answer = prompter.answers[row[-1]].tolist()
        assert their["input_ids"][: len(prompt + answer)] == prompt + answer
        assert their["labels"][: len(prompt + answer)] == [-100] * len(prompt) + answer
        # TRL ends with the end token (plain), with what the chat template writes after a turn (conversational).
        rest = tiny_engine.tokenizer.decode(their["input_ids"][len(prompt + answer) :])
        assert (
            rest
            == {"ask": {False: "", True: "\n"}, "continue": {False: "<|im_end|>", True: "<|im_end|>\n"}}[layout][chat]
        )


def test_the_last_items_loss_is_trls_own_on_completions(trainer_of, tiny_model, tokenizer, tmp_path):
    """TRL gets the same prompts and titles as text, and pads, masks and averages on its own."""
    from datasets import Dataset as HuggingFaceDataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    template = TemplateConfig(layout="ask")
    trainer, data = trainer_of(objective="last_item", template=template)
    titles = data.catalog.texts()
    draw = np.random.default_rng(5)
    rows = [draw.integers(ORDINARY, len(titles), size=n).tolist() for n in (2, 9, 4, 3)]
    pairs = [{"prompt": text(template, [titles[i] for i in row[:-1]]), "completion": titles[row[-1]]} for row in rows]
    theirs = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=None, completion_only_loss=True),
        train_dataset=HuggingFaceDataset.from_list(pairs),
        processing_class=tokenizer,
    )
    expected = loss_of(theirs, theirs.data_collator(list(theirs.train_dataset)))
    assert loss_of(trainer, trainer.data_collator([{"items": row} for row in rows])) == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("objective", ["all_items", "catalog"])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients(trainer_of, objective, packing):
    found = []
    for checkpointing in (True, False):
        trainer, _ = trainer_of(objective=objective, packing=packing, gradient_checkpointing=checkpointing)
        if checkpointing:
            trainer.model.gradient_checkpointing_enable()  # as `train` does before its first step
        assert trainer.model.get_base_model().is_gradient_checkpointing == checkpointing
        generator = torch.Generator().manual_seed(0)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        batch = trainer.data_collator([{"items": [16, 17, 18]}, {"items": [19, 20]}, {"items": [21, 22]}])
        loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        loss.backward()
        gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert any(gradient.abs().max() > 0 for gradient in found[1][1].values())
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_the_catalog_loss_is_of_the_logits_that_the_model_gives(trainer_of, tmp_path, tokenizer):
    """Gemma 2 caps them after its LM head; then so are those of the loss, taken here from a plain forward."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = Gemma2Config(
        vocab_size=len(tokenizer), **shape, **heads, initializer_range=0.5, final_logit_softcapping=1.0
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    trainer, data = trainer_of(model=str(tmp_path / "gemma"))
    prompter = compile_template(TemplateConfig(), data.catalog, tokenizer)
    seen, target = [16, 17], 18
    prompt = prompter.prompt(np.array(seen)).tolist()
    expected = -oracle_scores(model, prompt, as_lists(prompter.answers))[target]
    batch = trainer.data_collator([{"items": [*seen, target]}, {"items": [16, 17]}])
    whole = loss_of(trainer, batch, num_items_in_batch=torch.tensor(1))
    first = loss_of(trainer, trainer.data_collator([{"items": [16, 17]}]), num_items_in_batch=torch.tensor(1))
    assert whole - 2 * first == pytest.approx(expected, abs=1e-3)
    model.config.final_logit_softcapping = None
    assert abs(expected + oracle_scores(model, prompt, as_lists(prompter.answers))[target]) > 0.1
