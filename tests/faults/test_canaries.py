"""What stands in the environment as a secret is in no file, no line and no traceback of any verb."""

import logging
import os

import pytest

from seqrec_prompt.cli import main

VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_KEY")
CANARY = "canary-5f2c9b"


@pytest.fixture
def secrets(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{CANARY}-{name}")


def assert_kept(text, root):
    """No canary in what was said, nor in any file, its name included."""
    assert CANARY not in text
    found = [path for path in root.rglob("*") if CANARY in path.name]
    found += [path for path in root.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert found == []


def test_the_check_finds_a_canary(tmp_path):
    (tmp_path / "log").write_text(f"a word of {CANARY}")
    with pytest.raises(AssertionError):
        assert_kept("", tmp_path)


@pytest.mark.usefixtures("secrets")
def test_no_secret_in_what_the_verbs_write_and_say(tiny_model, dataset_dir, tmp_path, capfd, caplog):
    """From raw rows to the report and the model card: manifests, logs of the training, tables, pages."""
    caplog.set_level(logging.DEBUG)
    rows = [f"s{i % 9},{i % 5},item {i % 5},{i}" for i in range(90)]
    (tmp_path / "log.csv").write_text("session_id,item_id,title,time\n" + "\n".join(rows) + "\n")
    data, model, out = ["--data", dataset_dir], ["--model", tiny_model], tmp_path / "out"
    train = ["--max-steps", 1, "--batch-size", 4, "--dtype", "float32"]
    for words in (
        ["prepare", "--interactions", tmp_path / "log.csv", "--time-column", "time", "--out", out / "data"],
        ["validate", *data, *model],
        ["finetune", *data, *model, *train, "--report-to", "tensorboard", "--out", out / "adapter"],
        ["embed", *data, *model, "--out", out / "embeddings"],
        ["fit", *data, "--recommender", "llm-seq-sim", "--embeddings", out / "embeddings", "--out", out / "fitted"],
        ["recommend", *data, *model, "--adapter", out / "adapter", "--k", 5, "--out", out / "recs.parquet"],
        ["evaluate", *data, "--recommendations", out / "recs.parquet", "--out", out / "evaluation"],
        ["report", "--evaluation", out / "evaluation", "--adapter", out / "adapter", "--out", out / "report"],
        ["recommend", *data, *model, "--dry-run", "--json", "--out", out / "never.parquet"],
    ):
        assert main([str(word) for word in words]) == 0, words
    names = {path.name for path in (out / "report").iterdir()}
    assert {"report.html", "MODEL_CARD.md"} <= names
    assert_kept("".join(capfd.readouterr()) + caplog.text, tmp_path)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("verb", ["hosted finetune", "hosted generate", "embed"])
def test_no_secret_in_an_error(verb, dataset_dir, tmp_path, capfd, caplog, monkeypatch):
    """An address where nobody listens: the library's error holds the request, and the request the key."""
    monkeypatch.setattr("seqrec_prompt.engines.openai.pause", lambda seconds: None)
    caplog.set_level(logging.DEBUG)
    engine = ["--engine", "openai"] if verb == "embed" else []
    address = ["--base-url", "http://127.0.0.1:9/v1", "--free", "--timeout", "1", "--yes"]
    words = [*verb.split(), "--data", str(dataset_dir), "--model", "m", *engine, *address, "--encoding", "bytes"]
    code = main([*words, "--out", str(tmp_path / "out")])
    said = "".join(capfd.readouterr())
    assert code == 2, said
    assert "127.0.0.1:9" in said
    assert_kept(said + caplog.text, tmp_path)


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--base-url", "http://user:{}@localhost/v1"),
        ("--base-url", "http://localhost/v1?key={}"),
        ("--base-url", "{}"),
        ("--key-variable", "{}"),
    ],
)
def test_a_setting_that_holds_a_secret_is_refused_without_repeating_it(flag, value, dataset_dir, tmp_path, capfd):
    words = ["hosted", "generate", "--data", str(dataset_dir), "--model", "m", "--out", str(tmp_path / "out")]
    assert main([*words, flag, value.format(os.environ["MY_KEY"])]) == 2
    said = "".join(capfd.readouterr())
    assert flag.removeprefix("--").replace("-", "_") in said
    assert_kept(said, tmp_path)
