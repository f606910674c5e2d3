"""Models that read texts: pooling against plain forwards, one text against many, and the sentence-transformers way."""

import importlib.util
import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from seqrec_prompt.engines.embedder import CausalEmbedder, SentenceEmbedder
from seqrec_prompt.engines.models import model_hash
from seqrec_prompt.errors import MissingExtraError, ModelError

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
POOLINGS = ["mean", "weighted-mean", "last"]


@pytest.fixture(scope="module")
def texts(catalog):
    return [
        *catalog.texts(),
        *(f"{one}, {two}" for one, two in zip(catalog.texts(), catalog.texts()[1:], strict=False)),
    ]


@pytest.fixture(scope="module")
def embedder_of(tiny_model):
    return lambda pooling: CausalEmbedder.load(str(tiny_model), pooling=pooling)


def by_hand(model, tokenizer, text, pooling):
    """One forward of one text without padding; its last hidden states added up one by one in float64."""
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().numpy()
    if pooling == "last":
        return states[-1]
    total, mass = np.zeros(states.shape[1]), 0.0
    for i, state in enumerate(states, 1):
        weight = i if pooling == "weighted-mean" else 1
        total += weight * state
        mass += weight
    return total / mass


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_its_texts_pooled_states(embedder_of, tiny_model, tokenizer, texts, pooling):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    found = embedder_of(pooling).embed(texts)
    assert found.shape == (len(texts), 64)
    assert found.dtype == np.float32
    for text, vector in zip(texts, found, strict=True):
        assert vector == pytest.approx(by_hand(model, tokenizer, text, pooling), abs=3e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_one_text_and_sixty_four_give_the_same_vectors(embedder_of, texts, pooling):
    embedder = embedder_of(pooling)
    many = (texts * 2)[:64]
    alone = np.concatenate([embedder.embed([text]) for text in many])
    assert len(many) == 64
    assert embedder.embed(many) == pytest.approx(alone, abs=3e-5)


def test_what_stands_at_padding_is_never_read(embedder_of):
    embedder = embedder_of("mean")
    wanted = embedder.embed(["short", "a text of many more words than that"])
    body = embedder.body

    def poisoned(input_ids, attention_mask, use_cache):
        out = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        out.last_hidden_state[attention_mask == 0] = torch.nan
        return out

    embedder.body = poisoned
    assert np.array_equal(embedder.embed(["short", "a text of many more words than that"]), wanted)


def test_lengths_are_those_of_whole_texts(embedder_of, tokenizer, texts):
    assert embedder_of("last").lengths(texts).tolist() == [
        len(tokenizer(text, split_special_tokens=True)["input_ids"]) for text in texts
    ]


def test_a_sentence_transformers_directory_is_not_read_as_a_causal_model(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(ModelError, match="is a sentence-transformers model, which pools itself"):
        CausalEmbedder.load(str(tmp_path))


def test_the_missing_extra_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "seqrec_prompt\[sentence-transformers\]"'):
        SentenceEmbedder.load("any")


class StandIn(torch.nn.Module):
    """The part of sentence-transformers' interface that is used here."""

    max_seq_length = 12

    def __init__(self, name, **options):
        super().__init__()
        if name == "nowhere":
            raise OSError("nowhere is not a model\nof any kind")
        self.options = options

    def tokenizer(self, texts, truncation=True):
        return {"input_ids": texts.split() if isinstance(texts, str) else [text.split() for text in texts]}

    def preprocess(self, texts):
        return {"attention_mask": torch.ones((len(texts), len(texts[0].split()) + 2))}

    def get_embedding_dimension(self):
        return 2

    def encode(self, texts, batch_size, convert_to_numpy, show_progress_bar):
        assert batch_size == len(texts)
        return np.array([[len(text), text.count(" ")] for text in texts])


def test_a_sentence_transformers_model_pools_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=StandIn))
    embedder = SentenceEmbedder.load("any")
    assert (embedder.dimension, embedder.context) == (2, 12)
    assert embedder.model.options["model_kwargs"] == {"dtype": torch.float32, "use_safetensors": True}
    assert embedder.lengths(["a b c", "d"]).tolist() == [5, 3]
    assert embedder.embed(["a b c", "d"]).tolist() == [[5, 2], [1, 0]]
    with pytest.raises(ModelError, match="Cannot load the sentence-transformers model 'nowhere': nowhere is not a mod"):
        SentenceEmbedder.load("nowhere")


def test_the_hash_of_a_sentence_transformers_model_covers_its_further_modules(tmp_path, tiny_model):
    modules = [{"name": "0", "path": ""}, {"name": "1", "path": "1_Pooling"}, {"name": "2", "path": "2_Dense"}]

    def made(name, pooling="mean", weight=1.0, length=128):
        where = shutil.copytree(tiny_model, tmp_path / name)
        (where / "modules.json").write_text(json.dumps(modules))
        (where / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
        (where / "1_Pooling").mkdir()
        (where / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
        (where / "2_Dense").mkdir()
        save_file({"weight": torch.full((2, 2), weight)}, where / "2_Dense" / "model.safetensors")
        return model_hash(str(where))

    one = made("one")
    assert made("same") == one
    others = [made("pooling", pooling="cls"), made("dense", weight=2.0), made("length", length=64)]
    assert len({one, *others, model_hash(str(tiny_model))}) == 5
    (tmp_path / "one" / "modules.json").write_text("[{]")
    with pytest.raises(ModelError, match=r"modules\.json is no list of sentence-transformers modules"):
        model_hash(str(tmp_path / "one"))


@needs_extra
@pytest.mark.parametrize(
    ("pooling", "name"), [("mean", "mean"), ("weighted-mean", "weightedmean"), ("last", "lasttoken")]
)
def test_a_real_sentence_transformers_model_gives_what_its_causal_twin_gives(
    tmp_path, tiny_model, embedder_of, texts, pooling, name
):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    # That library would write a text as a chat message, were there a template.
    plain = shutil.copytree(tiny_model, tmp_path / "plain", ignore=shutil.ignore_patterns("chat_template.jinja"))
    modules = [Transformer(str(plain)), Pooling(64, pooling_mode=name)]
    SentenceTransformer(modules=modules).save(str(tmp_path / "own"))
    shown = [text for text in texts if "<|" not in text]  # and it reads control tokens inside a text
    found, wanted = SentenceEmbedder.load(str(tmp_path / "own")), embedder_of(pooling)
    assert found.lengths(shown).tolist() == wanted.lengths(shown).tolist()
    assert found.embed(shown) == pytest.approx(wanted.embed(shown), abs=1e-5)


@needs_extra
def test_tokens_of_a_chat_template_count(tmp_path, tiny_model, tokenizer):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    SentenceTransformer(modules=[Transformer(str(tiny_model)), Pooling(64)]).save(str(tmp_path))
    found = SentenceEmbedder.load(str(tmp_path)).lengths(["Dove Shampoo"])
    chat = [{"role": "user", "content": "Dove Shampoo"}]
    assert found.tolist() == [len(tokenizer.apply_chat_template(chat, tokenize=True)["input_ids"])]
