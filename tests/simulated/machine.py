"""Runs commands on a simulated host without SSH."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hil.simulated.files import Null
from hil.simulated.process import OpenFile, Process, System, execute
from hil.simulated.shell import sh


class Sink:
    """Keeps what is written to it."""

    def __init__(self) -> None:
        self.data = bytearray()

    def read(self, process: Process, limit: int) -> bytes:
        return b""

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        self.data += data

    def close(self) -> None:
        return


class Source:
    """Standard input that is all there at once."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, process: Process, limit: int) -> bytes:
        piece, self.data = self.data[:limit], self.data[limit:]
        return piece

    def write(self, process: Process, data: bytes) -> None:
        raise AssertionError("nobody writes to standard input")

    def close(self) -> None:
        return


@dataclass(frozen=True)
class Outcome:
    status: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape")


def run(
    system: System,
    script: str,
    *,
    stdin: bytes = b"",
    environment: Mapping[str, str] = {"HOME": "/root"},
) -> Outcome:
    """What ``script`` prints as root's, and its status."""
    out, err = Sink(), Sink()
    files = {
        0: OpenFile(Source(stdin) if stdin else Null()),
        1: OpenFile(out),
        2: OpenFile(err),
    }
    process = system.process(["sh", "-c", script], environment=environment, files=files)
    status = execute(process, sh)
    return Outcome(status, bytes(out.data), bytes(err.data))
