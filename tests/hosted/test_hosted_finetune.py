"""A fine-tuning job from sessions to the manifest: quoted, agreed to, recorded, come back to."""

import io
import json

import pytest
from fake import count_chat

from seqrec_prompt import cli
from seqrec_prompt.artifacts import peek_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import ArtifactError, CostError, DataError, HostedError
from seqrec_prompt.finetuning.attach import AttachConfig, attach
from seqrec_prompt.finetuning.hosted import finetune

JOBS = "/fine_tuning/jobs"
COST = 8.0 / 1_000_000


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != "prices.yaml")


def test_the_quote_is_the_bill_to_the_token(finetune_config, fake, dataset_dir, capsys):
    out = finetune(finetune_config(epochs=2))
    (job,) = fake.jobs
    made = peek_manifest(out)
    facts = made["facts"]
    assert fake.bill == {("tiny-chat", "training"): facts["trained_tokens"]}
    assert facts["quote"]["tokens"] == {"training": facts["trained_tokens"]}
    assert facts["quote"]["cost"] == facts["cost"] == pytest.approx(facts["trained_tokens"] * COST, rel=1e-12)
    assert f"quote: ${facts['cost']:.4f} for tiny-chat" in capsys.readouterr().out
    assert (facts["job"], facts["fine_tuned_model"]) == ("ftjob-1", "ft:tiny-chat:org::1")
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    assert (out / "metrics.csv").read_text() == "step,train_loss\n1,0.5\n"
    events = [json.loads(line)["message"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert events == [f"the job is {status}" for status in fake.course]
    assert names(out.parent) == ["tuned", "tuned.jsonl"]
    # What was sent is what the sessions say.
    data = Dataset.load(dataset_dir)
    titles = data.catalog.texts()
    rows = [json.loads(line) for line in fake.files[job["training_file"]].splitlines()]
    sessions = [items.tolist() for items in data.split.train if len(items) > 1]
    assert [row["messages"][-1] for row in rows] == [{"role": "assistant", "content": titles[s[-1]]} for s in sessions]
    for row, session in zip(rows, sessions, strict=True):
        assert row["messages"][0]["content"].splitlines()[1:-1] == [titles[item] for item in session[:-1]]


def test_a_second_run_pays_nothing(finetune_config, fake, capsys):
    finetune(finetune_config())
    capsys.readouterr()
    finetune(finetune_config())
    assert capsys.readouterr().out.startswith("already tuned: ")
    # Even with its records lost, the job is found by what it was made from.
    finetune(finetune_config(out=finetune_config().out.with_name("elsewhere")))
    assert len(fake.jobs) == 1
    assert fake.posts(JOBS) == 1
    sent = finetune_config().out.with_name("tuned.jsonl").read_bytes()
    with pytest.raises(ArtifactError, match=r"config\.epochs: was 3, is 1"):
        finetune(finetune_config(epochs=1, template={"max_items": 1}))
    assert finetune_config().out.with_name("tuned.jsonl").read_bytes() == sent
    finetune(finetune_config(epochs=1, overwrite=True))
    assert len(fake.jobs) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "unheard-of"}, r"no training price of the model 'unheard-of'.*--prices"),
        ({"max_cost": 0.0001}, r"above --max-cost 0\.0001"),
        ({"yes": False}, r"Give --yes"),
    ],
)
def test_what_may_not_be_spent_is_refused_before_anything_is_sent(finetune_config, fake, changes, said, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(CostError, match=f"(?s){said}"):
        finetune(finetune_config(**changes))
    assert not [line for line in fake.log if line[0] == "POST"]


@pytest.mark.parametrize("answer", ["y", "Yes", "", "n", EOFError])
def test_a_person_is_asked(finetune_config, fake, monkeypatch, answer):
    def ask(prompt):
        if answer is EOFError:
            raise EOFError
        return answer

    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", ask)
    if answer in ("y", "Yes"):
        finetune(finetune_config(yes=False))
        assert len(fake.jobs) == 1
    else:
        with pytest.raises(CostError, match="not agreed to"):
            finetune(finetune_config(yes=False))
        assert fake.log == []


def test_the_live_line_is_written_over_and_never_wraps(finetune_config, fake, monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("COLUMNS", "30")
    finetune(finetune_config())
    lines = shown.getvalue().removesuffix("\n").split("\r\x1b[K")
    assert [line[9:] for line in lines[1:]] == ["ftjob-1: queued; the", "ftjob-1: running; th", "ftjob-1: succeeded"]


def test_a_bound_is_called_one_and_is_never_below_the_bill(finetune_config, fake, capsys):
    out = finetune(finetune_config(encoding="bytes"))
    assert "quote: at most $" in capsys.readouterr().out
    facts = peek_manifest(out)["facts"]
    assert facts["cost"] < facts["quote"]["cost"]
    assert facts["quote"]["exact"] is False


def test_only_a_quote_sends_nothing(finetune_config, fake, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    config = finetune_config(quote_only=True)
    finetune(config)
    assert fake.log == []
    assert names(config.out.parent) == ["tuned.jsonl"]
    rows = [json.loads(line) for line in config.out.with_name("tuned.jsonl").read_text().splitlines()]
    assert f"{3 * sum(count_chat(row['messages']) for row in rows):,} training tokens" in capsys.readouterr().out


def test_ctrl_c_leaves_the_job_running_and_attach_comes_back(service, fake, dataset_dir, tmp_path, capsys, monkeypatch):
    fake.course = ["queued", "running", "running", "running", "succeeded"]
    out = tmp_path / "tuned"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in service.items() if name != "yes"]

    def interrupt(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("seqrec_prompt.engines.openai.pause", interrupt)
        words = ["hosted", "finetune", f"--data={dataset_dir}", "--model=tiny-chat", f"--out={out}", "--yes", *flags]
        assert cli.main(words) == cli.EXIT_INTERRUPTED
    shown = capsys.readouterr()
    assert f"seqrec-prompt hosted attach ftjob-1 --out {out}" in shown.out
    assert fake.jobs[0]["status"] == "running"
    assert cli.main(["hosted", "attach", "ftjob-1", "--out", str(out)]) == cli.EXIT_OK
    shown = capsys.readouterr()
    assert "tuned: ft:tiny-chat:org::1" in shown.out
    assert "ftjob-1: running; the job is running" in shown.err
    assert len(fake.jobs) == 1
    assert cli.main(["hosted", "attach", "ftjob-1", "--out", str(out)]) == cli.EXIT_OK
    assert "already tuned" in capsys.readouterr().out


def test_attach_watches_any_job_and_cancels_it(fake, finetune_config, capsys):
    finetune(finetune_config(wait=False))
    assert "Come back with" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match=r"holds the run of ftjob-1, not of ftjob-9"):
        attach(AttachConfig(job="ftjob-9", out=finetune_config().out, base_url=fake.url))
    with pytest.raises(ArtifactError, match=r"no run waits here"):
        attach(AttachConfig(job="ftjob-1", out=finetune_config().out.with_name("x"), base_url=fake.url))
    with pytest.raises(HostedError, match=r"404: No such thing: .*ftjob-9.*Check the names"):
        attach(AttachConfig(job="ftjob-9", base_url=fake.url))
    attach(AttachConfig(job="ftjob-1", out=finetune_config().out, cancel=True))
    assert fake.jobs[0]["status"] == "cancelled"
    with pytest.raises(HostedError, match=r"ftjob-1 is cancelled\. To begin anew"):
        finetune(finetune_config())
    attach(AttachConfig(job="ftjob-1", base_url=fake.url, cancel=True))
    with pytest.raises(HostedError, match="ftjob-1 is cancelled"):
        attach(AttachConfig(job="ftjob-1", base_url=fake.url))


def test_rows_that_break_the_rules_are_all_named_and_nothing_is_sent(finetune_config, fake, tmp_path):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = [json.dumps(good)] * 10 + [
        "{torn",
        json.dumps({"messages": []}),
        json.dumps({"messages": [{"role": "user", "content": "a"}]}),
        json.dumps({"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": " "}]}),
        json.dumps({"text": "a"}),
        json.dumps({"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "b"}]}),
        json.dumps({"messages": [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "b"}]}),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        finetune(finetune_config(data=None, pairs=file, context=64))
    wanted = ["row 11: not JSON", "row 12: no messages", "row 13: the last message is not the assistant's",
              "row 14: role 'robot'", "row 14: the assistant message has no text"]  # fmt: skip
    for text, problem in zip(wanted, caught.value.problems, strict=False):
        assert text in problem
    assert caught.value.problems[-1] == "… and 3 more"
    file.write_text("\n".join([json.dumps(good)] * 9))
    with pytest.raises(DataError, match="9 examples; a fine-tuning job needs 10"):
        finetune(finetune_config(data=None, pairs=file))
    assert fake.log == []


@pytest.mark.parametrize("conversational", [True, False])
def test_pairs_become_chats(finetune_config, fake, tmp_path, tiny_model, dataset_dir, conversational):
    from seqrec_prompt.finetuning.pairs import PairsConfig, pairs
    from seqrec_prompt.prompting.templates import TemplateConfig

    file = pairs(
        PairsConfig(
            data=dataset_dir, out=tmp_path / "p.jsonl", model=str(tiny_model), conversational=conversational,
            template=TemplateConfig(layout="ask"),
        )
    )  # fmt: skip
    finetune(finetune_config(data=None, pairs=file))
    sent = [json.loads(line) for line in fake.files["file-1"].splitlines()]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if conversational:
        assert [row["messages"] for row in sent] == [row["prompt"] + row["completion"] for row in rows]
    else:
        assert [[turn["content"] for turn in row["messages"]] for row in sent] == [
            [row["prompt"], row["completion"]] for row in rows
        ]


def test_a_password_in_the_address_is_refused():
    with pytest.raises(ValueError, match="must hold no key"):
        AttachConfig(job="x", base_url="https://me:secret@host/v1")
