"""A program that was sent as text runs at the far end and answers questions.

Starting a process costs a slow machine tens of milliseconds; a program that stays answers in
one.  Nothing is installed: the text goes to ``python3 -c`` on the command line, so this
serves only where Python 3 is found, and is always an addition to a way without it.

Protocol: one JSON object a line on its standard input (``{"do": …, …}``), one a line back,
``{"ok": …}`` or ``{"error": "…"}``; the first line back says that it has started.
"""

from __future__ import annotations

import json
import threading
from importlib.resources import files
from typing import Any

from hil.deadline import Deadline
from hil.errors import LabError
from hil.transport.base import ByteStream, Transport

#: Bytes of one answer, at most.
LIMIT = 64 << 20


def program(package: str, name: str) -> str:
    """The text of a program for :class:`Agent`: the module's, then the loop that serves it."""
    own = files(package).joinpath(f"{name}.py").read_text("utf-8")
    return own + files("hil.transport.remote").joinpath("serve.py").read_text("utf-8")


class AgentError(LabError):
    """The program at the far end could not do what it was asked, in its own words."""


class AgentEndedError(LabError):
    """The program at the far end has ended."""


class Agent:
    """One such program.  Safe to use from several threads, one question at a time.

    Raises:
        AgentEndedError: it did not start: there is no Python 3, say.
    """

    def __init__(self, transport: Transport, code: str, deadline: Deadline) -> None:
        self.name = transport.name
        self._lock = threading.Lock()
        self._buffer = b""
        self.ended = False
        """Whether it can be asked no more: it ended, or was cut off in the midst of an answer."""
        self._stream: ByteStream = transport.open_stream(
            ["python3", "-u", "-c", code], deadline=deadline
        )
        self._answer("start", deadline)

    def ask(self, what: str, deadline: Deadline, **arguments: object) -> Any:
        """Ask for ``what`` and return the answer.

        Raises:
            AgentError: it answered with an error.
            AgentEndedError: it ended; what was asked may have been done.
            DeadlineExceeded: it did not answer, and has been ended.
        """
        with self._lock:
            try:
                self._stream.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            except LabError as error:
                self.close()
                raise AgentEndedError(
                    f"the program on {self.name} had ended before {what}",
                    host=self.name,
                    seen=error.seen,
                ) from error
            return self._answer(what, deadline)

    def close(self) -> None:
        """End the program.  Safe to call twice."""
        self.ended = True
        self._stream.close()

    def _answer(self, what: str, deadline: Deadline) -> Any:
        # Closing the stream is what wakes a reader.
        alarm = threading.Timer(min(deadline.remaining, threading.TIMEOUT_MAX), self.close)
        alarm.daemon = True
        alarm.start()
        try:
            return self._read_answer(what, deadline)
        except AgentError:
            raise
        except BaseException:
            # The rest of this answer would be taken for that of the next question.
            self.close()
            raise
        finally:
            alarm.cancel()

    def _read_answer(self, what: str, deadline: Deadline) -> Any:
        noise: list[bytes] = []  # stderr is merged in: a traceback, a warning
        while True:
            line = self._line(what, deadline, noise)
            try:
                answer = json.loads(line)
            except ValueError:
                answer = None
            if not isinstance(answer, dict):
                noise.append(line)
            elif "ok" in answer:
                return answer["ok"]
            else:
                error = str(answer.get("error"))[:2000]
                raise AgentError(f"{what} failed on {self.name}", host=self.name, seen=error)

    def _line(self, what: str, deadline: Deadline, noise: list[bytes]) -> bytes:
        while b"\n" not in self._buffer:
            deadline.check(self._buffer[-500:].decode("utf-8", "replace"))
            data = self._stream.read()
            if not data:
                deadline.check(self._buffer[-500:].decode("utf-8", "replace"))
            if not data or len(self._buffer) > LIMIT:
                raise AgentEndedError(
                    f"the program on {self.name} ended during {what}",
                    host=self.name,
                    seen=b"\n".join([*noise[-20:], self._buffer[-2000:]]).decode(
                        "utf-8", "replace"
                    ),
                )
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
