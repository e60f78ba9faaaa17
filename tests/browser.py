"""One headless chromium for all tests of a process, driven by the DevTools protocol through a pipe."""

import fcntl
import json
import os
import re
import select
import shutil
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-renderer-backgrounding --disable-background-timer-throttling "
    "--remote-debugging-pipe"
).split()
TIMEOUT = 120
HEIGHT = 900

# Every script may use these: a page is drawn when no figure in view is empty and unfolded; whole() draws the rest.
HELPERS = """
const wait = time => new Promise(done => setTimeout(done, time));
const until = async condition => { for (let k = 0; k < 1000 && !condition(); k++) await wait(20); };
const inView = one => one.getBoundingClientRect().top < innerHeight && one.getBoundingClientRect().bottom > 0;
const waits = one => !one.closest("details:not([open]), .filtered");
const empty = () => [...document.querySelectorAll(".draw:empty")].filter(waits);
const drawn = async () => {
  await until(() => document.readyState === "complete" && !empty().some(inView));
  await wait(50);
};
const whole = async () => {
  await drawn();
  if (typeof mesascope !== "undefined") mesascope.drawAll?.();
  await until(() => !empty().length);
  await wait(50);
};
"""

UNFOLD = """
document.querySelectorAll("details").forEach(one => { one.open = true; });
await whole();
"""

# With everything unfolded: the width of the content, the width of the window and the number of plots.
MEASURE = f"""{UNFOLD}
return [document.documentElement.scrollWidth, innerWidth, document.querySelectorAll(".main-svg").length];
"""

# With everything unfolded: the text of the page without scripts.
BODY = f"""{UNFOLD}
const body = document.body.cloneNode(true);
body.querySelectorAll("script").forEach(one => one.remove());
return body.outerHTML;
"""


class Browser:
    """A running chromium. Every page is opened in a context of its own, with empty storage."""

    def __init__(self) -> None:
        self.folder = Path(mkdtemp(prefix="browser-"))
        (reads, commands), (answers, writes) = os.pipe(), os.pipe()
        high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 10) for one in (reads, writes)]
        nowhere = (
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        )
        pipes = (os.POSIX_SPAWN_DUP2, high[0], 3), (os.POSIX_SPAWN_DUP2, high[1], 4)  # chromium reads 3 and writes 4
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={self.folder / 'profile'}", "about:blank"]
        self.pid = os.posix_spawn(command[0], command, os.environ, file_actions=[*nowhere, *pipes])
        for one in (reads, writes, *high):
            os.close(one)
        self.commands, self.answers = commands, answers
        self.unread = b""
        self.calls = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the browser and remove its files."""
        self.call("Browser.close")
        os.waitpid(self.pid, 0)
        os.close(self.commands)
        os.close(self.answers)
        shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, method: str, session: str = "", **params: Any) -> int:
        """Send a command without waiting for its result, and return its number."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        return self.calls

    def receive(self, deadline: float) -> dict[str, Any]:
        """Return the next message of the browser."""
        parts = [self.unread]
        while b"\0" not in parts[-1]:
            ready, _, _ = select.select([self.answers], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"chromium did not answer within {TIMEOUT} seconds"
            parts.append(os.read(self.answers, 1 << 20))
            assert parts[-1], "chromium has ended"
        message, _, self.unread = b"".join(parts).partition(b"\0")
        return json.loads(message)

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens until then is added to `events`."""
        number, deadline = self.send(method, session, **params), time.monotonic() + TIMEOUT
        while True:
            message = self.receive(deadline)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.note(message)

    def note(self, message: dict[str, Any]) -> None:
        """Keep an event; frames in processes of their own report their console messages, too."""
        if message.get("method") == "Target.attachedToTarget" and message.get("sessionId"):
            self.watch(message["params"]["sessionId"])
        if "method" in message:
            self.events.append(message)

    def watch(self, session: str) -> None:
        """Report the console messages of a page or frame, and of the frames in it, from their start."""
        self.send("Runtime.enable", session)
        self.send("Log.enable", session)
        self.send("Target.setAutoAttach", session, autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        self.send("Runtime.runIfWaitingForDebugger", session)

    def wait_for(self, event: str) -> None:
        """Wait until an event occurs."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            message = self.receive(deadline)
            self.note(message)
            if message.get("method") == event:
                return

    @contextmanager
    def open(self, address: str, *, width: int = 1280, dark: bool = False, early: str = "") -> Iterator["Page"]:
        """Open a page, in a context of its own.

        Args:
            address: of the page.
            width: of the window in pixels.
            dark: whether the system prefers dark colours.
            early: a script that runs before those of the page.
        """
        self.events.clear()
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.watch(session)
        self.call("Page.enable", session)
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        if early:
            self.call("Page.addScriptToEvaluateOnNewDocument", session, source=early)
        try:
            page = Page(self, session)
            page.load("Page.navigate", url=address)
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def visit(self, address: str, probe: str, **options: Any) -> tuple[Any, list[str]]:
        """Open a page, and return the value of a probe and the console messages."""
        with self.open(address, **options) as page:
            return page.run(probe), page.read_console()

    def look(self, html: str, probe: str = MEASURE, **options: Any) -> tuple[Any, list[str]]:
        """Do the same with the text of a page."""
        return self.visit(self.save(html), probe, **options)

    def save(self, html: str) -> str:
        """Write the text of a page to a file and return its address."""
        path = self.folder / "report.html"
        path.write_text(html, encoding="utf-8")
        return path.as_uri()


@dataclass(frozen=True)
class Page:
    """A page that is open in the browser."""

    browser: Browser
    session: str

    def load(self, method: str, **params: Any) -> None:
        """Load the page with a command of the protocol, and wait for the end of it."""
        self.browser.call(method, self.session, **params)
        self.browser.wait_for("Page.loadEventFired")

    def run(self, probe: str) -> Any:
        """Run the body of an asynchronous function once the page is drawn, and return its value."""
        expression = f"(async () => {{ {HELPERS} await drawn(); {{ {probe} }} }})()"
        options = {"awaitPromise": True, "returnByValue": True}
        result = self.browser.call("Runtime.evaluate", self.session, expression=expression, **options)
        details = result.get("exceptionDetails", {})
        assert not details, details.get("exception", {}).get("description")
        return result["result"].get("value")

    def count_sheets(self) -> int:
        """Print the page and return the number of sheets."""
        printed = self.browser.call("Page.printToPDF", self.session, printBackground=True, preferCSSPageSize=True)
        return len(re.findall(rb"/Type\s*/Page\b(?!s)", b64decode(printed["data"])))

    def read_console(self) -> list[str]:
        """Return the console messages so far."""
        return [text for event in self.browser.events if (text := read_message(event))]


def read_message(event: dict[str, Any]) -> str:
    """Return the text of a console message, or nothing if the event is none."""
    match event["method"], event.get("params", {}):
        case "Runtime.consoleAPICalled", params:
            return " ".join(str(one.get("value", one.get("description"))) for one in params["args"]) or params["type"]
        case "Runtime.exceptionThrown", {"exceptionDetails": details}:
            return details.get("exception", {}).get("description") or details["text"]
        case "Log.entryAdded", {"entry": entry}:
            return entry["text"]
    return ""
