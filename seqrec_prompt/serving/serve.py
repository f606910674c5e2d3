"""`serve`: recommendations over HTTP, from fitted recommenders and an LLM, sessions that wait decoded together."""

from __future__ import annotations

import contextlib
import importlib.util
import socket

from pydantic import Field

from seqrec_prompt.config import Config
from seqrec_prompt.errors import ConfigError, MissingExtraError
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
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{package}, which 'serve' stands on,", 'pip install "seqrec_prompt[serve]"')
    from seqrec_prompt.data.dataset import Dataset
    from seqrec_prompt.serving.ready import load_ready

    data = Dataset.load(config.data)
    listening = _listen(config.host, config.port)  # before a model is loaded: a taken port is told at once
    with listening:
        ready = load_ready(config, data)

        import uvicorn

        from seqrec_prompt.serving.app import build_app

        app = build_app(ready, data, config)
        patience = max(1, round(config.limits.seconds))
        settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=patience)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(
            f"serving {', '.join(ready)}: http://{shown}:{port}  (POST /recommend, GET /health, GET /metrics)",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises once it has shut down
            uvicorn.Server(settings).run(sockets=[listening])
    print("stopped")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from None
