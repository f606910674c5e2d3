"""OpenAI and every service that speaks its protocol; the only module that imports the library.

The library's own retries are off, for it would send what costs money again. There are three ways to send instead:

  read    costs nothing: tried again, with growing pauses, after 429, 5xx and lost connections
  ask     the answer is billed and cannot be looked up: again only where the service says that it gave none (429, 500,
          503) or was never reached; after silence the row is left owed
  create  makes something that is billed: one try, one result or one HostedError; `jobs.create_once` knows what follows

Errors carry the service's own words and the next step. The key comes from the environment, lives in the library's
client alone, and is cut out of every word that is passed on.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from seqrec_prompt.engines.pricing import OPENAI, ServiceConfig
from seqrec_prompt.engines.tokens import INSTALL
from seqrec_prompt.errors import ConfigError, HostedError, MissingExtraError

if TYPE_CHECKING:
    import openai

T = TypeVar("T")
TRIES = 6
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two tries, doubling
CONNECT = 10.0  # seconds that a connection may take to come about
LONGEST_WISH = 600.0  # seconds: a service that asks for a longer wait is not waited for
UNAVAILABLE = (500, 503)  # answers that end a request without a result; a gateway's 502 and 504 do not
KEY = "seqrec_prompt_run"  # name of the run key in the metadata of whatever is created


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


class Pace:
    """Spreads requests over time, for all threads: so many requests and so many tokens a minute."""

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._free = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: int) -> None:
        """Wait for the turn of a request of `tokens`."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free)
            minutes = 1 / self.requests_per_minute if self.requests_per_minute else 0.0
            if self.tokens_per_minute:
                minutes = max(minutes, tokens / self.tokens_per_minute)
            self._free = start + 60 * minutes
        if start > now:
            pause(start - now)

    def hold(self, seconds: float) -> None:
        """Let nobody start for so long."""
        with self._lock:
            self._free = max(self._free, time.monotonic() + seconds)


