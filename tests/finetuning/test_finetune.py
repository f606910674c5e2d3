"""`finetune` end to end on the tiny model: what it leaves on disk, what it repeats, refuses and explains."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from seqrec_prompt.artifacts import MANIFEST, hash_json, read_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.engines import models
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.errors import ArtifactError, ConfigError, MissingExtraError, ModelError, SeqrecError
from seqrec_prompt.finetuning import setup
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune
from seqrec_prompt.prompting.templates import TemplateConfig

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def config_of(tiny_model, dataset_dir, tmp_path):
    def build(out="adapter", **changes):
        settings = {
            "data": dataset_dir,
            "out": tmp_path / out,
            "model": str(tiny_model),
            "context": 1024,
            "batch_size": 2,
            "max_steps": 2,
            "logging_steps": 1,
            "dtype": "float32",
            "lora": {"r": 2, "alpha": 4},
        }
        return FinetuneConfig(**settings | changes)

    return build


def weights(config):
    return load_file(config.out / WEIGHTS)


def assert_close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@pytest.mark.parametrize(
    ("objective", "layout", "chat"),
    [
        ("catalog", "continue", False),
        ("catalog", "ask", True),
        ("last_item", "continue", False),
        ("last_item", "ask", False),
        ("all_items", "continue", True),
    ],
)
def test_every_objective_and_layout_leaves_an_adapter(config_of, dataset_dir, capsys, objective, layout, chat):
    config = config_of(objective=objective, template=TemplateConfig(layout=layout, chat=chat))
    assert finetune(config) == config.out
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("30 training examples from 30 sessions; 30 items, 28 distinct titles")
    unit = "nats an item" if objective == "catalog" else "nats a token"
    assert shown[-1].startswith(f"adapter: {config.out}  (2 steps, ")
    assert shown[-1].endswith(f"{unit})")

    # B of LoRA begins at zero: a weight that moved was trained.
    assert any(tensor.abs().max() > 0 for name, tensor in weights(config).items() if "lora_B" in name)
    made = read_manifest(config.out, "finetune")
    assert made["config"] == config.resolved()
    data = Dataset.load(dataset_dir)
    assert made["inputs"] == {
        "data": data.hash,
        "catalog": data.catalog.hash,
        "template": hash_json(config.template.resolved()),
        "model": models.model_hash(config.model),
    }
    assert made["facts"]["steps"] == 2
    assert made["facts"]["examples"] == 30
    losses = [entry["loss"] for entry in json.loads((config.out / "log.json").read_text()) if "loss" in entry]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert made["facts"]["loss"] == losses
    assert not (config.out / "checkpoints").exists()
    assert not (config.out / "started.json").exists()


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "full"])
def test_training_lowers_the_loss(config_of, method):
    config = config_of(method=method, max_steps=30, batch_size=8, learning_rate=0.01, lora={"r": 8, "alpha": 16})
    first, last = read_manifest(finetune(config), "finetune")["facts"]["loss"]
    assert last < 0.8 * first


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "full"])
def test_what_was_trained_is_what_is_decoded(config_of, tiny_model, method):
    """Loaded for decoding, every method's logits are those that PEFT or transformers give; the base's are others."""
    config = config_of(method=method, learning_rate=0.05)
    finetune(config)
    ids = torch.arange(5, 25)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    before = base(ids).logits
    if method == "full":
        right = AutoModelForCausalLM.from_pretrained(config.out, dtype=torch.float32)
    else:
        right = PeftModel.from_pretrained(base, config.out)
        assert any("magnitude" in name for name in weights(config)) == (method == "dora")
    engine = HuggingFaceEngine.load(str(tiny_model), config.out, "float32")
    torch.testing.assert_close(engine.model(ids).logits, right(ids).logits, atol=1e-4, rtol=1e-4)
    assert (engine.model(ids).logits - before).abs().max() > 0.01


def test_qlora_holds_its_base_in_four_bits(config_of, monkeypatch):
    loaded = []
    real = models.load_model
    monkeypatch.setattr(setup, "load_model", lambda *a, **k: loaded.append(real(*a, **k)) or loaded[-1])
    finetune(config_of(method="qlora"))
    layer = loaded[0].get_submodule("model.layers.0.mlp.up_proj.base_layer")
    assert type(layer).__name__ == "Linear4bit"
    assert layer.weight.quant_type == "nf4"


def test_qlora_without_its_library_is_explained(config_of, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = config_of(method="qlora")
    with pytest.raises(MissingExtraError, match=r"pip install .seqrec_prompt\[quant\]"):
        finetune(config)
    assert not config.out.exists()


def test_the_same_run_twice_gives_the_same_adapter(config_of):
    one, other = config_of("one"), config_of("other")
    finetune(one)
    torch.manual_seed(99)  # what happened in the process before does not matter
    finetune(other)
    assert_close(weights(one), weights(other), rtol=0, atol=0)
    finetune(seeded := config_of("seeded", seed=1))
    assert any((tensor != weights(seeded)[name]).any() for name, tensor in weights(one).items())


def test_accumulated_batches_train_like_one_large_batch(config_of):
    for objective, layout in (("catalog", "continue"), ("last_item", "ask")):
        template = TemplateConfig(layout=layout)
        large = config_of(f"{objective}-large", objective=objective, template=template, batch_size=6)
        small = config_of(f"{objective}-small", objective=objective, template=template, gradient_accumulation=3)
        finetune(large)
        finetune(small)
        assert_close(weights(small), weights(large), rtol=1e-3, atol=1e-5)
        both = [read_manifest(config.out, "finetune")["facts"]["loss"] for config in (large, small)]
        assert both[0] == pytest.approx(both[1], rel=1e-4)


def test_a_finished_run_is_not_repeated_and_another_is_refused(config_of, capsys):
    config = config_of()
    finetune(config)
    before = {path.name: path.stat().st_mtime_ns for path in config.out.iterdir()}
    capsys.readouterr()
    assert finetune(config) == config.out
    assert capsys.readouterr().out == f"already trained: {config.out}\n"
    with pytest.raises(ArtifactError, match=r"config\.learning_rate: was 0\.0005, is 0\.001\nChoose another --out, or"):
        finetune(config_of(learning_rate=0.001))
    with pytest.raises(ArtifactError, match=r"config\.lora\.r: was 2, is 3"):
        finetune(config_of(lora={"r": 3, "alpha": 4}))
    assert {path.name: path.stat().st_mtime_ns for path in config.out.iterdir()} == before
    finetune(config_of(lora={"r": 3, "alpha": 4}, overwrite=True))
    assert read_manifest(config.out, "finetune")["config"]["lora"]["r"] == 3


def test_what_cannot_be_trained_replaces_nothing(config_of):
    config = config_of()
    finetune(config)
    before = {path.name: path.read_bytes() for path in config.out.iterdir()}
    with pytest.raises(ConfigError, match="q_prj"):
        finetune(config_of(lora={"target_modules": ("q_prj",)}, overwrite=True))
    after = {path.name: path.read_bytes() for path in config.out.iterdir() if path.is_file()}
    assert after == before
    finetune(config)


@pytest.mark.parametrize("stopped", ["before anything went", "after the manifest", "half way"])
def test_a_stop_while_the_old_adapter_goes_leaves_neither_a_false_one_nor_a_dead_end(config_of, monkeypatch, stopped):
    config, new = config_of(), config_of(lora={"r": 3, "alpha": 4}, overwrite=True)
    finetune(config)
    calls = {"unlink": 0}
    at = {"before anything went": 0, "after the manifest": 1, "half way": 3}[stopped]
    real = Path.unlink

    def unlink(path, *args, **kwargs):
        if path.parent == config.out and not path.name.startswith("."):
            if calls["unlink"] == at:
                raise KeyboardInterrupt
            calls["unlink"] += 1
        real(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", unlink)
        finetune(new)
    if stopped != "before anything went":
        assert not (config.out / "manifest.json").exists()  # or the next run would take it for done
    finetune(new)
    assert read_manifest(config.out, "finetune")["config"]["lora"]["r"] == 3
    assert load_file(config.out / "adapter_model.safetensors")
    assert not {"checkpoints", "started.json"} & {path.name for path in config.out.iterdir()}


def test_what_a_stop_leaves_before_anything_is_trained_is_no_dead_end(config_of):
    config = config_of()
    (config.out / "checkpoints").mkdir(parents=True)
    (config.out / ".started.json.abcd_123.partial").write_text("{")
    finetune(config)
    (config.out / "checkpoints" / "checkpoint-1").mkdir(parents=True)  # a stop between the manifest and the tidying
    (config.out / "started.json").write_text("{}")
    finetune(config)
    assert not {"checkpoints", "started.json"} & {path.name for path in config.out.iterdir()}


def test_a_directory_of_somebody_else_is_left_alone(config_of):
    config = config_of()
    config.out.mkdir()
    (config.out / "thesis.tex").write_text("...")
    with pytest.raises(ArtifactError, match="exists and was not made by seqrec_prompt"):
        finetune(config)
    assert [path.name for path in config.out.iterdir()] == ["thesis.tex"]


def test_the_adapter_names_its_base_as_the_user_did(config_of, tiny_model, monkeypatch):
    real = models.resolve
    monkeypatch.setattr(models, "resolve", lambda name: str(tiny_model) if name == "tiny" else real(name))
    config = config_of(model="tiny")
    finetune(config)
    assert json.loads((config.out / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    for path in config.out.iterdir():
        assert str(tiny_model).encode() not in path.read_bytes(), f"{path.name} holds a path of this machine"


@pytest.mark.parametrize("name", ["no-such-model", "{tmp}/no/such/directory", "nobody/no-such-model"])
def test_a_model_that_is_not_there_is_named(config_of, tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = name.format(tmp=tmp_path)
    config = config_of(model=model)
    with pytest.raises(ModelError, match=model):
        finetune(config)
    assert not config.out.exists()


def test_a_layer_the_model_lacks_is_named_with_those_it_has(config_of):
    config = config_of(lora={"r": 2, "target_modules": ["q_proj", "query", "mlp"]})
    with pytest.raises(ConfigError, match=r"no layer query, mlp\. It has: .*o_proj, q_proj, .*v_proj$"):
        finetune(config)
    assert not config.out.exists()


def test_a_model_that_recommend_will_refuse_is_named_before_it_is_trained(config_of, tmp_path, tokenizer, capsys):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **shape, **heads, final_logit_softcapping=1.0))
    model.save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    finetune(config_of(model=str(tmp_path / "gemma"), max_steps=1))
    shown = capsys.readouterr()
    assert "warning: recommend --engine transformers will refuse this model: Gemma2ForCausalLM" in shown.err
    finetune(config_of(out=tmp_path / "llama", max_steps=1))
    assert "warning: recommend" not in capsys.readouterr().err


@pytest.mark.parametrize("layers", [("all-linear",), ("q_proj", "down_proj")])
def test_the_last_blocks_alone_get_an_update(config_of, layers):
    finetune(config_of("last", lora={"r": 2, "target_modules": layers, "blocks": 1}))
    finetune(config_of("all", lora={"r": 2, "target_modules": layers}))
    last, every = weights(config_of("last")), weights(config_of("all"))
    assert last.keys() == {name for name in every if ".layers.1." in name}  # of the tiny model's layers 0 and 1
    assert len(last) == len(every) / 2


def test_more_blocks_than_there_are_is_said(config_of):
    with pytest.raises(ConfigError, match=r"'lora\.blocks' is 3: the model has 2"):
        finetune(config_of(lora={"r": 2, "blocks": 3}))


def test_weights_that_are_not_finite_are_no_adapter(config_of):
    config = config_of(learning_rate=1e30, max_steps=3)
    with pytest.raises(ModelError, match=r"diverged.*--learning-rate"):
        finetune(config)
    assert not (config.out / MANIFEST).exists()


def test_a_directory_without_a_model_is_named(config_of, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        finetune(config_of(model=str(tmp_path / "empty")))


def test_an_adapter_as_base_model_is_explained(config_of, tmp_path):
    """A user may give the adapter's directory as --model."""
    finetune(config_of())
    with pytest.raises(ModelError):
        finetune(config_of("second", model=str(tmp_path / "adapter")))


