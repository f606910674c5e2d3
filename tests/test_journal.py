"""The journal: what a killed process had done is still done, and nothing of another making is gone on from."""

import json
import random
import signal
import subprocess
import sys
import textwrap
import zlib

import pytest

from seqrec_prompt.artifacts import manifest
from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.journal import Journal

IDENTITY = manifest("bake", {"flour": 1, "oven": {"heat": 180}, "out": "cake"}, {"eggs": "abc"})


def filled(path, n=5, identity=IDENTITY):
    journal = Journal(path, identity)
    for i in range(n):
        journal.append({"i": i, "text": "línea\n\u2028two"})
    journal.close()
    return path


def numbers(journal):
    return [record["i"] for record in journal.records()]


def test_a_journal_is_replayed_and_goes_on(tmp_path):
    journal = Journal(filled(tmp_path / "sub" / "j"), IDENTITY)
    assert journal.count == 5
    assert list(journal.records())[3] == {"i": 3, "text": "línea\n\u2028two"}
    journal.append({"i": 5}, {"i": 6})
    assert (journal.count, numbers(journal)) == (7, list(range(7)))
    journal.close()
    assert numbers(Journal(journal.path, IDENTITY)) == list(range(7))


def test_a_new_journal_is_empty(tmp_path):
    journal = Journal(tmp_path / "j", IDENTITY)
    assert (journal.count, list(journal.records())) == (0, [])
    journal.close()
    assert Journal(tmp_path / "j", IDENTITY).count == 0


def test_wherever_a_journal_is_torn_the_whole_records_before_remain(tmp_path):
    short = {"stage": "bake"}
    whole = filled(tmp_path / "whole", 3, short).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path = tmp_path / "torn"
        path.write_bytes(whole[:cut])
        journal = Journal(path, short)
        kept = max(0, sum(end <= cut for end in ends) - 1)
        assert numbers(journal) == list(range(kept)), cut
        journal.append({"i": 99})
        journal.close()
        assert numbers(Journal(path, short)) == [*range(kept), 99], cut


def test_after_a_damaged_record_nothing_is_trusted(tmp_path):
    chance = random.Random(0)
    whole = filled(tmp_path / "j", 5).read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(whole) if byte == ord("\n"))]
    for _ in range(100):
        at = chance.randrange(starts[1], len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << chance.randrange(8)
        (tmp_path / "j").write_bytes(damaged)
        journal = Journal(tmp_path / "j", IDENTITY)
        assert numbers(journal) == list(range(sum(start <= at for start in starts) - 2)), at
        journal.close()


def test_a_journal_line_is_a_crc_and_json(tmp_path):
    for line in filled(tmp_path / "j").read_bytes().splitlines():
        checksum, body = line.split(b" ", 1)
        assert int(checksum, 16) == zlib.crc32(body)
        json.loads(body)


def test_a_journal_of_something_else_is_refused_and_kept(tmp_path):
    path = filled(tmp_path / "j")
    other = manifest("bake", {"flour": 2, "oven": {"heat": 200}, "out": "pie"}, {"eggs": "abc", "milk": "d"})
    with pytest.raises(ArtifactError) as caught:
        Journal(path, other)
    assert [line.strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "config.flour: was 1, is 2",
        "config.oven.heat: was 180, is 200",
        "inputs.milk: was None, is 'd'",
    ]
    assert numbers(Journal(path, IDENTITY)) == list(range(5))
    fresh = Journal(path, other, overwrite=True)
    assert numbers(fresh) == []


def test_a_journal_with_nothing_done_begins_anew(tmp_path):
    Journal(tmp_path / "j", IDENTITY)
    other = IDENTITY | {"config": {"flour": 2}}
    Journal(tmp_path / "j", other).append({"i": 7})
    assert numbers(Journal(tmp_path / "j", other)) == [7]
    with pytest.raises(ArtifactError, match=r"config\.flour: was 2, is 1"):
        Journal(tmp_path / "j", IDENTITY)


def test_a_journal_is_removed_when_asked(tmp_path):
    journal = Journal(filled(tmp_path / "j"), IDENTITY)
    journal.close()
    assert journal.path.exists()
    journal.close(remove=True)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_loses_no_finished_record(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from seqrec_prompt.journal import Journal
        journal = Journal(Path(sys.argv[1]), {IDENTITY!r})
        i = journal.count
        while True:
            journal.append({{"i": i, "text": "x" * 3000}})
            i += 1
            print(i, flush=True)
    """)
    finished = 0
    for stop_after in (3, 17, 40):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            if int(line) >= stop_after:
                process.send_signal(signal.SIGKILL)
                break
        rest = process.stdout.read().split()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        finished = int(rest[-1]) if rest else stop_after
        journal = Journal(tmp_path / "j", IDENTITY)
        # One record may have been written whole although the process died before it could say so.
        assert journal.count in (finished, finished + 1)
        assert numbers(journal) == list(range(journal.count))
        journal.close()