class Service:
    """One service and one key. Everything it returns is plain JSON."""

    def __init__(self, config: ServiceConfig, pace: Pace | None = None) -> None:
        """Raises MissingExtraError without the library, ConfigError without a key; sends nothing."""
        try:
            import openai
        except ImportError:
            raise MissingExtraError("openai", INSTALL) from None
        self.url = config.base_url
        self.timeout = config.timeout
        self.pace = pace or Pace()
        self._variable = config.key_variable or "that --key-variable names"
        if self.url == OPENAI and self._variable not in os.environ:
            raise ConfigError(
                f"no key: the environment variable {self._variable} is not set. export {self._variable}=… (a key is "
                "never a setting, so that it stands in no file)."
            )
        # A server of one's own mostly wants no key, but the library does.
        key = os.environ.get(self._variable, "none").strip()
        if not key.isascii() or not key:
            raise ConfigError(f"the key in the environment variable {self._variable} is empty or not ASCII text.")
        timeout = openai.Timeout(config.timeout, connect=min(config.timeout, CONNECT))
        self._client = openai.OpenAI(api_key=key, base_url=self.url, max_retries=0, timeout=timeout)

    def __repr__(self) -> str:
        return f"Service({self.url!r})"

    # Files

    def upload(self, name: str, content: bytes, purpose: str) -> str:
        """Upload a file, which costs nothing; returns its id."""
        send = self._client.files.create
        made = self.read(f"uploading {name}", lambda: send(file=(name, content), purpose=purpose))  # type: ignore[arg-type]
        return str(made.id)

    def download(self, file: str) -> bytes:
        """Read a file's bytes."""
        content = self.read(f"reading the file {file}", lambda: self._client.files.content(file).read())
        return content.replace(key, b"[key]") if len(key := str(self._client.api_key).encode()) > 4 else content

    # Fine-tuning jobs

    def create_job(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create a fine-tuning job that carries the run key; sent once."""
        send = self._client.fine_tuning.jobs.create
        return self._plain(self._once("creating the fine-tuning job", lambda: send(**body, metadata={KEY: key})))

    def find_job(self, key: str, file: str) -> dict[str, Any] | None:
        """The job of this run, if there is one: it carries the run key, or trains on the file uploaded for it."""
        jobs = self.read("listing the fine-tuning jobs", lambda: list(self._client.fine_tuning.jobs.list(limit=100)))
        found = _of_run(jobs, key, "training_file", file)
        return self._plain(found) if found else None

    def job(self, name: str) -> dict[str, Any]:
        """A job as it stands."""
        return self._plain(self.read(f"reading {name}", lambda: self._client.fine_tuning.jobs.retrieve(name)))

    def cancel_job(self, name: str) -> dict[str, Any]:
        """Cancel a job."""
        return self._plain(self.read(f"cancelling {name}", lambda: self._client.fine_tuning.jobs.cancel(name)))

    def events(self, name: str) -> list[dict[str, Any]]:
        """A job's events, oldest first."""
        send = self._client.fine_tuning.jobs.list_events
        found = self.read(f"reading the events of {name}", lambda: list(send(name, limit=100)))
        return [self._plain(event) for event in found][::-1]

    def last_event(self, name: str) -> str:
        """What a job said last."""
        send = self._client.fine_tuning.jobs.list_events
        found = self.read(f"reading the events of {name}", lambda: send(name, limit=1).data)
        return str(found[0].message) if found else ""

    # Batches

    def create_batch(self, key: str, file: str, endpoint: str) -> dict[str, Any]:
        """Create a batch that carries the run key; sent once."""
        send = self._client.batches.create
        body: Any = {"input_file_id": file, "endpoint": endpoint, "completion_window": "24h", "metadata": {KEY: key}}
        return self._plain(self._once("creating the batch", lambda: send(**body)))

    def find_batch(self, key: str, file: str) -> dict[str, Any] | None:
        """The batch of this run, if there is one: it carries the run key, or reads the file uploaded for it."""
        batches = self.read("listing the batches", lambda: list(self._client.batches.list(limit=100)))
        found = _of_run(batches, key, "input_file_id", file)
        return self._plain(found) if found else None

    def batch(self, name: str) -> dict[str, Any]:
        """A batch as it stands."""
        return self._plain(self.read(f"reading {name}", lambda: self._client.batches.retrieve(name)))

    # Answers, each billed

    def chat(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
        """One chat completion; `tokens`, what it may take, count for the pace."""
        return self._plain(
            self.ask("asking for an answer", lambda: self._client.chat.completions.create(**body), tokens)
        )

    def embeddings(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
        """Vectors of several texts."""
        return self._plain(self.ask("asking for embeddings", lambda: self._client.embeddings.create(**body), tokens))

    # A server of one's own, which bills nothing

    def models(self) -> list[dict[str, Any]]:
        """What is served. Asked first, so a server that is not there is a wrong address, and not tried again."""
        found = self.read("asking for the models", lambda: list(self._client.models.list()), reached=True)
        return [self._plain(one) for one in found]

    def complete(self, body: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        """One completion; `more`, what the server understands beyond the protocol."""
        send = self._client.completions.create
        return self._plain(self.read("asking for a completion", lambda: send(**body, extra_body=more)))

    # The three ways to send

    def read(self, what: str, call: Callable[[], T], *, reached: bool = False) -> T:
        """Send what costs nothing, again and again if need be; with `reached` only once a connection was made."""

        def again(error: HostedError) -> bool:
            if reached and not error.reached:
                return False
            return error.status is None or error.status in (408, 409, 429) or error.status >= 500

        return self._send(what, call, again, pause)

    def ask(self, what: str, call: Callable[[], T], tokens: int) -> T:
        """Send what is billed when it is answered; again only when the service says that it was not."""

        def again(error: HostedError) -> bool:
            return error.status in (429, *UNAVAILABLE) or not error.reached

        def paced() -> T:
            self.pace.wait(tokens)
            return call()

        return self._send(what, paced, again, self.pace.hold)

    def _once(self, what: str, call: Callable[[], T]) -> T:
        return self._send(what, call, lambda error: False, pause)

    def _send(
        self, what: str, call: Callable[[], T], again: Callable[[HostedError], bool], wait: Callable[[float], None]
    ) -> T:
        import openai

        longest = FIRST_PAUSE
        for left in reversed(range(TRIES)):
            try:
                result = call()
                if not isinstance(result, str):
                    return result
                failure = self._strange(what, result)
            except openai.APIError as error:
                failure = self._explain(what, error)
            except json.JSONDecodeError as error:
                failure = self._strange(what, error.doc)
            # Raised out here, where the library's error, which holds the request and its key, is no longer attached.
            if not left or failure.exhausted or not again(failure):
                raise failure
            wish = failure.retry_after
            if wish is not None and wish > LONGEST_WISH:
                raise failure
            # Full jitter; a wish is a lower bound.
            wait(random.uniform(longest / 2, longest) if wish is None else wish + random.uniform(0, 1))  # noqa: S311
            longest = min(2 * longest, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    # Errors

    def _strange(self, what: str, text: str) -> HostedError:
        return HostedError(
            f"{what}: {self.url} answered with something else than its protocol: {self._clean(text)[:200]!r}. Check "
            "--base-url; it mostly ends in /v1."
        )

    def _explain(self, what: str, error: openai.APIError) -> HostedError:
        import openai

        if not isinstance(error, openai.APIStatusError):
            cause = type(error.__cause__).__name__
            reached = cause not in ("ConnectError", "ConnectTimeout")
            if isinstance(error, openai.APITimeoutError) and reached:
                said = f"no answer within {self.timeout:g} s (--timeout)"
            else:
                said = f"{'the connection was lost' if reached else 'no connection'} ({cause}: {error.__cause__})"
            return HostedError(
                f"{what}: {self.url}: {self._clean(said)}. {NEXT[None if reached else 'away']}", reached=reached
            )
        status = error.status_code
        body: Any = error.body
        words = body.get("message") if isinstance(body, dict) else body
        # Services of another make say it elsewhere; the key is cut out before a part of it could be cut off.
        words = words or self._clean(error.response.text)[:300] or error.message
        exhausted = error.code == "insufficient_quota"
        step = NEXT["quota"] if exhausted else NEXT.get(status, NEXT[500] if status >= 500 else NEXT[400])
        said = self._clean(str(words)).strip().rstrip(".")
        return HostedError(
            f"{what}: {self.url} answered {status}: {said}. {step.format(variable=self._variable)}",
            status,
            retry_after=_retry_after(error.response.headers),
            exhausted=exhausted,
        )

    def _plain(self, value: Any) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(self._clean(json.dumps(value.model_dump(mode="json"))))
        return plain

    def _clean(self, text: str) -> str:
        return text.replace(str(self._client.api_key), "[key]") if len(str(self._client.api_key)) > 4 else text


NEXT: dict[int | str | None, str] = {
    None: "Run the same command again; what is done is kept.",
    "away": "Check --base-url, and that the service is up. Run the same command again; what is done is kept.",
    400: "Correct what it names, then run the same command again.",
    401: "Check the key in the environment variable {variable}.",
    403: "This key may not do that: check its project and its rights at the provider.",
    404: "Check the names of model and job, and --base-url.",
    429: "It takes no more for now: run the same command again later; what is done is kept.",
    500: "That is trouble at the provider's: run the same command again; what is done is kept.",
    "quota": "Add credit at the provider's, then run the same command again; what is done is kept.",
}


def _retry_after(headers: Any) -> float | None:
    """Seconds that the service asks to wait: milliseconds, seconds or a date."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        if (value := headers.get("retry-after")) is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _of_run(held: list[Any], key: str, field: str, file: str) -> Any:
    """The oldest of what belongs to a run; services that keep no metadata still name the file."""
    found = [one for one in held if (one.metadata or {}).get(KEY) == key or getattr(one, field) == file]
    if len(found) > 1:
        print(f"warning: this run has {len(found)}: {', '.join(one.id for one in found)}. Cancel all but the last.")
    return found[-1] if found else None
