""".ci/audit: a known vulnerability ends it with 1; what cannot be looked up is said and fails nothing."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / ".ci" / "audit"
SOUND = {"name": "numpy", "version": "2.4.0", "vulns": []}
OPEN = {"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}
UNFIXED = {"name": "toy", "version": "1.0", "vulns": [{"id": "GHSA-1", "fix_versions": []}]}
UNKNOWN = {"name": "seqrec_prompt", "skip_reason": "not found on PyPI"}


@pytest.fixture
def audit(monkeypatch):
    loader = importlib.machinery.SourceFileLoader("audit", str(FILE))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("audit", loader))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    monkeypatch.setattr(module.venv, "create", lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, "argv", ["audit"])
    return module


@pytest.mark.parametrize(
    ("answers", "code", "told"),
    [
        ([(0, "", ""), (0, [SOUND, UNKNOWN], "")], 0, "audit: 1 of 2 packages looked up, 0 known vulnerabilities\n"),
        (
            [(0, "", ""), (1, [SOUND, OPEN, UNFIXED], "Found 2 known vulnerabilities in 2 packages")],
            1,
            "jinja2 2.4.1: PYSEC-2019-217, fixed in 2.10.1\ntoy 1.0: GHSA-1, fixed in no version yet\n"
            "audit: 3 of 3 packages looked up, 2 known vulnerabilities\n",
        ),
        ([(1, "", "…\nERROR: no route")], 0, "audit: not done: pip-audit cannot be installed: ERROR: no route\n"),
        ([(0, "", ""), (1, "", "…\nConnectionError: no route")], 0, "audit: not done: ConnectionError: no route\n"),
        ([(0, "", ""), (0, [UNKNOWN, UNKNOWN], "")], 0, "audit: not done: the database knows none of 2 packages, so"),
    ],
)
def test_it_ends_as_what_pip_audit_found(audit, monkeypatch, capsys, answers, code, told):
    def answer(words, **_):
        status, found, complaint = waiting.pop(0)
        shown = json.dumps({"dependencies": found, "fixes": []}) if isinstance(found, list) else found
        return subprocess.CompletedProcess(words, status, shown, complaint)

    waiting = list(answers)
    monkeypatch.setattr(audit.subprocess, "run", answer)
    assert audit.main() == code
    assert capsys.readouterr().out.startswith(told)
    assert not waiting


def test_an_audit_that_never_answers_is_given_up(audit, monkeypatch, capsys):
    def hang(words, timeout, **_):
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(audit.subprocess, "run", hang)
    assert audit.main() == 0
    assert "no answer within five minutes" in capsys.readouterr().out
