"""Writing fails: what was there stays, nothing half-written stands beside it, the exit code is not 0."""

import subprocess

import pytest
from processes import Fault
from test_kills import content_of

from seqrec_prompt.artifacts import hash_file

OTHER = {  # settings that change the output
    "recommend": ["--exclude-seen"],
    "embed": ["--pooling", "last"],
    "fit": ["--neighbors.k-neighbors", 7],
    "evaluate": ["--cutoffs", 3],
    "prepare": ["--ties", "file"],
}


@pytest.fixture
def argv_of(request):
    """Verb → arguments, given `out` and whether other settings than before."""

    def build(verb, out, other=False):
        changed = ["--overwrite", *OTHER[verb]] if other else []
        return request.getfixturevalue(f"{verb}_argv")(out, *changed)

    return build


@pytest.mark.parametrize("fault", ["a file may not grow", "fsync fails"])
@pytest.mark.parametrize("verb", OTHER)
def test_the_old_output_stays_whole(verb, fault, server, argv_of, tmp_path, outcome):
    out = tmp_path / "out"
    code, said = server.run(argv_of(verb, out))
    assert code == 0, said
    before = hash_file(out)
    code, said = server.run(
        argv_of(verb, out, other=True),
        Fault(file_size=600) if fault == "a file may not grow" else Fault(failing_sync=2 if verb in LONG else 1),
    )
    assert code == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert "File too large" in last or "Input/output error" in last
    assert "Traceback" not in said
    assert hash_file(out) == before
    left = set(content_of(tmp_path)) - {"out"}
    assert left <= {"out.journal"}  # what is done is kept, to go on from
    code, said = server.run(argv_of(verb, out, other=True))
    assert code == 0, said
    assert hash_file(out) != before
    assert content_of(tmp_path) == ["out"]
    name = "EFBIG on write" if fault == "a file may not grow" else "EIO on fsync"
    outcome(verb, name, "exit code 2, one line, old output intact, nothing half-written; the next run ends well")


LONG = ("recommend", "embed")


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 40 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "none", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here ({done.stderr.strip()}); EFBIG above stands for it")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("verb", ["recommend", "embed"])
def test_a_full_disk(verb, server, argv_of, tiny_disk, outcome):
    out = tiny_disk / "out"
    (tiny_disk / "others").write_bytes(b"x" * (28 << 10))
    code, said = server.run(argv_of(verb, out))
    assert code == 2, said
    assert "No space left on device" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert set(content_of(tiny_disk)) <= {"others", "out.journal"}
    (tiny_disk / "others").unlink()
    code, said = server.run(argv_of(verb, out))
    assert code == 0, said
    assert content_of(tiny_disk) == ["out"]
    outcome(
        verb, "ENOSPC (a tmpfs of 40 kB)", "exit code 2, one line, nothing half-written; goes on once there is room"
    )
