"""`prefer` on the tiny model: its loss by hand, what it learns, what it leaves, repeats, goes on with and refuses."""

import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from seqrec_prompt.artifacts import manifest, read_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ArtifactError, DataError, ModelError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.finetuning.preferences import Preferences, build_preference_trainer
from seqrec_prompt.finetuning.trainers import PreferenceTrainer
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.recommenders import files
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.llm.prefer import PreferConfig, prefer, read_preferences
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

WEIGHTS = "adapter_model.safetensors"
LAYOUTS = ["continue", "ask"]


@pytest.fixture(scope="module")
def data(dataset_dir):
    return Dataset.load(dataset_dir)


@pytest.fixture(scope="module")
def adapters(tiny_model, dataset_dir, tmp_path_factory):
    """A first stage for each layout, by layout."""
    folder = tmp_path_factory.mktemp("first")
    settings = {"data": dataset_dir, "model": str(tiny_model), "context": 1024, "max_steps": 3, "dtype": "float32"}
    return {
        layout: finetune(
            FinetuneConfig(
                **settings,
                out=folder / layout,
                template=TemplateConfig(layout=layout),
                learning_rate=0.01,
                batch_size=4,
            )
        )
        for layout in LAYOUTS
    }


@pytest.fixture(scope="module")
def negatives(adapters, tiny_model, dataset_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("negatives") / "train.parquet"
    settings = {"data": dataset_dir, "model": str(tiny_model), "adapter": adapters["continue"], "dtype": "float32"}
    return recommend(RecommendConfig(**settings, out=out, part="train", k=5))


@pytest.fixture
def config_of(tiny_model, dataset_dir, adapters, negatives, tmp_path):
    def build(out="preferred", **changes):
        settings = {
            "data": dataset_dir,
            "out": tmp_path / out,
            "model": str(tiny_model),
            "adapter": adapters["continue"],
            "negatives": negatives,
            "context": 1024,
            "batch_size": 4,
            "max_steps": 6,
            "logging_steps": 1,
            "dtype": "float32",
        }
        return PreferConfig(**settings | changes)

    return build


def log_probability(model, tokenizer, prompt, answer):
    before, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
    assert whole[: len(before)] == before
    with torch.no_grad():
        logp = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(float(logp[at - 1, whole[at]]) for at in range(len(before), len(whole)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_the_paper(config_of, data, adapters, tiny_model, tmp_path, layout):
    """−log σ(β·(…)) by hand, from texts, over models loaded afresh: the trained adapter and the first stage's."""
    template, beta = TemplateConfig(layout=layout), 0.3
    sessions = data.split.train.take(data.split.train.lengths >= 2).take(np.array([0, 1, 1, 5]))
    pairs = Preferences(sessions, np.array([20, 17, 23, 19], np.int32))
    trainer = build_preference_trainer(config_of(), data, pairs, None, template, adapters[layout], beta)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # as after some training
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    trainer.model.save_pretrained(tmp_path / "now", selected_adapters=["default"])

    def loaded(adapter):
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        return PeftModel.from_pretrained(base, adapter).eval()

    tokenizer, texts = AutoTokenizer.from_pretrained(tiny_model), data.catalog.texts()
    policy, reference = loaded(tmp_path / "now"), loaded(adapters[layout])
    end = tokenizer.eos_token if layout == "ask" else "\n"
    expected = []
    for items, rejected in zip(sessions, pairs.rejected, strict=True):
        question = "The next item of this session:\n" if layout == "ask" else ""
        seen = "".join(f"{texts[item]}\n" for item in items[:-1])
        prompt = f"One shopping session, one item per line:\n{seen}{question}"
        gain = [
            log_probability(policy, tokenizer, prompt, texts[item] + end)
            - log_probability(reference, tokenizer, prompt, texts[item] + end)
            for item in (items[-1], rejected)
        ]
        assert abs(gain[0] - gain[1]) > 0.01
        expected.append(math.log1p(math.exp(-beta * (gain[0] - gain[1]))))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        assert float(trainer.compute_loss(trainer.model.eval(), batch)) == pytest.approx(np.mean(expected), abs=1e-4)


def test_the_margin_grows_and_the_adapter_decodes(config_of, adapters, tiny_model, dataset_dir, tmp_path, capsys):
    config = config_of(learning_rate=5e-3, max_steps=12, batch_size=8)
    assert prefer(config) == config.out
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].endswith(" pairs from 30 sessions")
    assert shown[-1].startswith(f"adapter: {config.out}  (12 steps, ")
    made = read_manifest(config.out, "prefer")
    facts = made["facts"]
    # At the start both adapters are one: no margin, log 2.
    assert facts["loss"][0] == pytest.approx(math.log(2), abs=1e-4)
    assert facts["margin"][0] == pytest.approx(0, abs=1e-4)
    assert facts["margin"][1] > 0.5
    assert facts["loss"][1] < 0.5
    assert facts["right"][1] > 0.9
    assert made["config"]["template"] == read_manifest(adapters["continue"], "finetune")["config"]["template"]
    assert {path.name for path in config.out.iterdir()} >= {WEIGHTS, "adapter_config.json", "manifest.json", "log.json"}
    assert not {"ref", "checkpoints", "started.json"} & {path.name for path in config.out.iterdir()}
    before, after = (load_file(path / WEIGHTS) for path in (adapters["continue"], config.out))
    assert before.keys() == after.keys()
    assert any((before[name] - tensor).abs().max() > 1e-3 for name, tensor in after.items())

    def lists(adapter, out):
        settings = {
            "data": dataset_dir,
            "model": str(tiny_model),
            "adapter": adapter,
            "part": "train",
            "max_sessions": 12,
        }
        path = recommend(RecommendConfig(**settings, out=tmp_path / out, k=30, dtype="float32"))
        return files.read(path, Dataset.load(dataset_dir).catalog).lists

    train = Dataset.load(dataset_dir).split.train
    target = {name: items[-1] for name, items in zip(train.ids, train, strict=True)}
    ranks = [
        np.mean([items.tolist().index(target[name]) for name, items in zip(found.session_ids, found, strict=True)])
        for found in (lists(adapters["continue"], "before.parquet"), lists(config.out, "after.parquet"))
    ]
    assert ranks[1] < ranks[0]  # what came stands higher than it did

    capsys.readouterr()
    assert prefer(config) == config.out
    assert capsys.readouterr().out == f"already trained: {config.out}\n"
    with pytest.raises(ArtifactError, match=r"config\.beta: was 0\.1, is 0\.2"):
        prefer(config_of(learning_rate=5e-3, max_steps=12, batch_size=8, beta=0.2))
    prefer(config_of("third", adapter=config.out, max_steps=1))  # a further round starts from this one


def test_a_stopped_run_ends_like_an_unbroken_one(config_of, monkeypatch):
    unbroken, stopped = (config_of(out, save_steps=3, learning_rate=1e-2) for out in ("unbroken", "stopped"))
    prefer(unbroken)
    real, steps = PreferenceTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PreferenceTrainer, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        prefer(stopped)
    assert (stopped.out / "checkpoints" / "checkpoint-3").exists()
    prefer(stopped)
    assert len(steps) == 5 + 3
    losses = [
        {e["step"]: e["loss"] for e in json.loads((c.out / "log.json").read_text()) if "loss" in e}
        for c in (stopped, unbroken)
    ]
    # The reference is the first stage still, not the checkpoint: else the loss would begin again at log 2.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[0][4] - math.log(2)) > 0.01
    final, expected = (load_file(c.out / WEIGHTS) for c in (stopped, unbroken))
    for name, tensor in expected.items():
        torch.testing.assert_close(final[name], tensor, rtol=1e-5, atol=1e-7)


def test_a_dora_adapter_is_its_own_reference_and_checkpointing_changes_nothing(
    config_of, tiny_model, dataset_dir, tmp_path
):
    settings = {"data": dataset_dir, "model": str(tiny_model), "context": 1024, "max_steps": 2, "dtype": "float32"}
    first = finetune(FinetuneConfig(**settings, out=tmp_path / "dora", method="dora", learning_rate=0.01))
    logs = []
    for checkpointing in (True, False):
        common = {"adapter": first, "max_steps": 3, "learning_rate": 1e-2, "warmup": 0}
        config = config_of(str(checkpointing), gradient_checkpointing=checkpointing, **common)
        prefer(config)
        logs.append([e["loss"] for e in json.loads((config.out / "log.json").read_text()) if "loss" in e])
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)
    assert logs[0][0] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(logs[0][2] - math.log(2)) > 0.01


def test_the_best_step_of_a_validation_is_kept(config_of, monkeypatch):
    ranks = iter([0, 1, 0, 0])  # of every target: found only after the second step
    monkeypatch.setattr(
        "seqrec_prompt.finetuning.validation.Validation._ranks",
        lambda self, *_: np.full(len(self.holdout), next(ranks)),
    )
    config = config_of(validation={"steps": 1, "patience": 2}, save_steps=1, learning_rate=1e-2)
    prefer(config)
    facts = read_manifest(config.out, "prefer")["facts"]
    assert (facts["steps"], facts["best_step"], facts["validation"]) == (4, 2, 1.0)
    assert facts["sessions"] == 27  # a tenth is held out, whose lists are not learned from
    before, after = load_file(config.adapter / WEIGHTS), load_file(config.out / WEIGHTS)
    assert any((before[name] - tensor).abs().max() > 1e-3 for name, tensor in after.items())


def written(path, lists, data, **config):
    """A file as `recommend` writes it; lists: session id → items."""
    found = Recommendations.build(
        np.array(list(lists), dtype=object),
        [np.array(items, np.int32) for items in lists.values()],
        [np.arange(len(items), 0, -1.0) for items in lists.values()],
    )
    files.write(path, [found], data.catalog, manifest("recommend", config, {"data": data.hash}))
    return path


def test_pairs_are_the_best_items_that_did_not_come(config_of, data, tmp_path):
    train = data.split.train
    texts = data.catalog.texts()
    one, other = train.ids[3], train.ids[0]
    target, second = int(train[3][-1]), int(train[0][-1])
    twins = [i for i in range(30) if texts[i] == texts[target]]
    wrong = [i for i in range(30) if texts[i] not in (texts[target], texts[second])]
    lists = {one: [*twins, wrong[4], target, wrong[2], wrong[0], wrong[1]], other: [wrong[7], second], train.ids[5]: []}
    lists[one] = list(dict.fromkeys(lists[one]))
    path = written(tmp_path / "n.parquet", lists, data, part="train")
    pairs, facts = read_preferences(config_of(negatives=path, negatives_per_session=3), data, train)
    assert pairs.rejected.tolist() == [wrong[4], wrong[2], wrong[0], wrong[7]]
    assert [items.tolist() for items in pairs.sessions] == [train[3].tolist()] * 3 + [train[0].tolist()]
    assert facts == {"pairs": 4, "sessions": 2, "listed_sessions": 3}


def test_lists_that_do_not_fit_are_refused(config_of, data, tmp_path):
    name, target = data.split.train.ids[0], int(data.split.train[0][-1])
    test = written(tmp_path / "test.parquet", {data.split.test.prompts.ids[0]: [1]}, data, part="test")
    with pytest.raises(DataError, match=r"lists for test sessions\n.*recommend --part train"):
        prefer(config_of(negatives=test))
    strange = written(tmp_path / "strange.parquet", {"nobody": [1]}, data, part="train")
    with pytest.raises(DataError, match=r"1 of 1 sessions are not in the train part .*'nobody'"):
        prefer(config_of(negatives=strange))
    right = written(tmp_path / "right.parquet", {name: [target]}, data, part="train")
    with pytest.raises(DataError, match="no train session has a list with an item that did not come"):
        prefer(config_of(negatives=right))
    with pytest.raises(ArtifactError, match="no such file"):
        prefer(config_of(negatives=tmp_path / "none.parquet"))
    found = Recommendations.build(np.array([name], dtype=object), [np.array([1], np.int32)], [np.ones(1)])
    files.write(tmp_path / "o.parquet", [found], data.catalog, manifest("recommend", {"part": "train"}, {"data": "x"}))
    with pytest.raises(DataError, match="made from other data"):
        prefer(config_of(negatives=tmp_path / "o.parquet"))
    assert not config_of().out.exists()


def test_a_whole_model_or_none_is_no_first_stage(config_of, tiny_model, dataset_dir, tmp_path):
    settings = {"data": dataset_dir, "model": str(tiny_model), "context": 1024, "max_steps": 1, "dtype": "float32"}
    whole = finetune(FinetuneConfig(**settings, out=tmp_path / "whole", method="full"))
    with pytest.raises(ModelError, match="is a whole model, no adapter"):
        prefer(config_of(adapter=whole))
    with pytest.raises(ArtifactError, match="expected a directory made by 'finetune'"):
        prefer(config_of(adapter=tmp_path / "none"))
    with pytest.raises(ArtifactError, match=r"'adapter' = .* lies inside 'out'"):
        prefer(config_of("whole", adapter=whole))
