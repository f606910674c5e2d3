"""Answers of a hosted model: each row once, joined on its id, only what is missing sent again, never paid twice."""

import json
import threading

import pyarrow.parquet as pq
import pytest
from fake import KEY, count, count_chat

from seqrec_prompt import cli
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.engines import openai
from seqrec_prompt.errors import ArtifactError, CostError, HostedError
from seqrec_prompt.finetuning.hosted import HostedFinetuneConfig, finetune
from seqrec_prompt.recommenders.files import read, read_file_manifest
from seqrec_prompt.recommenders.llm.ground import GroundConfig, ground
from seqrec_prompt.recommenders.llm.hosted import HostedGenerateConfig, generate

CHAT = "/chat/completions"


@pytest.fixture
def data(dataset_dir):
    return Dataset.load(dataset_dir)


@pytest.fixture
def config_of(service, dataset_dir, tmp_path):
    def build(**changes):
        settings = {"data": dataset_dir, "out": tmp_path / "answers.parquet", "model": "tiny-chat", **service}
        return HostedGenerateConfig(**settings | changes)

    return build


@pytest.fixture
def echo(fake):
    """Each answer names the last item of its prompt, so that a wrong join shows."""
    fake.answer = lambda body: [last_line(body)] * body["n"]
    return fake


def last_line(body):
    return body["messages"][0]["content"].splitlines()[-2]


def texts_of(path):
    found = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["session_id"], []).append(row["text"])
    return found


def expected(data, positions=None):
    titles, prompts = data.catalog.texts(), data.split.test.prompts
    rows = range(len(prompts)) if positions is None else positions
    return {prompts.ids[i]: [titles[prompts[i][-1]]] for i in rows}


@pytest.mark.parametrize("by", ["batch", "requests"])
def test_answers_are_joined_on_ids_and_the_bill_is_within_the_quote(config_of, echo, data, by, capsys):
    path = generate(config_of(by=by))
    assert texts_of(path) == expected(data)
    made = read_file_manifest(path)["facts"]
    used = {kind: echo.bill["tiny-chat", kind] for kind in ("input", "output")}
    assert made["tokens"] == used
    (quoted,) = made["quotes"]
    assert quoted["tokens"]["input"] == used["input"]  # to the token
    assert quoted["tokens"]["output"] == 64 * 12 >= used["output"]
    share = 0.5 if by == "batch" else 1
    assert made["cost"] == pytest.approx(share * (used["input"] * 2 + used["output"] * 4) / 1e6, rel=1e-12)
    assert "quote: at most $" in capsys.readouterr().out
    assert sorted(p.name for p in path.parent.iterdir()) == ["answers.parquet", "prices.yaml"]


@pytest.mark.parametrize("by", ["batch", "requests"])
def test_a_second_run_sends_nothing(config_of, echo, by):
    generate(config_of(by=by))
    before = [line for line in echo.log if line[0] == "POST"]
    generate(config_of(by=by))
    assert [line for line in echo.log if line[0] == "POST"] == before
    with pytest.raises(ArtifactError, match=r"config\.n: was 1, is 2"):
        generate(config_of(n=2))


@pytest.mark.parametrize("course", ["completed", "expired", "cancelled"])
def test_a_partial_batch_keeps_what_came_and_only_the_rest_is_sent_again(config_of, echo, data, course, capsys):
    echo.batch_course = ["validating", "in_progress", course]
    echo.unanswered = {"test-3", "test-7"}
    said = r"(?s)2 of 12 sessions have no answer.*could not be executed in time.*Run the same command again"
    with pytest.raises(HostedError, match=said):
        generate(config_of())
    assert not config_of().out.exists()
    capsys.readouterr()
    echo.unanswered = set()
    path = generate(config_of())
    assert texts_of(path) == expected(data)
    sent = [json.loads(line)["custom_id"] for line in echo.files[echo.batches[1]["input_file_id"]].splitlines()]
    assert sent == ["test-3", "test-7"]
    assert "going on: 10/12 sessions are answered" in capsys.readouterr().out
    made = read_file_manifest(path)["facts"]
    assert made["tokens"] == {kind: echo.bill["tiny-chat", kind] for kind in ("input", "output")}


