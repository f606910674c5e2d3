"""A fine-tuning job is paid for once, whatever the service does, and every failure says what to do."""

import io
import json
import logging
import traceback

import pytest
from fake import KEY, count_chat

from seqrec_prompt import cli
from seqrec_prompt.artifacts import peek_manifest
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.engines import jobs as engine_jobs
from seqrec_prompt.errors import ArtifactError, ConfigError, CostError, DataError, HostedError
from seqrec_prompt.finetuning.attach import AttachConfig, attach
from seqrec_prompt.finetuning.hosted import HostedFinetuneConfig, finetune

JOBS = "/fine_tuning/jobs"
COST = 8.0 / 1_000_000


@pytest.fixture
def config_of(service, dataset_dir, tmp_path):
    def build(**changes):
        settings = {"data": dataset_dir, "out": tmp_path / "tuned", "model": "tiny-chat", **service} | changes
        return HostedFinetuneConfig(**{name: value for name, value in settings.items() if value is not None})

    return build


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != "prices.yaml")


def test_the_quote_is_the_bill_to_the_token(config_of, fake, dataset_dir, capsys):
    out = finetune(config_of(epochs=2))
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


def test_a_second_run_pays_nothing(config_of, fake, capsys):
    finetune(config_of())
    capsys.readouterr()
    finetune(config_of())
    assert capsys.readouterr().out.startswith("already tuned: ")
    # Even with its records lost, the job is found by what it was made from.
    finetune(config_of(out=config_of().out.with_name("elsewhere")))
    assert len(fake.jobs) == 1
    assert fake.posts(JOBS) == 1
    sent = config_of().out.with_name("tuned.jsonl").read_bytes()
    with pytest.raises(ArtifactError, match=r"config\.epochs: was 3, is 1"):
        finetune(config_of(epochs=1, template={"max_items": 1}))
    assert config_of().out.with_name("tuned.jsonl").read_bytes() == sent
    finetune(config_of(epochs=1, overwrite=True))
    assert len(fake.jobs) == 2


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_before_acceptance_is_tried_again_after_a_look(config_of, fake, status):
    fake.fault("POST", JOBS, "status", status, "The server had an error.")
    finetune(config_of())
    assert len(fake.jobs) == 1
    assert fake.posts(JOBS) == 2
    first = fake.log.index(("POST", JOBS))
    second = fake.log.index(("POST", JOBS), first + 1)
    assert fake.log[first:second].count(("GET", JOBS)) == len(engine_jobs.SETTLING) + 1


@pytest.mark.parametrize(
    "action", [("status", 500, "Oops."), ("status", 504, "Gateway timeout."), ("drop",), ("text",)]
)
@pytest.mark.parametrize("lag", [0, 3])
def test_a_job_that_was_accepted_in_spite_of_an_error_is_found(config_of, fake, action, lag):
    fake.lag = lag
    fake.fault("POST", JOBS, *action, after=True)
    out = finetune(config_of())
    assert len(fake.jobs) == fake.posts(JOBS) == 1
    assert peek_manifest(out)["facts"]["job"] == "ftjob-1"


def test_a_timeout_after_acceptance_is_found(config_of, fake):
    fake.fault("POST", JOBS, "hang", after=True)
    finetune(config_of(timeout=0.3))
    assert len(fake.jobs) == fake.posts(JOBS) == 1


def test_after_silence_nothing_is_sent_again_and_the_next_run_looks_first(config_of, fake):
    fake.lag = 7  # the job shows up in the list only after the run gave up
    fake.fault("POST", JOBS, "drop", after=True)
    with pytest.raises(HostedError, match=r"(?s)Whether it was created is unknown.*looks for the run key") as caught:
        finetune(config_of())
    assert caught.value.status is None
    assert fake.posts(JOBS) == 1
    fake.lag = 0
    finetune(config_of())
    assert len(fake.jobs) == fake.posts(JOBS) == fake.posts("/files") == 1


