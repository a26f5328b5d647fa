"""A headless Chromium, driven through its DevTools protocol: pages opened, clicked, typed into.

Nothing here polls or sleeps: `Page.until` waits in the page for its document to change, and every
other wait is for a message of the browser.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import connect

CHROMIUM = "/usr/bin/chromium"
WAIT_S = 60
"""Far longer than anything takes: what a failing page costs, never a passing one."""
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowDown": 40}
CTRL = 2
"""A modifier of a key."""

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0"),
    # What a browser does for its user, unasked.
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--disable-default-apps", "--disable-sync"),
)

UNTIL = """new Promise((resolve) => {
  const check = () => { if (CONDITION) { observer.disconnect(); resolve(); } };
  const observer = new MutationObserver(check);
  observer.observe(document,
    { attributes: true, childList: true, characterData: true, subtree: true });
  check();
})"""


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it crashed, and the test has failed
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Browser:
    """`with Browser() as browser: page = browser.open(url)`."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # It may still write there as it ends.
            profile = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="sheen-chromium-", ignore_cleanup_errors=True)
            )
            process = subprocess.Popen(
                [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(_kill, process)
            log = process.stderr
            assert log
            address = next((line for line in log if "listening on ws://" in line), "").split()
            assert address, f"{CHROMIUM} ended with exit status {process.wait()}"
            threading.Thread(target=log.read, daemon=True).start()  # a full pipe would stop it
            self._socket = stack.enter_context(connect(address[-1], max_size=None, proxy=None))
            self._stack = stack.pop_all()
        self._last_id = 0
        self.events: list[dict[str, Any]] = []
        """All that came, of all pages."""
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command's result. Raises RuntimeError with the browser's words, or TimeoutError."""
        self._last_id += 1
        command = {"id": self._last_id, "method": method, "params": params, "sessionId": session}
        self._socket.send(json.dumps({key: value for key, value in command.items() if value}))
        answer = next(message for message in self._messages() if message.get("id") == self._last_id)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    @contextlib.contextmanager
    def expecting(self, method: str, **fields: Any) -> Iterator[None]:
        """What is done inside brings an event of this name with these values: wait for it."""
        begin = len(self.events)
        yield

        def came() -> bool:
            return any(
                event["method"] == method and fields.items() <= event["params"].items()
                for event in self.events[begin:]
            )

        messages = self._messages()
        while not came():
            next(messages)

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(timeout=WAIT_S))
            if "method" in message:
                self.events.append(message)
            yield message

    def open(self, url: str, beside: "Page | None" = None) -> "Page":
        """A new tab, loaded, with nothing kept from others but from `beside`."""
        context = (
            self.call("Target.createBrowserContext")["browserContextId"]
            if beside is None
            else beside.context
        )
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"], context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        with self.expecting("Page.loadEventFired"):
            page.call("Page.navigate", url=url)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self.context = browser, session, context

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """Its value, awaited. Raises RuntimeError with what it threw."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for a change of the document that makes the expression true."""
        self.evaluate(UNTIL.replace("CONDITION", condition))

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({selector!r}).textContent"))

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        x, y = self.evaluate(
            f"(() => {{ const one = document.querySelector({selector!r});"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, modifiers: int = 0) -> None:
        """One of KEYS."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}  # without it, it would press no button
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def download(self, selector: str, folder: Path) -> Path:
        """The file that a click saves, in an empty folder."""
        self._browser.call(
            "Browser.setDownloadBehavior",
            behavior="allow",
            downloadPath=str(folder),
            browserContextId=self.context,
            eventsEnabled=True,
        )
        with self._browser.expecting("Browser.downloadProgress", state="completed"):
            self.click(selector)
        (path,) = folder.iterdir()
        return path

    def viewport(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Sizes in CSS pixels; a phone's are of two by two of its own."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.evaluate("new Promise(requestAnimationFrame)")  # it is laid out anew

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def errors(self) -> Counter[str]:
        """Errors that the page logged, by source: "security" (against its policy), "network" (an
        answer was one), "exception" (nothing caught it), "console"."""
        self.evaluate("null")  # what was logged before has come by its answer
        found: Counter[str] = Counter()
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            params = event["params"]
            match event["method"]:
                case "Runtime.exceptionThrown":
                    found["exception"] += 1
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                    found["console"] += 1
                case "Log.entryAdded" if params["entry"]["level"] == "error":
                    found[params["entry"]["source"]] += 1
        return found
