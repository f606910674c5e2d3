"""An append-only journal: what a long stage has done so far, kept through kills, to be gone on from."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seqrec_prompt.artifacts import is_done, same
from seqrec_prompt.errors import ArtifactError


class Journal:
    """Append-only file of checksummed JSON records, one a line; the first names what the journal is for.

    Opening an existing journal replays it: a torn or damaged tail (the process died while writing) is cut off and its
    records are owed again. A journal made for something else raises ArtifactError naming what differs, or with
    `overwrite` is begun anew; a file that is no journal is never touched.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        records, good_bytes = self._replay()
        if path.exists() and not records and path.stat().st_size and not _could_be_torn(path):
            raise ArtifactError(f"{path} is not a journal of seqrec_prompt. Move it away.")
        if len(records) == 1:  # begun, but nothing is done: another setting may begin it
            records, good_bytes = [], 0
        if records and not is_done(path, records[0], identity, overwrite=overwrite and not same(records[0], identity)):
            records, good_bytes = [], 0
        self.count = max(0, len(records) - 1)
        self._stream = path.open("r+b" if path.exists() else "w+b")
        self._stream.truncate(good_bytes)
        self._stream.seek(good_bytes)
        if not records:
            self.append(dict(identity))
            self.count = 0

    def append(self, *records: Any) -> None:
        """Write records and wait until they are on disk."""
        for record in records:
            body = json.dumps(record, sort_keys=True).encode()
            self._stream.write(b"%08x %s\n" % (zlib.crc32(body), body))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.count += len(records)

    def records(self) -> Iterator[Any]:
        """Yield the records in the order they were appended."""
        with self.path.open("rb") as stream:
            next(stream, None)
            for line in stream:
                yield json.loads(line[9:])

    def close(self, *, remove: bool = False) -> None:
        """Close the file; `remove` deletes it, once what it held stands elsewhere."""
        self._stream.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _replay(self) -> tuple[list[Any], int]:
        records: list[Any] = []
        good = 0
        if self.path.exists():
            with self.path.open("rb") as stream:
                for line in stream:
                    body = line[9:-1]
                    if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(body):
                        break
                    # Only the header is needed in memory; the rest is counted.
                    records.append(None if records else json.loads(body))
                    good += len(line)
        return records, good


def _could_be_torn(path: Path) -> bool:
    """Whether a file without a whole record could be a journal's first record, cut off."""
    with path.open("rb") as stream:
        head = stream.read(10)
    return all(byte in b"0123456789abcdef" for byte in head[:8]) and head[8:] in (b"", b" ", b" {")


def peek_journal(path: Path) -> dict[str, Any] | None:
    """Read what the journal at `path` is for, if there is one."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        line = stream.readline()
    value = json.loads(line[9:]) if line[:9] == b"%08x " % zlib.crc32(line[9:-1]) else None
    return value if isinstance(value, dict) else None
