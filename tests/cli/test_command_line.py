"""The command line as a person meets it: help, mistakes, exit codes, never a traceback."""

import importlib.util
import resource
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from seqrec_prompt import cli
from seqrec_prompt.cli import main
from seqrec_prompt.verbs import VERBS

WRITTEN = [verb for verb in VERBS if importlib.util.find_spec(VERBS[verb].module)]


def run(*argv):
    """Exit code of the command; argparse leaves by SystemExit."""
    try:
        return main(argv)
    except SystemExit as left:
        return left.code


def seqrec_prompt(*argv, cwd=None):
    """Run as a process of its own."""
    command = [sys.executable, "-m", "seqrec_prompt", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_a_name_that_is_no_text_is_told_before_anything_is_written(tmp_path):
    name = b"bad\xff".decode(errors="surrogateescape")
    done = seqrec_prompt("prepare", "--interactions", "x.csv", "--out", name, cwd=tmp_path)
    assert done.returncode == 2
    assert "'bad\\udcff' is no text in UTF-8" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_overview_names_every_verb(capsys, argv):
    assert run(*argv) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: seqrec-prompt VERB")
    lines = [line.strip() for line in shown.splitlines()]
    for verb, entry in VERBS.items():
        assert any(line.split("  ", 1)[0] == verb and line.endswith(f"  {entry.summary}") for line in lines)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_the_installed_one(capsys, flag):
    assert run(flag) == 0
    assert capsys.readouterr().out == f"seqrec-prompt {version('seqrec_prompt')}\n"


def test_an_unknown_verb_is_answered_with_the_nearest_or_all_known_ones(capsys):
    assert run("recomend", "--data", "x") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: unknown verb 'recomend': did you mean 'recommend'?\n"
    assert run("xyzzy") == 2
    assert capsys.readouterr().err.startswith(f"error: unknown verb 'xyzzy'. Verbs: {', '.join(VERBS)}.")


@pytest.mark.parametrize("verb", WRITTEN)
def test_help_of_a_verb_shows_its_settings_and_an_example(capsys, verb):
    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: seqrec-prompt {verb} ")
    assert f"example:\n  seqrec-prompt {verb} " in shown
    assert "(required)" in shown or "(default: " in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize("verb", WRITTEN)
def test_the_example_of_a_verb_has_only_flags_that_exist(capsys, verb):
    """The printed example is a valid command: with a flag too many, that flag is the only thing complained of."""
    words = VERBS[verb].example.replace("\\\n", " ").split()
    assert " ".join(words).startswith(f"seqrec-prompt {verb} ")
    assert run(*words[1:], "--no-such-flag") == 2
    assert capsys.readouterr().err == "error: unknown setting '--no-such-flag'; see --help\n"


@pytest.mark.parametrize("verb", WRITTEN)
def test_every_setting_is_explained(verb):
    from seqrec_prompt.config import _walk

    config = getattr(importlib.import_module(VERBS[verb].module), VERBS[verb].config)
    assert [name for name, field in _walk(config) if not field.description] == []


def test_missing_settings_are_all_named(capsys):
    assert run("finetune") == 2
    shown = capsys.readouterr().err
    assert "'data' is missing: give --data" in shown
    assert "'out' is missing: give --out" in shown


def test_a_flag_without_its_value_is_an_error(capsys):
    assert run("recommend", "--data", "x", "--out", "y", "--k") == 2
    assert "--k" in capsys.readouterr().err


def test_a_misspelt_flag_ends_with_one_line_and_no_traceback():
    done = seqrec_prompt("recommend", "--exclude-sen", "--data", "x", "--out", "y")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown setting '--exclude-sen': did you mean '--exclude-seen'?\n"


def test_data_that_is_not_there_is_explained_without_a_traceback(tmp_path):
    done = seqrec_prompt("evaluate", "--data", "nowhere", "--out", "out", "--recommendations", "r", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: nowhere is not a directory; expected a directory made by 'prepare'. See: seqrec-prompt prepare --help"
    )
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    from seqrec_prompt.evaluation import evaluate

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate", interrupted)
    assert run("evaluate", "--data", "x", "--out", "y", "--recommendations", "z") == cli.EXIT_INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted. Run the same command again to go on.\n"


def test_a_polite_kill_ends_like_ctrl_c(monkeypatch):
    from seqrec_prompt.evaluation import evaluate

    monkeypatch.setattr(evaluate, "evaluate", lambda config: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run("evaluate", "--data", "x", "--out", "y", "--recommendations", "z") == cli.EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_the_system_refuses_is_one_line(capsys, monkeypatch):
    from seqrec_prompt.evaluation import evaluate

    def full(config):
        raise OSError(28, "No space left on device", "runs/out")

    monkeypatch.setattr(evaluate, "evaluate", full)
    assert run("evaluate", "--data", "x", "--out", "y", "--recommendations", "z") == cli.EXIT_ERROR
    assert capsys.readouterr().err == "error: runs/out: No space left on device\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "error: evaluate: out of memory. Where --help lists --batch-size, a smaller one takes less"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), "error: evaluate: out of memory. Where --help lists"),
    ],
)
def test_memory_that_ran_out_is_one_line(capsys, monkeypatch, error, told):
    from seqrec_prompt.evaluation import evaluate

    def full(config):
        raise error

    monkeypatch.setattr(evaluate, "evaluate", full)
    assert run("evaluate", "--data", "x", "--out", "y", "--recommendations", "z") == cli.EXIT_ERROR
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("library", ["safetensors", "torch"])
def test_a_library_that_cannot_write_is_one_line(capsys, monkeypatch, tmp_path, library):
    """Both meet a real limit of the kernel, which they tell in words of their own."""
    from safetensors.torch import save_file

    from seqrec_prompt.evaluation import evaluate

    def write(config):
        save = save_file if library == "safetensors" else torch.save
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            save({"a": torch.zeros(100_000)}, tmp_path / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(evaluate, "evaluate", write)
    assert run("evaluate", "--data", "x", "--out", "y", "--recommendations", "z") == cli.EXIT_ERROR
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch):
    """Only errors meant for the user become one line; a bug keeps its traceback."""
    from seqrec_prompt.evaluation import evaluate

    def broken(config):
        raise ZeroDivisionError

    monkeypatch.setattr(evaluate, "evaluate", broken)
    with pytest.raises(ZeroDivisionError):
        run("evaluate", "--data", "x", "--out", "y", "--recommendations", "z")


def processor_seconds(*command):
    """Of a processor, not of the clock: the machine may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_costs_little_more_than_what_checks_settings(verb):
    """Less than a second, on a slow machine a few times what it takes to import pydantic; importing torch is more."""
    pydantic = processor_seconds(sys.executable, "-c", "import pydantic.main")
    took = processor_seconds(sys.executable, "-m", "seqrec_prompt", *verb.split(), "--help")
    assert took < max(1, 7 * pydantic)
