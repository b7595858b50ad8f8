"""The console of a simulated host: its kernel's messages as they come, to ``db>`` if it panics."""

from __future__ import annotations

import threading
from collections.abc import Iterable

_PROMPT = "\n\nFreeBSD/amd64 ({name}) (ttyu0)\n\nlogin: "
_PANIC = """
panic: {text}
cpuid = 1
KDB: stack backtrace:
db_trace_self_wrapper() at db_trace_self_wrapper+0x2b/frame 0xfffffe009ef547f0
vpanic() at vpanic+0x151/frame 0xfffffe009ef54840
panic() at panic+0x43/frame 0xfffffe009ef548a0
KDB: enter: panic
[ thread pid 1334 tid 100093 ]
Stopped at      kdb_enter+0x37: movq    $0,0x759bee(%rip)
db> """


class HostConsole:
    """A :class:`~hil.transport.base.ByteStream`; what is typed at it goes nowhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._news = threading.Condition()
        self._data = bytearray()
        self._closed = False

    def messages(self, lines: Iterable[str]) -> list[str]:
        """A message buffer that begins with ``lines`` and shows itself here."""
        buffer = _Messages(self, lines)
        self._print("".join(f"{line}\n" for line in buffer) + _PROMPT.format(name=self._name))
        return buffer

    def panic(self, text: str) -> None:
        """What a kernel says that goes down."""
        self._print(_PANIC.format(text=text))

    def _print(self, text: str) -> None:
        with self._news:
            self._data += text.replace("\n", "\r\n").encode("utf-8", "replace")
            self._news.notify_all()

    def read(self, limit: int = 65536) -> bytes:
        with self._news:
            self._news.wait_for(lambda: self._data or self._closed)
            piece = bytes(self._data[:limit])
            del self._data[:limit]
            return piece

    def write(self, data: bytes) -> None:
        return

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()


class _Messages(list[str]):
    """A kernel's messages; each new one is printed."""

    def __init__(self, console: HostConsole, lines: Iterable[str]) -> None:
        super().__init__(lines)
        self._console = console

    def append(self, line: str) -> None:
        super().append(line)
        self._console._print(f"{line}\n")  # noqa: SLF001 - its own console
