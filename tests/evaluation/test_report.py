"""`report` end to end, on hostile titles and names, and everything it refuses."""

import csv
import io
import itertools
import json
import re
import shutil
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from seqrec_prompt.artifacts import hash_file, manifest, write_json
from seqrec_prompt.cli import run
from seqrec_prompt.data.catalog import Catalog
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.data.sessions import Holdout, Sessions, Split
from seqrec_prompt.errors import ArtifactError, ConfigError
from seqrec_prompt.evaluation import charts, page, tables
from seqrec_prompt.evaluation.evaluate import EvaluateConfig, evaluate
from seqrec_prompt.evaluation.examples import spread, worst_misses
from seqrec_prompt.evaluation.report import OUTPUTS, ReportConfig, report
from seqrec_prompt.locks import lock
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.recommenders.files import write

HOSTILE = '<script>window.harmed = true</script><img src=x onerror="window.harmed = true"> & "quoted"'
N_ITEMS = 30


def dataset() -> Dataset:
    draw = np.random.default_rng(0)
    titles = [f"Title number {i}" for i in range(N_ITEMS)]
    titles[3], titles[4], titles[5] = HOSTILE, "", "A very long title " * 30
    catalog = Catalog(
        [f"i{i}" for i in range(N_ITEMS)], titles, {"kind": [HOSTILE if i % 3 else "plain" for i in range(N_ITEMS)]}
    )
    weights = 1 / np.arange(1, N_ITEMS + 1)

    def sessions(name: str, n: int) -> Sessions:
        items = [draw.choice(N_ITEMS, draw.integers(2, 9), p=weights / weights.sum()) for _ in range(n)]
        return Sessions.build([f"{name}{i}" for i in range(n)], items)

    split = Split(sessions("a", 60), Holdout.of_last_items(sessions("</script><b>", 40)))
    return Dataset(catalog, split, manifest("prepare", {}, {}, {"hash": "h", "interactions": 500}))


