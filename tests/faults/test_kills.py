"""SIGKILL at random points: the run goes on and ends as an unbroken one does."""

import csv
import json
import random
import re
import signal
import time

import pyarrow.parquet as pq
import pytest
from processes import Fault
from safetensors.numpy import load_file


def rows_of(path):
    return pq.read_table(path).to_pylist()


def pairs_of(rows):
    return [(row["session_id"], row["item_id"]) for row in rows]


def arrays_of(name):
    return lambda path: {key: array.tolist() for key, array in load_file(path / name).items()}


def content_of(folder):
    return sorted(path.name for path in folder.iterdir())


def batches_of(path):
    return [len(line) for line in path.read_text().splitlines()] if path.exists() else []


def trials_of(path):
    """All but how long a trial took."""
    with (path / "trials.csv").open() as stream:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(stream)]


def result_of(verb, path):
    """What is there whole or not at all; a study stands in its directory while it is made."""
    return path / "best.yaml" if verb == "tune" else path


def metrics_of(path):
    """All but where it was written to."""
    metrics = json.loads((path / "metrics.json").read_text())
    del metrics["config"]["out"], metrics["config"]["overwrite"]
    return metrics, (path / "segments.csv").read_text(), rows_of(path / "per_session.parquet")


READERS = {
    "prepare": lambda path: [rows_of(path / f"{name}.parquet") for name in ("catalog", "train", "test")],
    "recommend": rows_of,
    "answer": rows_of,
    "evaluate": metrics_of,
    "embed": arrays_of("embeddings.safetensors"),
    "fit": arrays_of("arrays.safetensors"),
    "tune": lambda path: (trials_of(path), (path / "best.yaml").read_text()),
}


@pytest.mark.parametrize("verb", READERS)
def test_killed_at_random_points_it_ends_as_an_unbroken_run(verb, request, server, points, tmp_path, outcome):
    argv, read = request.getfixturevalue(f"{verb}_argv"), READERS[verb]
    whole = tmp_path / "whole" / "out"
    for _ in range(2):  # the second time nothing is met for the first time: its duration is what is to be killed in
        began = time.monotonic()
        code, said = server.run(argv(whole, "--overwrite"), Fault(decoded=tmp_path / "read"))
        duration = time.monotonic() - began
        assert code == 0, said
    batches, wanted = batches_of(tmp_path / "read"), read(whole)
    chance = random.Random(7)
    killed = finished = 0  # runs
    count, folder = tmp_path / "count", tmp_path / "killed"
    while killed < points:
        running = server.start(argv(folder / "out"), Fault(decoded=count))
        last = len(batches_of(count)) + (chance.randrange(4) if batches else 0)
        if last > len(batches_of(count)):
            while len(batches_of(count)) < last and running.process.is_alive():
                running.process.join(0.002)
            running.process.join(chance.uniform(0, duration / 20))
        else:  # before it reads anything, or a stage that reads nothing
            running.process.join(chance.uniform(0, duration))
        running.kill()
        code = running.wait()
        assert code in (-signal.SIGKILL, 0), running.output
        killed, finished = killed + (code != 0), finished + (code == 0)
        if result_of(verb, folder / "out").exists():  # whole or not at all
            assert read(folder / "out") == wanted
        if code == 0:
            assert content_of(folder) == ["out"]
            folder = tmp_path / f"killed-{killed + finished}"
    code, said = server.run(argv(folder / "out"), Fault(decoded=count))
    assert code == 0, said
    assert read(folder / "out") == wanted
    assert content_of(folder) == ["out"]  # no journal, no lock, nothing half-written
    done = batches_of(count)
    again = sum(done) - (finished + 1) * (sum(batches) // 2)
    assert again <= killed * max(batches, default=0)  # at most one batch a kill
    stage = "recommend without an LLM" if verb == "answer" else verb
    redone = f"; {again} of {sum(done)} {'sessions' if verb == 'recommend' else 'texts'} read again" if done else ""
    outcome(
        stage, f"SIGKILL at {points} random points", f"{finished + 1} run(s) ended, each with the same result{redone}"
    )


def test_a_killed_training_of_a_sequential_model_ends_as_an_unbroken_one(
    server, sequential_argv, points, tmp_path, outcome
):
    """Killed some epochs after it began or went on; none that a checkpoint holds is done again."""
    read, chance = READERS["fit"], random.Random(11)
    whole, out, checkpoint = tmp_path / "whole", tmp_path / "out", tmp_path / "out.checkpoint"
    code, said = server.run(sequential_argv(whole), fresh=True)
    assert code == 0, said
    for _ in range(points):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        running = server.start(sequential_argv(out), fresh=True)
        running.wait_until(lambda old=before: checkpoint.exists() and checkpoint.stat().st_mtime_ns != old)
        running.process.join(chance.uniform(0, 0.1))
        running.kill()
        assert running.wait() == -signal.SIGKILL, running.output
        assert not out.exists()
    code, said = server.run(sequential_argv(out), fresh=True)
    assert code == 0, said
    assert int(re.search(rf"going on: (\d+)/{20 * points} epochs are done", said)[1]) >= points
    assert read(out) == read(whole)
    assert content_of(tmp_path) == ["out", "whole"]
    outcome("fit of GRU4Rec", f"SIGKILL at {points} random points", "goes on after the last epoch; same weights")


def test_a_torn_last_record_is_made_again(server, recommend_argv, tmp_path, outcome):
    out, whole = tmp_path / "out", tmp_path / "whole"
    journal = tmp_path / "out.journal"
    assert server.run(recommend_argv(whole))[0] == 0
    running = server.start(recommend_argv(out))
    running.wait_for(journal, size=2000)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) > 1
    journal.write_bytes(b"".join(lines)[:-7])
    code, said = server.run(recommend_argv(out))
    assert code == 0, said
    left = sum(len(json.loads(line[9:])["positions"]) for line in lines[1:-1])
    assert (f"going on: {left}/12 sessions are done" in said) == bool(left)
    assert rows_of(out) == rows_of(whole)
    outcome("recommend", "last record of the journal torn", "cut off, its batch made again, same result")


