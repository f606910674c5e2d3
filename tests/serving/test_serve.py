"""`serve` over loopback: the lists that `recommend` writes, batches, limits, exclusions, metrics, and its end."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client import parser
from running import running

from seqrec_prompt.cli import run
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Sessions
from seqrec_prompt.errors import ConfigError, MissingExtraError
from seqrec_prompt.prompting.templates import TemplateConfig
from seqrec_prompt.recommenders import fitted
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.fit import FitConfig, fit
from seqrec_prompt.recommenders.recommend import RecommendConfig, recommend
from seqrec_prompt.serving.app import RecommendRequest, build_app
from seqrec_prompt.serving.ready import load_ready
from seqrec_prompt.serving.serve import LimitsConfig, ServeConfig, serve


@pytest.fixture(scope="module")
def data(dataset_dir):
    return Dataset.load(dataset_dir)


@pytest.fixture(scope="module")
def popular(dataset_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "popular"
    return fit(FitConfig(data=dataset_dir, recommender="most-popular", out=out))


@pytest.fixture(scope="module")
def neighbours(dataset_dir, tmp_path_factory):
    return fit(FitConfig(data=dataset_dir, recommender="v-sknn", out=tmp_path_factory.mktemp("fitted") / "v-sknn"))


def ask(port, body=None, path="/recommend", method=None):
    """(status, answer): of a POST where there is a body, of a GET else; bytes go as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    return answer.status, json.loads(text) if text.startswith("{") else text


def ask_all(port, bodies):
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: ask(port, body), bodies))


def samples(port):
    """(name, label values) → value, of /metrics."""
    status, text = ask(port, path="/metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def ids_of(answer):
    return [item["item_id"] for item in answer["items"]]


@pytest.fixture(scope="module")
def both(tiny_model, dataset_dir, popular, neighbours, data):
    """An LLM and two fitted recommenders, served with a pause that lets requests meet."""
    config = ServeConfig(
        data=dataset_dir, model=str(tiny_model), recommenders=(popular, neighbours), dtype="float32", pause=0.1
    )
    with running(build_app(load_ready(config, data), data, config)) as port:
        yield port


@pytest.mark.parametrize("name", ["llm", "v-sknn"])
def test_batched_answers_are_the_lists_that_recommend_writes(
    name, both, data, dataset_dir, tiny_model, neighbours, tmp_path
):
    out, shared = tmp_path / "recs.parquet", {"data": dataset_dir, "k": 5}
    if name == "llm":
        recommend(RecommendConfig(**shared, out=out, model=str(tiny_model), dtype="float32", batch_size=1))
    else:
        recommend(RecommendConfig(**shared, out=out, recommender=neighbours))
    wanted = {}
    for row in pq.read_table(out).to_pylist():
        wanted.setdefault(row["session_id"], []).append(row)
    prompts = data.split.test.prompts
    before = samples(both)
    bodies = [
        {"session": [data.catalog.ids[item] for item in session], "k": 5, "recommender": name} for session in prompts
    ]
    answers = ask_all(both, bodies)
    for session_id, (status, answer) in zip(prompts.ids, answers, strict=True):
        rows = wanted[session_id]
        assert status == 200, answer
        assert ids_of(answer) == [row["item_id"] for row in rows if row["rank"]]
        np.testing.assert_allclose(
            [item["score"] for item in answer["items"]], [row["score"] for row in rows if row["rank"]], atol=1e-4
        )
        assert answer["certified"] == rows[0]["certified"]
        assert answer["recommender"] == name
        for item, row in zip(answer["items"], rows, strict=True):
            assert item["title"] == data.catalog.titles[data.catalog.index[row["item_id"]]]
            assert item["provenance"] == row["provenance"]
    after = samples(both)
    batches = after["seqrec_batch_sessions_count", name] - before["seqrec_batch_sessions_count", name]
    answered = after["seqrec_batch_sessions_sum", name] - before["seqrec_batch_sessions_sum", name]
    assert (answered, batches < 12) == (12, True)


@pytest.mark.parametrize("name", ["llm", "popular", "v-sknn"])
def test_what_is_excluded_is_left_out_and_nothing_else_moves(name, both, data):
    session = [data.catalog.ids[item] for item in data.split.test.prompts[0]]
    everything = ids_of(ask(both, {"session": session, "k": 30, "recommender": name})[1])
    excluded = everything[:3]
    asked = {"session": session, "k": 4, "recommender": name, "exclude": [*excluded, "no such item"]}
    (_, without), (_, unseen) = ask_all(both, [asked, asked | {"exclude_seen": True}])
    left = [item for item in everything if item not in excluded]
    assert ids_of(without) == left[:4]
    assert ids_of(unseen) == [item for item in left if item not in session][:4]


@pytest.mark.parametrize("name", ["llm", "popular", "v-sknn"])
def test_an_empty_session_is_answered(name, both):
    status, answer = ask(both, {"session": [], "recommender": name, "k": 3})
    assert status == 200
    assert len(ids_of(answer)) == (0 if name == "v-sknn" else 3)  # no item, no neighbour


def test_out_of_stock_is_given_by_none(tiny_model, dataset_dir, popular, data, tmp_path):
    gone = [data.catalog.ids[item] for item in np.argsort(-data.popularity)[:5]]
    (tmp_path / "gone.csv").write_text("item_id\n" + "\n".join(gone) + "\n", encoding="utf-8")
    config = ServeConfig(
        data=dataset_dir, model=str(tiny_model), recommenders=(popular,), out_of_stock=tmp_path / "gone.csv"
    )
    with running(build_app(load_ready(config, data), data, config)) as port:
        for name in ("llm", "popular"):
            _, answer = ask(port, {"session": gone[:2], "recommender": name, "k": 30})
            assert set(ids_of(answer)) == set(data.catalog.ids) - set(gone)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"{", 422, "body: Invalid JSON"),
        (b"[]", 422, "body: Input should be an object"),
        ({}, 422, "session: Field required"),
        ({"session": ["item-1"], "n": 3}, 422, "n: Extra inputs are not permitted; known are session, k, exclude"),
        ({"session": ["item-1"], "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"session": ["item-1"], "k": 101}, 422, "k: 101 is more than the 100 that --limits.k allows"),
        ({"session": ["item-1"] * 501}, 422, "session: 501 is more than the 500 that --limits.session allows"),
        ({"session": [None]}, 422, "session.0: Input should be a valid string"),
        ({"session": ["item-1", "x", "y"]}, 422, "the catalog has no item 'x', 'y'; with \"skip_unknown\": true"),
        ({"session": [f"x{i}" for i in range(12)]}, 422, "'x9' and 2 more"),
        ({"session": ["item-1"], "recommender": "best"}, 422, "'best' is not served; these are: llm, popular, v-sknn"),
        (b" " * 65537, 413, "longer than the 65,536 bytes that --limits.body allows"),
    ],
)
def test_what_a_request_may_not_be_is_told(body, status, told, both):
    before = samples(both).get(("seqrec_requests_total", str(status)), 0)
    found, answer = ask(both, body)
    assert (found, list(answer)) == (status, ["error"])
    assert told in answer["error"]
    assert samples(both)["seqrec_requests_total", str(status)] == before + 1


