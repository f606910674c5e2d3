"""`recommend --engine openai` against vLLM's server, as anybody starts it: base model and adapter beside it.

The server is what `vllm serve` runs; that command does not start from the wheel for CPUs, which has another name.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from seqrec_prompt.errors import ConfigError, ModelError
from seqrec_prompt.recommenders.recommend import recommend

START = 600  # seconds that the server may take

pytestmark = pytest.mark.timeout(2 * START)


@pytest.fixture(scope="module")
def server(wide_model, adapter, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(wide_model)]
    command += [
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--served-model-name",
        "base",
        "--dtype",
        "float32",
        "--max-model-len",
        "1024",
    ]
    command += [
        "--enforce-eager",
        "--distributed-executor-backend",
        "uni",
        "--enable-lora",
        "--max-lora-rank",
        "64",
        "--lora-modules",
        f"tuned={adapter}",
    ]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as written:
        running = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + START
        while not _answers(port):
            said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            assert running.poll() is None, f"vllm serve ended:\n{said}"
            assert time.monotonic() < until, f"vllm serve does not answer:\n{said}"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(running.pid, signal.SIGKILL)  # its engine, too, which is a process of its own
        running.wait()


def _answers(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.mark.parametrize("scoring", ["renormalised", "joint"])
@pytest.mark.parametrize("served", ["base", "tuned"])
def test_the_lists_are_those_on_transformers(server, config_of, adapter, served, scoring, assert_same_lists):
    own = {"scoring": scoring, "adapter": adapter if served == "tuned" else None, "max_sessions": 3}
    wanted = recommend(config_of("transformers", **own))
    found = recommend(config_of("openai", base_url=server, served=served, **own))
    assert_same_lists(found, wanted)


def test_what_does_not_fit_is_refused(server, config_of, tiny_model, tmp_path):
    with pytest.raises(ConfigError, match=r"does not serve 'other'\. Give --served one of: 'base', 'tuned'"):
        recommend(config_of("openai", base_url=server, served="other", adapter=None))
    from transformers import AutoTokenizer

    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.train_new_from_iterator(["another text"], 300).save_pretrained(other)
    with pytest.raises(ModelError, match=r"base at http.* reads text by other tokens than"):
        recommend(config_of("openai", base_url=server, served="base", adapter=None, model=str(other)))
