"""How fast a page opens and reacts in headless Chromium, which is driven over a pipe with the DevTools protocol."""

import json
import os
import select
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from boxtune.common.errors import UserError

# Values of the slider, in a mixed order: small and large moves.
MOVES = (0.3, 0.305, 0.31, 0.6, 0.595, 0.1, 0.105, 0.9, 0.5, 0.505)
# Where the slider is moved: at the top of the page, with the table per class in view, and with boxes in view.
PLACES = ("body", "tr[data-class]", "#images")
# Moves the slider and answers after the next frame with the milliseconds until then.
_MOVE = """new Promise((done) => {
  const slider = document.getElementById("score"), began = performance.now();
  slider.value = VALUE;
  slider.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => done(performance.now() - began);
    channel.port2.postMessage(0);
  });
})"""
_PAINTED = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


def measure_page(path: Path, timeout: float = 300) -> dict[str, float]:
    """{"open": seconds from the navigation to the first frame after loading, "move": median and "slowest": maximum
    milliseconds from a move of the slider to the end of the next frame, "busy": median and "busiest": maximum milliseconds of CPU
    time of the page's main thread per move, which hardly depend on what else the machine does}; without the latter four if the
    page has no slider.
    """
    with Browser(timeout) as browser:
        browser.call("Page.enable")
        began = time.monotonic()
        browser.call("Page.navigate", url=path.resolve().as_uri())
        browser.wait_for("Page.loadEventFired")
        browser.evaluate(_PAINTED)
        found = {"open": time.monotonic() - began}
        time.sleep(1)  # cards out of view are drawn
        if browser.evaluate("document.getElementById('score') !== null"):
            browser.call("Performance.enable", timeDomain="threadTicks")
            moves, busy = [], []
            for place in PLACES:
                browser.evaluate(f"document.querySelector('{place}').scrollIntoView()")
                time.sleep(0.5)  # what came into view is drawn; dragging the slider does not scroll
                for value in MOVES:
                    before = browser.busy_seconds()
                    moves.append(browser.evaluate(_MOVE.replace("VALUE", str(value))))
                    busy.append(1000 * (browser.busy_seconds() - before))
            found |= {"move": statistics.median(moves), "slowest": max(moves)}
            found |= {"busy": statistics.median(busy), "busiest": max(busy)}
        return found


class Browser:
    """A page of headless Chromium. Calls raise UserError after `timeout` seconds without an answer."""

    def __init__(self, timeout: float):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            raise UserError("neither chromium nor google-chrome is on the PATH. Install one of them.")
        self._timeout = timeout
        self._profile = tempfile.mkdtemp(prefix="boxtune-browser.")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--remote-debugging-pipe"]
        # Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
        command = f"{program} {' '.join(options)} --user-data-dir={self._profile} about:blank"
        shell = f"exec {command} 3<&{to_browser} 4>&{from_browser}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._pending, self._events, self._number, self._session = b"", [], 0, None
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a DevTools command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._next(lambda found: found.get("id") == self._number)
        if "error" in answer:
            raise UserError(f"Chromium refuses {method}: {answer['error']['message']}")
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, after its promise is fulfilled."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise UserError(f"the page's script failed: {result['exceptionDetails']['text']}")
        return result["result"].get("value")

    def busy_seconds(self) -> float:
        """What the main thread of the page has worked until now; needs "Performance.enable"."""
        metrics = {metric["name"]: metric["value"] for metric in self.call("Performance.getMetrics")["metrics"]}
        return float(metrics["TaskDuration"])

    def wait_for(self, event: str) -> None:
        if event not in self._events:
            self._next(lambda found: found.get("method") == event)

    def _next(self, is_wanted: Any) -> dict[str, Any]:
        """The first message that is wanted. The names of events before it are kept."""
        deadline = time.monotonic() + self._timeout
        while True:
            while b"\0" in self._pending:
                text, self._pending = self._pending.split(b"\0", 1)
                message = json.loads(text)
                if is_wanted(message):
                    return message
                self._events.append(message.get("method"))
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise UserError(f"Chromium gave no answer in {self._timeout:.0f} s.")
            self._pending += os.read(self._read, 1 << 20)
