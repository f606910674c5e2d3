"""The peers of the benchmarks find what they claim to, on a tiny model."""

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from seqrec_prompt.decoding.search import score_catalog
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.errors import MissingExtraError
from seqrec_prompt.prompting.prompter import compile_template
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.ragged import TokenLists

FILE = Path(__file__).parents[1] / "eval" / "benchmarks" / "peers.py"
# Without the title of 300 tokens, and without the one that names control tokens: llguidance takes them for such.
PLAIN = np.setdiff1d(np.arange(30), [8, 10])
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("xgrammar", "llguidance")
]


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def plain(catalog):
    return catalog.take(PLAIN)


@pytest.fixture(scope="module", params=["continue", "ask"])
def task(request, plain, tokenizer):
    """Trie and prompts of different lengths, in both layouts: titles end in a line break or in an end token."""
    prompter = compile_template(TemplateConfig(layout=request.param), plain, tokenizer)
    prompts = [prompter.prompt(np.array(items)) for items in ([0, 3], [5], [7, 8, 20, 21], [12])]
    return compile_trie(prompter.answers), prompts


def check(result, prompts, k, n_items):
    """What holds for every peer that came to its end."""
    assert result.finished
    assert len(result.lists) == len(prompts)
    assert all(0 <= item < n_items for items in result.lists for item in items)
    assert result.starved == sum(len(set(items)) < k for items in result.lists)
    assert 0 < result.constraint_seconds < result.seconds or result.name == "sample_and_ground"
    assert 0 < result.steps <= result.new_tokens
    assert result.setup_seconds > 0


@pytest.mark.parametrize("k", [1, 5])
def test_beams_end_in_real_items(peers, task, plain, tiny_engine, tokenizer, k):
    trie, prompts = task
    result = peers.beam_search(tiny_engine.model, tokenizer, trie, prompts, k, time_limit=60, batch_size=3)
    check(result, prompts, k, len(plain))
    assert (result.completions, result.invalid, result.starved, result.respelled) == (k * len(prompts), 0, 0, 0)
    assert all(len(set(items)) == k for items in result.lists)
    assert result.new_tokens >= result.steps * k
    for prompt, items in zip(prompts, result.lists, strict=True):
        scores = score_catalog(tiny_engine, trie, prompt, scoring="joint")[trie.leaf_of[items]]
        assert (np.diff(scores) <= 0).all()


def test_beams_as_many_as_titles_are_the_exact_order(peers, task, tiny_engine, tokenizer):
    trie, prompts = task
    k = trie.n_leaves + 3  # more than there are: the lists are plain, and nothing is made up
    result = peers.beam_search(tiny_engine.model, tokenizer, trie, prompts, k, time_limit=60)
    assert (result.completions, result.invalid) == (trie.n_leaves * len(prompts), 0)
    assert result.starved == len(prompts)
    for prompt, items in zip(prompts, result.lists, strict=True):
        scores = score_catalog(tiny_engine, trie, prompt, scoring="joint")
        assert items[0] == trie.items_at(int(scores.argmax()))[0]
        assert scores[trie.leaf_of[items]] == pytest.approx(np.sort(scores)[::-1], abs=1e-3)


