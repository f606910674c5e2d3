"""Compiled catalogs: what comes back from the cache is what was compiled, and only for what it was compiled for."""

import dataclasses

import numpy as np
import pytest

from seqrec_prompt.decoding import compiled as module
from seqrec_prompt.decoding.compiled import ARRAYS, compile_catalog
from seqrec_prompt.decoding.trie import compile_trie
from seqrec_prompt.prompting.templates import TemplateConfig

CONTINUE, ASK = TemplateConfig(), TemplateConfig(layout="ask", chat=True, attributes=("brand",))


def same(one, other):
    assert one.prompter.template == other.prompter.template
    assert one.prompter.end_token == other.prompter.end_token
    for name in ("head", "tail"):
        np.testing.assert_array_equal(getattr(one.prompter, name), getattr(other.prompter, name))
    for name in ("lines", "answers"):
        a, b = getattr(one.prompter, name), getattr(other.prompter, name)
        assert [items.tolist() for items in a] == [items.tolist() for items in b]
    for name in ARRAYS:
        a, b = getattr(one.trie, name), getattr(other.trie, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert [t.tolist() for t in one.trie.sequences] == [t.tolist() for t in other.trie.sequences]


@pytest.fixture
def cached(tmp_path, tokenizer, monkeypatch):
    """compile_catalog with a cache of its own, and how often it really compiled."""
    calls = []

    def counted(*args):
        calls.append(args)
        return compile_trie(*args)

    monkeypatch.setattr(module, "compile_trie", counted)

    def compile_it(template, catalog, popularity=None):
        return compile_catalog(template, catalog, tokenizer, popularity, cache=tmp_path / "catalogs")

    return compile_it, calls, tmp_path / "catalogs"


@pytest.mark.parametrize("template", [CONTINUE, ASK], ids=["continue", "ask"])
def test_the_second_time_it_is_read_back(template, catalog, cached):
    compile_it, calls, directory = cached
    popularity = np.arange(len(catalog)) % 7
    first = compile_it(template, catalog, popularity)
    same(first, compile_it(template, catalog, popularity))
    assert len(calls) == 1
    assert len(list(directory.iterdir())) == 1


def test_whatever_it_was_made_from_is_in_its_name(catalog, cached, tokenizer):
    compile_it, calls, _ = cached
    compile_it(CONTINUE, catalog)
    titles = list(catalog.titles)
    titles[3] += " II"
    compile_it(CONTINUE, dataclasses.replace(catalog, titles=titles))
    compile_it(CONTINUE.model_copy(update={"instruction": "Another one:"}), catalog)
    compile_it(CONTINUE, catalog, np.arange(len(catalog)))
    assert len(calls) == 4
    before, tokenizer.chat_template = tokenizer.chat_template, tokenizer.chat_template.replace("assistant", "model")
    try:
        compile_it(CONTINUE, catalog)
    finally:
        tokenizer.chat_template = before
    assert len(calls) == 5


def test_a_damaged_file_is_compiled_again(catalog, cached):
    compile_it, calls, directory = cached
    first = compile_it(CONTINUE, catalog)
    (file,) = directory.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"\0" * len(whole)):
        file.write_bytes(damaged)
        same(first, compile_it(CONTINUE, catalog))
        assert file.read_bytes() == whole
    assert len(calls) == 5


def test_a_disk_that_takes_nothing_costs_only_time(catalog, tokenizer, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    found = compile_catalog(CONTINUE, catalog, tokenizer, cache=tmp_path / "file" / "catalogs")
    assert found.trie.n_items == len(catalog)
    assert capsys.readouterr().out.startswith("the compiled catalog is not kept: ")


@pytest.mark.parametrize("template", [CONTINUE, ASK], ids=["continue", "ask"])
def test_adding_items_is_as_good_as_compiling_all(template, catalog, cached, tokenizer):
    compile_it, _, _ = cached
    popularity = np.arange(len(catalog))[::-1].copy()
    old, new = catalog.take(np.arange(22)), catalog.take(np.arange(22, len(catalog)))
    grown = compile_it(template, old, popularity[:22]).add(new, tokenizer, popularity)
    same(compile_it(template, catalog, popularity), grown)
