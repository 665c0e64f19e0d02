"""A headless Chromium, spoken to in its DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# The browser reads what it is asked from descriptor 3 and answers on 4.
_START = """
import os, sys
import fcntl
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]  # out of the way of 3 and 4
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_SECONDS = 60


class Page:
    """One page in a browser.

    Attributes:
      complaints: what the console and the log were told since the page was opened, errors and warnings.
      requests: addresses that the page asked for, beside its own.
    """

    def __init__(self, ask: int, answers: int) -> None:
        self._ask, self._answers = ask, answers
        self._number, self._buffer, self._session = 0, b"", ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._ask, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        """The next message; events leave their mark."""
        until = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        event, told = message.get("method", ""), message.get("params", {})
        self._events.append(event)
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif event == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {told['message']}")
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        return dict(message)

    def open(self, path: Path, width: int = 1400, *, dark: bool = False, height: int = 900) -> Self:
        """Opens a file in a window of a width in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.complaints.clear()
        self.requests.clear()
        self.call("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._read()
        self.requests = [url for url in self.requests if url != path.as_uri() and not url.startswith("data:")]
        return self

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def print_pdf(self, path: Path) -> None:
        """What a printer would be given."""
        told = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(told["data"]))


@contextmanager
def browse(profile: Path) -> Iterator[Page]:
    """A browser with a page, for as long as it is wanted.

    Args:
      profile: an empty folder of the browser's own.
    """
    assert PROGRAM is not None
    theirs_in, ask = os.pipe()
    answers, theirs_out = os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--remote-debugging-pipe", "--disable-background-networking", f"--user-data-dir={profile}"]  # fmt: skip
    command = [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), PROGRAM, *flags]
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
    for end in (theirs_in, theirs_out):
        os.close(end)
    try:
        yield Page(ask, answers)
    finally:
        with suppress(OSError):
            os.write(ask, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ask)
        os.close(answers)
