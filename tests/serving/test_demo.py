"""`demo` in a real browser: search, build a session, compare lists; hostile titles; no other host; narrow and wide."""

import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import BROWSER, BROWSERS, Browser
from running import running

from seqrec_prompt.artifacts import hash_json, manifest
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.fit import FitConfig, fit
from seqrec_prompt.serving.demo import DemoConfig, demo
from seqrec_prompt.serving.page import Lists, build_page
from seqrec_prompt.serving.ready import load_ready
from seqrec_prompt.serving.why import Nearness

HOSTILE = [
    '<img src=x onerror="window.harmed=1"><script>window.harmed=2</script>',
    "${window.harmed=3} {{window.harmed=4}} </li></ol><b id=broken>",
    "[a](javascript:window.harmed=5) **bold** _x_",
]


class FromNothing:
    """Answers every session, also an empty one, with one item."""

    def answer(self, questions):
        one = np.array([4], np.int32)
        return [Recommendations.build(np.array(["s"], object), [one], [np.array([2.0])]) for _ in questions]


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser is installed (looked for {', '.join(BROWSERS)})"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model):
    """A directory with data whose titles would do harm, two fitted recommenders, and what loads them."""
    root = tmp_path_factory.mktemp("demo")
    titles = [f"Hand cream No {i}" for i in range(20)] + [f"{text} soap" for text in HOSTILE]
    draw = np.random.default_rng(0)
    lists = [((draw.integers(23) + np.arange(5)) % 23).tolist() for _ in range(60)]
    sessions = Sessions.build([f"s{i}" for i in range(60)], lists)
    split = Split(sessions.take(np.arange(50)), Holdout.of_last_items(sessions.take(np.arange(50, 60))))
    (root / "data").mkdir()
    made = manifest("prepare", {}, {}, {"hash": hash_json("demo")})
    Dataset(Catalog([f"i{i}" for i in range(23)], titles), split, made).save(root / "data")
    for name in ("transition-counts", "v-sknn"):
        fit(FitConfig(data=root / "data", recommender=name, out=root / name))
    return root


@pytest.fixture(scope="module")
def data(place):
    return Dataset.load(place / "data")


@pytest.fixture(scope="module")
def config(place, tiny_model):
    return DemoConfig(
        data=place / "data", recommenders=(place / "transition-counts", place / "v-sknn"), model=str(tiny_model)
    )


@pytest.fixture(scope="module")
def reached(monkeypatch_module):
    """Names of hosts that this process looked up."""
    names, real = [], socket.getaddrinfo

    def look_up(host, *rest, **named):
        names.append(host)
        return real(host, *rest, **named)

    monkeypatch_module.setattr(socket, "getaddrinfo", look_up)
    return names


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def shown(place, data, config, reached, tmp_path_factory):
    """A browser with the page open."""
    with running(build_page(load_ready(config, data), data), wait=False) as port:
        browser = Browser(tmp_path_factory.mktemp("profile"))
        try:
            browser.open(f"http://127.0.0.1:{port}")
            browser.until("!!document.querySelector('#search textarea, #search input')")
            yield browser
        finally:
            browser.close()


