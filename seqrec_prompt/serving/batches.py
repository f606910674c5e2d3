"""Questions that wait together are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.serving.ready import Question, Ready

Observe = Callable[[int, float], None]


@dataclass(frozen=True, eq=False)
class _Waiting:
    question: Question
    answer: asyncio.Future[Recommendations]


class Batches:
    """The queue before one recommender, and the thread that it computes in.

    What arrives while a batch is computed waits, and the next batch takes up to `size` of it: under load batches are
    full without a delay. Alone, a question waits `pause` seconds for company. `longest` questions may wait; `observe`
    is told the size and seconds of each batch.
    """

    def __init__(self, ready: Ready, size: int, longest: int, pause: float, observe: Observe) -> None:
        self._ready, self._size, self._pause, self._observe = ready, size, pause, observe
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(longest)
        self._thread = ThreadPoolExecutor(1)

    def __len__(self) -> int:
        return self._waiting.qsize()

    async def ask(self, question: Question) -> Recommendations:
        """Wait for the answer. Raises QueueFull at once when too many wait; a caller that gives up is forgotten."""
        waiting = _Waiting(question, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(waiting)
        return await waiting.answer

    async def run(self) -> None:
        """Answer until cancelled; a batch that was begun is computed to its end."""
        try:
            while True:
                batch = [await self._waiting.get()]
                if self._pause and len(self) + 1 < self._size:
                    await asyncio.sleep(self._pause)
                while len(batch) < self._size and len(self):
                    batch.append(self._waiting.get_nowait())
                if batch := [one for one in batch if not one.answer.done()]:
                    await self._answer(batch)
        finally:
            self._thread.shutdown()

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        started = monotonic()
        try:
            lists = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._ready.answer, [one.question for one in batch]
            )
        except Exception as error:  # noqa: BLE001 - it is the asker's to handle, and the queue goes on
            if len(batch) > 1:  # one bad question does not cost the others their answer
                for one in batch:
                    await self._answer([one])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        self._observe(len(batch), monotonic() - started)
        for one, answer in zip(batch, lists, strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)