def save_lists(path: Path, data: Dataset, skill: float, seed: int, **config: object) -> Path:
    """Lists that hold the target with probability `skill`; one of them is empty."""
    draw = np.random.default_rng(seed)
    lists = []
    for target in data.split.test.targets:
        items = draw.permutation(N_ITEMS)[:12]
        if draw.random() < skill and target not in items:
            items[draw.integers(0, 5)] = target
        lists.append(items.astype(np.int32))
    lists[7] = lists[7][:0]
    scores = [np.arange(len(items), 0, -1.0) for items in lists]
    made = Recommendations.build(data.split.test.prompts.ids, lists, scores, "constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = {"data": data.hash, "adapter": "not there"}
    write(path, [made], data.catalog, manifest("recommend", {"model": "m", "prior_weight": 0.0, **config}, inputs))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with data, three recommendation files and their evaluation."""
    root = tmp_path_factory.mktemp("report")
    made = dataset()
    (root / "data").mkdir()
    made.save(root / "data")
    files = [
        save_lists(root / "good.parquet", made, 0.9, 1),
        save_lists(root / "novel.parquet", made, 0.6, 2, prior_weight=0.5),
        save_lists(root / "<b onclick='harm()'>|_&.parquet", made, 0.3, 3, prior_weight=1.0),
    ]
    settings = {"data": root / "data", "recommendations": files, "out": root / "evaluation", "category": "kind"}
    evaluate(EvaluateConfig.model_validate(settings))
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    facts = {"steps": 40, "seconds": 12.5, "loss": [9.0, 4.5], "hardware": "CPU, 1 core", "examples": 60}
    config = {"model": "m", "method": "lora", "objective": "catalog", "template": {"instruction": HOSTILE}, "seed": 3}
    inputs = {"data": made.hash, "catalog": made.catalog.hash, "template": "t", "model": "base"}
    write_json(adapter / "manifest.json", manifest("finetune", config, inputs, facts))
    log = [{"loss": 9.0 - step / 10, "step": step} for step in range(1, 41)]
    write_json(adapter / "log.json", [*log, {"eval_ndcg@10": 0.1, "step": 20}, {"eval_ndcg@10": 0.2, "step": 40}])
    return root


@pytest.fixture
def config(place, tmp_path):
    def make(**settings: object) -> ReportConfig:
        return ReportConfig.model_validate({"evaluation": place / "evaluation", "out": tmp_path / "report", **settings})

    return make


class Page(HTMLParser):
    """Tags and attributes of a page, its visible text, and whether every tag is closed in order."""

    VOID = ("meta", "br", "img", "line", "circle", "polygon", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.text += data


def test_the_page_is_whole_and_asks_for_nothing_from_outside(config, place):
    found = report(config(adapter=place / "adapter"))
    text = found.read_text(encoding="utf-8")
    shown = Page(text)
    assert shown.open == []
    assert not {tag for tag, _ in shown.tags} & {"script", "link", "img", "iframe", "object", "b onclick"}
    attributes = {name for _, given in shown.tags for name in given}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"src", "href"})
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert sorted(file.name for file in found.parent.iterdir()) == sorted(OUTPUTS)


def test_no_two_write_one_report(config):
    with lock(config().out), pytest.raises(ArtifactError, match="is being written by another process"):
        report(config())


def test_the_page_says_what_was_measured(config, place):
    text = Page(report(config()).read_text(encoding="utf-8")).text
    result = json.loads((place / "evaluation" / "metrics.json").read_text())
    for row in result["recommenders"]:
        assert row["name"] in text
        for at in ("@10", "@20"):
            assert f"{row['metrics'][at]['ndcg']:.4f}" in text
            assert tables.interval(row, at, "coverage") in text
    assert all(note in text for note in result["notes"])
    for part in result["segments"]:
        assert f"{part['sessions']:,} sessions" in text
    assert HOSTILE in text  # written out, as text


def test_hits_are_marked_where_they_are(config, place):
    made = dataset()
    text = report(config(recommender="good", examples=40)).read_text(encoding="utf-8")
    articles = re.findall(r"<article>.*?</article>", text, re.DOTALL)
    assert len(articles) == 80  # every session as it comes, and once more as a hit or a miss
    for article in articles:
        rank = re.search(r"Hit at place (\d+)\.", article)
        entries = re.findall(r"<li>(.*?)</li>", article.split("Recommended</p>")[1], re.DOTALL)
        marked = [i for i, entry in enumerate(entries, start=1) if "✓ hit" in entry]
        assert marked == ([int(rank[1])] if rank and int(rank[1]) <= page.LIST else [])
    assert sum("<p>nothing</p>" in article for article in articles) == 2
    assert len(made.split.test) == 40


def test_training_and_card(config, place):
    made = dataset()
    out = report(config(adapter=place / "adapter", license="CC-BY-4.0")).parent
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "40 steps in 12 s on CPU, 1 core" in text
    assert "loss (nats an item)" in text
    assert "NDCG@10 over steps" in text
    card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert (head["base_model"], head["license"], head["library_name"]) == ("m", "CC-BY-4.0", "peft")
    identity = hash_file(place / "adapter" / "adapter_model.safetensors")
    for part in (
        made.hash,
        made.catalog.hash,
        identity,
        "9.000 → 4.500",
        "Evaluated on the test part of the same data",
    ):
        assert part in card
    assert "No row of this evaluation is this adapter's." in card


def test_the_card_knows_its_rows_by_the_adapters_weights(place, tmp_path):
    made, adapter = dataset(), place / "adapter"
    path = tmp_path / "mine.parquet"
    lists = Recommendations.build(
        made.split.test.prompts.ids, [np.array([1], np.int32)] * 40, [np.ones(1)] * 40, "constrained"
    )
    inputs = {"data": made.hash, "adapter": hash_file(adapter / "adapter_model.safetensors")}
    write(path, [lists], made.catalog, manifest("recommend", {"adapter": str(adapter)}, inputs))
    settings = {"data": place / "data", "recommendations": [path], "out": tmp_path / "e", "baselines": False}
    evaluate(EvaluateConfig.model_validate(settings))
    found = report(ReportConfig.model_validate({"evaluation": tmp_path / "e", "out": tmp_path / "r"}))
    # The row's own adapter, unasked; and one row alone has nothing to be compared with.
    assert "Rows of this adapter: mine." in (found.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Every pair" not in found.read_text(encoding="utf-8")


def test_latex_and_csv_hold_the_values(config, place):
    out = report(config()).parent
    result = json.loads((place / "evaluation" / "metrics.json").read_text())
    latex = (out / "table.tex").read_text(encoding="utf-8")
    rows = [line.split("&") for line in latex.splitlines() if line.endswith(r"\\")]
    assert {len(re.sub(r"\\&", "", "&".join(row)).split("&")) for row in rows} == {7}
    assert r"<b onclick='harm()'>|\_\&" in latex
    best = max(row["metrics"]["@10"]["ndcg"] for row in result["recommenders"])
    assert rf"\textbf{{{best:.4f}}}" in latex
    found = list(csv.DictReader(io.StringIO((out / "table.csv").read_text(encoding="utf-8"))))
    for row, line in zip(result["recommenders"], found, strict=True):
        assert float(line["mrr@20"]) == row["metrics"]["@20"]["mrr"]
        assert float(line["mrr@20_high"]) == row["intervals"]["@20"]["mrr"][1]
    markdown = (out / "table.md").read_text(encoding="utf-8")
    lines = [re.split(r"(?<!\\)\|", line) for line in markdown.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {9, 10}  # with and without the column of letters


def test_marks_name_the_rows_that_are_lower(place):
    result = json.loads((place / "evaluation" / "metrics.json").read_text())
    marks = tables.higher_than(result, "@10", "ndcg")
    letter = tables.letters(result)
    for pair in result["pairs"]:
        found = pair["@10"]["ndcg"]
        higher, lower = (pair["first"], pair["second"])[:: 1 if found["difference"] > 0 else -1]
        assert (letter[lower] in marks[higher]) == (found["randomisation_holm"] < 0.05)
        assert letter[higher] not in marks[lower]
    assert any(marks.values())


def test_more_rows_than_letters_have_none():
    few, many = ({"recommenders": [{"name": str(i)} for i in range(n)]} for n in (44, 45))
    letters = tables.letters(few)
    assert len(set(letters.values())) == 44
    shown = "".join(letters.values()).translate(tables.SUPERSCRIPT)
    assert len(set(shown)) == 44
    assert unicodedata.normalize("NFKC", shown) == "".join(letters.values())  # each is its letter, raised
    assert tables.letters(many) == {}


def test_lower_rows_are_told_without_letters_too():
    names = [str(i) for i in range(45)]
    config = {"statistics": {"confidence": 0.95}}
    compared = [("7", "3", 0.2, 0.01), ("0", "7", -0.1, 0.04), ("2", "7", -0.1, 0.06), ("44", "7", 0.3, 0.0)]
    pairs = [
        {"first": one, "second": two, "@10": {"ndcg": {"difference": apart, "randomisation_holm": p}}}
        for one, two, apart, p in compared
    ]
    result = {"recommenders": [{"name": name} for name in names], "config": config, "pairs": pairs}
    assert {row: lower for row, lower in tables.lower_rows(result, "@10", "ndcg").items() if lower} == {
        "7": ["0", "3"],
        "44": ["7"],
    }
    assert not any(tables.lower_rows(result, "@10", "coverage").values())
    assert not any(tables.higher_than(result, "@10", "ndcg").values())


def test_worst_misses_are_those_that_others_found():
    ranks = np.array([0, 0, 0, 0, 3, 0])
    others = {"x": np.array([0, 9, 2, 0, 1, 0]), "y": np.array([0, 1, 4, 0, 1, 0])}
    counts = np.array([5, 1, 1, 8, 9, 0])
    # Sessions 1 and 2 were found twice, at best at 1 and at 2; of the others, train has 3's target most often.
    assert worst_misses(ranks, others, counts, 4) == [1, 2, 3, 0]
    assert worst_misses(ranks, {}, counts, 2) == [3, 0]
    assert worst_misses(np.array([1]), {}, np.array([1]), 2) == []


def test_spread_covers_both_ends():
    assert spread(np.arange(10, 21), 3) == [10, 15, 20]
    assert spread(np.arange(2), 5) == [0, 1]
    assert spread(np.arange(0), 5) == []


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0.0431), (0, 1), (7.2, 11.9), (3.0, 3.0), (0, 0), (-2.5, 40), (1e-7, 2e-6)]
)
def test_ticks_enclose_the_values_in_equal_steps(low, high):
    ticks = charts._ticks(low, high)
    steps = np.diff(ticks)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 7
    assert steps == pytest.approx(np.full(len(steps), steps[0]))


def test_labels_of_near_marks_stand_apart():
    style = charts.Style("c0", "circle")
    near = [charts.Mark(0.5 + dx, 0.5 + dy, style, "t", "label") for dx, dy in ((0, 0), (0.02, 0), (0, 0.02), (0.5, 0))]
    svg = charts.scatter(near, [], "x", "y", "d")
    places = re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)" class="point"', svg)
    boxes = [(float(x), float(y) - 9, 6.5 * 5, 11) for x, y in places]
    assert len(boxes) == 4
    for (x, y, width, height), (other_x, other_y, *_) in itertools.combinations(boxes, 2):
        assert abs(x - other_x) >= width - 1e-6 or abs(y - other_y) >= height - 1e-6
    assert all(x >= 0 and x + width <= charts.WIDTH for x, _, width, _ in boxes)


def test_the_curve_of_the_prior_joins_runs_that_differ_in_nothing_else(place):
    result = json.loads((place / "evaluation" / "metrics.json").read_text())
    assert page._prior_curves(result) == [["good", "novel", "<b onclick='harm()'>|_&"]]
    result["recommenders"][1]["made_by"]["model"] = "another"
    assert page._prior_curves(result) == [["good", "<b onclick='harm()'>|_&"]]
    result["recommenders"][0]["made_from"]["template"] = "another"
    assert page._prior_curves(result) == []


def test_what_is_gone_or_has_changed_is_told(place, config, tmp_path):
    moved = place / "good.parquet"
    kept = moved.read_bytes()
    try:
        moved.unlink()
        with pytest.raises(ArtifactError, match=r"good\.parquet: no such file, but .*--examples 0"):
            report(config(recommender="good"))
        moved.write_bytes(kept + b" ")
        with pytest.raises(ArtifactError, match=r"good\.parquet has changed since"):
            report(config(recommender="good"))
        assert not (tmp_path / "report").exists()
        report(config(recommender="good", examples=0))
    finally:
        moved.write_bytes(kept)


def test_unknown_recommenders_and_places_that_are_not_ours(config, place, tmp_path):
    with pytest.raises(ConfigError, match=r"has no file 'best' \(it has: good, novel, "):
        report(config(recommender="best"))
    with pytest.raises(ArtifactError, match="was not made by 'seqrec-prompt evaluate'"):
        report(config(evaluation=place / "data"))
    with pytest.raises(ArtifactError, match="is not a directory that report made"):
        report(config(out=place / "evaluation", overwrite=True))
    report(config())
    with pytest.raises(ArtifactError, match=r"config\.title: was"):
        report(config(title="Another"))
    assert "<h1>Another</h1>" in report(config(title="Another", overwrite=True)).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"), [("{", "missing or damaged"), ('{"recommenders": []}', "older version")]
)
def test_a_damaged_or_old_evaluation_is_told(place, tmp_path, damage, message):
    shutil.copytree(place / "evaluation", tmp_path / "e")
    (tmp_path / "e" / "metrics.json").write_text(damage)
    with pytest.raises(ArtifactError, match=message):
        report(ReportConfig.model_validate({"evaluation": tmp_path / "e", "out": tmp_path / "r"}))
    assert not (tmp_path / "r").exists()


def test_from_the_command_line(place, tmp_path, capsys):
    arguments = ["--evaluation", str(place / "evaluation"), "--out", str(tmp_path / "r")]
    assert run("report", arguments) == 0
    assert str(tmp_path / "r" / "report.html") in capsys.readouterr().out
