"""A job is created once, whatever the service does; every failure is typed, in its words, with the next step."""

import json
import logging
import subprocess
import sys
import time
import traceback

import pytest
from fake import KEY

from seqrec_prompt.artifacts import peek_manifest
from seqrec_prompt.engines import jobs as engine_jobs
from seqrec_prompt.errors import ArtifactError, ConfigError, HostedError
from seqrec_prompt.finetuning.attach import AttachConfig, attach
from seqrec_prompt.finetuning.hosted import finetune
from seqrec_prompt.locks import lock

JOBS = "/fine_tuning/jobs"


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_before_acceptance_is_tried_again_after_a_look(finetune_config, fake, status):
    fake.fault("POST", JOBS, "status", status, "The server had an error.")
    finetune(finetune_config())
    assert len(fake.jobs) == 1
    assert fake.posts(JOBS) == 2
    first = fake.log.index(("POST", JOBS))
    second = fake.log.index(("POST", JOBS), first + 1)
    assert fake.log[first:second].count(("GET", JOBS)) == len(engine_jobs.SETTLING) + 1


@pytest.mark.parametrize(
    "action", [("status", 500, "Oops."), ("status", 504, "Gateway timeout."), ("drop",), ("text",)]
)
@pytest.mark.parametrize("lag", [0, 3])
def test_a_job_that_was_accepted_in_spite_of_an_error_is_found(finetune_config, fake, action, lag):
    fake.lag = lag
    fake.fault("POST", JOBS, *action, after=True)
    out = finetune(finetune_config())
    assert len(fake.jobs) == fake.posts(JOBS) == 1
    assert peek_manifest(out)["facts"]["job"] == "ftjob-1"


def test_a_timeout_after_acceptance_is_found(finetune_config, fake):
    fake.fault("POST", JOBS, "hang", after=True)
    finetune(finetune_config(timeout=0.3))
    assert len(fake.jobs) == fake.posts(JOBS) == 1


def test_after_silence_nothing_is_sent_again_and_the_next_run_looks_first(finetune_config, fake):
    fake.lag = 7  # the job shows up in the list only after the run gave up
    fake.fault("POST", JOBS, "drop", after=True)
    with pytest.raises(HostedError, match=r"(?s)Whether it was created is unknown.*looks for the run key") as caught:
        finetune(finetune_config())
    assert caught.value.status is None
    assert fake.posts(JOBS) == 1
    fake.lag = 0
    finetune(finetune_config())
    assert len(fake.jobs) == fake.posts(JOBS) == fake.posts("/files") == 1