def test_unknown_items_are_skipped_on_request_and_named(both):
    known = ask(both, {"session": ["item-1"], "recommender": "v-sknn"})[1]
    status, answer = ask(both, {"session": ["x", "item-1", "x"], "skip_unknown": True, "recommender": "v-sknn"})
    assert (status, answer["skipped"], ids_of(answer)) == (200, ["x"], ids_of(known))


def test_the_request_in_the_documentation_is_answered(both):
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (sent,) = re.findall(r"^curl \S+/recommend -d '(.*)'$", text, re.MULTILINE)
    named = {*json.loads(sent), *re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)}
    assert named == set(RecommendRequest.model_fields)
    status, answer = ask(both, sent.replace('"i', '"item-').encode())
    assert (status, len(answer["items"])) == (200, 10)
    assert all(f"`{name}`" in text for name in [*answer, *answer["items"][0]] if name != "recommender")


def test_health_and_other_addresses(both, data):
    status, told = ask(both, path="/health")
    assert status == 200
    assert told["status"] == "ok"
    assert told["recommenders"] == ["llm", "popular", "v-sknn"]
    assert (told["items"], told["data"]) == (30, data.hash)
    assert ask(both, path="/nowhere") == (404, {"error": "Not Found"})
    assert ask(both, path="/recommend", method="GET") == (405, {"error": "Method Not Allowed"})
    assert ask(both, path="/docs")[0] == 404  # its scripts would come from another host


class Gate:
    """Answers when it is let; item 0 is more than it can take."""

    def __init__(self):
        self.open, self.sizes = threading.Event(), []

    def answer(self, questions):
        self.sizes.append(len(questions))
        assert self.open.wait(20)
        if any(0 in question.session for question in questions):
            raise RuntimeError("no zero")
        return [
            Recommendations.build(np.array(["s"], object), [question.session[:1]], [np.zeros(1)])
            for question in questions
        ]


def gated(dataset_dir, popular, **changes):
    return ServeConfig(data=dataset_dir, recommenders=(popular,), **{"pause": 0.0, "batch_size": 4} | changes)


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_waits_is_answered_together_and_a_full_queue_refuses(dataset_dir, popular, data):
    gate, config = Gate(), gated(dataset_dir, popular, limits=LimitsConfig(queue=3))
    with running(build_app({"gate": gate}, data, config)) as port, ThreadPoolExecutor(4) as pool:
        try:
            first = pool.submit(ask, port, {"session": ["item-1"]})
            until(lambda: gate.sizes == [1])
            waiting = [pool.submit(ask, port, {"session": [f"item-{i}"]}) for i in (2, 3, 4)]
            until(lambda: samples(port)["seqrec_waiting_requests", "gate"] == 3)
            status, answer = ask(port, {"session": ["item-5"]})
            assert (status, answer["error"]) == (429, "3 requests wait already (--limits.queue); try again")
        finally:
            gate.open.set()
        assert [ids_of(one.result()[1]) for one in [first, *waiting]] == [[f"item-{i}"] for i in (1, 2, 3, 4)]
        assert gate.sizes == [1, 3]
        assert samples(port)["seqrec_requests_total", "429"] == 1


