"""One process an output: a lock beside what a stage writes, which names its holder.

The lock is the kernel's (flock), so it is gone with its process however that ended; what a killed one leaves is a file
that nobody holds, and the next run takes it over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from seqrec_prompt.artifacts import recover
from seqrec_prompt.errors import ArtifactError


class _Writes(Protocol):
    @property
    def out(self) -> Path: ...


Settings = TypeVar("Settings", bound=_Writes)
Result = TypeVar("Result")


def locked(stage: Callable[[Settings], Result]) -> Callable[[Settings], Result]:
    """Decorate a stage: it holds its `out` while it runs. Raises ArtifactError while another process does."""

    @functools.wraps(stage)
    def holding(config: Settings) -> Result:
        # Of the processes of one launch the first holds it for all.
        if os.environ.get("RANK", "").strip() not in ("", "0"):
            return stage(config)
        with lock(config.out):
            return stage(config)

    return holding


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the file or directory `out`, which need not exist yet, by `.NAME.lock` beside it.

    Raises ArtifactError naming the holder (process, host, since when, command) while another process, or this one,
    holds it.
    """
    out = out.resolve()  # one lock, by whatever way it is reached
    missing = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _acquire(out)
        try:
            if descriptor is not None:
                recover(out)
            yield
        finally:
            if descriptor is not None:
                _file(out).unlink(missing_ok=True)  # while it is held: what is locked is never somebody else's
                os.close(descriptor)
    finally:
        for folder in missing:  # a stage that wrote nothing leaves nothing
            with contextlib.suppress(OSError):
                folder.rmdir()


def _file(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def _acquire(out: Path) -> int | None:
    """The descriptor of the held lock; None where there can be none."""
    while True:
        try:
            descriptor = os.open(_file(out), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return None  # nothing can be written here: there is nothing to guard, and a finished run may be read
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), _file(out).stat()):
                    _sign(descriptor)
                    return descriptor
            os.close(descriptor)  # its holder removed it meanwhile: another may hold a newer one
        except BlockingIOError:
            holder = _holder(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise ArtifactError(
                f"{out} is being written by another process{holder}. Wait for it, stop it, or choose another --out."
            ) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK):
                raise
            print(f"warning: {out.parent} knows no locks; see that no two runs write {out.name}", file=sys.stderr)
            return None


def _holder(content: bytes) -> str:
    try:
        held = json.loads(content)
    except ValueError:
        return ", which has just begun"
    return f", {held['pid']} on {held['host']} since {held['started']} ({held['command']})"


def _sign(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv)[:500],
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