def test_a_process_killed_while_it_creates_is_followed_by_one_that_looks_first(finetune_config, fake):
    fake.fault("POST", JOBS, "hang", after=True)
    config = finetune_config(encoding="bytes")
    words = [
        f"--{name.replace('_', '-')}={getattr(config, name)}" for name in ("data", "out", "model", "base_url", "prices")
    ]
    command = [sys.executable, "-m", "seqrec_prompt", "hosted", "finetune", "--yes", "--encoding=bytes", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not fake.jobs and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert len(fake.jobs) == 1
    out = finetune(config)
    assert len(fake.jobs) == fake.posts(JOBS) == fake.posts("/files") == 1
    assert peek_manifest(out)["facts"]["job"] == "ftjob-1"


def test_a_rate_limit_is_waited_for_as_long_as_it_says(finetune_config, fake, pauses):
    fake.fault("GET", JOBS, "status", 429, "Slow down.", {"retry-after": "7"})
    fake.fault("POST", JOBS, "status", 429, "Slow down.", {"retry-after": "41"})
    finetune(finetune_config())
    assert any(7 <= seconds <= 8 for seconds in pauses)
    assert pauses.count(41) == 1
    assert len(fake.jobs) == 1


def test_reads_are_tried_again_with_growing_pauses(finetune_config, fake, pauses):
    for _ in range(4):
        fake.fault("GET", f"{JOBS}/ftjob-1", "status", 502, "Bad gateway.")
    finetune(finetune_config())
    for seconds, longest in zip(pauses[:4], (1, 2, 4, 8), strict=True):
        assert longest / 2 <= seconds <= longest
    assert len(fake.jobs) == 1


def test_a_service_that_stays_away_ends_in_how_to_come_back(finetune_config, fake):
    for _ in range(20):
        fake.fault("GET", f"{JOBS}/ftjob-1", "status", 503, "We are down.")
    with pytest.raises(HostedError, match=r"(?s)503: We are down.*hosted attach ftjob-1 --out"):
        finetune(finetune_config())
    fake.faults.clear()
    attach(AttachConfig(job="ftjob-1", out=finetune_config().out, base_url=fake.url))
    assert peek_manifest(finetune_config().out)["facts"]["fine_tuned_model"] == "ft:tiny-chat:org::1"
    assert len(fake.jobs) == 1


@pytest.mark.parametrize(
    ("course", "error", "said"),
    [
        ("failed", {"code": "invalid_training_file", "message": "Line 3 is no chat."}, "Line 3 is no chat"),
        ("cancelled", None, "ftjob-1 is cancelled"),
    ],
)
def test_a_job_that_ends_badly_says_why_and_is_not_repeated_unasked(finetune_config, fake, course, error, said):
    fake.course = ["queued", "running", course]
    fake.job_error = error
    for _ in range(2):
        with pytest.raises(HostedError, match=rf"(?s){said}.*--overwrite"):
            finetune(finetune_config())
    assert len(fake.jobs) == 1
    fake.course = ["queued", "succeeded"]
    fake.fault("GET", f"{JOBS}/ftjob-2", "status", 403, "Not now.")
    with pytest.raises(HostedError, match=r"Not now"):
        finetune(finetune_config(overwrite=True))
    finetune(finetune_config(overwrite=True))  # goes on with the second job, and makes no third
    assert [job["status"] for job in fake.jobs] == [course, "succeeded"]


def test_a_wrong_key_is_shown_nowhere(finetune_config, fake, monkeypatch, caplog, tmp_path, capsys):
    secret = "sk-proj-very-secret-key"  # noqa: S105
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(HostedError, match=r"401: Incorrect API key provided: \[key\]") as caught:
        finetune(finetune_config())
    assert "environment variable OPENAI_API_KEY" in str(caught.value)
    assert caught.value.__context__ is None  # the library's error holds the request
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    shown += "".join(capsys.readouterr())
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret not in shown
    assert secret.encode() not in files
    assert fake.jobs == []


def test_the_key_is_in_no_file_and_no_word_of_a_good_run(finetune_config, fake, caplog, tmp_path, capsys):
    caplog.set_level(logging.DEBUG)
    finetune(finetune_config())
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in files
    assert KEY not in caplog.text + "".join(capsys.readouterr())
    assert KEY not in repr(finetune_config()) + json.dumps(finetune_config().resolved())


def test_no_key_is_told_before_anything_is_sent(finetune_config, fake, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="environment variable OPENAI_API_KEY is not set"):
        finetune(finetune_config(base_url="https://api.openai.com/v1"))


def test_a_service_that_keeps_no_metadata_is_searched_by_the_file(finetune_config, fake):
    create = fake.create_job
    fake.create_job = lambda body: create({**body, "metadata": None})
    fake.fault("POST", JOBS, "drop", after=True)
    finetune(finetune_config())
    assert len(fake.jobs) == fake.posts(JOBS) == 1


def test_attach_takes_no_job_of_another_run(finetune_config, fake):
    stranger = fake.create_job({"model": "x", "training_file": "file-x", "method": {}})
    fake.lag = 20
    fake.fault("POST", JOBS, "drop", after=True)
    with pytest.raises(HostedError, match="Whether it was created is unknown"):
        finetune(finetune_config())
    with pytest.raises(ArtifactError, match=r"another run than that of ftjob-1: it lacks the run key"):
        attach(AttachConfig(job=stranger["id"], out=finetune_config().out))
    attach(AttachConfig(job="ftjob-2", out=finetune_config().out))
    assert peek_manifest(finetune_config().out)["facts"]["job"] == "ftjob-2"


def test_a_service_that_is_not_there_is_named(finetune_config, unused_address):
    with pytest.raises(HostedError, match=rf"(?s){unused_address}.*no connection.*Run the same command again"):
        finetune(finetune_config(base_url=unused_address))


def test_a_service_of_another_protocol_is_told(finetune_config, fake):
    fake.fault("POST", "/files", "text")
    for _ in range(6):
        fake.fault("POST", "/files", "text")
    with pytest.raises(HostedError, match=r"something else than its protocol: '<html>a login page.*ends in /v1"):
        finetune(finetune_config())


def test_a_job_is_found_behind_many_others(finetune_config, fake):
    for i in range(7):
        fake.create_job({"model": f"other-{i}", "training_file": "x", "method": {}})
    fake.fault("POST", JOBS, "drop", after=True)
    for i in range(3):
        fake.create_job({"model": f"another-{i}", "training_file": "x", "method": {}, "metadata": {"a": "b"}})
    finetune(finetune_config())
    assert [job["model"] for job in fake.jobs].count("tiny-chat") == 1


def test_what_the_service_refuses_is_told_in_its_words(finetune_config, fake):
    fake.fault("POST", JOBS, "status", 400, "Model tiny-chat is not available for fine-tuning.")
    with pytest.raises(HostedError, match=r"400: Model tiny-chat is not available for fine-tuning\. Correct"):
        finetune(finetune_config())
    assert fake.posts(JOBS) == 1
    fake.fault("POST", "/files", "status", 429, "You exceeded your quota.", None, "insufficient_quota")
    with pytest.raises(HostedError, match=r"You exceeded your quota\. Add credit"):
        finetune(finetune_config(out=finetune_config().out.with_name("other")))


def test_two_processes_do_not_pay_at_once(finetune_config, fake):
    config = finetune_config()
    with lock(config.out), pytest.raises(ArtifactError, match="another process"):
        finetune(config)
    assert fake.log == []
