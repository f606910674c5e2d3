"""Batches of lists and clusters: tokens, labels and decisions stand where a plain walk puts them."""

import numpy as np
import pytest
from tiny import PlainTrie

from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.finetuning.examples import Collator
from seqrec_prompt.finetuning.validate import ValidateConfig, validate
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig

PAD = 0
NAMES = ["a shampoo", "creams", "a lip balm"]
EXAMPLES = {
    "GenList": [{"items": [3, 14], "answers": [16, 4, 20]}, {"items": [1], "answers": [0, 2]}],
    "Rank": [
        {"items": [3, 14], "answers": [16, 4, 20], "candidates": [4, 16, 20]},
        {"items": [1], "answers": [0, 2], "candidates": [0, 2]},
    ],
    "Classify": [{"items": [3, 14], "answers": [2]}, {"items": [1], "answers": [0]}],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_answers_are_learned_and_prompts_are_not(catalog, tokenizer, name):
    prompter = compile_template(TemplateConfig(name=name), catalog, tokenizer, NAMES if name == "Classify" else ())
    trie, plain = compile_trie(prompter.answers), PlainTrie(prompter.answers)
    taught = {
        objective: Collator(prompter, objective, trie, PAD)(EXAMPLES[name]) for objective in ("last_item", "catalog")
    }
    expected, texts = [], NAMES if name == "Classify" else catalog.texts()
    for row, example in enumerate(EXAMPLES[name]):
        offered = np.array(example["candidates"]) if "candidates" in example else None
        prompt = prompter.prompt(np.array(example["items"]), offered).tolist()
        answers = [prompter.answers[number].tolist() for number in example["answers"]]
        end = "\n" if name != "Classify" else ""
        tokens = prompt + [token for answer in answers for token in answer]
        tokens += [tokenizer.eos_token_id] if name != "Classify" else []
        for batch in taught.values():
            assert batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist() == tokens
        labels = taught["last_item"]["labels"][row]
        learned = "".join(texts[number] + end for number in example["answers"])
        assert tokenizer.decode(labels[labels != -100]) == learned + "<|im_end|>"
        start = len(prompt)
        for answer in answers:
            assert taught["catalog"]["labels"][row][start] == answer[0]
            expected += [
                (row, start + at - 1, answer[:at], answer[at], allowed) for at, allowed in plain.decisions(answer)
            ]
            start += len(answer)
    found = []
    for row, state, node, right in taught["catalog"]["decisions"].tolist():
        children = trie.token[trie.children(node)].tolist()
        found.append((row, state, trie.path(node).tolist(), children[right], sorted(children)))
    assert sorted(found) == sorted(expected)
    count = sum(len(example["answers"]) for example in EXAMPLES[name])
    assert (taught["catalog"]["labels"] >= 0).sum() == count  # so that the loss is one of items


@pytest.mark.parametrize("name", EXAMPLES)
def test_validate_shows_three_examples_and_their_sizes(tiny_model, dataset_dir, catalog, tmp_path, name):
    needed = {}
    if name == "Classify":
        from seqrec_prompt.artifacts import manifest
        from seqrec_prompt.embeddings.table import EmbeddingTable

        vectors = np.random.default_rng(2).normal(size=(len(catalog), 4)).astype(np.float32)
        EmbeddingTable(vectors, manifest("embed", {}, {"data": catalog.hash})).save(tmp_path / "embeddings")
        needed = {"embeddings": tmp_path / "embeddings"}
    else:
        lists = tmp_path / "lists.csv"
        rows = [f"train-{i},item-{j}\n" for i in range(20) for j in (4, 11, 15, 20)]
        lists.write_text("session_id,item_id\n" + "".join(rows))
        needed = {"candidates": lists}
    template = TemplateConfig(name=name, clusters=4)
    report = validate(
        ValidateConfig(data=dataset_dir, model=str(tiny_model), context=1500, template=template, **needed)
    )["text"]
    assert [report.count(f"--- {size} prompt: session train-") for size in ("shortest", "median", "longest")] == [1] * 3
    assert report.count(template.question) == 3
    assert report.count(template.choices) == (3 if name == "Rank" else 0)
    assert "tokens of a training example, at most 1500: median" in report
    assert ("items of a cluster: median" in report) == (name == "Classify")
    assert ("tokens of a test prompt" in report) == (name != "Rank")
    if name != "Classify":
        assert "20 training examples, with answers of" in report
