"""A service, an encoding and prices for the tests of hosted models; nothing here needs a network but loopback."""

import socket

import pytest
import tiktoken
import tiktoken.registry
from fake import KEY, PATTERN, RANKS, Fake

from seqrec_prompt.engines import openai
from seqrec_prompt.finetuning.hosted import HostedFinetuneConfig

MODEL = "tiny-chat"
TRAINING, INPUT, OUTPUT = 8.0, 2.0, 4.0


@pytest.fixture
def fake():
    service = Fake()
    yield service
    service.stop()


@pytest.fixture(autouse=True)
def encoding(monkeypatch):
    """The encoding 'tiny', where tiktoken keeps those it has loaded."""
    tiny = tiktoken.Encoding("tiny", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "tiny", tiny)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Seconds that would have been waited."""
    waited = []
    monkeypatch.setattr(openai, "pause", waited.append)
    return waited


@pytest.fixture
def unused_address():
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def prices(tmp_path):
    file = tmp_path / "prices.yaml"
    price = f"{{training: {TRAINING}, input: {INPUT}, output: {OUTPUT}, batch: 0.5}}"
    file.write_text(f"date: 2020-01-02\nsource: the fake's page\nmodels:\n  {MODEL}: {price}\n  ft:{MODEL}: {price}\n")
    return file


@pytest.fixture
def service(fake, prices):
    """Settings that lead to the fake."""
    return {"base_url": fake.url, "prices": prices, "encoding": "tiny", "yes": True, "timeout": 10.0}


@pytest.fixture
def finetune_config(service, dataset_dir, tmp_path):
    """Builds settings of `hosted finetune` that lead to the fake; None takes one away."""

    def build(**changes):
        settings = {"data": dataset_dir, "out": tmp_path / "tuned", "model": "tiny-chat", **service} | changes
        return HostedFinetuneConfig(**{name: value for name, value in settings.items() if value is not None})

    return build
