"""What writes results: atomic files and directories, and manifests; what is not yet whole lies in a `journal`.

A final file appears by one rename or not at all. Whatever a stage makes carries a manifest: what it was made from
(hashes), how (the resolved config), with which versions. A stage that finds its own output done says so and stops; one
that finds output made with other settings refuses, naming the settings that differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seqrec_prompt.errors import ArtifactError

MANIFEST = "manifest.json"
VERSIONED = ("seqrec_prompt", "torch", "transformers", "peft", "trl", "datasets", "numpy", "pyarrow")


def cache_directory() -> Path:
    """Where converted models and compiled catalogs are kept.

    $SEQREC_PROMPT_CACHE, or seqrec_prompt in $XDG_CACHE_HOME, or in ~/.cache.
    """
    if chosen := os.environ.get("SEQREC_PROMPT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqrec_prompt"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder; on success rename it to `path`, on failure remove it."""
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        _sync(partial)
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success it replaces `path`, on failure it is removed."""
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
    try:
        yield staged
        for file in staged.rglob("*"):
            if file.is_file():
                _sync(file)
        staged.chmod(0o777 & ~_umask())
        if path.exists():  # what was there goes only after the new stands in its place
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            path.replace(old)
            staged.replace(path)
            shutil.rmtree(old)
        else:
            staged.replace(path)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def recover(path: Path) -> None:
    """Put right what a killed process left beside `path` and in it, whose lock the caller holds.

    What it replaced and did not get to replace comes back; what is half written goes.
    """
    random = r"[a-z0-9_]{8}"  # as `tempfile` names them
    for file in path.iterdir() if path.is_dir() else ():
        if re.fullmatch(rf"\..+\.{random}\.partial", file.name) and file.is_file():
            file.unlink()
    left = re.compile(re.escape(f".{path.name}.") + rf"{random}\.(partial|old)")
    for file in sorted(path.parent.iterdir()):
        if left.fullmatch(file.name):
            if file.suffix == ".old" and not path.exists():
                file.replace(path)
            elif file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def manifest(
    stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Describe an output: `stage` and `config` that made it, hashes of its `inputs`, `facts` found on the way."""
    return {
        "stage": stage,
        "config": dict(config),
        "inputs": dict(inputs),
        "facts": dict(facts or {}),
        "versions": {name: v for name in VERSIONED if (v := _version(name))} | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_manifest(directory: Path, made_by: str, *others: str) -> dict[str, Any]:
    """Read the manifest of `directory`; ArtifactError says which verb makes such a directory when it is none.

    others: further verbs that make one.
    """
    try:
        value: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        known = "is not a directory" if not directory.is_dir() else f"has no {MANIFEST}"
        raise ArtifactError(
            f"{directory} {known}; expected a directory made by '{made_by}'. See: seqrec-prompt {made_by} --help"
        ) from None
    except ValueError as error:
        raise ArtifactError(
            f"{directory / MANIFEST} is damaged ({error}). Run 'seqrec-prompt {made_by}' again."
        ) from None
    complete = isinstance(value, dict) and all(key in value for key in ("config", "inputs", "facts", "created"))
    if not complete or value.get("stage") not in (made_by, *others):
        raise ArtifactError(f"{directory} was not made by 'seqrec-prompt {made_by}'.")
    return value


def is_done(path: Path, found: Mapping[str, Any] | None, wanted: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Tell whether `path`, made as the manifest `found` says, already is what `wanted` asks for.

    True: same stage, config and inputs. False: nothing is there, or what is there is ours and may be overwritten.
    Raises ArtifactError when something of other settings is there, naming the differing keys, or something not ours.
    """
    if not found:
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ArtifactError(f"{path} exists and was not made by seqrec_prompt. Choose another --out.")
        return False
    if found.get("stage") != wanted["stage"]:
        raise ArtifactError(f"{path} exists and was not made by '{wanted['stage']}'. Choose another --out.")
    if overwrite:
        return False
    if differing := _differing(found, wanted):
        raise ArtifactError(
            f"{path} was made with other settings:\n  "
            + "\n  ".join(differing)
            + "\nChoose another --out, or --overwrite."
        )
    return True


def refuse_inputs_inside(out: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Raise ArtifactError when an input lies in the directory `out`, which a stage may replace as a whole."""
    for name, place in inputs.items():
        if place is not None and Path(place).exists() and Path(place).resolve().is_relative_to(out.resolve()):
            raise ArtifactError(f"'{name}' = {place} lies inside 'out' = {out}, which would be replaced.")


def same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two manifests describe the same work: stage, inputs and all settings but where it goes."""
    return not _differing(found, wanted)


def peek_manifest(directory: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """Read the manifest of `directory` if there is one. Raises ArtifactError when `directory` is a file."""
    if directory.is_file():
        raise ArtifactError(f"{directory} is a file. --out names a directory.")
    file = directory / name
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def own_directory(out: Path, stage: str, outputs: Collection[str]) -> dict[str, Any] | None:
    """Return the manifest of what `stage` made at `out` before, None where nothing is.

    Raises ArtifactError when anything else is there, which not even an overwrite may touch: a stage that replaces its
    directory as a whole writes only files named in `outputs`.
    """
    if not out.exists():
        return None
    found = peek_manifest(out)
    foreign = sorted(file.name for file in out.iterdir() if file.name not in outputs)
    if foreign or (found is None and any(out.iterdir())) or (found and found.get("stage") != stage):
        holds = f" (it holds {', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''})" if foreign else ""
        raise ArtifactError(f"{out} is not a directory that {stage} made{holds}. Choose another --out.")
    return found


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, or of every file of a directory with its relative name."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return hash_json({str(p.relative_to(path)): hash_file(p) for p in files})
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    # Where an input lies is not what it is: its hash is compared.
    places = {f"config.{name}" for name in set(found.get("inputs", {})) & set(wanted.get("inputs", {}))}
    return [
        f"{key}: was {old!r}, is {new!r}"
        for part in ("stage", "config", "inputs")
        for key, old, new in _differences(found.get(part), wanted.get(part), part)
        if key not in {"config.out", "config.overwrite"} | places
    ]


def _differences(old: Any, new: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(set(old) | set(new)):
            yield from _differences(old.get(key), new.get(key), f"{prefix}.{key}")
    elif old != new:
        yield prefix, old, new


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
