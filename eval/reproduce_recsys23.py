"""Make a paper's table and keep it among the results: `seqrec-prompt reproduce`, its page stamped with the commit.

python eval/reproduce_recsys23.py recsys23-beauty --data raw --out runs/recsys23 --page eval/results/recsys23_beauty

With `--only ROW … --add` these rows are added to the page, or replace those of their names; its other rows stay as they
were measured and say so.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from seqrec_prompt.artifacts import write_json, write_text
from seqrec_prompt.cli import EXIT_ERROR, EXIT_OK
from seqrec_prompt.config import parse
from seqrec_prompt.errors import ConfigError, SeqrecError
from seqrec_prompt.reproduction.kept import with_kept_rows
from seqrec_prompt.reproduction.page import page
from seqrec_prompt.reproduction.reproduce import ReproduceConfig, reproduce


class KeptConfig(ReproduceConfig):
    """Settings of `reproduce`, and where the page goes."""

    page: Path = Field(description="PAGE.md and PAGE.json")
    add: bool = Field(False, description="keep the rows of PAGE.json that are not made now")

    def earlier(self) -> dict[str, Any] | None:
        """What PAGE.json holds, if its rows are to be kept."""
        try:
            return json.loads(Path(f"{self.page}.json").read_text(encoding="utf-8")) if self.add else None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.page}.json cannot be read ({error}). Without --add a new page is made.") from None


def main() -> int:
    """Make the table, then write the page; returns the exit code."""
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words.insert(0, "--plan")
    stamp = {"command": shlex.join(["python", "eval/reproduce_recsys23.py", *sys.argv[1:]]), "commit": _commit()}
    try:
        config = parse(KeptConfig, words, verb="reproduce", description=__doc__.partition("\n")[0])
        earlier = config.earlier()
        result = reproduce(config) | stamp
        if earlier is not None:
            result = with_kept_rows(result, earlier)
    except SeqrecError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    write_json(Path(f"{config.page}.json"), result)
    write_text(Path(f"{config.page}.md"), page(result))
    return EXIT_OK


def _commit() -> str:
    """The commit that is checked out, with a + when the package has changed since."""
    return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "seqrec_prompt") else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
