"""A headless Chromium, spoken to in its DevTools protocol over a pipe: no library, no port."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 60  # until an answer counts as lost
# The browser reads from file 3 and writes to file 4.
LAUNCH = "import os, sys; a, b, *command = sys.argv[1:]; os.dup2(int(a), 3); os.dup2(int(b), 4); "
LAUNCH += "os.execv(command[0], command)"


class Chromium:
    """One tab. Faults of the page gather in `faults`, what it asked for in `requests`."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="chromium")
        (to_browser, self._write), (self._read, from_browser) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", LAUNCH, *map(str, ends), shutil.which("chromium"),
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", "--disable-extensions", "--disable-background-networking",
                "--disable-component-update", "--hide-scrollbars",
                "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe",
                f"--user-data-dir={self.profile}", "about:blank",
            ],
            pass_fds=ends,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for end in ends:
            os.close(end)
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, None
        self.faults, self.requests, self._events = [], [], []
        tabs = self.send("Target.getTargets")["targetInfos"]
        tab = next(one["targetId"] for one in tabs if one["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self):
        """End the browser and remove its profile."""
        os.close(self._write)  # the browser ends with its pipe
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method, **parameters):
        """Send a command and return its result; events that come before it are taken in."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        """The next message; events are kept."""
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], SECONDS)[0], "the browser does not answer"
            part = os.read(self._read, 2**20)
            assert part, "the browser closed its pipe"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        name, about = message.get("method"), message.get("params", {})
        if name:
            self._events.append(name)
        if name == "Runtime.exceptionThrown":
            self.faults.append(about["exceptionDetails"])
        elif name == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.faults.append(about["args"])
        elif name == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.faults.append(about["entry"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        return message

    def open(self, path, width, height=800, scheme="light"):
        """Load a file in a window of this width; returns when it has loaded."""
        self.faults, self.requests, self._events = [], [], []
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        self.prefer(scheme)
        self.send("Page.navigate", url=Path(path).resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._receive()

    def prefer(self, scheme):
        """The user prefers light or dark pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def ask(self, expression):
        """The value of a JavaScript expression, waited for if it is a promise."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True,
                          returnByValue=True)  # fmt: skip
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def move(self, x, y):
        """Move the mouse to a place of the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector):
        """Click the first element of a CSS selector, as a script does."""
        self.ask(f"void document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, path, whole=True):
        """Write a PNG of the page."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
