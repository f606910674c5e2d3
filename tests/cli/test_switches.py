"""--dry-run, --quiet and --json mean the same with every verb; progress says little where nobody watches."""

import importlib
import json
import logging
import re
import subprocess
import sys

import pytest
import yaml

from seqrec_prompt import cli, console
from seqrec_prompt.cli import main
from seqrec_prompt.config import _walk, as_yaml, load
from seqrec_prompt.console import SWITCHES, Switches, progress, speaking, take_switches
from seqrec_prompt.verbs import VERBS

FIT = ["fit", "--recommender", "most-popular"]


def config_class(verb):
    return getattr(importlib.import_module(VERBS[verb].module), VERBS[verb].config)


def words_of_example(verb):
    words = VERBS[verb].example.replace("\\\n", " ").split()
    return words[1 + len(verb.split()) :]


@pytest.mark.parametrize("verb", VERBS)
def test_no_setting_is_named_like_a_switch(verb):
    assert not {f"--{name.replace('_', '-')}" for name, _ in _walk(config_class(verb))} & set(SWITCHES)


def test_switches_stand_anywhere_and_the_rest_keeps_its_order():
    words, switches = take_switches(["--quiet", "--data", "d", "--json", "--out", "o"])
    assert words == ["--data", "d", "--out", "o"]
    assert switches == Switches(dry_run=False, quiet=True, json=True)


def test_a_misspelt_switch_is_answered_with_the_nearest(capsys):
    assert main([*FIT, "--data", "d", "--out", "o", "--dryrun"]) == cli.EXIT_ERROR
    assert "unknown setting '--dryrun': did you mean '--dry-run'?" in capsys.readouterr().err


def test_a_library_that_warns_of_what_nobody_asked_for_is_not_heard(capsys):
    """bitsandbytes does when PEFT imports it, in the middle of any verb that loads a model."""
    with speaking(Switches()):
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load a kernel")
        logging.getLogger("bitsandbytes.backends.cpu.ops").error("this is wrong")
    shown = capsys.readouterr()
    assert shown.out + shown.err in ("", "this is wrong\n")  # pytest may keep the log to itself


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_prints_a_config_that_means_the_same_and_makes_nothing(capsys, monkeypatch, tmp_path, verb):
    monkeypatch.chdir(tmp_path)
    words = words_of_example(verb)
    code = main([*verb.split(), *words, "--dry-run"])
    shown = capsys.readouterr()
    assert shown.err == ""
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "again.yaml").write_text(shown.out, encoding="utf-8")
    assert main([*verb.split(), "--config", "again.yaml", "--dry-run"]) == code
    assert capsys.readouterr().out == shown.out
    missing = [line for line in shown.out.splitlines() if line.startswith("# reads ") and "(not there)" in line]
    assert code == (cli.EXIT_ERROR if missing else cli.EXIT_OK)


def test_what_a_dry_run_leaves_to_defaults_is_there_to_be_read(dataset_dir, tmp_path):
    config = load(config_class("fit"), None, {"data": "d", "out": "o", "recommender": "sknn"}, verb="fit")
    shown = yaml.safe_load("\n".join(line.replace("  # ", "  ", 1) for line in as_yaml(config, "fit").splitlines()))
    resolved = config.resolved()
    for name, value in shown["fit"].items():
        if name == "left to their defaults":
            continue
        node = resolved
        for part in name.split("."):
            node = node[part]
        assert node == value, name


def test_the_plan_tells_what_is_there(capsys, dataset_dir, tmp_path):
    out = tmp_path / "fitted"
    words = [*FIT, "--data", str(dataset_dir), "--out", str(out)]

    def plan(*more):
        code = main([*words, *more, "--dry-run", "--json"])
        return code, json.loads(capsys.readouterr().out)["plan"]

    reads = f"reads data: {dataset_dir}  (made by 'prepare')"
    assert plan() == (cli.EXIT_OK, [reads, f"writes out: {out}  (new)"])
    assert main(words) == cli.EXIT_OK
    capsys.readouterr()
    code, lines = plan()
    assert code == cli.EXIT_OK
    assert "made with these settings" in lines[1]
    code, lines = plan("--sessions", "before_test")
    assert code == cli.EXIT_ERROR
    assert "REFUSED" in lines[1]
    assert "config.sessions: was 'train', is 'before_test'" in lines[1]
    code, lines = plan("--sessions", "before_test", "--overwrite")
    assert (code, lines[1]) == (cli.EXIT_OK, f"writes out: {out}  (there, and replaced)")


def test_a_file_in_the_way_is_refused_in_the_plan(capsys, dataset_dir, tmp_path):
    out = tmp_path / "notes"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert main([*FIT, "--data", str(dataset_dir), "--out", str(out), "--dry-run"]) == cli.EXIT_ERROR
    assert "was not made by seqrec_prompt" in capsys.readouterr().out


