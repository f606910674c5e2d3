"""Nothing that is loaded runs code: pickles are refused, a model's own code is not trusted, nor is it asked for."""

import json
import pickle
import shutil
import sys

import pytest

from seqrec_prompt.engines.hardware import torch_dtype
from seqrec_prompt.engines.models import load_model, load_tokenizer, model_hash, with_adapter
from seqrec_prompt.errors import ModelError


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_of_pickles_is_refused_and_not_opened(tiny_model, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelError, match=rf"only pickled weights \({name}\)\. .*only safetensors are read"):
        model_hash(str(folder))
    with pytest.raises(ModelError, match="Cannot load the model"):
        load_model(str(folder), torch_dtype("float32"))
    assert not (tmp_path / "exploded").exists()


def test_an_adapter_of_pickles_is_refused_and_not_opened(tiny_model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors.*only safetensors are read"):
        with_adapter(load_model(str(tiny_model), torch_dtype("float32")), adapter)
    assert not (tmp_path / "exploded").exists()


def test_code_of_a_model_is_not_run(tiny_model, tmp_path, monkeypatch):
    """Unsaid, transformers would ask at the terminal; here the answer is no, at once."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(config | own))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ModelError, match="contains custom code which must be executed"):
        load_model(str(folder), torch_dtype("float32"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"auto_map": {"AutoTokenizer": ["own.Model", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | own))
    with pytest.raises(ModelError):
        load_tokenizer(str(folder))
    assert not (tmp_path / "exploded").exists()