def test_titles_may_end_in_different_tokens(peers, tiny_engine, tokenizer):
    trie = compile_trie(TokenLists.of([[9, 20, 7], [9, 20, 8], [9, 21, 22, 7], [23, 8]]))
    prompts = [np.array([30, 31, 32], np.int32)]
    result = peers.beam_search(tiny_engine.model, tokenizer, trie, prompts, 4, time_limit=60)
    scores = score_catalog(tiny_engine, trie, prompts[0], scoring="joint")
    assert result.lists == [trie.items[np.argsort(-scores)].tolist()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_grammars_give_titles_only(peers, task, plain, tiny_engine, tokenizer, backend):
    trie, prompts = task
    arguments = (tiny_engine.model, tokenizer, plain.texts(), trie, prompts, 6)
    result = peers.grammar_sampling(*arguments, time_limit=60, backend=backend, batch_size=3)
    check(result, prompts, 6, len(plain))
    assert (result.completions, result.invalid) == (6 * len(prompts), 0)
    assert [len(items) for items in result.lists] == [6] * len(prompts)
    state = torch.get_rng_state()
    again = peers.grammar_sampling(*arguments, time_limit=60, backend=backend, batch_size=3)
    assert again.lists == result.lists
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_grammar_that_takes_too_long_is_given_up(peers, task, plain, tiny_engine, tokenizer, backend):
    trie, prompts = task
    result = peers.grammar_sampling(
        tiny_engine.model, tokenizer, plain.texts(), trie, prompts, 6, time_limit=60, backend=backend, setup_limit=1e-6
    )
    assert not result.finished
    assert result.lists == [[]] * len(prompts)
    assert (result.completions, result.steps, result.starved) == (0, 0, 0)
    assert result.setup_seconds > 0


def test_a_missing_backend_says_how_to_install_it(peers, task, plain, tiny_engine, tokenizer, monkeypatch):
    trie, prompts = task
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(MissingExtraError, match="pip install xgrammar"):
        peers.grammar_sampling(tiny_engine.model, tokenizer, plain.texts(), trie, prompts, 6, time_limit=60, seed=1)


def test_free_samples_are_moved_to_real_items(peers, task, plain, tiny_engine, tokenizer, tmp_path):
    trie, prompts = task
    arguments = (tiny_engine.model, tokenizer, plain.texts(), trie, prompts, 4)
    result = peers.sample_and_ground(*arguments, time_limit=60, cache=tmp_path / "titles.pt")
    check(result, prompts, 4, len(plain))
    assert result.completions == 4 * len(prompts)
    assert [len(items) for items in result.lists] == [4] * len(prompts)
    again = peers.sample_and_ground(*arguments, time_limit=60, cache=tmp_path / "titles.pt")
    assert (again.lists, again.setup_seconds) == (result.lists, result.setup_seconds)


def test_an_exact_title_is_valid_and_the_others_are_grounded(peers, task, plain, tiny_engine, tokenizer, monkeypatch):
    trie, prompts = task
    texts = plain.texts()
    red, hair = texts.index("OPI Nail Lacquer, Red"), texts.index("Dove Shampoo for Dry Hair")
    title = trie.sequences[trie.leaf_of[red]].tolist()
    end = title[-1:]
    letters = [token for letter in texts[hair] for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    cut_off = (title[:-1] * 64)[:64]
    said = [letters + end, title, [*title[:-2], *end], cut_off, title, end]

    def generate(input_ids, **settings):
        assert (settings["do_sample"], settings["temperature"], settings["top_k"], settings["top_p"]) == (True, 1, 0, 1)
        rows = [row + end * (64 - len(row)) for row in said]
        return torch.cat([input_ids.repeat_interleave(6, 0), torch.tensor(rows)], 1)

    monkeypatch.setattr(tiny_engine.model, "generate", generate)
    result = peers.sample_and_ground(tiny_engine.model, tokenizer, texts, trie, prompts[:1], 6, time_limit=60)
    assert (result.completions, result.invalid, result.respelled) == (6, 3, 1)
    assert result.new_tokens == sum(map(len, said))
    assert len(result.lists[0]) == 6
    assert result.lists[0].count(hair) >= 1
    assert result.lists[0].count(red) >= 2
    assert all(texts[item] for item in result.lists[0])


@pytest.mark.parametrize("name", ["beam_search", "sample_and_ground"])
def test_the_time_limit_stops_a_batch_in_the_middle(peers, task, plain, tiny_engine, tokenizer, name):
    trie, prompts = task
    texts = [] if name == "beam_search" else [plain.texts()]
    result = getattr(peers, name)(tiny_engine.model, tokenizer, *texts, trie, prompts, 3, time_limit=1e-3, batch_size=2)
    assert not result.finished
    assert result.lists == [[]] * len(prompts)
    assert 0 < result.steps < 10
