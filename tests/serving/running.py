"""An application on a free port of this machine."""

import contextlib
import socket
import threading
import time

import uvicorn


@contextlib.contextmanager
def running(app, *, wait=True):
    """Yield the port. wait: at the end, for what is being answered."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit, server.force_exit = True, not wait
            thread.join(20)
            assert not thread.is_alive()
