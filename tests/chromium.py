"""A page as a browser shows it: headless Chromium, spoken to through a pipe in its DevTools protocol."""

import base64
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Page:
    """A page that is open.

    Attributes:
        requests: Addresses that it asked for.
        complaints: What it, or the browser about it, wrote to the console.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._to, self._from = to_browser, from_browser
        self._ids = itertools.count(1)
        self._received = b""
        self._loaded = False
        self._session: dict[str, str] = {}

    def open(self, place: Path | str) -> Self:
        """Open a file or an address, and wait until all of it is there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self._loaded = False
        self.call("Page.navigate", url=place if isinstance(place, str) else place.absolute().as_uri())
        while not self._loaded:
            self._receive()
        return self

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def run(self, script: str) -> Any:
        """Give the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def look(self, *, width: int, dark: bool = False) -> None:
        """Show it on a screen of that many pixels, a telephone's where they are few."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=2 if width < 500 else 1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])

    def picture(self, path: Path) -> None:
        """Save what it looks like, from top to bottom."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """Give it as a PDF."""
        done = self.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        return base64.b64decode(done["data"])

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            data = os.read(self._from, 1 << 20)
            assert data, "the browser is gone"
            self._received += data
        line, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params))
            case "Page.loadEventFired":
                self._loaded = True
        return message


@contextmanager
def opened(place: Path | str, profile: Path) -> Iterator[Page]:
    """Open a file or an address in a browser with an empty profile."""
    assert BROWSER is not None
    child_reads, to_browser = os.pipe()
    from_browser, child_writes = os.pipe()
    # The protocol's pipe are the descriptors 3 and 4, which Bash can set up.
    command = ["bash", "-c", f'exec "$@" 3<&{child_reads} 4>&{child_writes}', "bash", BROWSER, *_FLAGS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
        pass_fds=(child_reads, child_writes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(child_reads)
    os.close(child_writes)
    page = Page(to_browser, from_browser)
    try:
        yield page.open(place)
        page._session = {}
        page.call("Browser.close")
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)