def search(browser, words):
    browser.evaluate(
        "(() => { const box = document.querySelector('#search textarea, #search input');"
        f"box.value = {json.dumps(words)}; box.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


def press(browser, name):
    # The element that is named is the button itself, or holds it.
    button = f"(document.querySelector('button#{name}') || document.querySelector('#{name} button'))"
    browser.until(f"!!{button}")  # the page is drawn part after part
    browser.evaluate(f"{button}.click()")


LABELS = "[...document.querySelectorAll('#matches label')].map((one) => one.innerText.trim())"
SESSION = "[...document.querySelectorAll('.session li')].map((one) => one.innerText)"
LISTED = (
    "[...document.querySelectorAll('.lists section')].map((one) => "
    "[one.querySelector('h3').innerText, [...one.querySelectorAll('li')].map((row) => row.innerText)])"
)


def choose(browser, title):
    before = browser.evaluate(SESSION)
    search(browser, title)
    browser.until(f"{LABELS}.some((label) => label.startsWith({json.dumps(title)}))")
    browser.evaluate(
        "[...document.querySelectorAll('#matches label')].find((one) => "
        f"one.innerText.trim().startsWith({json.dumps(title)})).querySelector('input').click()"
    )
    browser.until(f"{SESSION}.length === {len(before) + 1}")


@needs_browser
def test_a_page_without_a_session_says_what_it_is_for(shown):
    told = shown.until("document.querySelector('.start')?.innerText")
    assert told.startswith("What comes next?")
    assert "23 items, 50 sessions to learn from" in told
    assert told.endswith("what each recommends: llm, transition-counts, v-sknn.")


@needs_browser
def test_a_session_is_built_by_searching_and_answered_by_all(shown, data, config):
    press(shown, "clear")
    shown.until(f"{SESSION}.length === 0")
    choose(shown, "Hand cream No 3 ")
    choose(shown, "Hand cream No 4 ")
    shown.until(f"{LISTED}.length === 3")
    assert shown.evaluate(SESSION) == ["Hand cream No 4", "Hand cream No 3"]  # latest first
    lists = dict(shown.until(f"(() => {{ const all = {LISTED}; return all[1][1].length > 5 && all; }})()"))
    assert list(lists) == ["llm", "transition-counts", "v-sknn"]
    following, how = lists["transition-counts"][0].split("\n")
    assert following == "Hand cream No 5"
    assert "near Hand cream No " in how
    assert any("in the session; near" in row for row in lists["v-sknn"])
    ready = load_ready(config, data)
    with_proof = shown.evaluate("[...document.querySelectorAll('.proof')].map((one) => one.innerText)")
    assert with_proof == ["certified: exactly its best"] * 3
    from seqrec_prompt.serving.ready import Question

    for name, rows in lists.items():
        (wanted,) = ready[name].answer([Question(np.array([3, 4], np.int32), 10)])
        assert [row.split("\n")[0] for row in rows] == [data.catalog.titles[item] for item in wanted.items]
        scores = [float(row.split("\n")[1].split(",")[0]) for row in rows]
        np.testing.assert_allclose(scores, wanted.scores, atol=6e-4)
        assert all(f", {how}; " in row and "near " in row for row, how in zip(rows, wanted.provenances, strict=True))
    press(shown, "undo")
    shown.until(f"{SESSION}.length === 1")


@needs_browser
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_titles_are_text_wherever_they_stand(number, shown):
    press(shown, "clear")
    shown.until(f"{SESSION}.length === 0")
    choose(shown, f"{HOSTILE[number]} soap")
    shown.until(f"{LISTED}.length === 3 && {LISTED}[1][1].length > 0")
    assert shown.evaluate(SESSION) == [f"{HOSTILE[number]} soap"]
    assert shown.evaluate("window.harmed") is None
    assert (
        shown.evaluate("document.querySelectorAll('#broken, .lists img, .lists script, .lists a, #matches a').length")
        == 0
    )


@needs_browser
def test_an_example_fills_the_session(shown, data):
    press(shown, "clear")
    shown.until(f"{SESSION}.length === 0")
    press(shown, "example")
    found = shown.until(f"(() => {{ const all = {SESSION}; return all.length === 4 && all; }})()")
    prompts = [[data.catalog.titles[item] for item in prompt] for prompt in data.split.test.prompts]
    assert found[::-1] in prompts


@needs_browser
def test_a_long_session_does_not_push_the_lists_off_a_phone(shown, data):
    lists = Lists({}, data, Nearness(data.split.train, 23))
    shown.call("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=False)
    long = lists.session([i % 23 for i in range(120)])
    height, first = shown.evaluate(
        "(() => { const own = document.querySelector('.session'), long = document.createElement('div');"
        f"long.innerHTML = {json.dumps(long)}; own.after(long);"
        "const told = [long.offsetHeight, long.querySelector('li').innerText]; long.remove(); return told; })()"
    )
    assert 100 < height < 350
    assert first == data.catalog.titles[119 % 23]


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_desk_and_a_phone(width, shown, tmp_path):
    shown.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    press(shown, "clear")
    shown.until(f"{SESSION}.length === 0")
    press(shown, "example")
    shown.until(f"{SESSION}.length > 0 && {LISTED}.length === 3 && {LISTED}[0][1].length > 0")
    boxes = shown.evaluate(
        "[...document.querySelectorAll('.lists section')].map((one) => one.getBoundingClientRect().toJSON())"
    )
    assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    side_by_side = len({box["top"] for box in boxes}) < len(boxes)
    assert side_by_side == (width == 1280)
    kept = os.environ.get("SEQREC_PICTURES")  # to look at: SEQREC_PICTURES=DIR pytest tests/serving/test_demo.py
    file = Path(kept or tmp_path) / f"demo-{width}.png"
    shown.picture(file)
    assert file.stat().st_size > 10_000


@needs_browser
def test_nobody_else_is_asked_for_anything(shown, reached):
    hosts = {urlsplit(url).hostname for url in shown.asked if not url.startswith(("data:", "blob:", "about:"))}
    assert hosts == {"127.0.0.1"}
    assert shown.problems == []
    assert {str(name) for name in reached} <= {"127.0.0.1", "localhost"}


def test_a_search_wants_every_word_and_shows_the_popular_first(data, config):
    lists = Lists({}, data, Nearness(data.split.train, 23))
    assert lists.matches("  ") == []
    assert [label for label, _ in lists.matches("CREAM 12")] == ["Hand cream No 12  (i12)"]
    found = [int(value) for _, value in lists.matches("cream")]
    assert len(found) == 12
    assert list(data.popularity[found]) == sorted(data.popularity[:20], reverse=True)[:12]


def test_an_item_stands_to_no_session_that_is_empty(data):
    lists = Lists({"one": FromNothing()}, data, Nearness(data.split.train, 23))
    assert "<small>2.000, exact</small>" in lists.lists([], 3, exclude_seen=False)
    assert "<small>2.000, exact; in the session; near " in lists.lists([4, 5], 3, exclude_seen=False)


def test_nearness_is_the_cosine_of_sessions_or_of_vectors():
    train = Sessions.build(["a", "b", "c"], [[0, 1, 1], [0, 1, 2], [0]])
    by_sessions = Nearness(train, 4)
    # 0 stands in three sessions, 1 in two, 2 in one, 3 in none; 0 and 1 meet twice, 2 meets each once.
    assert by_sessions.nearest(2, np.array([0, 1, 3])) == [
        (1, pytest.approx(1 / np.sqrt(2))),
        (0, pytest.approx(1 / np.sqrt(3))),
    ]
    assert by_sessions.nearest(1, np.array([0, 1]), n=1) == [(0, pytest.approx(2 / np.sqrt(6)))]
    assert by_sessions.nearest(3, np.array([0, 1])) == []
    assert by_sessions.nearest(0, np.empty(0, np.int32)) == []
    vectors = np.array([[1, 0], [3, 3], [0, 0], [-1, 0]], np.float32)
    by_vectors = Nearness(train, 4, vectors)
    assert by_vectors.nearest(0, np.array([1, 2, 3])) == [(1, pytest.approx(1 / np.sqrt(2)))]


def test_a_missing_extra_is_told(config, monkeypatch):
    from seqrec_prompt.errors import MissingExtraError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"seqrec_prompt\[demo\]"):
        demo(config)
