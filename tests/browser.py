"""Debian's Chromium without a window, driven over WebDriver with the standard library alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromedriver")
TAB, DOWN, ENTER = "\ue004", "\ue015", "\ue007"
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Browser:
    """One window."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._session = ""

    def call(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, data, kind, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)["value"]

    def start(self, folder: Path, *flags: str) -> None:
        options = {
            "binary": shutil.which("chromium"),
            "args": [*_FLAGS, f"--user-data-dir={folder}", *flags],
        }
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        made = self.call("POST", "/session", capabilities={"alwaysMatch": wanted})
        self._session = f"/session/{made['sessionId']}"

    def open(self, page: Path, fragment: str = "") -> None:
        self.call("POST", f"{self._session}/url", url=page.as_uri() + fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; gives what it returns."""
        return self.call(
            "POST", f"{self._session}/execute/sync", script=script, args=list(arguments)
        )

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keys", "actions": strokes})

    def point_at(self, selector: str) -> None:
        element = self.call(
            "POST", f"{self._session}/element", using="css selector", value=selector
        )
        move = {"type": "pointerMove", "duration": 0, "origin": element, "x": 0, "y": 0}
        self._act({"type": "pointer", "id": "mouse", "actions": [move]})

    def resize(self, width: int, height: int) -> None:
        """Give the page so much room, also less than a window may have."""
        room = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command = "Emulation.setDeviceMetricsOverride"
        self.call("POST", f"{self._session}/goog/cdp/execute", cmd=command, params=room)

    def log(self, kind: str) -> list[str]:
        entries = self.call("POST", f"{self._session}/se/log", type=kind)
        return [entry["message"] for entry in entries]

    def requests(self, page: Path) -> set[str]:
        """Addresses that a page asked for."""
        messages = (json.loads(message)["message"] for message in self.log("performance"))
        sent = (m["params"] for m in messages if m["method"] == "Network.requestWillBeSent")
        return {each["request"]["url"] for each in sent if each["documentURL"] == page.as_uri()}

    def close(self) -> None:
        if self._session:
            self.call("DELETE", self._session)
            self._session = ""

    def _act(self, source: dict[str, Any]) -> None:
        self.call("POST", f"{self._session}/actions", actions=[source])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser; skips without one, which in CI is a failure."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell(f"{' and '.join(missing)} not installed: apt-get install chromium chromium-driver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["chromedriver", f"--port={port}"], **quiet) as driver:  # type: ignore[call-overload]
        made = Browser(port)
        try:
            _wait(made)
            made.start(folder)
            yield made
        finally:
            with suppress(OSError):
                made.close()
            driver.kill()


def _wait(driver: Browser) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError):
            if driver.call("GET", "/status")["ready"]:
                return
        time.sleep(0.05)
    raise RuntimeError("chromedriver did not start.")
