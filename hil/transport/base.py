"""What a way to a host can do: run a command, open a byte stream, move a file.

Commands are argument lists everywhere in hil.  The one place that turns a list
into text for a remote shell is :func:`hil.transport.quoting.quote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hil.deadline import Deadline
from hil.errors import CommandError


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended.

    ``status`` is its exit status, or 128 + signal number if a signal ended it.
    ``out`` and ``err`` are the bytes it wrote; each is cut at the limit that the
    caller gave, and ``truncated`` says so.
    """

    command: tuple[str, ...]
    status: int
    out: bytes
    err: bytes
    seconds: float
    host: str = ""
    truncated: bool = False

    @property
    def stdout(self) -> str:
        """``out`` as text; what is not UTF-8 becomes U+FFFD."""
        return self.out.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """``err`` as text; what is not UTF-8 becomes U+FFFD."""
        return self.err.decode("utf-8", "replace")

    def check(self, hint: str = "") -> Result:
        """This result, if the status is 0.

        Raises:
            CommandError: otherwise, with all that was seen.
        """
        if self.status != 0:
            raise CommandError(
                self.command,
                self.status,
                host=self.host,
                stdout=self.stdout,
                stderr=self.stderr,
                hint=hint,
            )
        return self


class ByteStream(Protocol):
    """A two-way stream of bytes: a console, a monitor socket, a pipe to a command."""

    def read(self, limit: int = 65536) -> bytes:
        """Up to ``limit`` bytes as soon as there are any; ``b""`` at the end. Blocks."""
        ...

    def write(self, data: bytes) -> None:
        """Write all of ``data``. Raises :class:`~hil.errors.LabError` if the far end is gone."""
        ...

    def close(self) -> None:
        """End the stream and what runs at its far end. Safe to call twice; wakes a reader."""
        ...


#: Most bytes of standard output, and of standard error, that a result keeps by default.
OUTPUT_LIMIT = 16 * 1024 * 1024


class Transport(Protocol):
    """A connection to one host (or guest).  Safe to use from several threads."""

    @property
    def name(self) -> str:
        """The host's name in the inventory, for messages."""
        ...

    def run(
        self,
        command: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        limit: int = OUTPUT_LIMIT,
    ) -> Result:
        """Run ``command`` to its end.

        It is started once and never again: a connection that breaks while it ran
        is a :class:`~hil.errors.LabError` that says that it may have run.

        Raises:
            DeadlineExceeded: the command is then ended, with what it had printed.
            LabError: the connection is gone.
        """
        ...

    def open_stream(self, command: Sequence[str], *, deadline: Deadline) -> ByteStream:
        """Start ``command`` and talk to its standard input and output (stderr is merged in)."""
        ...

    def put(self, data: bytes, path: str, *, deadline: Deadline, mode: int = 0o644) -> None:
        """Write ``data`` to ``path`` on the host; the file appears whole or not at all."""
        ...

    def get(self, path: str, *, deadline: Deadline, limit: int = OUTPUT_LIMIT) -> bytes:
        """The contents of ``path``; an error if longer than ``limit`` bytes."""
        ...

    def close(self) -> None:
        """End the connection.  Safe to call twice."""
        ...
