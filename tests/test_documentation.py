"""Every command of the README and of docs/ runs, as it stands there, on a small table with a tiny model."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from seqrec_prompt import cli, quickstart
from seqrec_prompt.cli import main
from seqrec_prompt.config import flags_of
from seqrec_prompt.console import SWITCHES
from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.verbs import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STAYING = ("serve", "demo")  # verbs that run until they are stopped
# What makes a command short enough for a test: the last of two equal flags counts.
SHORTER = {
    "finetune": "--max-steps 2 --batch-size 2",
    "prefer": "--max-steps 2 --batch-size 2",
    "fit": "--similarity.reduce.dimensions 4",
    "quickstart": "--max-steps 2 --max-sessions 4",
}


def commands_of(page):
    """Command lines in fences, and those in running text that have a flag; continued lines are joined."""
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    running = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", running)]
    # A command that continues the one before is written without its first words: `prefer --adapter … --out …`.
    short = rf"({'|'.join(VERBS)}) --.* --out "
    spans = [f"seqrec-prompt {span}" if re.match(short, span) else span for span in spans]
    spans = [span for span in spans if re.match(r"(seqrec-prompt|accelerate|pip|make|python) ", span)]
    return [shlex.split(line, comments=True) for line in [*lines, *spans] if line.strip() and "…" not in line]


def verb_of(words):
    return next((verb for verb in VERBS if words[1 : 1 + len(verb.split())] == verb.split()), None)


COMMANDS = {page: commands_of(page) for page in PAGES}


@pytest.fixture(scope="module")
def small_table(tmp_path_factory):
    """events.csv and items.csv as the pages name them, and answers.csv of sessions that test."""
    place = tmp_path_factory.mktemp("table")
    draw = np.random.default_rng(0)
    rows = ["user_id,item_id,timestamp"]
    for user in range(60):
        start, when = int(draw.integers(20)), 1_700_000_000 + 1000 * user
        rows += [f"u{user},i{(start + step) % 20},{when + step}" for step in range(int(draw.integers(3, 7)))]
    (place / "events.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    titles = [f"i{item},Hand Cream No {item}" for item in range(20)]
    (place / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n", encoding="utf-8")
    answers = [f"u{user},Hand Cream No {user % 20}" for user in range(54, 60)]
    (place / "answers.csv").write_text("\n".join(["session_id,text", *answers]) + "\n", encoding="utf-8")
    prices = "date: 2026-01-01\nsource: here\nmodels: {MODEL: {training: 1}, ft:MODEL: {input: 1, output: 1}}\n"
    (place / "prices.yaml").write_text(prices, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def run_page(small_table, tiny_model, tmp_path_factory):
    """Run the commands of one page in a directory of its own, from what the README's commands have left there."""

    def run(page, directory):
        ran = []
        for words in COMMANDS[page]:
            if words[0] != "seqrec-prompt" or (len(words) == 2 and verb_of(words) != "quickstart"):
                continue
            verb = verb_of(words)
            assert verb, f"{page.name}: {shlex.join(words)}: no such verb"
            own = words[1 + len(verb.split()) :]
            known = flags_of(getattr(importlib.import_module(VERBS[verb].module), VERBS[verb].config))
            if verb == "reproduce":  # tests/reproduction has raw files; here the settings are read
                own += ["--dry-run"]
            if verb.startswith("hosted "):  # tests/hosted has a service to talk to; here the settings are read
                own += ["--dry-run"]
                _stand_in_for_the_service(directory)
            if verb in STAYING:  # tests/serving asks it; here the settings are read
                own += ["--dry-run"]
            own += ["--dry-run"] if {"vllm", "openai"} & set(own) else []  # tests/on_vllm and tests/hosted have it
            if "--data" not in own and "--config" not in own and "--data" in known:
                own += ["--data", "runs/data"]
            if (
                not verb.startswith("hosted ")
                and "--model" in known
                and "--config" not in own
                and "--recommender" not in own
            ):
                own += ["--model", str(tiny_model)]
            own += SHORTER.get(verb, "").split() if "llm-seq-sim" in own or verb != "fit" else []
            own += ["--template.clusters", "4"] if "Classify" in own else []
            code = main([*verb.split(), *own])
            # What a service would have made, or raw files, are not there: a dry run says so.
            missing = [cli.EXIT_ERROR] if verb.startswith(("hosted ", "reproduce")) else []
            assert code in (cli.EXIT_OK, *missing), shlex.join(words)
            ran.append(verb)
        return ran

    return run


