"""Completion, as bash itself does it."""

import shutil
import subprocess

import pytest

from seqrec_prompt.cli import main
from seqrec_prompt.completion import CompletionConfig, completion
from seqrec_prompt.console import SWITCHES
from seqrec_prompt.verbs import VERBS


def script_for(shell):
    return completion(CompletionConfig.model_validate({"shell": shell}))


pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Words before the cursor, the last one begun → what bash would offer."""
    script = tmp_path_factory.mktemp("completion") / "seqrec-prompt.bash"
    script.write_text(script_for("bash"), encoding="utf-8")

    def offered(*words):
        line = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _seqrec_prompt; echo "${COMPREPLY[@]}"'
        done = subprocess.run(
            ["bash", "-uc", line, "bash", str(script), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.split()

    return offered


def test_verbs_are_offered(complete):
    assert set(complete("seqrec-prompt", "")) == {word for verb in VERBS for word in verb.split()}
    assert complete("seqrec-prompt", "reco") == ["recommend"]


@pytest.mark.parametrize("verb", VERBS)
def test_flags_of_the_verb_and_the_switches_are_offered(complete, capsys, verb):
    offered = complete("seqrec-prompt", *verb.split(), "--")
    assert set(SWITCHES) | {"--config", "--help"} <= set(offered)
    with pytest.raises(SystemExit):
        main([*verb.split(), "--help"])
    known = set(capsys.readouterr().out.replace("[", " ").replace("]", " ").replace(",", " ").split())
    assert set(offered) <= known


def test_choices_follow_their_flag(complete):
    assert complete("seqrec-prompt", "fit", "--recommender", "s-") == ["s-sknn"]
    assert set(complete("seqrec-prompt", "finetune", "--data", "d", "--method", "")) >= {"lora", "full"}


def test_where_a_path_is_wanted_nothing_stands_in_the_way_of_files(complete):
    assert complete("seqrec-prompt", "finetune", "--data", "") == []


def test_zsh_gets_the_same_through_bashcompinit(capsys):
    script = script_for("zsh")
    assert script.startswith("autoload -U +X bashcompinit")
    assert script.endswith(script_for("bash"))
