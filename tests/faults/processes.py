"""A verb in a process of its own, which can be killed, starved or let to fail at a chosen place.

The processes are forked from a server that has the heavy imports behind it, so a fault costs the work, not the imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PRELOADED = [
    "transformers.models.llama.modeling_llama",
    "seqrec_prompt.data.prepare",
    "seqrec_prompt.recommenders.recommend",
    "seqrec_prompt.recommenders.fitted",
    "seqrec_prompt.engines.huggingface",
    "seqrec_prompt.engines.embedder",
    "seqrec_prompt.decoding.compiled",
    "seqrec_prompt.evaluation.evaluate",
    "seqrec_prompt.recommenders.tune",
    "optuna",
    "processes",
]


@dataclass(frozen=True)
class Fault:
    """What a process meets. All but the first happen inside it.

    file_size: most bytes a file may have (the kernel then fails writes, as on a full disk). failing_sync: the number,
    from 1, of the fsync that fails with EIO. memory: bytes of address space beyond what it has at its first batch.
    batch_bytes: what a session or a text of a batch takes beyond its own. die_in: name of a file of a checkpoint; the
    process kills itself when it has written half of the second such file. decoded: a file that gets a line for each
    batch that is read, with a dot for each session or text of it.
    """

    file_size: int | None = None
    failing_sync: int | None = None
    memory: int | None = None
    batch_bytes: int = 0
    die_in: str | None = None
    decoded: Path | None = None


@dataclass
class Running:
    """A started verb."""

    process: multiprocessing.process.BaseProcess
    log: Path

    @property
    def output(self) -> str:
        """What it printed so far, on both streams."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(self.process.pid, number)

    def wait(self, timeout: float = 120) -> int:
        """The exit code; negative: the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s:\n{self.output}")
        return self.process.exitcode

    def wait_for(self, path: Path, size: int = 1, timeout: float = 60) -> None:
        """Wait until a file has `size` bytes."""
        self.wait_until(lambda: path.exists() and path.stat().st_size >= size, timeout)

    def wait_until(self, seen: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until something is so."""
        end = time.monotonic() + timeout
        while not seen():
            if self.process.exitcode is not None or time.monotonic() > end:
                raise TimeoutError(f"what was waited for did not come:\n{self.output}")
            time.sleep(0.002)


class Server:
    """Starts verbs."""

    def __init__(self, folder: Path) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.folder = folder
        self.started = 0

    def start(self, argv: Sequence[object], fault: Fault | None = None, *, fresh: bool = False) -> Running:
        """Start `seqrec-prompt ARGV`; `fresh`: not forked, which autograd does not bear."""
        self.started += 1
        log = self.folder / f"{self.started}.log"
        log.touch()
        words = [str(word) for word in argv]
        context = multiprocessing.get_context("spawn") if fresh else self.context
        process = context.Process(target=work, args=(words, log, self.folder / "cache", fault or Fault()))
        process.start()
        return Running(process, log)

    def run(self, argv: Sequence[object], fault: Fault | None = None, *, fresh: bool = False) -> tuple[int, str]:
        """Exit code and output of the verb."""
        running = self.start(argv, fault, fresh=fresh)
        return running.wait(), running.output


def work(argv: list[str], log: Path, cache: Path, fault: Fault) -> None:
    """Run in the new process."""
    written = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ["SEQREC_PROMPT_CACHE"] = str(cache)
    import torch

    from seqrec_prompt.cli import main

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
    _meet(fault)
    sys.exit(main(argv))


def _meet(fault: Fault) -> None:
    if fault.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, fault.file_size))
    if fault.failing_sync is not None:
        _fail_sync(fault.failing_sync)
    if fault.decoded is not None or fault.batch_bytes:
        _watch_batches(fault)
    if fault.die_in is not None:
        _die_while_saving(fault.die_in)


def _limit_memory(more: int) -> None:
    """Let the address space grow by `more` bytes from now on."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _fail_sync(number: int) -> None:
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= number:
            raise OSError(5, "Input/output error")
        real(descriptor)

    os.fsync = fsync


def _watch_batches(fault: Fault) -> None:
    """Count what is read, and let a batch take memory in proportion to its size."""
    import torch

    from seqrec_prompt.engines.embedder import CausalEmbedder
    from seqrec_prompt.recommenders.llm.prompt import LLMSeqPrompt

    count = os.open(fault.decoded, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if fault.decoded else None
    for owner, name in ((LLMSeqPrompt, "_decode"), (CausalEmbedder, "embed")):
        real = getattr(owner, name)

        def watched(self: object, batch: Sequence[object], *args: object, real=real) -> object:
            if fault.memory is not None and resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
                _limit_memory(fault.memory)  # now that everything is loaded
            if fault.batch_bytes:
                torch.empty(len(batch) * fault.batch_bytes, dtype=torch.uint8)
            if count is not None:
                os.write(count, b"." * len(batch) + b"\n")
            return real(self, batch, *args)

        setattr(owner, name, watched)


def _die_while_saving(name: str) -> None:
    import torch
    from transformers import TrainerState

    saved = []

    def half(path: Path) -> None:
        saved.append(path)
        if len(saved) == 2:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, attribute, place in ((torch, "save", 1), (TrainerState, "save_to_json", 1)):
        real = getattr(owner, attribute)

        def saving(*args: object, real=real, place=place, **kwargs: object) -> None:
            real(*args, **kwargs)
            path = Path(args[place]) if len(args) > place and isinstance(args[place], str | Path) else Path()
            if path.name == name:
                half(path)

        setattr(owner, attribute, saving)
