"""Answers of a hosted chat model to many prompts: by batches, or by requests side by side.

Every answer goes into the journal as it comes, under the custom id of its request; what the journal has is never asked
for again. Batches are collected before anything new is sent, also those of a run that was stopped.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from typing import Any

from seqrec_prompt.console import progress
from seqrec_prompt.engines.jobs import create_once, run_key, watch
from seqrec_prompt.engines.openai import Service
from seqrec_prompt.errors import HostedError
from seqrec_prompt.journal import Journal

CHAT = "/v1/chat/completions"
MOST_REQUESTS, MOST_BYTES = 50_000, 200 * 2**20  # of one batch (OpenAI, Batch API guide)
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True)
class Request:
    """One prompt. custom_id: what its answer is joined on. tokens: of the prompt. most: of all answers to it."""

    custom_id: str
    body: dict[str, Any]
    tokens: int
    most: int


def answered(journal: Journal) -> dict[str, dict[str, Any]]:
    """By custom id, the choices and the usage of every answer that has come."""
    return {record["answer"]: record for record in journal.records() if "answer" in record}


def ask_all(service: Service, journal: Journal, requests: Sequence[Request], at_once: int) -> list[str]:
    """Send requests side by side at the service's pace; returns what went wrong with single ones.

    Raises HostedError for what would go wrong with all of them. Stopped, it waits for the answers under way, which are
    paid for, and keeps them.
    """
    problems: list[str] = []
    kept: set[Future[dict[str, Any]]] = set()
    with ThreadPoolExecutor(at_once) as pool, progress(len(requests), "ask", "prompts") as bar:
        futures = {pool.submit(service.chat, one.body, one.tokens + one.most): one for one in requests}

        def keep(future: Future[dict[str, Any]]) -> None:
            kept.add(future)
            bar.update()
            try:
                journal.append(_answer(futures[future].custom_id, future.result()))
            except HostedError as error:
                single = error.reached and error.status in (None, 400, 413, 422)
                if not single or error.exhausted:
                    raise
                problems.append(f"{futures[future].custom_id}: {error}")

        try:
            for future in as_completed(futures):
                keep(future)
        except BaseException:
            for future in futures:
                future.cancel()
            if under_way := sum(not future.done() for future in futures):
                print(f"waiting for {under_way:,} answers under way, which are paid for (Ctrl-C again leaves them)")
            wait(futures)
            for future, one in futures.items():
                if future not in kept and not future.cancelled() and future.exception() is None:
                    journal.append(_answer(one.custom_id, future.result()))
            raise
    return problems


def send_batches(
    service: Service, journal: Journal, requests: Sequence[Request], wanted: Mapping[str, Any], *, fresh: bool
) -> None:
    """Announce requests as batches in the journal; `collect_batches` creates and reads them."""
    for part in _parts(requests):
        ids = [one.custom_id for one in part]
        key = run_key(wanted, ids, len(_batches(journal)), fresh=fresh)
        content = b"".join(_line(one) for one in part)
        with _batches_may_be_unknown():
            file = service.upload(f"seqrec-prompt-{key}.jsonl", content, "batch")
        journal.append({"batch": key, "ids": ids, "file": file})


def collect_batches(service: Service, journal: Journal) -> list[str]:
    """Bring every batch of the journal to its end and keep its answers; returns what went wrong, in few lines."""
    problems: list[str] = []
    waiting = {key: batch for key, batch in _batches(journal).items() if "status" not in batch}
    for key, batch in waiting.items():  # all are created before one is waited for
        if "id" not in batch:
            batch["id"] = _create(service, journal, key, batch["file"])
            journal.append({"batch": key, "id": batch["id"]})
            print(f"batch: {batch['id']}  ({len(batch['ids']):,} requests)")
    for key, batch in waiting.items():
        name = batch["id"]
        try:
            found = watch(lambda name=name: service.batch(name), ENDED, _describe)  # type: ignore[misc]
        except KeyboardInterrupt:
            print(f"{name} goes on at the service; the same command comes back to it.")
            raise
        problems += _read(service, journal, found, set(batch["ids"]))
        journal.append({"batch": key, "status": found["status"]})
    return problems


def _create(service: Service, journal: Journal, key: str, file: str) -> str:
    try:
        with _batches_may_be_unknown():
            made = create_once(
                lambda: service.create_batch(key, file, CHAT),
                lambda: service.find_batch(key, file),
                journal,
                key,
                what="creating the batch",
            )
    except HostedError as error:
        if error.status is not None and error.status < 500:  # it is not there, and need not be looked for again
            journal.append({"batch": key, "status": "refused"})
        raise
    return str(made["id"])


@contextlib.contextmanager
def _batches_may_be_unknown() -> Iterator[None]:
    try:
        yield
    except HostedError as error:
        if error.status not in (404, 405, 501):
            raise
        raise HostedError(f"{error} A service without a Batch API is asked with --by requests.", error.status) from None


def _read(service: Service, journal: Journal, batch: Mapping[str, Any], owed: set[str]) -> list[str]:
    """Keep a batch's answers, joined on custom ids; returns problems: what the batch says, and its first bad lines."""
    problems = [f"{batch['id']}: {error['message']}" for error in (batch.get("errors") or {}).get("data") or []]
    if batch["status"] != "completed":
        problems.insert(0, f"{batch['id']} is {batch['status']}")
    missing = owed - set(answered(journal))
    for file in filter(None, (batch.get("output_file_id"), batch.get("error_file_id"))):
        for number, line in enumerate(service.download(file).splitlines(), start=1):
            try:
                row = json.loads(line)
                name, response = row["custom_id"], row.get("response") or {}
                body = response.get("body") or {}
                answer = _answer(name, body) if response.get("status_code") == 200 else None
            except (ValueError, KeyError, TypeError, AttributeError, HostedError):
                problems.append(f"{file}: line {number} cannot be read: {line[:60].decode(errors='replace')}…")
                continue
            if answer is None:
                error = row.get("error") or body.get("error") or {}
                problems.append(f"{name}: {error.get('message') or error or 'no answer'}")
            elif name in missing:
                journal.append(answer)
                missing.discard(name)
    return problems


