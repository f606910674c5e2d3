"""Hosted embeddings go through the loop of the local ones: each distinct text paid for once, in whatever order."""

import numpy as np
import pytest
from fake import count, vector_of

from seqrec_prompt.artifacts import peek_manifest
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.engines.embed import EmbedConfig, embed
from seqrec_prompt.errors import ArtifactError, CostError, HostedError


@pytest.fixture
def config_of(service, dataset_dir, tmp_path):
    def build(**changes):
        settings = {"data": dataset_dir, "out": tmp_path / "table", "engine": "openai", "model": "tiny-chat"}
        return EmbedConfig(**settings | service | changes)

    return build


@pytest.mark.parametrize("dimensions", [None, 3])
def test_the_quote_is_the_bill_and_each_item_has_its_vector(config_of, fake, catalog, dimensions, capsys):
    out = embed(config_of(dimensions=dimensions, batch_tokens=64))
    table = EmbeddingTable.load(out, catalog)
    for text, vector in zip(catalog.texts(), table.vectors, strict=True):
        assert vector == pytest.approx(vector_of(text, dimensions or 6), abs=1e-6)
    bill = fake.bill["tiny-chat", "input"]
    assert bill == sum(map(count, dict.fromkeys(catalog.texts())))  # twins are paid for once
    facts = peek_manifest(out)["facts"]
    assert facts["quotes"][0]["tokens"]["input"] == facts["billed_tokens"] == bill
    assert facts["cost"] == facts["quotes"][0]["cost"] == pytest.approx(bill * 2 / 1e6, rel=1e-12)
    assert f"quote: ${facts['cost']:.4f}" in capsys.readouterr().out
    embed(config_of(dimensions=dimensions))
    assert fake.bill["tiny-chat", "input"] == bill


def test_a_stopped_run_quotes_and_pays_for_the_rest_only(config_of, fake, catalog):
    config = config_of(batch_tokens=40)
    fake.fault("POST", "/embeddings", "status", 500, "Oops.")
    answer = fake.embed
    asked = []

    def closing(body):
        asked.append(body)
        if len(asked) == 9:  # in the middle of the run
            fake.fault("POST", "/embeddings", "status", 403, "Your account was closed.")
        return answer(body)

    fake.embed = closing
    with pytest.raises(HostedError, match="403: Your account was closed"):
        embed(config)
    paid = fake.bill["tiny-chat", "input"]
    out = embed(config)
    whole = sum(map(count, dict.fromkeys(catalog.texts())))
    assert fake.bill["tiny-chat", "input"] == whole
    facts = peek_manifest(out)["facts"]
    assert [quote["tokens"]["input"] for quote in facts["quotes"]] == [whole, whole - paid]
    assert facts["billed_tokens"] == whole  # of both parts, as the service has it
    assert facts["cost"] == pytest.approx(whole * 2 / 1e6)
    vectors = EmbeddingTable.load(out, catalog).vectors
    assert vectors == pytest.approx(np.array([vector_of(text, 6) for text in catalog.texts()]), abs=1e-6)


def test_vectors_that_are_missing_or_of_another_length_are_refused(config_of, fake):
    answer = fake.embed
    fake.embed = lambda body: answer(body) | {"data": answer(body)["data"][1:]}
    with pytest.raises(HostedError, match=r"answered 1 texts with 0 vectors"):
        embed(config_of())
    fake.embed = lambda body: answer(body | {"dimensions": 5})
    with pytest.raises(HostedError, match=r"vectors of \[5\] numbers, not 4"):
        embed(config_of(dimensions=4))


def test_what_may_not_be_spent_is_refused(config_of, fake):
    with pytest.raises(CostError, match="no input price of the model 'unheard-of'"):
        embed(config_of(model="unheard-of"))
    assert fake.log == []
    assert not config_of().out.with_name("table.journal").exists()


def test_what_an_engine_has_no_use_for_is_refused(config_of, dataset_dir, tmp_path):
    with pytest.raises(ValueError, match=r"'engine' openai has no use for 'adapter'"):
        config_of(adapter=tmp_path)
    with pytest.raises(ValueError, match=r"'engine' openai has no use for 'pooling'"):
        config_of(pooling="last")
    with pytest.raises(ValueError, match=r"'engine' transformers has no use for 'dimensions'"):
        EmbedConfig(data=dataset_dir, out=tmp_path / "x", dimensions=4)
    with pytest.raises(ValueError, match=r"'engine' transformers has no use for 'max_cost'"):
        EmbedConfig(data=dataset_dir, out=tmp_path / "x", max_cost=4)


def test_another_service_is_another_table(config_of, fake):
    embed(config_of())
    with pytest.raises(ArtifactError, match=r"config\.base_url: was"):
        embed(config_of(base_url="http://127.0.0.1:9/v1"))
