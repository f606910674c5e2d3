"""A headless browser, driven by its own protocol (Chrome DevTools): evaluate, look, and see what is asked of whom."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Browser:
    """One page. `asked` holds every address that it asked for, `problems` what its console complained of."""

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [str(BROWSER), "--headless", "--remote-debugging-port=0", *flags, "about:blank"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for line in self._process.stderr:  # type: ignore[union-attr]
            if found := re.search(r"ws://([\d.:]+)/", line):
                break
        else:
            raise RuntimeError("the browser did not start")
        with urllib.request.urlopen(f"http://{found[1]}/json/list") as answer:
            (page,) = (one for one in json.load(answer) if one["type"] == "page")
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None))
        self._number = 0
        self.asked: list[str] = []
        self.problems: list[str] = []
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol, and its result; events on the way are noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv(30))
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(told["params"]["exceptionDetails"])[:500])

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script}\n{self.evaluate('document.body.innerText')}")
            time.sleep(0.1)
        return value

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Go to an address in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)

    def picture(self, file: Path) -> None:
        """Save what the window shows, down to the page's end."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End it, and what it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(Exception):
            self._open.close()
        self._process.stderr.close()  # type: ignore[union-attr]
