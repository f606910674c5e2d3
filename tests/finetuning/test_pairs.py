"""`pairs` on the tiny model: what is written is what TRL reads, and nothing of another run is replaced unasked."""

import json

import pytest

from seqrec_prompt.artifacts import peek_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ArtifactError, ConfigError
from seqrec_prompt.finetuning.pairs import PairsConfig, pairs
from seqrec_prompt.prompting.templates import TemplateConfig

# Titles of the test catalog that hold control tokens of the tokenizer.
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def config_of(tiny_model, dataset_dir, tmp_path):
    def build(**changes):
        return PairsConfig(**{"data": dataset_dir, "out": tmp_path / "p.jsonl", "model": str(tiny_model)} | changes)

    return build


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def harmless(title):
    for token in CONTROL:
        title = title.replace(token, f"{token[0]} {token[1:]}")
    return title


def test_the_last_item_of_each_session_is_its_completion(config_of, dataset_dir):
    data = Dataset.load(dataset_dir)
    titles = [harmless(title) for title in data.catalog.texts()]
    found = rows(pairs(config_of()))
    sessions = [items.tolist() for items in data.split.train if len(items) > 1]
    assert [row["completion"] for row in found] == [titles[items[-1]] for items in sessions]
    for row, items in zip(found, sessions, strict=True):
        assert titles[items[-2]] in row["prompt"]
        assert not any(token in row["prompt"] + row["completion"] for token in CONTROL)


def test_all_targets_are_all_items_but_the_first(config_of, dataset_dir):
    data = Dataset.load(dataset_dir)
    titles = [harmless(title) for title in data.catalog.texts()]
    found = rows(pairs(config_of(targets="all")))
    assert [row["completion"] for row in found] == [
        titles[item] for items in data.split.train for item in items.tolist()[1:]
    ]


def test_trl_reads_them_as_conversations(config_of, tokenizer):
    import datasets
    from trl.data_utils import apply_chat_template, is_conversational

    config = config_of(conversational=True, part="test")
    found = datasets.Dataset.from_list(rows(pairs(config)))
    assert all(is_conversational(row) for row in found)
    row = apply_chat_template(found[0], tokenizer)
    assert row["prompt"].endswith("<|im_start|>assistant\n")
    assert row["completion"].startswith(found[0]["completion"][0]["content"])


def test_another_run_is_not_replaced_unasked(config_of, capsys):
    path = pairs(config_of())
    text = path.read_text()
    assert pairs(config_of()) == path
    assert capsys.readouterr().out.splitlines()[-1] == f"already written: {path}"
    with pytest.raises(ArtifactError, match=r"config\.part: was 'train', is 'test'"):
        pairs(config_of(part="test"))
    assert path.read_text() == text
    pairs(config_of(part="test", overwrite=True))
    written = peek_manifest(path.parent, path.name + ".manifest.json")
    assert written["facts"]["pairs"] == len(rows(path)) == 12


def test_a_file_of_somebody_else_is_left_alone(config_of):
    config = config_of(overwrite=True)
    config.out.write_text("mine")
    with pytest.raises(ArtifactError, match="was not made by seqrec_prompt"):
        pairs(config)
    assert config.out.read_text() == "mine"


def test_messages_alternate(config_of):
    with pytest.raises((ConfigError, ValueError), match=r"template\.layout 'ask'"):
        config_of(conversational=True, template=TemplateConfig(layout="continue"))


def test_a_models_own_marks_stand_in_no_pairs(config_of):
    with pytest.raises((ConfigError, ValueError), match="set 'conversational'"):
        config_of(template={"layout": "ask", "chat": True})
    assert config_of(template={"layout": "ask", "chat": True}, conversational=True).template.chat
