"""`ground`: answers of any LLM become a recommendation file that `evaluate` takes."""

import json

import pyarrow.parquet as pq
import pytest

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ArtifactError, DataError
from seqrec_prompt.evaluation.evaluate import EvaluateConfig, evaluate
from seqrec_prompt.recommenders.files import read, read_file_manifest
from seqrec_prompt.recommenders.ground import GroundConfig, ground


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
    with pytest.raises(DataError, match=r"answers\.csv: answer 1: session 'nobody' is not in the test part"):
        grounded([("nobody", "x")])
    with pytest.raises(DataError, match="no column 'answer'"):
        grounded([(data.split.test.prompts.ids[0], "x")], text_column="answer")
    with pytest.raises(DataError, match="no such file"):
        grounded(None, answers=tmp_path / "none.csv")
    with pytest.raises(DataError, match="no answers"):
        grounded([])