def _stand_in_for_the_service(directory):
    """Answers where `hosted generate` would put them, for the command that grounds them."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.csv.read_csv(directory / "answers.csv"), directory / "runs" / "answers.parquet")


@pytest.fixture(scope="module")
def after_readme(run_page, small_table, tmp_path_factory):
    """The directory in which the README's commands have run."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(small_table, place, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(quickstart, "SAMPLE", _sample_like(place))
        ran = run_page(PAGES[0], place)
    assert {"prepare", "finetune", "recommend", "evaluate", "report"} <= set(ran)
    return place


def test_the_commands_of_the_readme_run_in_their_order(after_readme):
    assert (after_readme / "runs" / "evaluation" / "table.md").exists()
    assert len(Dataset.load(after_readme / "runs" / "data").catalog) == 20


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, after_readme, small_table, run_page, tmp_path, monkeypatch, tiny_model):
    verbs = {verb_of(words) for words in COMMANDS[page] if words[0] == "seqrec-prompt"}
    begins_anew = verbs & {"init", "prepare", "quickstart"}
    shutil.copytree(small_table if begins_anew else after_readme, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "SAMPLE", _sample_like(tmp_path))
    ran = run_page(page, tmp_path)
    if page.stem == "recipes":
        assert {"embed", "fit", "ground", "pairs", "prefer", "hosted finetune", "hosted generate"} <= set(ran)


def _sample_like(place):
    """The small table under the names and columns of the bundled sample."""
    import gzip

    sample = place / "sample"
    sample.mkdir(exist_ok=True)
    events = (place / "events.csv").read_text(encoding="utf-8").replace("user_id", "session_id", 1)
    for name, text in (("interactions", events), ("items", (place / "items.csv").read_text(encoding="utf-8"))):
        (sample / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return sample


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_a_test_cannot_run_name_what_is_there(page):
    """Installing and launching: each word that stands for something of this repository must be there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in COMMANDS[page]:
        line = shlex.join(words)
        for extra in re.findall(r"\[([\w-]+)\]", line) if words[0] == "pip" else ():
            assert extra in extras, line
        if words[0] == "make":
            assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), line
        for word in words:
            if word.startswith(("recipes/", "eval/")):
                assert (ROOT / word).exists(), line
        known = ("seqrec-prompt", "pip", "make", "accelerate", "python", "eval", "curl", "vllm", "cp", "hf")
        assert words[0] in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_in_running_text_exist(page):
    known = {"--config", "--no-deps", "--quiet", *SWITCHES}
    known |= {"--config_file", "--num_processes"}  # of `accelerate launch`
    known |= {"--workers", "--gpus"}  # of recipes/recommend_distributed.py
    known |= {"--page", "--add"}  # of eval/reproduce_recsys23.py
    known |= {"--enable-lora", "--lora-modules", "--api-key"}  # of vLLM
    for entry in VERBS.values():
        known |= set(flags_of(getattr(importlib.import_module(entry.module), entry.config)))
    shown = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z]", page.read_text(encoding="utf-8")))
    assert shown - known == set()


def test_pages_link_to_what_is_there():
    made = {"commands.md", "api.md", "contributing.md", "changelog.md"}
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target or target in made:
                continue
            place = ROOT / "eval" / target if target.startswith("results/") else page.parent / target
            assert place.exists(), f"{page.name} links to {target}"


def test_the_navigation_names_every_page():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = set(re.findall(r"[\w/-]+\.md", json.dumps(nav)))
    assert {page.name for page in PAGES[1:]} <= named


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], citation["version"], citation["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )


def test_quickstart_runs_what_make_quickstart_runs(tmp_path):
    """Two doors, one recipe: the Makefile's commands have the settings that the verb gives, in the same order."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    listing = subprocess.run(
        ["make", "-n", "quickstart", "RUN=run"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    printed = [shlex.split(line) for line in listing.splitlines() if "seqrec-prompt" in line or "recipes/" in line]
    config = quickstart.QuickstartConfig(out=Path("run"))
    for words, step in zip(printed, config.steps(), strict=True):
        settings = step.settings
        assert step.verb in words or f"recipes/{step.verb}.py" in words
        assert words[words.index("--out") + 1] == str(settings["out"])
        if "--adapter" in words:
            assert words[words.index("--adapter") + 1] == str(settings["adapter"])
        assert ("--adapter" in words) == ("adapter" in settings)
