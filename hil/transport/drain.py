"""Output kept up to a limit while all of it is read."""

from __future__ import annotations

from hil import events
from hil.transport.base import Result
from hil.transport.quoting import quote

#: Most bytes of each output that an event carries; a report needs no more.
EVENT_LIMIT = 64 * 1024


class Bounded:
    """Bytes up to ``limit``; what comes after is counted and let go."""

    __slots__ = ("data", "limit", "lost")

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.limit = limit
        self.lost = 0

    def add(self, chunk: bytes) -> None:
        room = self.limit - len(self.data)
        if room >= len(chunk):
            self.data += chunk
        else:
            self.data += chunk[: max(room, 0)]
            self.lost += len(chunk) - max(room, 0)


def seen(out: bytes, err: bytes) -> str:
    """Both outputs as text for an error message: the ends, where the news is."""
    return "\n".join(part[-4000:].decode("utf-8", "replace") for part in (out, err) if part.strip())


def emit(result: Result) -> None:
    """Tell listeners that a command ran to its end."""
    events.emit(
        events.CommandRun(
            where=result.host,
            command=quote(result.command),
            status=result.status,
            seconds=result.seconds,
            stdout=_shown(result.out),
            stderr=_shown(result.err),
        )
    )


def _shown(data: bytes) -> str:
    if len(data) <= EVENT_LIMIT:
        return data.decode("utf-8", "replace")
    half = EVENT_LIMIT // 2
    head, tail = data[:half].decode("utf-8", "replace"), data[-half:].decode("utf-8", "replace")
    return f"{head}\n… {len(data) - 2 * half} bytes left out …\n{tail}"
