"""`ground`: answers of any LLM become a recommendation file that `evaluate` takes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.embeddings.table import EmbeddingTable
from seqrec_prompt.engines.embed import EmbedConfig, embed
from seqrec_prompt.errors import ArtifactError, DataError, ModelError
from seqrec_prompt.evaluation.evaluate import EvaluateConfig, evaluate
from seqrec_prompt.recommenders.files import read, read_file_manifest
from seqrec_prompt.recommenders.llm.ground import GroundConfig, ground


@pytest.fixture(scope="module")
def data(dataset_dir):
    return Dataset.load(dataset_dir)


@pytest.fixture
def grounded(dataset_dir, tmp_path):
    def run(rows, **changes):
        answers = tmp_path / "answers.csv"
        if rows is not None:
            lines = ["session_id,text", *(f"{session},{json.dumps(text)[1:-1]}" for session, text in rows)]
            answers.write_text("\n".join(lines).replace("\\n", " ") + "\n")
        config = {"data": dataset_dir, "answers": answers, "out": tmp_path / "grounded.parquet"} | changes
        return ground(GroundConfig(**config))

    return run


def plain_titles(data, n):
    """Positions of items whose title nobody shares and CSV does not mind."""
    texts = data.catalog.texts()
    fine = [i for i, t in enumerate(texts) if t.isascii() and t.isprintable() and not set(t) & set(',"\\<|')]
    return [i for i in fine if texts.count(texts[i]) == 1 and 20 <= len(texts[i]) < 60][:n]


def test_answers_become_distinct_real_items_with_how_each_was_found(grounded, data, capsys):
    one, other, third = plain_titles(data, 3)
    title = data.catalog.texts().__getitem__
    first, second = data.split.test.prompts.ids[:2]
    rows = [
        (second, title(other)),
        (first, "2. " + title(one).upper()),
        (first, title(one)),
        (first, "no such thing at all"),
        (second, title(third) + " x"),
        (first, title(other)),
    ]
    path = grounded(rows, k=5)
    table = pq.read_table(path).to_pylist()
    found = [(row["session_id"], row["rank"], row["item_id"], row["provenance"]) for row in table]
    ids = data.catalog.ids
    assert found == [
        (second, 1, ids[other], "exact"),
        (second, 2, ids[third], "fuzzy"),
        (first, 1, ids[one], "normalised"),
        (first, 2, ids[other], "exact"),
    ]
    assert not any(row["certified"] for row in table)
    assert read(path, data.catalog).lists.provenances.tolist() == [row["provenance"] for row in table]
    facts = read_file_manifest(path)["facts"]
    assert facts["provenance"] == {"exact": 3, "fuzzy": 1, "normalised": 1, "rejected": 1}
    assert facts["hallucinated_share"] == pytest.approx(1 / 6)
    assert facts["duplicate_share"] == pytest.approx(1 / 6)
    assert facts["short_lists"] == 2
    assert "1 rejected; 1 named twice; 2 lists shorter than 5" in capsys.readouterr().out


def test_seen_items_and_what_passes_k_are_left_out_and_counted(grounded, data):
    texts = data.catalog.texts()
    prompt = data.split.test.prompts
    session, seen = next((i, item) for i in range(len(prompt)) for item in prompt[i] if item in plain_titles(data, 99))
    others = [item for item in plain_titles(data, 99) if item not in prompt[session]][:3]
    rows = [(prompt.ids[session], texts[item]) for item in (seen, *others)]
    path = grounded(rows, k=2, exclude_seen=True)
    assert read(path, data.catalog).lists.items.tolist() == others[:2]
    facts = read_file_manifest(path)["facts"]
    assert (facts["seen"], facts["beyond_k"]) == (1, 1)


def test_evaluate_takes_what_ground_made(grounded, data, dataset_dir, tmp_path):
    texts, test = data.catalog.texts(), data.split.test
    rows = [(session, texts[target]) for session, target in zip(test.prompts.ids, test.targets, strict=True)]
    answers = tmp_path / "answers.parquet"
    import pyarrow as pa

    pq.write_table(pa.table({"session_id": [r[0] for r in rows], "text": [r[1] for r in rows]}), answers)
    path = grounded(None, answers=answers)
    evaluate(EvaluateConfig(data=dataset_dir, recommendations=[path], out=tmp_path / "evaluation"))
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["recommenders"][0]
    # Every answer is the target: a hit at rank 1, but where a twin of the same title stands for it.
    twins = sum(texts.count(texts[target]) > 1 for target in test.targets)
    assert 1 - twins / len(rows) <= metrics["metrics"]["@10"]["hr"] <= 1


def test_a_repeated_run_is_not_done_again_and_another_is_refused(grounded, data, capsys):
    rows = [(data.split.test.prompts.ids[0], data.catalog.texts()[plain_titles(data, 1)[0]])]
    grounded(rows)
    capsys.readouterr()
    path = grounded(rows)
    assert capsys.readouterr().out == f"already grounded: {path}\n"
    with pytest.raises(ArtifactError, match=r"config\.k: was 20, is 3"):
        grounded(rows, k=3)
    grounded(rows, k=3, overwrite=True)


def test_what_does_not_fit_is_named(grounded, data, tmp_path):
    with pytest.raises(DataError, match=r"answers\.csv: row 2: session 'nobody' is not in the test part"):
        grounded([("nobody", "x")])
    with pytest.raises(DataError, match="no column 'answer'"):
        grounded([(data.split.test.prompts.ids[0], "x")], text_column="answer")
    with pytest.raises(DataError, match="no such file"):
        grounded(None, answers=tmp_path / "none.csv")
    with pytest.raises(DataError, match="no answers"):
        grounded([])


@pytest.fixture(scope="module")
def embeddings(dataset_dir, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("embeddings") / "table"
    return embed(EmbedConfig(data=dataset_dir, model=str(tiny_model), out=out, prompt="A {item} B"))


def cosines(embeddings, data, tiny_model, text):
    """(items,) by one plain forward of the text in the table's prompt, later tokens weighing more."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(tiny_model)(f"A {text} B", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[-1][0].numpy()
    weight = np.arange(1, len(states) + 1)
    vector = (states * weight[:, None]).sum(axis=0)
    table = EmbeddingTable.load(embeddings, data.catalog).vectors
    return table @ vector / np.linalg.norm(table, axis=1) / np.linalg.norm(vector)