def _answer(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A journal record: of each choice its text and, where the service tells, its log-probability.

    Raises HostedError for an answer that is none.
    """
    try:
        choices = []
        for choice in body["choices"]:
            told = (choice.get("logprobs") or {}).get("content")
            logprob = sum(token["logprob"] for token in told) if told else None
            # Half of a character, which JSON may hold, no file of text can.
            text = (choice["message"]["content"] or "").encode("utf-8", "replace").decode()
            choices.append([text, logprob])
        usage = body.get("usage") or {}
        tokens = {"input": usage.get("prompt_tokens"), "output": usage.get("completion_tokens")}
    except (KeyError, TypeError, AttributeError):
        raise HostedError(f"its answer cannot be read: {str(body)[:80]}…") from None
    return {"answer": name, "choices": choices, "usage": tokens}


def _batches(journal: Journal) -> dict[str, dict[str, Any]]:
    """By run key, what the journal knows of each batch: ids, file, then id, then status."""
    found: dict[str, dict[str, Any]] = {}
    for record in journal.records():
        if "batch" in record:
            found.setdefault(record["batch"], {}).update(record)
    return found


def _parts(requests: Sequence[Request]) -> Iterator[list[Request]]:
    part: list[Request] = []
    size = 0
    for one in requests:
        line = len(_line(one))
        if part and (len(part) == MOST_REQUESTS or size + line > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(one)
        size += line
    if part:
        yield part


def _line(request: Request) -> bytes:
    row = {"custom_id": request.custom_id, "method": "POST", "url": CHAT, "body": request.body}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _describe(batch: Mapping[str, Any]) -> str:
    counts = batch.get("request_counts") or {}
    done = f", {counts['completed']:,} of {counts['total']:,} answered" if counts.get("total") else ""
    return f"{batch['id']}: {batch['status']}{done}"