def test_a_file_in_the_place_of_out_is_explained(config_of):
    config = config_of()
    config.out.write_text("a file")
    with pytest.raises(SeqrecError, match="adapter"):
        finetune(config)
    assert config.out.read_text() == "a file"


def test_sessions_of_one_item_teach_nothing_and_that_is_said(config_of, dataset_dir, tmp_path):
    data = Dataset.load(dataset_dir)
    alone = tmp_path / "alone"
    alone.mkdir()
    replace(data, split=replace(data.split, train=Sessions.build(["a", "b"], [[3], [4]]))).save(alone)
    with pytest.raises(SeqrecError):
        finetune(config_of(data=alone))


def test_the_latest_sessions_alone_are_trained_on(config_of, dataset_dir, tmp_path, capsys):
    data, timed = Dataset.load(dataset_dir), tmp_path / "timed"
    train = replace(data.split.train, times=np.arange(len(data.split.train.items), dtype=float))
    timed.mkdir()
    replace(data, split=replace(data.split, train=train)).save(timed)
    finetune(config_of(data=timed, latest=7, objective="last_item"))
    assert capsys.readouterr().out.startswith("7 training examples from 7 sessions")


def test_sessions_of_one_item_are_none_of_the_latest(config_of, dataset_dir, tmp_path, capsys):
    data, timed = Dataset.load(dataset_dir), tmp_path / "timed"
    lists = [[1, 2], [3, 4], [5], [6, 7, 8], [9], [10]]  # in the order of time
    train = Sessions.build([f"s{i}" for i in range(len(lists))], lists)
    train = replace(train, times=np.arange(len(train.items), dtype=float))
    timed.mkdir()
    replace(data, split=replace(data.split, train=train)).save(timed)
    finetune(config_of(data=timed, latest=2, objective="last_item"))
    assert capsys.readouterr().out.startswith("2 training examples from 2 sessions")


def test_a_context_too_short_for_two_titles_is_said(config_of):
    # One title of the catalog takes some three hundred tokens.
    with pytest.raises(SeqrecError, match=r"context of 64 tokens.*--context"):
        finetune(config_of(context=64))