def test_ctrl_c_ends_with_one_line_and_the_run_goes_on(server, recommend_argv, tmp_path, outcome):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert server.run(recommend_argv(whole))[0] == 0
    running = server.start(recommend_argv(out, "--batch-size", 1))
    running.wait_for(tmp_path / "out.journal", size=2000)
    running.kill(signal.SIGINT)
    assert running.wait() == 130
    assert running.output.splitlines()[-1] == "interrupted. Run the same command again to go on."
    assert "Traceback" not in running.output
    code, said = server.run(recommend_argv(out, "--batch-size", 1))
    assert code == 0
    assert re.search(r"going on: \d+/12 sessions are done", said)
    one, other = rows_of(out), rows_of(whole)
    assert [(row["session_id"], row["item_id"]) for row in one] == [
        (row["session_id"], row["item_id"]) for row in other
    ]
    assert [row["score"] for row in one] == pytest.approx([row["score"] for row in other], abs=1e-4)
    outcome("recommend", "Ctrl-C", "exit code 130, one line that says how to go on; goes on, same items")


def test_what_a_kill_between_two_renames_left_comes_back(server, fit_argv, tmp_path):
    """The one moment at which a directory that is replaced stands under no name of its own."""
    out = tmp_path / "out"
    assert server.run(fit_argv(out))[0] == 0
    before = arrays_of("arrays.safetensors")(out)
    out.rename(tmp_path / ".out.abcd_123.old")
    (tmp_path / ".out.half_new.partial").mkdir()
    (tmp_path / ".out.2.half_new.partial").mkdir()  # of another output, 'out.2'
    code, said = server.run(fit_argv(out))
    assert (code, said) == (0, f"already fitted: {out}\n")
    assert arrays_of("arrays.safetensors")(out) == before
    assert content_of(tmp_path) == [".out.2.half_new.partial", "out"]
