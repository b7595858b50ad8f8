"""Streams for console tests: a real shell on a pty, and scripted bytes."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import threading
from collections.abc import Callable, Iterable, Sequence

from hil.errors import LabError


class PtyStream:
    """A program on a pseudo terminal, as if it sat behind a serial port."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:  # pragma: no cover
            env = {"PATH": os.environ["PATH"], "TERM": "vt100", "HOME": "/", "LC_ALL": "C.UTF-8"}
            env.update(environment or {})
            # Python ignores SIGPIPE and passes that on; a getty does not.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.execvpe(command[0], list(command), env)
        self._woken, self._waker = os.pipe()
        self._closed = False

    def read(self, limit: int = 65536) -> bytes:
        select.select([self._fd, self._woken], [], [])
        if self._closed:
            return b""
        try:
            return os.read(self._fd, limit)
        except OSError:  # EIO: the last process let go of the terminal
            return b""

    def write(self, data: bytes) -> None:
        if self._closed:
            raise LabError("closed")
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        os.write(self._waker, b"x")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class ScriptedStream:
    """Gives the chunks of ``script``; then blocks until closed, or ends.

    ``answer`` may turn what is written into more output.
    """

    def __init__(
        self,
        script: Iterable[bytes] = (),
        *,
        ends: bool = False,
        answer: Callable[[bytes], Iterable[bytes]] | None = None,
    ) -> None:
        self._script = iter(script)
        self._ends = ends
        self._answer = answer
        self._more: list[bytes] = []
        self._news = threading.Condition()
        self._closed = False
        self.written = b""

    def feed(self, *chunks: bytes) -> None:
        with self._news:
            self._more += chunks
            self._news.notify_all()

    def end(self) -> None:
        with self._news:
            self._ends = True
            self._news.notify_all()

    def read(self, limit: int = 65536) -> bytes:
        for chunk in self._script:
            return chunk
        with self._news:
            while True:
                if self._more:
                    return self._more.pop(0)
                if self._ends or self._closed:
                    return b""
                self._news.wait()

    def write(self, data: bytes) -> None:
        self.written += data
        if self._answer:
            self.feed(*self._answer(data))

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()
