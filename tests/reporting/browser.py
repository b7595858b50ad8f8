"""A page as a person sees it: headless Chromium, over its pipe for debuggers.

See https://chromedevtools.github.io/devtools-protocol/: one JSON object a message, a zero byte
after each; commands on descriptor 3, answers and events on descriptor 4.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hil.deadline import Deadline, poll

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: Seconds; generous, since the machine may be slow and busy.
PATIENCE = 180


class Page:
    """One page that is open."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._numbers = itertools.count(1)
        self._unread = b""
        self._deadline = Deadline(PATIENCE, "Chromium")
        found = self._call("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in found if info["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def open(self, url: str) -> None:
        self._call("Page.navigate", self._session, url=url)

    def evaluate(self, script: str) -> Any:
        """The value of a script, or of the promise that it leads to."""
        answer = self._call(
            "Runtime.evaluate",
            self._session,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self) -> str:
        """All text that is shown now."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, *words: str) -> str:
        """The page's text, once it has all of ``words``."""
        seen = ""

        def shown() -> str | None:
            nonlocal seen
            seen = self.text()
            return seen if all(word in seen for word in words) else None

        limit = Deadline(PATIENCE, f"the page to show {words}")
        return poll(shown, limit, last_seen=lambda: seen[:2000])

    def click(self, words: str) -> None:
        """Click the innermost thing that shows ``words``, once it is there."""
        script = f"""(() => {{
            const all = [...document.querySelectorAll("#app *")];
            const found = all.filter((e) => (e.textContent || "").includes({json.dumps(words)}));
            if (!found.length) {{ return false; }}
            found.at(-1).click();
            return true;
        }})()"""
        poll(lambda: self.evaluate(script), Deadline(PATIENCE, f"{words!r} on the page"))

    def picture(self, path: Path) -> None:
        answer = self._call("Page.captureScreenshot", self._session, format="png")
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, session: dict[str, str] | None = None, **words: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": words, **(session or {})}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], self._deadline.remaining)
            more = os.read(self._answers, 1 << 20) if ready else b""
            assert more, "Chromium ended, or says nothing"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return message


@contextlib.contextmanager
def page(profile: Path, url: str) -> Iterator[Page]:
    """``url`` in a browser of its own, whose files go below ``profile``."""
    assert CHROMIUM
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()

    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--window-size=1400,1000", f"--user-data-dir={profile}"]
    command += ["--remote-debugging-pipe", "about:blank"]
    # The shell puts the two pipes where Chromium expects them.
    script = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
    with subprocess.Popen(
        ["bash", "-c", script, "browser", *command],
        pass_fds=(to_browser, from_browser),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        os.close(to_browser)
        os.close(from_browser)
        try:
            opened = Page(commands, answers)
            opened.open(url)
            yield opened
        finally:
            os.close(commands)
            os.close(answers)
            browser.kill()
