"""How a verb speaks: notes, progress, and with `--json` one object for programs.

A verb just prints, and counts long work with `progress`. What becomes of both is settled here, by the switches that
every verb has.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

SWITCHES = {
    "--dry-run": "print the resolved settings and what would be read and written, and stop",
    "--quiet": "print nothing but errors (and, with --json, the result)",
    "--json": "print the result as one JSON object; everything else goes to standard error",
}
SHOWN_AFTER = 2.0  # seconds: shorter work needs no bar
LINE_EVERY = 60.0  # seconds between two lines where nobody watches

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@dataclass(frozen=True)
class Switches:
    """How a verb is to run; its configuration says what it is to do."""

    dry_run: bool = False
    quiet: bool = False
    json: bool = False


def take_switches(words: Sequence[str]) -> tuple[list[str], Switches]:
    """Split a command line into the words that are a verb's own and the switches among them."""
    given = {name.removeprefix("--").replace("-", "_"): True for name in SWITCHES if name in words}
    return [word for word in words if word not in SWITCHES], Switches(**given)


@contextlib.contextmanager
def speaking(switches: Switches) -> Iterator[None]:
    """Send what is printed inside where the switches say: nowhere, or beside the one JSON object on standard output."""
    token = _quiet.set(switches.quiet)
    # PEFT imports it where it is installed, and on some CPUs it then warns of a kernel that nothing here asks for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        if switches.quiet:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                yield
        elif switches.json:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        else:
            yield
    finally:
        _quiet.reset(token)


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that no thread looks after: every update is drawn, if the last one is some time ago."""

    monitor_interval = 0


class Progress:
    """Counts work. A bar on a terminal, a line a minute elsewhere, nothing with `--quiet`; always on standard error."""

    def __init__(self, total: int | None, what: str, unit: str, done: int = 0) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.done = self._before = done
        self._note = ""
        self._started = self._said = time.monotonic()
        watched = sys.stderr.isatty()
        self._lines = not watched and not _quiet.get()
        self._bar = Bar(
            total=total,
            initial=done,
            desc=what,
            unit=f" {unit}",
            miniters=1,
            delay=SHOWN_AFTER,
            disable=not watched or _quiet.get(),
        )

    def update(self, n: int = 1, note: str = "") -> None:
        """Add `n`; `note` is a word on how it goes, such as the loss."""
        self.done += n
        self._note = note or self._note
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(n)
        now = time.monotonic()
        if self._lines and now - self._said >= LINE_EVERY:
            self._said = now
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _line(self, passed: float) -> str:
        of = "" if self.total is None else f"/{self.total:,}"
        line = f"{self.what}: {self.done:,}{of} {self.unit}, {tqdm.format_interval(passed)} passed"
        if self.total is not None and (fresh := self.done - self._before):
            left = passed * (self.total - self.done) / fresh
            line += f", {tqdm.format_interval(left)} left"
        return line + (f", {self._note}" if self._note else "")


@contextlib.contextmanager
def progress(total: int | None, what: str, unit: str, done: int = 0) -> Iterator[Progress]:
    """Count `total` units of work, if that is known, of which `done` were done before.

    >>> with progress(3, "embed", "texts") as counted:
    ...     counted.update(3)
    """
    counted = Progress(total, what, unit, done)
    try:
        yield counted
    finally:
        counted.close()
