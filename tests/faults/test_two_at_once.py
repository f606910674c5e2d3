"""Two processes on one output, and other settings over the same output."""

import os
import signal

import pytest
from processes import Fault
from test_kills import content_of, pairs_of, rows_of

from seqrec_prompt.errors import ArtifactError
from seqrec_prompt.locks import lock


@pytest.mark.parametrize("verb", ["recommend", "embed"])
def test_the_second_is_refused_and_told_of_the_first(verb, request, server, tmp_path, outcome):
    argv = request.getfixturevalue(f"{verb}_argv")
    out = tmp_path / "out"
    first = server.start(argv(out))
    first.wait_for(tmp_path / ".out.lock")
    first.kill(signal.SIGSTOP)
    code, said = server.run(argv(out))
    assert code == 2
    assert f"{out} is being written by another process, {first.process.pid} on " in said
    assert "Traceback" not in said
    first.kill(signal.SIGCONT)
    assert first.wait() == 0, first.output
    assert content_of(tmp_path) == ["out"]
    outcome(verb, "two processes, one output", "the second is refused and told who holds it")


def test_the_lock_of_a_killed_process_is_taken_over(server, recommend_argv, tmp_path, outcome):
    out = tmp_path / "out"
    first = server.start(recommend_argv(out))
    first.wait_for(tmp_path / ".out.lock")
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert (tmp_path / ".out.lock").exists()
    code, said = server.run(recommend_argv(out))
    assert code == 0, said
    assert content_of(tmp_path) == ["out"]
    outcome("recommend", "lock of a killed process", "taken over")


def test_a_lock_is_one_by_whatever_way_the_output_is_named(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        lock(tmp_path / "real" / "out"),
        pytest.raises(ArtifactError, match=rf"another process, {os.getpid()} on .* since 2"),
        lock(tmp_path / "link" / "out"),
    ):
        pass
    with lock(tmp_path / "link" / "out"), lock(tmp_path / "real" / "out2"):
        pass
    assert content_of(tmp_path / "real") == []


def test_a_lock_leaves_no_folder_that_was_not_there(tmp_path):
    with pytest.raises(ValueError, match="stop"), lock(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b" / ".out.lock").exists()
        raise ValueError("stop")
    with lock(tmp_path / "c" / "out"):
        (tmp_path / "c" / "out").touch()
    assert content_of(tmp_path) == ["c"]


def test_the_other_processes_of_a_launch_leave_the_lock_to_the_first(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from seqrec_prompt.locks import locked

    run = locked(lambda config: content_of(tmp_path))
    config = SimpleNamespace(out=tmp_path / "out")
    assert run(config) == [".out.lock"]
    monkeypatch.setenv("RANK", "1")
    assert run(config) == []


def test_where_nothing_can_be_written_a_finished_run_is_still_read(monkeypatch, tmp_path):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("seqrec_prompt.locks.os.open", refuse)
    with lock(tmp_path / "out"):
        assert content_of(tmp_path) == [], "no lock stands there, and none is asked for"


CHANGES = {
    "recommend": {
        "config.k: was 5, is 6": ["--k", "6"],
        "inputs.template: was": ["--template.max-items", "3"],
        "inputs.adapter: was None, is": "adapter",
        "inputs.data: was": "catalog",
    },
    "embed": {
        "config.pooling: was 'weighted-mean', is 'last'": ["--pooling", "last"],
        "inputs.adapter: was None, is": "adapter",
        "inputs.data: was": "catalog",
    },
    "fit": {
        "config.sessions: was 'train', is 'before_test'": ["--sessions", "before_test"],
        "inputs.data: was": "catalog",
    },
}


@pytest.mark.parametrize("verb", CHANGES)
def test_other_settings_over_the_same_output_are_refused(verb, request, server, tmp_path, other_data, adapter, outcome):
    argv = request.getfixturevalue(f"{verb}_argv")
    out = tmp_path / "out"
    assert server.run(argv(out))[0] == 0
    before = out.stat().st_mtime_ns
    for key, change in CHANGES[verb].items():
        changed = argv(out, *(change if isinstance(change, list) else []))
        if change == "adapter":
            changed = argv(out, "--adapter", adapter)
        if change == "catalog":
            changed[changed.index("--data") + 1] = other_data
        code, said = server.run(changed)
        assert code == 2
        assert key in said
        assert said.splitlines()[-1] == "Choose another --out, or --overwrite."
    assert out.stat().st_mtime_ns == before
    assert server.run([*changed, "--overwrite"])[0] == 0
    named = ", ".join(key.partition(":")[0] for key in CHANGES[verb])
    outcome(verb, f"same output with another {named}", "refused, differing keys listed; --overwrite begins anew")


def test_an_unfinished_run_is_not_taken_over_by_other_settings(server, recommend_argv, tmp_path):
    out = tmp_path / "out"
    running = server.start(recommend_argv(out))
    running.wait_for(tmp_path / "out.journal", size=2000)
    running.kill()
    running.wait()
    code, said = server.run(recommend_argv(out, "--exclude-seen"))
    assert code == 2
    assert "config.exclude_seen: was False, is True" in said
    assert server.run(recommend_argv(out))[0] == 0
    assert len({row["session_id"] for row in rows_of(out)}) == 12


@pytest.mark.parametrize("verb", ["recommend", "embed"])
def test_out_of_memory_halves_the_batch(verb, request, server, tmp_path, outcome):
    """torch's own allocator refuses: 64 MB a session or text, 400 MB in all."""
    argv = request.getfixturevalue(f"{verb}_argv")
    limit = Fault(memory=400 << 20, batch_bytes=64 << 20)
    large = ["--batch-size", "12"] if verb == "recommend" else ["--batch-tokens", "100000"]
    code, said = server.run(argv(tmp_path / "out", *large), limit)
    assert code == 0, said
    assert "out of memory with" in said
    assert "going on with" in said
    assert server.run(argv(tmp_path / "whole", *large))[0] == 0
    if verb == "recommend":
        assert pairs_of(rows_of(tmp_path / "out")) == pairs_of(rows_of(tmp_path / "whole"))
    outcome(verb, "out of memory (address space limited)", "batch halved, which is said; ends with all items")


@pytest.mark.parametrize("verb", ["recommend", "embed"])
def test_what_does_not_fit_alone_is_named(verb, request, server, tmp_path):
    argv = request.getfixturevalue(f"{verb}_argv")
    code, said = server.run(argv(tmp_path / "out"), Fault(memory=400 << 20, batch_bytes=1 << 30))
    assert code == 2
    assert "Out of memory on one " in said.splitlines()[-1]
