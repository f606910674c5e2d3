"""Pages that are read off the package, so that none of them can be out of date."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import seqrec_prompt
from seqrec_prompt.cli import EXIT_CODES, main
from seqrec_prompt.console import SWITCHES
from seqrec_prompt.verbs import VERBS

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the commands, the API, the measured results, and the two pages that GitHub wants at the top."""
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, "api.md", content=api()))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        files.append(File.generated(config, name.lower(), abs_src_path=str(ROOT / name)))
    results = ROOT / "eval" / "results"
    for path in sorted(results.rglob("*")):
        if path.suffix in (".md", ".png", ".svg", ".json"):
            place = f"results/{path.relative_to(results).as_posix()}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def commands() -> str:
    """Every verb with its help, the switches and the exit codes."""
    lines = [
        "# Commands",
        "",
        "With every verb:",
        "",
        "| switch | |",
        "|---|---|",
        "| `--config FILE` | YAML file with the settings of verbs; flags beside it win |",
    ]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in SWITCHES.items()]
    lines += ["", "| exit code | |", "|---|---|", *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())]
    os.environ["COLUMNS"] = "100"  # argparse wraps its help to this
    for verb, entry in VERBS.items():
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*verb.split(), "--help"])
        lines += ["", f"## {verb}", "", f"{entry.summary[0].upper()}{entry.summary[1:]}.", "", "```text"]
        lines += [shown.getvalue().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def api() -> str:
    """Every public name, in the order of `seqrec_prompt.__init__`, by its docstring."""
    names = [f"::: seqrec_prompt.{module}.{name}" for name, module in seqrec_prompt._PUBLIC.items()]
    return "\n\n".join(["# API", "All of these can be imported from `seqrec_prompt`.", *names]) + "\n"
