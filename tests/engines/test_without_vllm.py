"""What --engine vllm means before vLLM is there; tests/on_vllm holds the engine itself."""

import importlib.util

import pytest
import torch
from pydantic import ValidationError

from seqrec_prompt.engines import vllm
from seqrec_prompt.engines.embed import EmbedConfig, embed
from seqrec_prompt.errors import MissingExtraError
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

there = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")


@there
def test_the_extra_is_named(tiny_model, dataset_dir, tmp_path):
    settings = {"data": dataset_dir, "model": str(tiny_model), "engine": "vllm"}
    for verb, config in ((recommend, RecommendConfig), (embed, EmbedConfig)):
        out = tmp_path / verb.__name__
        with pytest.raises(MissingExtraError, match=r'pip install "seqrec_prompt\[vllm\]"'):
            verb(config(out=out, **settings))
        assert not out.exists()


def test_more_is_read_at_once_unless_said_otherwise(tmp_path):
    paths = {"data": tmp_path, "out": tmp_path / "out", "engine": "vllm"}
    assert RecommendConfig(**paths).batch_size == 256
    assert RecommendConfig(**paths, batch_size=3).batch_size == 3
    assert RecommendConfig(**paths | {"engine": "transformers"}).batch_size == 8
    assert EmbedConfig(**paths).batch_tokens == 65_536


def test_sentence_models_are_not_read_by_vllm(tmp_path):
    with pytest.raises(ValidationError, match="'engine' vllm is for causal language models"):
        EmbedConfig(data=tmp_path, out=tmp_path / "out", engine="vllm", pooling="own")


@pytest.mark.parametrize(("free", "share"), [(80, 0.92), (60, 0.73), (1, 0.0)])
def test_vllm_takes_of_a_gpu_what_others_leave(monkeypatch, free, share):
    monkeypatch.setattr(vllm, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free << 30, 80 << 30))
    assert vllm._room() == {"gpu_memory_utilization": pytest.approx(share)}


def test_nothing_is_said_of_a_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(vllm, "device", lambda: torch.device("cpu"))
    assert vllm._room() == {}