def test_lines_that_cannot_be_read_are_told_and_owed(config_of, echo, data):
    echo.garbled = {"test-0"}
    with pytest.raises(HostedError, match=r"(?s)1 of 12 sessions.*line 12 cannot be read: \{.*may have been billed"):
        generate(config_of())
    assert texts_of(generate(config_of(allow_missing=True))) == expected(data, range(1, 12))
    echo.garbled = set()
    assert texts_of(generate(config_of())) == expected(data)
    requests = [echo.files[batch["input_file_id"]].count(b"\n") for batch in echo.batches]
    assert requests == [12, 1, 1]


@pytest.mark.parametrize("by", ["batch", "requests"])
def test_half_of_a_character_costs_no_answer(config_of, echo, data, by):
    """JSON may hold it, no file of text can."""
    echo.answer = lambda body: [last_line(body) + "\ud83d"] * body["n"]
    found = texts_of(generate(config_of(by=by)))
    assert found == {name: [texts[0] + "?"] for name, texts in expected(data).items()}


def test_a_key_that_the_service_repeats_is_told_nowhere(config_of, echo):
    echo.fault("POST", CHAT, "detail", 422, "x" * 280 + f" {KEY} is not allowed here")
    with pytest.raises(HostedError, match=r"x \[key\]") as told:
        generate(config_of(by="requests"))
    assert KEY[:8] not in str(told.value)
    echo.batch_course = ["validating", "failed"]
    echo.why = f"Bad key {KEY}"
    with pytest.raises(HostedError, match=r"Bad key \[key\]") as told:
        generate(config_of(by="batch"))
    assert KEY[:8] not in str(told.value)


def test_lines_that_come_twice_or_of_somebody_else_change_nothing(config_of, echo, data):
    choice = {"message": {"content": "from somewhere else"}}
    usage = {"prompt_tokens": 10**6, "completion_tokens": 10**6}
    body = {"status_code": 200, "body": {"choices": [choice], "usage": usage}}
    echo.stray = [json.dumps({"custom_id": name, "response": body}) for name in ("test-3", "nobody")]
    path = generate(config_of())
    assert texts_of(path) == expected(data)
    facts = read_file_manifest(path)["facts"]
    assert (facts["answered"], facts["tokens"]["input"]) == (12, echo.bill["tiny-chat", "input"])


def test_missing_rows_can_be_left_out_and_asked_for_later(config_of, echo, data):
    echo.unanswered = {"test-3"}
    path = generate(config_of(allow_missing=True))
    assert texts_of(path) == expected(data, [i for i in range(12) if i != 3])
    assert read_file_manifest(path)["facts"]["missing"] == 1
    echo.unanswered = set()
    assert texts_of(generate(config_of())) == expected(data)
    assert len(echo.batches) == 2


def test_a_failed_batch_says_why(config_of, echo):
    echo.batch_course = ["validating", "failed"]
    with pytest.raises(HostedError, match=r"(?s)12 of 12.*batch_1 is failed.*line 1 is no request"):
        generate(config_of())
    echo.batch_course = ["validating", "completed"]
    generate(config_of())
    assert [batch["status"] for batch in echo.batches] == ["failed", "completed"]


@pytest.mark.parametrize("path", ["/files", "/batches"])
def test_a_service_without_batches_is_told_apart(config_of, echo, data, capsys, path):
    echo.fault("POST", path, "detail", 404, "Not Found")
    with pytest.raises(HostedError, match=r"404: \{.detail.: ?.Not Found.\}.*--by requests"):
        generate(config_of(n=3))
    echo.answer = lambda body: [last_line(body)]  # it gives one answer, however many are asked for
    assert texts_of(generate(config_of(n=3, by="requests"))) == expected(data)
    assert "the service gave 12 answers, not the 3 a session" in capsys.readouterr().out


@pytest.mark.parametrize("action", [("drop",), ("status", 500, "Oops.")])
def test_a_batch_is_created_once(config_of, echo, action):
    echo.fault("POST", "/batches", *action, after=True)
    generate(config_of())
    assert len(echo.batches) == echo.posts("/batches") == 1


