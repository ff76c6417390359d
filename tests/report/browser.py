"""Debian's Chromium without a window, driven over its debugging pipe."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--mute-audio")
_CONNECT = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page of a browser.

    Attributes:
      errors: error messages of the console, and requests to the network.
    """

    def __init__(self, commands: int, answers: int):
        self.errors: list[str] = []
        self._commands, self._answers, self._buffer, self._count, self._session = commands, answers, b"", 0, {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Opens a file in a window of the given size, and waits until it is loaded."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[colours])
        assert "errorText" not in self.ask("Page.navigate", url=path.as_uri())
        self.run("new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """The value of an expression, after its promise is settled."""
        result = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def ask(self, method: str, seconds: float = 60, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + seconds
        while True:
            message = self._next(end)
            if message.get("id") == self._count:
                assert "error" not in message, message
                return message["result"]

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._answers], [], [], max(0, end - time.monotonic()))[0], (
                "the browser does not answer"
            )
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser has exited"
            self._buffer += read
        first, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(first)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(event["entry"]["text"])
        if method == "Runtime.consoleAPICalled" and event["type"] == "error" or method == "Runtime.exceptionThrown":
            self.errors.append(str(event))
        if method == "Network.requestWillBeSent" and not event["request"]["url"].startswith(
            ("file:", "data:", "about:")
        ):
            self.errors.append(f"requests {event['request']['url']}")


@contextlib.contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A browser with its profile in a folder; it is stopped at the end of the block."""
    ends = [*os.pipe(), *os.pipe()]
    # The browser reads from descriptor 3 and writes to 4; none of the four may have these numbers in this process.
    read_there, write_here, read_here, write_there = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
    command = [sys.executable, "-c", _CONNECT, str(read_there), str(write_there), CHROMIUM, *_FLAGS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank"],
        pass_fds=(read_there, write_there),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (*ends, read_there, write_there):
        os.close(end)
    try:
        yield Browser(write_here, read_here)
    finally:
        process.terminate()
        process.wait(20)
        os.close(write_here)
        os.close(read_here)
