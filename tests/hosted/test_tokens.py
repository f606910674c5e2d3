"""Tokens are counted as tiktoken counts them, or bounded; what is missing is named with the next step."""

import sys

import pytest
import tiktoken
from fake import PATTERN, count, count_chat
from hypothesis import given
from hypothesis import strategies as st

from seqrec_prompt.engines.openai import Service
from seqrec_prompt.engines.pricing import HostedConfig, quote
from seqrec_prompt.engines.tokens import token_counter
from seqrec_prompt.errors import ConfigError, CostError, MissingExtraError


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=4))
def test_counts_are_those_of_a_second_merger_and_bytes_are_a_bound(texts):
    chat = [{"role": "user", "content": text} for text in texts]
    exact, bound = token_counter("any", "tiny"), token_counter("any", "bytes")
    assert exact.chat(chat) == count_chat(chat)
    assert bound.chat(chat) >= exact.chat(chat)
    assert (exact.exact, bound.exact) == (True, False)


def test_control_tokens_in_a_title_are_text():
    ranks = {bytes([i]): i for i in range(256)}
    tiny = tiktoken.Encoding("special", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|x|>": 999})
    tiktoken.registry.ENCODINGS["special"] = tiny
    try:
        assert token_counter("any", "special").count("<|x|>") == 5
    finally:
        del tiktoken.registry.ENCODINGS["special"]


def test_the_worked_example_of_a_chat():
    """Two messages: 3 + 3 around them, 3 for the answer, and the texts and roles byte by byte."""
    counter = token_counter("any", "bytes")
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    assert counter.chat(chat) == 3 + (3 + 4 + 2) + (3 + 9 + 1)


def test_an_encoding_that_cannot_be_downloaded_names_two_ways_on(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("tiktoken.load.read_file", offline)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "o200k_base", raising=False)
    with pytest.raises(ConfigError, match=r"cannot download.*'o200k_base'.*TIKTOKEN_CACHE_DIR.*--encoding bytes"):
        token_counter("gpt-4o-mini")


@pytest.mark.parametrize(
    ("arguments", "said"), [(("my-llama",), "does not know whose tokens 'my-llama'"), (("x", "no"), "no encoding 'no'")]
)
def test_an_unknown_encoding_names_what_to_give(arguments, said):
    with pytest.raises(ConfigError, match=f"{said}.*--encoding bytes"):
        token_counter(*arguments)


@pytest.mark.parametrize("library", ["tiktoken", "openai"])
def test_a_missing_library_names_the_extra(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{library} is not installed.*seqrec_prompt\[openai\]"):
        token_counter("any", "tiny") if library == "tiktoken" else Service(HostedConfig())


def test_the_shipped_prices_are_read_and_know_no_chat_model():
    offer = quote(HostedConfig(), "text-embedding-3-small", {"input": 1_000_000}, exact=True)
    assert offer.cost == pytest.approx(0.02)
    assert "prices of 2026-11-24; check them: https://" in str(offer)
    with pytest.raises(CostError, match=r"prices\.yaml has no training price of the model 'gpt-4o-mini'"):
        quote(HostedConfig(), "gpt-4o-mini", {"training": 1}, exact=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [", "not valid YAML"),
        ("date: 2020-01-01\nsource: x\nmodels: {a: {input: -1}}", r"models\.a\.input"),
        ("source: x\nmodels: {}", "date"),
    ],
)
def test_a_broken_file_of_prices_is_named_with_what_is_wrong(tmp_path, text, said):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)p\.yaml: .*{said}"):
        quote(HostedConfig(prices=file), "a", {"input": 1}, exact=True)
    with pytest.raises(ConfigError, match="No such file"):
        quote(HostedConfig(prices=tmp_path / "none"), "a", {"input": 1}, exact=True)


def test_only_a_server_of_ones_own_is_free():
    with pytest.raises(ValueError, match="'free' is for a service of your own"):
        HostedConfig(free=True)
    assert count("item") == 1  # the fake's merges are in use