def test_one_question_that_fails_does_not_cost_the_others_their_answer(dataset_dir, popular, data):
    gate, config = Gate(), gated(dataset_dir, popular)
    with running(build_app({"gate": gate}, data, config)) as port, ThreadPoolExecutor(3) as pool:
        try:
            first = pool.submit(ask, port, {"session": ["item-1"]})
            until(lambda: gate.sizes == [1])
            others = [pool.submit(ask, port, {"session": [f"item-{i}"]}) for i in (0, 2)]
            until(lambda: samples(port)["seqrec_waiting_requests", "gate"] == 2)
        finally:
            gate.open.set()
        assert [one.result()[0] for one in (first, *others)] == [200, 500, 200]
        assert "a bug: RuntimeError" in others[0].result()[1]["error"]
        assert ask(port, path="/health")[0] == 200
        assert samples(port)["seqrec_requests_total", "500"] == 1


def test_who_waits_too_long_is_told_and_forgotten(dataset_dir, popular, data):
    gate, config = Gate(), gated(dataset_dir, popular, batch_size=1, limits=LimitsConfig(seconds=0.2))
    with running(build_app({"gate": gate}, data, config)) as port:
        try:
            answers = ask_all(port, [{"session": ["item-1"]}] * 3)
            assert [status for status, _ in answers] == [504] * 3
            assert "no answer within 0.2 seconds" in answers[0][1]["error"]
        finally:
            gate.open.set()
        assert ask(port, {"session": ["item-2"]})[0] == 200
        assert gate.sizes == [1, 1]  # the two that had given up were not computed


def test_a_served_directory_answers_like_itself_loaded(neighbours, dataset_dir, data):
    """k and exclusions of one request do not reach those that are answered with it."""
    config = ServeConfig(data=dataset_dir, recommenders=(neighbours,), pause=0.1)
    prompts = data.split.test.prompts
    with running(build_app(load_ready(config, data), data, config)) as port:
        bodies = [
            {"session": [data.catalog.ids[item] for item in prompts[i]], "k": i + 1, "exclude_seen": bool(i % 2)}
            for i in range(8)
        ]
        answers = ask_all(port, bodies)
    alone, _ = fitted.load(neighbours, data)
    for i, (_, answer) in enumerate(answers):
        session = Sessions.build(["s"], [prompts[i].tolist()])
        wanted = alone.recommend(session, i + 1, exclude_seen=bool(i % 2))[0]
        assert ids_of(answer) == [data.catalog.ids[item] for item in wanted]


def test_a_stopped_server_answers_what_it_has_taken(popular, dataset_dir):
    words = ["--data", str(dataset_dir), "--recommenders", str(popular), "--port", "0", "--pause", "1.5"]
    server = subprocess.Popen(
        [sys.executable, "-m", "seqrec_prompt", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = server.stdout.readline()
        assert told, server.stderr.read()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", told)[1])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, port, {"session": ["item-1"]})
            time.sleep(0.5)  # of the 1.5 seconds that it waits for company
            assert not answer.done()
            server.send_signal(signal.SIGTERM)
            assert answer.result()[0] == 200
        assert server.wait(20) == 0
        assert server.stdout.read() == "stopped\n"
        with pytest.raises(OSError, match=r"refused"):
            ask(port, path="/health")
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing would answer: give 'recommenders', 'model', 'adapter'"),
        (["--recommenders", "{popular}", "--dtype", "float32"], "'dtype' is a setting of an LLM"),
        (["--recommenders", "{popular}", "{popular}"], "Two recommenders are called 'popular'"),
        (["--model", "{model}", "--template.name", "Rank"], "Rank puts candidates in order"),
        (["--recommenders", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_served_is_told(words, told, popular, tiny_model, dataset_dir, capsys):
    words = [word.format(popular=popular, model=tiny_model) for word in words]
    assert run("serve", ["--data", str(dataset_dir), "--port", "0", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_taken_port_and_a_missing_extra_are_told_before_anything_is_loaded(dataset_dir, monkeypatch):
    config = ServeConfig(data=dataset_dir, model="no such model", template=TemplateConfig())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Cannot listen on 127\.0\.0\.1, port {port}: .* Choose another --port"):
            serve(config.model_copy(update={"port": port}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"seqrec_prompt\[serve\]"):
        serve(config)
