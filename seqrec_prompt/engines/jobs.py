"""What is billed is created once: the run key, the search for it after an unknown outcome, and the waiting.

A run key is derived from what is asked for, so the same command has the same key even where its journal is lost; a
second job for the same thing, wished for with --overwrite, has a new one. Before any try, and after each that ended
without a clear answer, what the service holds is searched for the key.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from seqrec_prompt.artifacts import hash_json
from seqrec_prompt.engines import openai
from seqrec_prompt.errors import HostedError
from seqrec_prompt.journal import Journal

Found = dict[str, Any]
TRIES = 3
SETTLING = (2, 4, 8, 16, 30)  # seconds between looks for what may have been created, until it counts as not created
FIRST_POLL, LONGEST_POLL = 5.0, 60.0  # seconds


def run_key(wanted: Mapping[str, Any], *more: Any, fresh: bool = False) -> str:
    """Name a piece of work by the manifest of what is wanted, and `more`; `fresh` tells it from earlier work on it."""
    places = {"out", "overwrite", *wanted["inputs"]}
    settings = {name: value for name, value in wanted["config"].items() if name not in places}
    key = hash_json([wanted["stage"], settings, wanted["inputs"], *more])[:24]
    return f"{key}-{secrets.token_hex(4)}" if fresh else key


def create_once(
    create: Callable[[], Found], find: Callable[[], Found | None], journal: Journal, key: str, *, what: str
) -> Found:
    """Return the one thing that carries `key`, creating it if there is none.

    After a try without a clear outcome it is searched for several times. Where an answer ended that try (500, 503) and
    nothing is found, it is tried again; after silence it is not, for the request may still be under way: HostedError
    says so, and the next run of the command searches first.
    """
    failure = HostedError(f"{what}: not tried")
    for _ in range(TRIES):
        if found := find():
            print(f"{found['id']} is there already under this run's key: nothing is created")
            return found
        journal.append({"sent": key})
        try:
            made = create()
            if made.get("id"):
                return made
            failure = HostedError(f"{what}: the answer has no id.")
        except HostedError as error:
            failure = error
        if not failure.reached or (failure.status == 429 and not failure.exhausted):  # nothing was made
            openai.pause(failure.retry_after or SETTLING[0])
        elif failure.status is not None and failure.status < 500:  # refused
            raise failure
        elif found := _after_a_while(find):
            return found
        elif failure.status not in openai.UNAVAILABLE:
            raise HostedError(
                f"{failure}\nWhether it was created is unknown: it is not in the list after {sum(SETTLING)} s, but it "
                f"may still come. It was not sent again. Run the same command in some minutes: it looks for the run "
                f"key {key} first, and creates nothing that is there.",
                failure.status,
            )
    raise failure


def _after_a_while(find: Callable[[], Found | None]) -> Found | None:
    for seconds in SETTLING:
        openai.pause(seconds)
        if found := find():
            return found
    return None


def watch(read: Callable[[], Found], ended: frozenset[str], describe: Callable[[Found], str]) -> Found:
    """Read until the status is one of `ended`, showing on one line how it stands; pauses grow."""
    live = sys.stderr.isatty()
    shown, seconds = "", FIRST_POLL
    try:
        while True:
            found = read()
            line = f"{time.strftime('%H:%M:%S')} {describe(found)}"
            if live:
                width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
                print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)
            elif line[9:] != shown:
                print(line, file=sys.stderr, flush=True)
            shown = line[9:]
            if found["status"] in ended:
                return found
            openai.pause(seconds)
            seconds = min(seconds * 1.3, LONGEST_POLL)
    finally:
        if live:
            print(file=sys.stderr)
