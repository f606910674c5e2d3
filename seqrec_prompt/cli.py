"""`seqrec-prompt VERB`: looks a verb up, reads its settings, calls it, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from seqrec_prompt.console import SWITCHES, Switches, speaking, take_switches
from seqrec_prompt.errors import SeqrecError, met_limit
from seqrec_prompt.verbs import VERBS

if TYPE_CHECKING:
    from seqrec_prompt.config import Config

EXIT_OK, EXIT_BUG, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = {
    EXIT_OK: "done",
    EXIT_BUG: "a bug: please report the traceback",
    EXIT_ERROR: "a problem that the message explains",
    EXIT_INTERRUPTED: "interrupted: run the same command again to go on",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code, one of EXIT_CODES."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return EXIT_OK
    if " ".join(words[:2]) in VERBS:
        words[:2] = [" ".join(words[:2])]
    elif group := [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]:
        if words[1:] in ([], ["-h"], ["--help"]):
            print(_overview(group))
            return EXIT_OK
        print(f"error: '{' '.join(words[:2])}' is no verb. Verbs: {', '.join(group)}", file=sys.stderr)
        return EXIT_ERROR
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"seqrec-prompt {version('seqrec_prompt')}")
        return EXIT_OK
    if words[0] not in VERBS:
        from seqrec_prompt.config import did_you_mean

        known = did_you_mean(words[0], VERBS) or f". Verbs: {', '.join(VERBS)}. See seqrec-prompt --help"
        print(f"error: unknown verb '{words[0]}'{known}", file=sys.stderr)
        return EXIT_ERROR
    return run(words[0], words[1:])


def run(verb: str, argv: Sequence[str] | None = None) -> int:
    """Parse the arguments of `verb` (default: this process's), call it, and turn errors into an exit code."""
    # A polite stop (kill, a shutdown) ends like Ctrl-C: clean, and to be gone on with.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    words, switches = take_switches(sys.argv[1:] if argv is None else argv)
    try:
        from seqrec_prompt.config import parse

        entry = VERBS[verb]
        _require_text(words)
        if entry.positional and words and not words[0].startswith("-"):
            words.insert(0, f"--{entry.positional}")
        module = importlib.import_module(entry.module)
        config = parse(
            getattr(module, entry.config),
            words,
            verb=verb,
            description=_sentence(entry.summary),
            example=entry.example,
            switches=SWITCHES,
        )
        if switches.dry_run:
            return _dry_run(config, verb, switches)
        with speaking(switches):
            made = getattr(module, verb.split()[-1])(config)
        if switches.json:
            from seqrec_prompt.dry_run import outcome

            _print_json({"verb": verb, **outcome(config, made)})
    except SeqrecError as error:
        return _failed(verb, str(error), switches, EXIT_ERROR)
    except OSError as error:  # a full disk, a place that may not be written to
        return _failed(verb, f"{error.filename or verb}: {error.strerror or error}", switches, EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted. Run the same command again to go on.", file=sys.stderr)
        if switches.json:
            _print_json({"verb": verb, "error": "interrupted"})
        return EXIT_INTERRUPTED
    except Exception as error:
        if (limit := met_limit(error)) is None:
            raise
        return _failed(verb, f"{verb}: {limit}", switches, EXIT_ERROR)
    return EXIT_OK


def _require_text(words: Sequence[str]) -> None:
    """Raise ConfigError for a name of a file that is no UTF-8: no manifest could tell it."""
    from seqrec_prompt.errors import ConfigError

    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{word!r} is no text in UTF-8. Rename the file, or set a locale of UTF-8.") from None


def _dry_run(config: Config, verb: str, switches: Switches) -> int:
    from seqrec_prompt.dry_run import dry_run, plan, would_run

    lines = plan(config, verb)
    if switches.json:
        _print_json({"verb": verb, "config": config.resolved(), "plan": lines})
    else:
        print(dry_run(config, verb), end="")
    return EXIT_OK if would_run(lines) else EXIT_ERROR


def _failed(verb: str, message: str, switches: Switches, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if switches.json:
        _print_json({"verb": verb, "error": message})
    return code


def _print_json(value: object) -> None:
    if os.environ.get("RANK", "0") != "0":  # of several processes, as `accelerate launch` starts them, one speaks
        return
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _overview(verbs: Sequence[str] = tuple(VERBS)) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {VERBS[name].summary}" for name in verbs]
    return "\n".join(
        [
            "usage: seqrec-prompt VERB [--config FILE] [--key value ...]",
            "",
            "Fine-tune an LLM on sessions and let it recommend the next item, always from your catalog.",
            "",
            *lines,
            "",
            "Each verb reads what the one before it wrote. seqrec-prompt VERB --help lists its settings.",
            "",
            "with every verb:",
            *(f"  {name:<{width}}  {meaning}" for name, meaning in SWITCHES.items()),
            "",
            "exit codes:",
            *(f"  {code:<{width}}  {meaning}" for code, meaning in EXIT_CODES.items()),
        ]
    )


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


if __name__ == "__main__":
    raise SystemExit(main())
