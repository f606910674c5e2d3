"""An application on a port, from its first request to a stop that answers what was taken."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from collections.abc import Sequence
from typing import Any

from seqrec_prompt.errors import ConfigError, MissingExtraError


def require(packages: Sequence[str], verb: str) -> None:
    """Raise MissingExtraError, which names the extra called like `verb`, when a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"{package}, which '{verb}' stands on,", f'pip install "seqrec_prompt[{verb}]"')


def listen(host: str, port: int) -> socket.socket:
    """Take a port, 0 for any that is free. Raises ConfigError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from None


def address(listening: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def answer(app: Any, listening: socket.socket, patience: float) -> None:
    """Answer requests until interrupted or told to stop; then wait up to `patience` seconds for those taken."""
    import uvicorn

    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=max(1, round(patience))
    )
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises once it has shut down
        uvicorn.Server(settings).run(sockets=[listening])
    print("stopped")
