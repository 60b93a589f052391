"""A real headless Chromium, driven through ChromeDriver by the WebDriver protocol (https://www.w3.org/TR/webdriver2/).

Debian's packages, unpacked and not installed (tools/install_test_servers.sh). It has a profile of its own in a
temporary folder, and asks nobody but the servers that it is sent to.
"""

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import pytest

from bench.servers import TOOLS
from engine.ops.free_port import free_port

START_S = 60.0
PAGE_S = 60.0
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver section 11.1
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser:
    """One window. `javascript`: whether pages may run scripts."""

    def __init__(self, *, javascript: bool = True, width: int = 800, height: int = 600) -> None:
        self._javascript = javascript
        self._size = f"--window-size={width},{height}"
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._session = ""
        self._folder = Path()

    def __enter__(self) -> Self:
        driver, browser = TOOLS / "usr/bin/chromedriver", TOOLS / "usr/lib/chromium/chromium"
        if not driver.exists() or not browser.exists():
            pytest.skip("no Chromium: tools/install_test_servers.sh has not been run")
        libraries = [
            folder / part for folder in TOOLS.glob("**/lib/*-linux-gnu") for part in (".", "pulseaudio")
        ]
        self._folder = Path(tempfile.mkdtemp(prefix="browser-"))
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(driver), f"--port={self._port}"],
                stdout=log,
                stderr=log,
                env=os.environ
                | {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "HOME": str(self._folder)},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = (self._folder / "log").read_text(errors="replace")
                self.__exit__()
                raise RuntimeError(f"ChromeDriver did not start: {words[-2000:]}")
            time.sleep(0.05)
        options: dict[str, Any] = {
            "binary": str(browser),
            "args": [*ARGUMENTS, self._size, f"--user-data-dir={self._folder / 'profile'}"],
        }
        if not self._javascript:
            options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
        wanted = {"acceptInsecureCerts": True, "goog:chromeOptions": options}
        self._session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._session:
            self._call("DELETE", f"/session/{self._session}")
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def reload(self) -> None:
        self._post("/refresh", {})

    def title(self) -> str:
        return str(self._get("/title"))

    def text(self, css: str) -> str:
        """What a reader sees of the first such element."""
        return str(self._get(f"/element/{self._find(css)[0]}/text"))

    def count(self, css: str) -> int:
        return len(self._find(css))

    def leave(self, css: str) -> None:
        """Click on something that leads to another page, and wait for that."""
        element = self._find(css)[0]
        self._post(f"/element/{element}/click", {})
        deadline = time.monotonic() + PAGE_S
        while time.monotonic() < deadline:
            try:
                self._get(f"/element/{element}/name")
            except RuntimeError:  # it is gone; between two pages there are several words for that
                return
            time.sleep(0.01)
        raise AssertionError(f"a click on {css} leads nowhere")

    def value(self, expression: str) -> Any:
        """What a script of the test's own finds out about the page."""
        return self._post("/execute/sync", {"script": f"return {expression}", "args": []})

    def screenshot(self) -> bytes:
        return base64.b64decode(self._get("/screenshot"))

    def _find(self, css: str) -> list[str]:
        found = self._post("/elements", {"using": "css selector", "value": css})
        return [str(one[ELEMENT]) for one in found]

    def _get(self, path: str) -> Any:
        return self._call("GET", f"/session/{self._session}{path}")

    def _post(self, path: str, content: dict[str, Any]) -> Any:
        return self._call("POST", f"/session/{self._session}{path}", content)

    def _call(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            value = json.loads(response.read())["value"]
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {value['error']}: {value['message']}")
        return value

    def _is_ready(self) -> bool:
        try:
            return bool(self._call("GET", "/status")["ready"])
        except (OSError, http.client.HTTPException):
            return False