def test_a_run_that_was_killed_after_sending_looks_first(config_of, fake, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("seqrec_prompt.engines.openai._plain", killed)  # the answer has come; nobody has read it
        with pytest.raises(Killed):
            finetune(config_of())
    assert len(fake.jobs) == 1
    finetune(config_of())
    assert len(fake.jobs) == fake.posts(JOBS) == 1


def test_a_rate_limit_is_waited_for_as_long_as_it_says(config_of, fake, pauses):
    fake.fault("GET", JOBS, "status", 429, "Slow down.", {"retry-after": "7"})
    fake.fault("POST", JOBS, "status", 429, "Slow down.", {"retry-after": "41"})
    finetune(config_of())
    assert any(7 <= seconds <= 8 for seconds in pauses)
    assert pauses.count(41) == 1
    assert len(fake.jobs) == 1


def test_reads_are_tried_again_with_growing_pauses(config_of, fake, pauses):
    for _ in range(4):
        fake.fault("GET", f"{JOBS}/ftjob-1", "status", 502, "Bad gateway.")
    finetune(config_of())
    for seconds, longest in zip(pauses[:4], (1, 2, 4, 8), strict=True):
        assert longest / 2 <= seconds <= longest
    assert len(fake.jobs) == 1


def test_a_service_that_stays_away_ends_in_how_to_come_back(config_of, fake):
    for _ in range(20):
        fake.fault("GET", f"{JOBS}/ftjob-1", "status", 503, "We are down.")
    with pytest.raises(HostedError, match=r"(?s)503: We are down.*hosted attach ftjob-1 --out"):
        finetune(config_of())
    fake.faults.clear()
    attach(AttachConfig(job="ftjob-1", out=config_of().out, base_url=fake.url))
    assert peek_manifest(config_of().out)["facts"]["fine_tuned_model"] == "ft:tiny-chat:org::1"
    assert len(fake.jobs) == 1


@pytest.mark.parametrize(
    ("course", "error", "said"),
    [
        ("failed", {"code": "invalid_training_file", "message": "Line 3 is no chat."}, "Line 3 is no chat"),
        ("cancelled", None, "ftjob-1 is cancelled"),
    ],
)
def test_a_job_that_ends_badly_says_why_and_is_not_repeated_unasked(config_of, fake, course, error, said):
    fake.course = ["queued", "running", course]
    fake.job_error = error
    for _ in range(2):
        with pytest.raises(HostedError, match=rf"(?s){said}.*--overwrite"):
            finetune(config_of())
    assert len(fake.jobs) == 1
    fake.course = ["queued", "succeeded"]
    fake.fault("GET", f"{JOBS}/ftjob-2", "status", 403, "Not now.")
    with pytest.raises(HostedError, match=r"Not now"):
        finetune(config_of(overwrite=True))
    finetune(config_of(overwrite=True))  # goes on with the second job, and makes no third
    assert [job["status"] for job in fake.jobs] == [course, "succeeded"]


def test_a_wrong_key_is_named_by_its_variable_and_shown_nowhere(config_of, fake, monkeypatch, caplog, tmp_path, capsys):
    secret = "sk-proj-very-secret-key"  # noqa: S105
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(HostedError, match=r"401: Incorrect API key provided: \[key\]") as caught:
        finetune(config_of())
    assert "environment variable OPENAI_API_KEY" in str(caught.value)
    assert caught.value.__context__ is None  # the library's error holds the request
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    shown += "".join(capsys.readouterr())
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret not in shown
    assert secret.encode() not in files
    assert fake.jobs == []


def test_the_key_is_in_no_file_and_no_word_of_a_good_run(config_of, fake, caplog, tmp_path, capsys):
    caplog.set_level(logging.DEBUG)
    finetune(config_of())
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in files
    assert KEY not in caplog.text + "".join(capsys.readouterr())
    assert KEY not in repr(config_of()) + json.dumps(config_of().resolved())


def test_no_key_is_told_before_anything_is_sent(config_of, fake, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY is not set"):
        finetune(config_of(base_url="https://api.openai.com/v1"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "unheard-of"}, r"no training price of the model 'unheard-of'.*--prices"),
        ({"max_cost": 0.0001}, r"above --max-cost 0\.0001"),
        ({"yes": False}, r"Give --yes"),
    ],
)
def test_what_may_not_be_spent_is_refused_before_anything_is_sent(config_of, fake, changes, said, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(CostError, match=f"(?s){said}"):
        finetune(config_of(**changes))
    assert not [line for line in fake.log if line[0] == "POST"]


@pytest.mark.parametrize("answer", ["y", "Yes", "", "n", EOFError])
def test_a_person_is_asked(config_of, fake, monkeypatch, answer):
    def ask(prompt):
        if answer is EOFError:
            raise EOFError
        return answer

    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", ask)
    if answer in ("y", "Yes"):
        finetune(config_of(yes=False))
        assert len(fake.jobs) == 1
    else:
        with pytest.raises(CostError, match="not agreed to"):
            finetune(config_of(yes=False))
        assert fake.log == []


def test_the_live_line_is_written_over_and_never_wraps(config_of, fake, monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("COLUMNS", "30")
    finetune(config_of())
    lines = shown.getvalue().removesuffix("\n").split("\r\x1b[K")
    assert [line[9:] for line in lines[1:]] == ["ftjob-1: queued; the", "ftjob-1: running; th", "ftjob-1: succeeded"]


def test_a_bound_is_called_one_and_is_never_below_the_bill(config_of, fake, capsys):
    out = finetune(config_of(encoding="bytes"))
    assert "quote: at most $" in capsys.readouterr().out
    facts = peek_manifest(out)["facts"]
    assert facts["cost"] < facts["quote"]["cost"]
    assert facts["quote"]["exact"] is False


def test_only_a_quote_sends_nothing(config_of, fake, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY")
    config = config_of(quote_only=True)
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


def test_attach_watches_any_job_and_cancels_it(fake, config_of, capsys):
    finetune(config_of(wait=False))
    assert "Come back with" in capsys.readouterr().out
    with pytest.raises(ArtifactError, match=r"holds the run of ftjob-1, not of ftjob-9"):
        attach(AttachConfig(job="ftjob-9", out=config_of().out, base_url=fake.url))
    with pytest.raises(ArtifactError, match=r"no run waits here"):
        attach(AttachConfig(job="ftjob-1", out=config_of().out.with_name("x"), base_url=fake.url))
    with pytest.raises(HostedError, match=r"404: No such thing: .*ftjob-9.*Check the names"):
        attach(AttachConfig(job="ftjob-9", base_url=fake.url))
    attach(AttachConfig(job="ftjob-1", out=config_of().out, cancel=True))
    assert fake.jobs[0]["status"] == "cancelled"
    with pytest.raises(HostedError, match=r"ftjob-1 is cancelled\. To begin anew"):
        finetune(config_of())
    attach(AttachConfig(job="ftjob-1", base_url=fake.url, cancel=True))
    with pytest.raises(HostedError, match="ftjob-1 is cancelled"):
        attach(AttachConfig(job="ftjob-1", base_url=fake.url))


def test_a_service_that_keeps_no_metadata_is_searched_by_the_file(config_of, fake):
    create = fake.create_job
    fake.create_job = lambda body: create({**body, "metadata": None})
    fake.fault("POST", JOBS, "drop", after=True)
    finetune(config_of())
    assert len(fake.jobs) == fake.posts(JOBS) == 1


def test_attach_takes_no_job_of_another_run(config_of, fake):
    stranger = fake.create_job({"model": "x", "training_file": "file-x", "method": {}})
    fake.lag = 20
    fake.fault("POST", JOBS, "drop", after=True)
    with pytest.raises(HostedError, match="Whether it was created is unknown"):
        finetune(config_of())
    with pytest.raises(ArtifactError, match=r"another run than that of ftjob-1: it lacks the run key"):
        attach(AttachConfig(job=stranger["id"], out=config_of().out))
    attach(AttachConfig(job="ftjob-2", out=config_of().out))
    assert peek_manifest(config_of().out)["facts"]["job"] == "ftjob-2"


def test_a_service_that_is_not_there_is_named(config_of, unused_address):
    with pytest.raises(HostedError, match=rf"(?s){unused_address}.*no connection.*Run the same command again"):
        finetune(config_of(base_url=unused_address))


def test_a_service_of_another_protocol_is_told(config_of, fake):
    fake.fault("POST", "/files", "text")
    for _ in range(6):
        fake.fault("POST", "/files", "text")
    with pytest.raises(HostedError, match=r"something else than its protocol: '<html>a login page.*ends in /v1"):
        finetune(config_of())


def test_a_job_is_found_behind_many_others(config_of, fake):
    for i in range(7):
        fake.create_job({"model": f"other-{i}", "training_file": "x", "method": {}})
    fake.fault("POST", JOBS, "drop", after=True)
    for i in range(3):
        fake.create_job({"model": f"another-{i}", "training_file": "x", "method": {}, "metadata": {"a": "b"}})
    finetune(config_of())
    assert [job["model"] for job in fake.jobs].count("tiny-chat") == 1


def test_what_the_service_refuses_is_told_in_its_words(config_of, fake):
    fake.fault("POST", JOBS, "status", 400, "Model tiny-chat is not available for fine-tuning.")
    with pytest.raises(HostedError, match=r"400: Model tiny-chat is not available for fine-tuning\. Correct"):
        finetune(config_of())
    assert fake.posts(JOBS) == 1
    fake.fault("POST", "/files", "status", 429, "You exceeded your quota.", None, "insufficient_quota")
    with pytest.raises(HostedError, match=r"You exceeded your quota\. Add credit"):
        finetune(config_of(out=config_of().out.with_name("other")))


def test_two_processes_do_not_pay_at_once(config_of, fake):
    config = config_of()
    with engine_jobs.alone(config.out.with_name("tuned.lock")), pytest.raises(ArtifactError, match="another process"):
        finetune(config)
    assert fake.log == []


def test_rows_that_break_the_rules_are_all_named_and_nothing_is_sent(config_of, fake, tmp_path):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = [json.dumps(good)] * 10 + [
        "{torn",
        json.dumps({"messages": []}),
        json.dumps({"messages": [{"role": "user", "content": "a"}]}),
        json.dumps({"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": " "}]}),
        json.dumps({"text": "a"}),
        json.dumps({"messages": [{"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "b"}]}),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        finetune(config_of(data=None, pairs=file, context=64))
    wanted = ["row 11: not JSON", "row 12: no messages", "row 13: the last message is not the assistant's",
              "row 14: role 'robot'", "row 14: the assistant message has no text"]  # fmt: skip
    for text, problem in zip(wanted, caught.value.problems, strict=False):
        assert text in problem
    assert caught.value.problems[-1] == "… and 2 more"
    file.write_text("\n".join([json.dumps(good)] * 9))
    with pytest.raises(DataError, match="9 examples; a fine-tuning job needs 10"):
        finetune(config_of(data=None, pairs=file))
    assert fake.log == []


@pytest.mark.parametrize("conversational", [True, False])
def test_pairs_become_chats(config_of, fake, tmp_path, tiny_model, dataset_dir, conversational):
    from seqrec_prompt.finetuning.pairs import PairsConfig, pairs
    from seqrec_prompt.prompting.templates import TemplateConfig

    file = pairs(
        PairsConfig(
            data=dataset_dir, out=tmp_path / "p.jsonl", model=str(tiny_model), conversational=conversational,
            template=TemplateConfig(layout="ask"),
        )
    )  # fmt: skip
    finetune(config_of(data=None, pairs=file))
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
