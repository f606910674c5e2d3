"""`embed` end to end on the tiny model: which text is read, what is resumed, repeated and refused."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from seqrec_prompt.artifacts import peek_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.engines.embed import EmbedConfig, embed
from seqrec_prompt.engines.embedder import CausalEmbedder
from seqrec_prompt.errors import ArtifactError, DataError, ModelError
from seqrec_prompt.finetuning.finetune import FinetuneConfig, finetune


@pytest.fixture
def config_of(tiny_model, dataset_dir, tmp_path):
    def build(out="table", **changes):
        return EmbedConfig(**{"data": dataset_dir, "out": tmp_path / out, "model": str(tiny_model)} | changes)

    return build


@pytest.fixture(scope="module")
def adapter(tiny_model, dataset_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "adapter"
    return finetune(
        FinetuneConfig(
            data=dataset_dir, out=out, model=str(tiny_model), context=1024, max_steps=2, learning_rate=0.05,
            dtype="float32",
        )
    )  # fmt: skip


def vectors_of(config, catalog):
    return EmbeddingTable.load(embed(config), catalog).vectors


def plain(model, tokenizer, text):
    """The last token's last hidden state, from one forward of one text."""
    ids = torch.tensor([tokenizer(text, split_special_tokens=True)["input_ids"]])
    with torch.inference_mode():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, lambda title, brand: title),
        ({"attributes": ("brand",)}, lambda title, brand: f"{title} [{brand}]" if brand else title),
        ({"prompt": 'This product: "{item}" means: "'}, lambda title, brand: f'This product: "{title}" means: "'),
    ],
)
def test_each_item_is_read_as_the_settings_say(config_of, catalog, tiny_model, tokenizer, changes, text):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    config = config_of(pooling="last", **changes)
    found = vectors_of(config, catalog)
    assert found.shape == (30, 64)
    for i, (title, brand) in enumerate(zip(catalog.texts(), catalog.attributes["brand"], strict=True)):
        assert found[i] == pytest.approx(plain(model, tokenizer, text(title, brand)), abs=1e-5)
    assert np.array_equal(found[3], found[4]) == ("attributes" not in changes)  # one title, two brands
    made = peek_manifest(config.out)
    assert (made["facts"]["items"], made["facts"]["dimension"], made["facts"]["cut"]) == (30, 64, 0)
    assert made["inputs"]["data"] == catalog.hash


def test_it_does_not_matter_how_many_are_read_together(config_of, catalog):
    alone = vectors_of(config_of("alone", batch_tokens=1), catalog)
    together = vectors_of(config_of("together", batch_tokens=10**6), catalog)
    assert alone == pytest.approx(together, abs=1e-5)


def test_an_adapter_gives_the_vectors_of_the_tuned_model(config_of, catalog, tiny_model, tokenizer, adapter):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, str(adapter)).eval()  # not merged
    found = vectors_of(config_of(adapter=adapter, pooling="last"), catalog)
    assert np.abs(found - vectors_of(config_of("untuned", pooling="last"), catalog)).max() > 0.1
    for i, title in enumerate(catalog.texts()):
        assert found[i] == pytest.approx(plain(tuned, tokenizer, title), abs=1e-4)
    assert "adapter" in peek_manifest(config_of().out)["inputs"]


def test_an_adapter_of_another_base_model_is_refused(config_of, adapter, tmp_path, tokenizer):
    from tiny import build_model

    build_model(len(tokenizer), seed=1).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="was trained on another base model"):
        embed(config_of(adapter=adapter, model=str(tmp_path / "other")))


def test_a_stopped_run_goes_on_even_with_smaller_batches(config_of, catalog, monkeypatch, capsys):
    unbroken = vectors_of(config_of("unbroken"), catalog)
    read = CausalEmbedder.embed
    calls = []

    def stops(self, texts):
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(self, texts)

    monkeypatch.setattr(CausalEmbedder, "embed", stops)
    config = config_of(batch_tokens=100)
    with pytest.raises(KeyboardInterrupt):
        embed(config)
    assert not config.out.exists()
    with pytest.raises(ArtifactError, match=r"config\.pooling: was 'weighted-mean', is 'mean'"):
        embed(config_of(pooling="mean"))
    assert vectors_of(config_of(batch_tokens=50), catalog) == pytest.approx(unbroken, abs=1e-5)
    assert f"going on: {sum(calls[:3])}/28 texts are done" in capsys.readouterr().out
    assert not list(config.out.parent.glob("*.journal"))


def test_a_finished_table_is_not_made_again_and_never_replaced_unasked(config_of, catalog, capsys):
    embed(config_of())
    embed(config_of(batch_tokens=64))
    assert "already embedded" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match=r"config\.pooling"):
        embed(config_of(pooling="last"))
    last = vectors_of(config_of(pooling="last", overwrite=True), catalog)
    assert np.array_equal(last, vectors_of(config_of("fresh", pooling="last"), catalog))


def test_a_run_that_fails_at_once_leaves_nothing(config_of, tmp_path):
    with pytest.raises(DataError, match=r"no attribute 'colour' \(it has: brand\)"):
        embed(config_of(attributes=("colour",)))
    with pytest.raises(ModelError):
        embed(config_of(model=str(tmp_path / "nowhere")))
    assert not list(tmp_path.iterdir())


def test_damaged_weights_stop_the_run_and_name_an_item(config_of, tmp_path, tokenizer):
    from tiny import build_model

    model = build_model(len(tokenizer))
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "damaged")
    tokenizer.save_pretrained(tmp_path / "damaged")
    with pytest.raises(ModelError, match=r"The vector of item 'item-10' \(text 'Night Cream.* is not finite"):
        embed(config_of(model=str(tmp_path / "damaged")))
    assert not (tmp_path / "table").exists()


def test_long_items_are_cut_and_counted(config_of, catalog, tokenizer, capsys):
    config = config_of(max_tokens=20)
    embed(config)
    longer = sum(len(tokenizer(t, split_special_tokens=True)["input_ids"]) > 20 for t in catalog.texts())
    assert longer
    assert peek_manifest(config.out)["facts"]["cut"] == longer
    assert f"{longer} of them cut to 20 tokens" in capsys.readouterr().out


def test_the_same_catalog_in_another_split_has_the_same_table(config_of, dataset_dir, tmp_path, capsys):
    data = Dataset.load(dataset_dir)
    again = tmp_path / "again"
    again.mkdir()
    Dataset(data.catalog, data.split, data.manifest | {"facts": {"hash": "other"}}).save(again)
    embed(config_of())
    embed(config_of(data=again))
    assert "already embedded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "no place"}, "must hold {item} once"),
        ({"prompt": "{item} {item}"}, "must hold {item} once"),
        ({"pooling": "own", "adapter": "x"}, "'adapter' is for causal language models"),
    ],
)
def test_settings_that_do_not_belong_together(config_of, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)