def test_json_is_one_object_and_notes_go_to_standard_error(capsys, dataset_dir, tmp_path):
    out = tmp_path / "fitted"
    assert main([*FIT, "--data", str(dataset_dir), "--out", str(out), "--json"]) == cli.EXIT_OK
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert told == {"verb": "fit", "out": str(out), "facts": manifest["facts"], "inputs": manifest["inputs"]}
    assert shown.err.startswith(f"fitted: {out}")


def test_json_of_a_parquet_file_holds_the_facts_inside_it(capsys, dataset_dir, tmp_path):
    from seqrec_prompt.recommenders.files import read_file_manifest

    main([*FIT, "--data", str(dataset_dir), "--out", str(tmp_path / "f"), "--quiet"])
    out = tmp_path / "lists.parquet"
    words = ["recommend", "--data", str(dataset_dir), "--recommender", str(tmp_path / "f"), "--out", str(out)]
    assert main([*words, "--json", "--quiet"]) == cli.EXIT_OK
    shown = capsys.readouterr()
    assert json.loads(shown.out)["facts"] == read_file_manifest(out)["facts"]
    assert shown.err == ""


def test_json_of_an_error_is_an_object_too(capsys):
    assert main([*FIT, "--data", "nowhere", "--out", "o", "--json"]) == cli.EXIT_ERROR
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"].startswith("nowhere is not a directory")
    assert shown.err.startswith("error: nowhere is not a directory")


def test_quiet_prints_errors_only(capsys, dataset_dir, tmp_path):
    out = tmp_path / "fitted"
    assert main([*FIT, "--data", str(dataset_dir), "--out", str(out), "--quiet"]) == cli.EXIT_OK
    assert capsys.readouterr() == ("", "")
    assert main([*FIT, "--data", str(dataset_dir), "--out", str(out), "--quiet", "--sessions", "before_test"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "was made with other settings" in shown.err


def test_standard_output_is_given_back_after_an_error(capsys):
    with pytest.raises(ZeroDivisionError), speaking(Switches(quiet=True)):
        raise ZeroDivisionError
    print("heard")
    assert capsys.readouterr().out == "heard\n"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(console.time, "monotonic", made.monotonic)
    return made


def test_where_nobody_watches_progress_is_a_line_a_minute(capsys, clock):
    with progress(1000, "embed", "texts", done=100) as counted:
        for _ in range(300):  # a text a second, five minutes
            clock.now += 1
            counted.update(1, note="loss 2.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    # 60 texts in 60 s, 840 to go: at a text a second, 14 minutes
    assert lines[0] == "embed: 160/1,000 texts, 01:00 passed, 14:00 left, loss 2.5"


def test_work_of_seconds_says_nothing(capsys, clock):
    with progress(10, "embed", "texts") as counted:
        clock.now += 59
        counted.update(10)
    assert capsys.readouterr().err == ""


def test_quiet_silences_progress(capsys, clock):
    with speaking(Switches(quiet=True)), progress(10, "embed", "texts") as counted:
        clock.now += 3600
        counted.update(10)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_progress_is_a_bar():
    """In a pseudo-terminal, a process of its own."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    import fcntl
    import os
    import struct
    import termios

    script = (
        "from seqrec_prompt import console\nconsole.SHOWN_AFTER = 0\n"
        "with console.progress(4, 'embed', 'texts') as counted:\n    counted.update(4)\n"
    )
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    done = subprocess.run([sys.executable, "-c", script], stderr=slave, stdout=slave, check=False)
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert done.returncode == 0, shown
    assert "embed: 100%" in shown
    assert "4/4" in shown


def test_verbs_without_a_model_count_their_work_to_its_end(tmp_path, capsys, monkeypatch):
    """As lines where nobody watches, each at once."""
    monkeypatch.setattr(console, "LINE_EVERY", 0)
    rows = [f"u{user},i{(user + step) % 9},{1000 * user + step}" for user in range(40) for step in range(4)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8")
    data, lists = ["--data", str(tmp_path / "data")], str(tmp_path / "lists.parquet")
    columns = ["--session-column", "user_id", "--item-column", "item_id", "--time-column", "timestamp"]
    assert main(["prepare", "--interactions", str(tmp_path / "events.csv"), *columns, "--out", data[1]]) == 0
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("prepare: ")]
    assert told == [f"prepare: {done}/5 steps" for done in (1, 2, 3, 4, 5)]
    assert main(["fit", *data, "--recommender", "v-sknn", "--out", str(tmp_path / "v-sknn")]) == 0
    assert main(["recommend", *data, "--recommender", str(tmp_path / "v-sknn"), "--out", lists]) == 0
    told = capsys.readouterr().err
    assert re.search(r"^recommend: (\d+)/\1 sessions", told, re.MULTILINE)
    assert main(["evaluate", *data, "--recommendations", lists, "--out", str(tmp_path / "evaluation")]) == 0
    told = capsys.readouterr().err
    for what in (r"measure: (\d+)/\1 recommenders", r"intervals and tests: (\d+)/\1 comparisons"):
        assert re.search(f"^{what}", told, re.MULTILINE), told
