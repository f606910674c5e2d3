"""The HTTP interface of `serve`: POST /recommend, GET /health, GET /metrics.

Every answer is JSON but that of /metrics; every error is `{"error": text}` with a status that says whose it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from time import monotonic
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from starlette.exceptions import HTTPException

from seqrec_prompt.data.dataset import Dataset
from seqrec_prompt.errors import SeqrecError, met_limit
from seqrec_prompt.ragged import IntArray
from seqrec_prompt.recommenders.base import Recommendations
from seqrec_prompt.serving.batches import Batches
from seqrec_prompt.serving.ready import Question, Ready
from seqrec_prompt.serving.serve import ServeConfig

TOLD = 10  # unknown items that one answer names
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ItemId = StrictStr | StrictInt


class RecommendRequest(BaseModel):
    """What POST /recommend takes."""

    model_config = ConfigDict(extra="forbid")

    session: list[ItemId] = Field(description="item ids, oldest first; may be empty")
    k: int = Field(10, ge=1, description="items wanted")
    exclude: list[ItemId] = Field([], description="item ids not to be given")
    exclude_seen: bool = Field(False, description="nor the session's own")
    recommender: str | None = Field(None, description="one of /health; by default its first")
    skip_unknown: bool = Field(False, description="go on without ids that the catalog does not have, and name them")


class Served:
    """What the endpoints share: the queues, the catalog, the counters."""

    def __init__(self, ready: Mapping[str, Ready], data: Dataset, config: ServeConfig) -> None:
        self.data, self.config = data, config
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "seqrec", "registry": self.registry}
        self.requests = Counter("requests", "Answers of /recommend by HTTP status", ["status"], **own)
        self.seconds = Histogram("request_seconds", "From request to answer", buckets=SECONDS, **own)
        self.batches = Histogram(
            "batch_sessions", "Sessions answered together", ["recommender"], buckets=BATCHES, **own
        )
        self.computing = Histogram("batch_seconds", "Computing a batch", ["recommender"], buckets=SECONDS, **own)
        self.uncertified = Counter("uncertified_lists", "Lists without a proof", ["recommender"], **own)
        waiting = Gauge("waiting_requests", "Requests in the queue", ["recommender"], **own)
        self.queues: dict[str, Batches] = {}
        for name, one in ready.items():
            self.queues[name] = Batches(one, config.batch_size, config.limits.queue, config.pause, self._observer(name))
            waiting.labels(name).set_function(self.queues[name].__len__)

    def _observer(self, name: str) -> Any:
        sizes, seconds = self.batches.labels(name), self.computing.labels(name)

        def observe(size: int, passed: float) -> None:
            sizes.observe(size)
            seconds.observe(passed)

        return observe

    async def recommend(self, request: Request) -> dict[str, Any]:
        """Answer one request. Raises HTTPException with the status and what to tell."""
        limits = self.config.limits
        asked = _validated(await _body(request, limits.body))
        name = next(iter(self.queues)) if asked.recommender is None else asked.recommender
        if name not in self.queues:
            raise HTTPException(422, f"recommender: '{name}' is not served; these are: {', '.join(self.queues)}")
        for what, given, most in (("k", asked.k, limits.k), ("session", len(asked.session), limits.session)):
            if given > most:
                raise HTTPException(422, f"{what}: {given:,} is more than the {most:,} that --limits.{what} allows")
        session, strange = self._positions(asked.session)
        exclude, _ = self._positions(asked.exclude)  # what is not there is not given anyway
        if strange and not asked.skip_unknown:
            more = f" and {len(strange) - TOLD:,} more" if len(strange) > TOLD else ""
            told = ", ".join(map(repr, strange[:TOLD]))
            raise HTTPException(
                422, f'session: the catalog has no item {told}{more}; with "skip_unknown": true they are left out'
            )
        question = Question(session, asked.k, exclude, asked.exclude_seen)
        try:
            found = await self.queues[name].ask(question)
        except asyncio.QueueFull:
            raise HTTPException(
                429, f"{limits.queue} requests wait already (--limits.queue); try again", {"Retry-After": "1"}
            ) from None
        if not found.certified[0]:
            self.uncertified.labels(name).inc()
        return self._told(name, found) | {"skipped": strange}

    def _positions(self, ids: list[str | int]) -> tuple[IntArray, list[str]]:
        """(known,) catalog positions of item ids, and the ids that the catalog does not have, each once."""
        index, names = self.data.catalog.index, [str(one) for one in ids]
        known = [index[name] for name in names if name in index]
        return np.array(known, np.int32), list(dict.fromkeys(name for name in names if name not in index))

    def _told(self, name: str, found: Recommendations) -> dict[str, Any]:
        catalog = self.data.catalog
        rows = zip(found.items.tolist(), found.scores.tolist(), found.provenances.tolist(), strict=True)
        return {
            "recommender": name,
            "certified": bool(found.certified[0]),
            "gap": _finite(found.gap[0]),
            "outside": None if found.outside is None else _finite(found.outside[0]),
            "items": [
                {"item_id": catalog.ids[item], "title": catalog.titles[item], "score": score, "provenance": how}
                for item, score, how in rows
            ],
        }


def build_app(ready: Mapping[str, Ready], data: Dataset, config: ServeConfig) -> FastAPI:
    """The application; its recommenders answer from its start to its shutdown."""
    served = Served(ready, data, config)
    workers: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        workers.extend(asyncio.create_task(queue.run()) for queue in served.queues.values())
        yield
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    # No page of interactive docs: those load scripts from another host.
    app = FastAPI(
        title="seqrec_prompt", version=version("seqrec_prompt"), lifespan=running, docs_url=None, redoc_url=None
    )

    body = {"required": True, "content": {"application/json": {"schema": RecommendRequest.model_json_schema()}}}

    @app.post("/recommend", openapi_extra={"requestBody": body})
    async def recommend(request: Request) -> Response:
        """Continue a session."""
        started = monotonic()
        try:
            async with asyncio.timeout(config.limits.seconds):
                answer = JSONResponse(await served.recommend(request))
        except TimeoutError:
            answer = _error(504, f"no answer within {config.limits.seconds:g} seconds (--limits.seconds)")
        except HTTPException as error:
            answer = _error(error.status_code, error.detail, error.headers)
        except SeqrecError as error:
            answer = _error(500, str(error))
        except Exception as error:
            served.requests.labels("500").inc()
            if (limit := met_limit(error)) is None:
                raise
            return _error(500, limit)
        served.requests.labels(str(answer.status_code)).inc()
        served.seconds.observe(monotonic() - started)
        return answer

    @app.get("/health")
    async def health() -> Response:
        """Whether every recommender still answers, and what is served."""
        alive = bool(workers) and not any(worker.done() for worker in workers)
        told = {"status": "ok" if alive else "stopped", "recommenders": list(served.queues), "items": len(data.catalog)}
        return JSONResponse(told | {"data": data.hash, "version": app.version}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(generate_latest(served.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def told(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, error.detail, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return _error(500, f"a bug: {type(error).__name__}; the server's log has more")

    return app


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(413, f"the body is longer than the {most:,} bytes that --limits.body allows")
    return bytes(body)


def _validated(body: bytes) -> RecommendRequest:
    try:
        return RecommendRequest.model_validate_json(body)
    except ValidationError as error:
        told = []
        for one in error.errors(include_url=False):
            where = ".".join(str(part) for part in one["loc"] if part not in ("str", "int"))
            known = (
                f"; known are {', '.join(RecommendRequest.model_fields)}" if one["type"] == "extra_forbidden" else ""
            )
            told.append(f"{where or 'body'}: {one['msg']}{known}")
        raise HTTPException(422, "; ".join(dict.fromkeys(told[:TOLD]))) from None


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, dict(headers or {}))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
