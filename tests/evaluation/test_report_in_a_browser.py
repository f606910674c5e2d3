"""The report as a browser shows it: on a desk, on a phone, in the dark, and with titles that would do harm.

The browser opens a page of ours that holds the report in a frame of the wanted width, measures the frame and writes
what it found into itself; the report holds no script.
"""

import html
import json
import re
import shutil
import subprocess

import pytest
from test_report import HOSTILE, place  # noqa: F401

from seqrec_prompt.evaluation.report import ReportConfig, report

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed (looked for {', '.join(BROWSERS)})")

MEASURE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement, all = (what) => [...page.querySelectorAll(what)];
  all("details").forEach((one) => { one.open = true; });
  const luminance = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255);
    const [r, g, b] = parts.map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = (one) => frame.contentWindow.getComputedStyle(one);
  const paper = (one) => {
    while (one && style(one).backgroundColor === "rgba(0, 0, 0, 0)") one = one.parentElement;
    return luminance(style(one || page.body).backgroundColor);
  };
  const contrast = (one) => {
    const a = luminance(one.closest("svg") ? style(one).fill : style(one).color), b = paper(one);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const texts = all("p, li, td, th, small, sup, summary, dt, dd, h1, h2, h3, h4, figcaption, mark, svg text, .bar > *")
    .filter((one) => one.textContent.trim());
  const outside = all("svg.chart text").filter((one) => {
    const box = one.getBBox(), view = one.ownerSVGElement.viewBox.baseVal;
    return box.x < -1 || box.x + box.width > view.width + 1 || box.y < -1 || box.y + box.height > view.height + 1;
  });
  const table = all(".scroll")[0];
  table.scrollLeft = 1000;
  const found = {
    width: root.clientWidth,
    needed: root.scrollWidth,
    scripts: all("script, img").length,
    harmed: frame.contentWindow.harmed === true,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name),
    text: page.body.textContent,
    charts: all("svg.chart").length,
    outside: outside.map((one) => one.textContent),
    contrast: Math.min(...texts.map(contrast)),
    faintest: texts.reduce((a, b) => contrast(a) < contrast(b) ? a : b).outerHTML.slice(0, 200),
    letters: Math.min(...all("svg.chart").map((one) => 11 * one.clientWidth / one.viewBox.baseVal.width)),
    paper: luminance(style(page.body).backgroundColor),
    name_stays: all("tbody th")[0].getBoundingClientRect().left - table.getBoundingClientRect().left,
    scrolled: table.scrollLeft,
    marked: all("mark").length,
  };
  document.body.textContent = JSON.stringify(found);
};
frame.srcdoc = document.querySelector("template").content.textContent;
"""


@pytest.fixture(scope="module")
def text(place, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("shown") / "report"
    settings = {"evaluation": place / "evaluation", "out": out, "adapter": place / "adapter", "examples": 4}
    return report(ReportConfig.model_validate(settings)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(text, tmp_path_factory):
    """Measurements by (width, dark)."""
    kept: dict[tuple[int, bool], dict] = {}

    def measure(width: int, dark: bool = False) -> dict:
        if (width, dark) not in kept:
            folder = tmp_path_factory.mktemp("browser")
            frame = f'<iframe style="border: 0; width: {width}px; height: 900px"></iframe>'
            (folder / "page.html").write_text(
                f"<!doctype html><meta charset=utf-8><body>{frame}<template>{html.escape(text)}</template>"
                f"<script>{MEASURE}</script>",
                encoding="utf-8",
            )
            command = [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                "--window-size=1400,1000", "--virtual-time-budget=10000", "--dump-dom", (folder / "page.html").as_uri(),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            found = re.search(r"<body>(\{.*\})</body>", done.stdout, re.DOTALL)
            assert found, f"the browser measured nothing: {done.stdout[-300:]} {done.stderr[-800:]}"
            kept[width, dark] = json.loads(html.unescape(found[1]))
        return kept[width, dark]

    return measure


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_fits_its_width_and_nothing_is_cut_off(shown, width):
    found = shown(width)
    assert found["width"] >= width - 20  # a scroll bar may take some
    assert found["needed"] <= found["width"]
    assert found["charts"] == 7
    assert found["outside"] == []
    assert found["letters"] >= 8
    assert found["name_stays"] == pytest.approx(0, abs=1)


def test_a_table_too_wide_for_a_phone_scrolls_by_itself(shown):
    assert shown(390)["scrolled"] > 0
    assert shown(1280)["scrolled"] == 0


def test_hostile_titles_are_text(shown):
    found = shown(1280)
    assert HOSTILE in found["text"]
    assert (found["scripts"], found["harmed"]) == (0, False)
    assert found["requests"] == []
    assert found["marked"] > 0


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read_in_the_light_and_in_the_dark(shown, dark):
    found = shown(1280, dark)
    assert (found["paper"] < 0.1) == dark
    # WCAG 2.2, level AA, for text of any size.
    assert found["contrast"] >= 4.5, found["faintest"]
