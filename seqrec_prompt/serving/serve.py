"""`serve`: recommendations over HTTP, from fitted recommenders and an LLM, sessions that wait decoded together."""

from __future__ import annotations

from pydantic import Field

from seqrec_prompt.config import Config
from seqrec_prompt.serving.server import address, answer, listen, require
from seqrec_prompt.serving.settings import ServedConfig


class LimitsConfig(Config):
    """What one request, and all that wait, may ask for."""

    body: int = Field(65536, ge=1, description="bytes of a request; more is answered with 413")
    k: int = Field(100, ge=1, description="items of a list; more is answered with 422")
    session: int = Field(500, ge=1, description="items of a session; more is answered with 422")
    queue: int = Field(64, ge=1, description="requests that may wait for one recommender; more are answered with 429")
    seconds: float = Field(30, gt=0, description="from request to answer; what takes longer is answered with 504")


class ServeConfig(ServedConfig):
    """Settings of `serve`."""

    host: str = Field("127.0.0.1", description="address to listen on; there is no login, so think before opening it")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any that is free")
    pause: float = Field(0.005, ge=0, description="seconds that a lone request waits for others to be answered with")
    limits: LimitsConfig = Field(LimitsConfig(), description="")


def serve(config: ServeConfig) -> None:
    """Answer requests until interrupted or told to stop (SIGTERM); requests that were taken are answered first.

    Raises MissingExtraError without the extra, ConfigError when the address cannot be had, and what loading raises.
    """
    require(("fastapi", "uvicorn", "prometheus_client"), "serve")
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.serving.ready import load_ready

    data = Dataset.load(config.data)
    with listen(config.host, config.port) as listening:  # before a model is loaded: a taken port is told at once
        ready = load_ready(config, data)

        from seqrec_prompt.serving.app import build_app

        app = build_app(ready, data, config)
        told = "(POST /recommend, GET /health, GET /metrics)"
        print(f"serving {', '.join(ready)}: {address(listening)}  {told}", flush=True)
        answer(app, listening, config.limits.seconds)
