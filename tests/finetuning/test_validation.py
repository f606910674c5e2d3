"""Validation while training: what it measures, what it leaves untouched, and which step it keeps."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seqrec_prompt.artifacts import read_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.engines.models import load_model, load_tokenizer
from seqrec_prompt.errors import ConfigError, TemplateError
from seqrec_prompt.evaluation.metrics import evaluate_lists
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.trainers import SessionTrainer
from seqrec_prompt.finetuning.validation import Validation, ValidationConfig, hold_out
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.recommenders.llm.prompt import LLMSeqPrompt


@pytest.fixture(scope="module")
def data(dataset_dir):
    return Dataset.load(dataset_dir)


@pytest.fixture
def config_of(tiny_model, dataset_dir, tmp_path):
    def build(out="adapter", **changes):
        settings = {
            "data": dataset_dir,
            "out": tmp_path / out,
            "model": str(tiny_model),
            "context": 1024,
            "batch_size": 4,
            "max_steps": 8,
            "logging_steps": 1,
            "save_steps": 2,
            "learning_rate": 0.01,
            "dtype": "float32",
            "lora": {"r": 4, "alpha": 8},
            "validation": {"steps": 2},
        }
        return FinetuneConfig(**settings | changes)

    return build


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_it_measures_what_evaluate_would_of_what_recommend_would(data, tiny_model, exclude_seen):
    tokenizer, model = load_tokenizer(str(tiny_model)), load_model(str(tiny_model), torch.float32)
    prompter = compile_template(TemplateConfig(), data.catalog, tokenizer)
    trie = compile_trie(prompter.answers, data.popularity)
    holdout = data.split.test
    config = ValidationConfig(steps=1, exclude_seen=exclude_seen, batch_size=5)
    attention = model.config._attn_implementation
    found = Validation(holdout, prompter, trie, tokenizer, config)(model.train())
    assert model.training
    assert model.config._attn_implementation == attention

    engine = HuggingFaceEngine.load(str(tiny_model), dtype="float32")
    lists = LLMSeqPrompt(engine, prompter, trie, 2048).recommend(holdout.prompts, 10, exclude_seen=exclude_seen)
    right = evaluate_lists(lists, holdout.targets, data.popularity, len(data.catalog), (10,)).means[10]
    assert right["hr"] > 0
    assert found == pytest.approx({"ndcg@10": right["ndcg"], "hr@10": right["hr"]})


def test_held_out_sessions_are_not_trained_on():
    train = Sessions.build([f"s{i}" for i in range(50)], [[i, i + 1, i + 2][: 1 + i % 3] for i in range(50)])
    test = Holdout.of_last_items(Sessions.build(["t"], [[1, 2]]))
    rest, holdout = hold_out(Split(train, test), ValidationConfig(steps=5), seed=3)
    assert len(holdout) == 3, "a tenth of the 33 that have two items or more"
    assert set(rest.ids) | set(holdout.prompts.ids) == set(train.ids)
    assert not set(rest.ids) & set(holdout.prompts.ids)
    whole = dict(zip(train.ids, map(list, train), strict=True))
    for name, prompt, target in zip(holdout.prompts.ids, holdout.prompts, holdout.targets, strict=True):
        assert [*prompt, target] == whole[name]
    again = hold_out(Split(train, test), ValidationConfig(steps=5), seed=3)[1]
    other = hold_out(Split(train, test), ValidationConfig(steps=5), seed=4)[1]
    assert again.prompts.ids.tolist() == holdout.prompts.ids.tolist() != other.prompts.ids.tolist()
    assert hold_out(Split(train, test), ValidationConfig(), seed=3)[1] is None


def test_a_validation_part_of_the_data_is_used_and_all_of_train_trained_on():
    train = Sessions.build([f"s{i}" for i in range(20)], [[i, i + 1] for i in range(20)])
    part = Holdout.of_last_items(Sessions.build(["v", "w", "x"], [[1, 2], [3, 4], [5, 6, 7]]))
    rest, holdout = hold_out(Split(train, part, part), ValidationConfig(steps=5, sessions=2), seed=0)
    assert rest.ids.tolist() == train.ids.tolist()
    assert len(holdout) == 2
    assert set(holdout.prompts.ids) <= {"v", "w", "x"}


@pytest.mark.parametrize(("objective", "method"), [("catalog", "lora"), ("all_items", "lora"), ("catalog", "full")])
def test_the_best_step_is_what_is_kept(config_of, tiny_model, data, objective, method):
    """Its measure, taken once more on what was saved, is the best of the log."""
    config = config_of(objective=objective, method=method)
    finetune(config)
    log = json.loads((config.out / "log.json").read_text())
    measured = {entry["step"]: entry["eval_ndcg@10"] for entry in log if "eval_ndcg@10" in entry}
    assert sorted(measured) == [2, 4, 6, 8]
    facts = read_manifest(config.out, "finetune")["facts"]
    assert facts["validation"] == max(measured.values()) == measured[facts["best_step"]]

    engine = HuggingFaceEngine.load(str(tiny_model), config.out, "float32")
    prompter = compile_template(config.template, data.catalog, engine.tokenizer)
    holdout = hold_out(data.split, config.validation, config.seed)[1]
    trie = compile_trie(prompter.answers, data.popularity)
    again = Validation(holdout, prompter, trie, engine.tokenizer, config.validation)(engine.model)
    assert again["ndcg@10"] == pytest.approx(facts["validation"], abs=1e-6)


def test_training_ends_when_patience_is_over(config_of, monkeypatch):
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(Validation, "__call__", lambda self, model: {"ndcg@10": next(scores)})
    config = config_of(max_steps=10, validation={"steps": 2, "patience": 2})
    finetune(config)
    facts = read_manifest(config.out, "finetune")["facts"]
    assert (facts["steps"], facts["best_step"], facts["validation"]) == (6, 2, 0.5)


def test_validation_does_not_change_what_is_learned(config_of, monkeypatch):
    """The last step of a run that was judged on the way is that of one that was not."""
    plain, judged = (config_of(name, max_steps=4, **more) for name, more in (("plain", {}), ("judged", {})))
    rising = iter(range(10))
    real = Validation.__call__
    monkeypatch.setattr(
        Validation, "__call__", lambda self, model: real(self, model) | {"ndcg@10": float(next(rising))}
    )
    finetune(judged)
    monkeypatch.setattr(Validation, "__call__", lambda self, model: {"ndcg@10": float(next(rising))})
    finetune(plain)
    one, other = (load_file(config.out / "adapter_model.safetensors") for config in (plain, judged))
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor.numpy(), other[name].numpy())
    assert all(math.isfinite(tensor.abs().sum()) for tensor in one.values())


def test_a_context_too_short_to_judge_in_is_said_before_training(config_of, monkeypatch):
    monkeypatch.setattr(SessionTrainer, "training_step", lambda *_: pytest.fail("it trained"))
    with pytest.raises(TemplateError, match=r"context of 200 tokens is too short.*Raise it with --validation\.context"):
        finetune(config_of(validation={"steps": 2, "context": 200}))


def test_what_cannot_be_kept_is_refused(config_of):
    with pytest.raises(ValueError, match=r"no multiple of validation\.steps 3"):
        config_of(validation={"steps": 3})
    if not torch.cuda.is_available():
        config = config_of(method="qlora")
        with pytest.raises(ConfigError, match="needs a GPU"):
            finetune(config)
        assert not config.out.exists()


def test_sharded_weights_cannot_be_judged_and_that_is_said(config_of, monkeypatch):
    real = SessionTrainer.__init__

    def sharded(self, *args, **kwargs):
        real(self, *args, **kwargs)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(SessionTrainer, "__init__", sharded)
    with pytest.raises(ConfigError, match="whole model on each device"):
        finetune(config_of())