def test_a_stopped_run_comes_back_to_its_batch(config_of, echo, data, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(openai, "pause", interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate(config_of())
    assert "batch_1 goes on at the service" in capsys.readouterr().out
    assert texts_of(generate(config_of())) == expected(data)
    assert len(echo.batches) == 1
    assert "quote" not in capsys.readouterr().out


def test_a_stopped_run_of_requests_keeps_the_answers_under_way(config_of, echo, data):
    asked, answer = [], echo.answer

    def stop_at_six(body):
        asked.append(body)
        if len(asked) == 6:
            echo.fault("POST", CHAT, "status", 403, "Your account was closed.")
        return answer(body)

    echo.answer = stop_at_six
    with pytest.raises(HostedError, match=r"403: Your account was closed"):
        generate(config_of(by="requests", at_once=3))
    echo.answer = answer
    assert texts_of(generate(config_of(by="requests"))) == expected(data)
    assert echo.bill["tiny-chat", "output"] == sum(count(text) for (text,) in expected(data).values())


def test_one_bad_row_does_not_stop_the_others(config_of, echo, data):
    echo.fault("POST", CHAT, "status", 400, "This prompt is not allowed.")
    with pytest.raises(HostedError, match=r"(?s)1 of 12 sessions.*test-\d+: .*400: This prompt is not allowed"):
        generate(config_of(by="requests"))
    assert texts_of(generate(config_of(by="requests"))) == expected(data)
    assert echo.posts(CHAT) == 13


@pytest.mark.parametrize("body", [{"choices": None}, {"choices": [{"message": None}]}, {}])
def test_an_answer_that_is_none_is_told(config_of, echo, body):
    answer = echo.chat
    echo.chat = lambda asked: body
    with pytest.raises(HostedError, match=r"(?s)12 of 12 sessions.*its answer cannot be read"):
        generate(config_of(by="requests"))
    echo.chat = answer
    generate(config_of(by="requests"))


def test_silence_is_not_asked_again_in_the_same_run(config_of, echo, data):
    """The answer may be on its way, and billed."""
    echo.fault("POST", CHAT, "hang", after=True)
    with pytest.raises(HostedError, match=r"(?s)1 of 12 sessions.*no answer within 0\.5 s \(--timeout\)"):
        generate(config_of(by="requests", timeout=0.5, at_once=1))
    assert echo.posts(CHAT) == 12
    generate(config_of(by="requests"))
    assert echo.posts(CHAT) == 13


def test_a_rate_limit_holds_everybody_as_long_as_it_says(config_of, echo, data, pauses):
    echo.fault("POST", CHAT, "status", 429, "Slow down.", {"retry-after": "5"})
    assert texts_of(generate(config_of(by="requests", at_once=4))) == expected(data)
    assert max(pauses) > 4
    assert echo.posts(CHAT) == 13


def test_the_pace_is_kept_by_all_threads(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(openai.time, "monotonic", lambda: now[0])
    starts, lock = [], threading.Lock()

    def record(seconds):
        with lock:
            starts.append(now[0] + seconds)

    monkeypatch.setattr(openai, "pause", record)
    pace = openai.Pace(requests_per_minute=60, tokens_per_minute=600)
    for tokens in (5, 5, 30, 5):
        pace.wait(tokens)
    # One a second at most, and after 30 tokens three seconds; the first starts at once.
    assert starts == [1.0, 2.0, 5.0]
    pace.hold(60)
    pace.wait(5)
    assert starts[-1] == 60.0


def test_several_answers_are_ranked_by_probability_or_by_how_often(config_of, fake):
    fake.answer = lambda body: ["a long answer", "short", "a long answer", "middling"]
    fake.with_logprobs = True  # the longer the less probable
    rows = pq.read_table(generate(config_of(n=4, max_sessions=1))).to_pylist()
    assert [(row["text"], row["logprob"], row["times"]) for row in rows] == [
        ("short", -5.0, 1), ("middling", -8.0, 1), ("a long answer", -13.0, 2)
    ]  # fmt: skip
    fake.with_logprobs = False
    rows = pq.read_table(generate(config_of(n=4, max_sessions=1, logprobs=False, out=config_of().out.with_name("b"))))
    assert [row["text"] for row in rows.to_pylist()] == ["a long answer", "short", "middling"]


def test_a_tuned_model_is_asked_with_its_own_template_and_grounded(
    config_of, echo, data, service, dataset_dir, tmp_path, capsys
):
    tuned = finetune(
        HostedFinetuneConfig(
            data=dataset_dir, out=tmp_path / "tuned", model="tiny-chat",
            template={"question": "What next?", "max_items": 2}, **service,
        )
    )  # fmt: skip
    asked = []
    answer = echo.answer
    echo.answer = lambda body: asked.append(body) or answer(body)
    path = generate(config_of(model=None, tuned=tuned))
    assert {body["model"] for body in asked} == {"ft:tiny-chat:org::1"}
    assert all(body["messages"][0]["content"].endswith("\nWhat next?") for body in asked)
    assert all(len(body["messages"][0]["content"].splitlines()) <= 4 for body in asked)
    assert all(count_chat(body["messages"]) for body in asked)
    lists = read(ground(GroundConfig(data=dataset_dir, answers=path, out=tmp_path / "recs.parquet")), data.catalog)
    titles = data.catalog.texts()
    assert len(lists.lists) == 12
    for (item,), prompt in zip(lists.lists, data.split.test.prompts, strict=True):
        assert titles[item] == titles[prompt[-1]]


def test_what_may_not_be_spent_is_refused(config_of, fake):
    with pytest.raises(CostError, match="no input and no output price"):
        generate(config_of(model="unheard-of"))
    with pytest.raises(CostError, match="above --max-cost"):
        generate(config_of(max_cost=1e-6))
    assert not [line for line in fake.log if line[0] == "POST"]


def test_a_server_of_ones_own_is_free_and_needs_no_key(config_of, echo, data, monkeypatch):
    monkeypatch.setattr("fake.KEY", "none")
    monkeypatch.delenv("OPENAI_API_KEY")
    path = generate(config_of(model="my-llama", by="requests", free=True, yes=False, prices=None, encoding="bytes"))
    assert texts_of(path) == expected(data)
    assert read_file_manifest(path)["facts"]["cost"] == 0


def test_distilled_sessions_are_learned_by_a_local_model(config_of, echo, data, tmp_path, tiny_model, capsys):
    from seqrec_prompt.finetuning.finetune import FinetuneConfig
    from seqrec_prompt.finetuning.finetune import finetune as train
    from seqrec_prompt.recommenders.llm.distill import DistillConfig, distill

    answers = generate(config_of(part="train", by="requests"))
    assert "next: seqrec-prompt distill" in capsys.readouterr().out
    out = distill(DistillConfig(data=config_of().data, answers=answers, out=tmp_path / "distilled"))
    made = Dataset.load(out)
    titles = data.catalog.texts()
    sessions = [items for items in data.split.train if len(items) > 1]
    assert len(made.split.train) == len(sessions)
    for new, old in zip(made.split.train, sessions, strict=True):
        assert new.tolist()[:-1] == old.tolist()[:-1]
        assert titles[new[-1]] == titles[old[-2]]  # what the teacher named
    assert made.split.test.targets.tolist() == data.split.test.targets.tolist()
    assert made.hash != data.hash
    student = train(
        FinetuneConfig(
            data=out, out=tmp_path / "student", model=str(tiny_model), objective="last_item", max_steps=1,
            context=1024, dtype="float32",
        )
    )  # fmt: skip
    assert (student / "adapter_config.json").exists()
    both = distill(
        DistillConfig(data=config_of().data, answers=answers, out=tmp_path / "both", with_truth=True, per_session=2)
    )
    assert len(Dataset.load(both).split.train) == len(data.split.train) + len(sessions)


def test_lists_can_be_scored_again_by_a_local_model(config_of, echo, data, tmp_path, tiny_model):
    """`recommend --allow` takes a recommendation file: the local model's own order of the hosted one's items."""
    from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend

    titles = [title for title in data.catalog.texts() if 20 < len(title) < 60]
    echo.answer = lambda body: titles[:5]
    path = generate(config_of(n=5, max_sessions=3))
    grounded = ground(GroundConfig(data=config_of().data, answers=path, out=tmp_path / "recs.parquet"))
    again = recommend(
        RecommendConfig(
            data=config_of().data,
            out=tmp_path / "again.parquet",
            model=str(tiny_model),
            allow=grounded,
            dtype="float32",
        )
    )
    before, after = (read(file, data.catalog).lists for file in (grounded, again))
    ids = after.session_ids.tolist()
    for session, items in zip(before.session_ids, before, strict=True):
        scored = after[ids.index(session)]
        assert sorted(scored.tolist()) == sorted(items.tolist())
    assert set(after.provenances) == {"constrained"}


def test_help_of_the_group_names_its_verbs(capsys):
    assert cli.main(["hosted"]) == cli.EXIT_OK
    shown = capsys.readouterr().out
    assert all(f"  hosted {verb} " in shown for verb in ("finetune", "attach", "generate"))
    assert cli.main(["hosted", "finetun"]) == cli.EXIT_ERROR
    assert "'hosted finetun' is no verb. Verbs: hosted finetune, hosted attach" in capsys.readouterr().err