def test_with_embeddings_every_text_becomes_an_item_and_lists_are_full(grounded, data, embeddings, tiny_model, capsys):
    one, other = plain_titles(data, 2)
    texts, ids = data.catalog.texts(), data.catalog.ids
    session = data.split.test.prompts.ids[0]
    rows = [(session, text) for text in (texts[one], "Baking soda 500 g", texts[one], texts[other])]
    near = cosines(embeddings, data, tiny_model, "Baking soda 500 g")
    guessed = int(near.argmax())
    assert texts.count(texts[guessed]) == 1
    assert guessed not in (one, other)
    path = grounded(rows, k=6, embeddings=embeddings, refill="full")
    table = pq.read_table(path).to_pylist()
    assert [row["item_id"] for row in table[:2]] == [ids[one], ids[guessed]]
    assert table[3]["item_id"] == ids[other]
    assert [row["provenance"] for row in table] == [
        "exact",
        "embedding",
        "neighbour",
        "exact",
        "neighbour",
        "neighbour",
    ]
    assert len({row["item_id"] for row in table}) == 6
    facts = read_file_manifest(path)["facts"]
    assert (facts["hallucinated_share"], facts["duplicate_share"]) == (0.25, 0.25)  # of the text, whatever it became
    assert (facts["replaced"], facts["filled"], facts["short_lists"]) == (1, 2, 0)
    assert facts["nearest_cosine"]["0.5"] == pytest.approx(near.max(), abs=1e-4)
    assert "1 named twice; 1 replaced, 2 filled, 0 lists shorter than 6" in capsys.readouterr().out

    plain = grounded(rows, k=6, embeddings=embeddings, refill="none", least_cosine=1, overwrite=True)
    assert pq.read_table(plain)["item_id"].to_pylist() == [ids[one], ids[other]]
    without = read_file_manifest(plain)["facts"]
    assert [without[name] for name in ("hallucinated_share", "duplicate_share")] == [0.25, 0.25]
    assert without["provenance"] == {"exact": 3, "rejected": 1}


def test_embeddings_that_no_longer_fit_are_refused(grounded, data, embeddings, tiny_model, tmp_path, monkeypatch):
    rows = [(data.split.test.prompts.ids[0], "Baking soda")]
    monkeypatch.setattr("seqrec_prompt.engines.models.model_hash", lambda *_: "other")
    with pytest.raises(ArtifactError, match=r"made with another model than .*tiny_model.*Run 'seqrec-prompt embed'"):
        grounded(rows, embeddings=embeddings)
    assert not (tmp_path / "grounded.parquet").exists()
    with pytest.raises(ArtifactError, match="expected a directory made by 'embed'"):
        grounded(rows, embeddings=tmp_path / "nothing")


def test_a_model_whose_vectors_are_not_finite_is_named(grounded, data, embeddings, monkeypatch):
    def broken(self, texts):
        return np.full((len(texts), self.dimension), np.nan, np.float32)

    monkeypatch.setattr("seqrec_prompt.engines.embedder.CausalEmbedder.embed", broken)
    with pytest.raises(ModelError, match="vector of the answer 'Baking soda' is not finite"):
        grounded([(data.split.test.prompts.ids[0], "Baking soda")], embeddings=embeddings)


@pytest.mark.parametrize("changes", [{"refill": "full"}, {"least_cosine": 0.5}])
def test_what_needs_embeddings_says_so(grounded, changes):
    with pytest.raises(ValidationError, match=f"'{next(iter(changes))}' needs --embeddings"):
        grounded([], **changes)
