"""`--dry-run` and `--json`: what a verb would do, and what it did, read off its configuration and its result."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from seqrec_prompt.artifacts import MANIFEST, is_done, peek_manifest
from seqrec_prompt.config import Config, as_yaml
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.steps import CallsVerbs

STARTED = "started.json"  # in the directory of a training run that has not ended
FILE_ENDINGS = (".csv", ".tsv", ".parquet", ".inter", ".item", ".user", ".gz")
NOT_THERE, REFUSED = "not there", "REFUSED"


def plan(config: Config, verb: str, coming: Collection[Path] = ()) -> list[str]:
    """Say of every place a configuration names what is there: a line each, inputs first, the output last.

    A line that ends in "(not there)", or says REFUSED, is why the verb would stop. coming: outputs of calls before this
    one. Calls of other verbs follow, each as its command and its own lines.
    """
    lines = [
        f"reads {name}: {path}  ({'made before' if path in coming else _found(path)})"
        for name, path in places(config)
        if name != "out"
    ]
    calls = config.steps() if isinstance(config, CallsVerbs) else ()
    out = getattr(config, "out", None)
    if out is not None:
        there = "see below" if calls else _what_is_there(out, config, verb)
        lines.append(f"writes out: {out}  ({there})")
    made = list(coming)
    for step in calls:
        lines += [f"$ {step.command}", *(f"  {line}" for line in plan(step.config, step.verb, made))]
        made += [path for name, path in places(step.config) if name == "out"]
    return lines


def would_run(lines: list[str]) -> bool:
    """Whether nothing in a plan stands in the way."""
    return not any(line.endswith(f"({NOT_THERE})") or f"({REFUSED}:" in line for line in lines)


def dry_run(config: Config, verb: str) -> str:
    """The resolved configuration as YAML that `--config` takes, and the plan as comments below it."""
    return as_yaml(config, verb) + "".join(f"# {line}\n" for line in plan(config, verb))


def outcome(config: Config, made: Any) -> dict[str, Any]:
    """What a verb did, as JSON values: where its output lies and the facts of its manifest, or what it returned."""
    out = getattr(config, "out", None)
    result: dict[str, Any] = {} if out is None else {"out": str(out)}
    if out is not None and (found := manifest_of(Path(out))):
        result |= {"facts": found.get("facts", {}), "inputs": found.get("inputs", {})}
    if isinstance(made, Mapping):
        result |= {"result": dict(made)}
    elif isinstance(made, str):
        result |= {"text": made}
    return result


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of anything a verb writes: in a directory, inside a Parquet file, or beside another file."""
    if path.is_dir():
        return peek_manifest(path, MANIFEST)
    if path.suffix == ".parquet" and path.exists():
        from seqrec_prompt.recommenders.files import read_file_manifest

        try:
            return read_file_manifest(path) or None
        except ArtifactError:
            return None
    return peek_manifest(path.parent, f"{path.name}.{MANIFEST}")


def places(config: Config, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Every path that a configuration names, and every text that names a file or is one's name by its ending."""
    for name, value in config:
        if isinstance(value, Config):
            yield from places(value, f"{prefix}{name}.")
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path) or (isinstance(one, str) and one and _names_a_file(one)):
                yield f"{prefix}{name}", Path(one)


def _names_a_file(text: str) -> bool:
    return text.endswith(FILE_ENDINGS) or ("/" in text and Path(text).exists())


def _found(path: Path) -> str:
    if not path.exists():
        return NOT_THERE
    made = manifest_of(path)
    return f"made by '{made['stage']}'" if made and "stage" in made else "there"


def is_made(config: Config, verb: str) -> bool:
    """Whether the output is there, whole and made with these settings; inputs may have changed since."""
    try:
        done, begun, _ = _look(config, verb)
    except ArtifactError:
        return False
    return done and not begun


def _look(config: Config, verb: str) -> tuple[bool, bool, bool]:
    """Whether the output is made with these settings, only begun, and whether anything is there.

    Raises ArtifactError where the verb itself would refuse it, in its words.
    """
    out: Path = getattr(config, "out")  # noqa: B009 - no verb without it comes here
    begun = peek_manifest(out, STARTED) if out.is_dir() else None
    made = manifest_of(out) or begun
    settings = config.resolved()
    # A manifest holds the settings that matter to what was made; inputs are compared by their hashes, not here.
    kept = {name: settings[name] for name in (made or {}).get("config", {}) if name in settings}
    wanted = {"stage": verb, "config": kept, "inputs": (made or {}).get("inputs", {})}
    done = is_done(out, made, wanted, overwrite=getattr(config, "overwrite", False))
    return done, made is begun and made is not None, made is not None


def _what_is_there(out: Path, config: Config, verb: str) -> str:
    """What stands where the output goes, in the words in which the verb itself would refuse it."""
    try:
        done, begun, there = _look(config, verb)
    except ArtifactError as error:
        return f"{REFUSED}: {' '.join(str(error).split())}"
    if not there:
        journal = out.with_name(f"{out.name}.journal")
        return "begun: goes on where it was" if journal.exists() else "new"
    if not done:
        return "there, and replaced"
    return "begun with these settings: goes on" if begun else "made with these settings; kept unless inputs differ"
