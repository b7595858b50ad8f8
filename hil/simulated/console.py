"""Terminals of the simulated machines: the line discipline, and nmdm(4)'s null modems.

A terminal begins in cooked mode with echo, as FreeBSD's do whenever nobody has them open
(sys/kern/tty.c); :attr:`Tty.modes` is what stty(1) changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from hil.simulated.errno import Errno, SimError
from hil.simulated.process import SIGINT, SIGQUIT, Process

#: Bytes of input that wait for a reader; what comes beyond them is lost (as measured).
INPUT = 1920
#: How often two ends that both echo send the same bytes to and fro; a kernel never tires.
ECHOES = 8
#: Seconds that a null modem waits for its other end to read before it loses bytes.
PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Modes:
    """A terminal's settings, as termios(4) names them."""

    icanon: bool = True
    echo: bool = True
    isig: bool = True
    icrnl: bool = True
    opost: bool = True
    onlcr: bool = True
    clocal: bool = False

    def raw(self) -> Modes:
        """As cfmakeraw(3) leaves them."""
        return replace(
            self, icanon=False, echo=False, isig=False, icrnl=False, opost=False, onlcr=False
        )

    def sane(self) -> Modes:
        return replace(Modes(), clocal=self.clocal)


class Tty:
    """One terminal: a wire on one side, processes on the other.

    Args:
        transmit: sends bytes down the wire; it may wait.
        room: bytes of input that are kept for readers; ``None`` for no bound.
    """

    def __init__(self, transmit: Callable[[bytes], None], room: int | None = None) -> None:
        self.modes = Modes()
        self.changed = threading.Condition()
        #: Whom the interrupt character interrupts.
        self.foreground: Process | None = None
        self._transmit = transmit
        self._room = room
        self._line = bytearray()
        self._ready: list[bytes] = []
        self._held = 0
        self._ended = False

    # The wire's side

    def received(self, data: bytes) -> None:
        """Bytes come in from the wire."""
        echo = bytearray()
        with self.changed:
            if self.modes.icanon:
                for byte in data:
                    self._typed(byte, echo)
            else:
                self._keep(bytes(data))
                if self.modes.echo:
                    echo += self._processed(data)
            self.changed.notify_all()
        if echo:
            self._transmit(bytes(echo))

    @property
    def room(self) -> int:
        """Bytes of input that would be kept."""
        return 1 << 16 if self._room is None else max(0, self._room - self._held)

    def hang_up(self) -> None:
        """The carrier is gone: readers see the end, unless the line is local."""
        with self.changed:
            if not self.modes.clocal:
                self._ended = True
                self.changed.notify_all()

    def carrier(self) -> None:
        """The carrier is there, or there again."""
        with self.changed:
            self._ended = False
            self.changed.notify_all()

    def reset(self) -> None:
        """As after the last close."""
        with self.changed:
            self.modes = Modes()
            self._line.clear()
            self._ready.clear()
            self._held = 0
            self._ended = False
            self.changed.notify_all()

    def _typed(self, byte: int, echo: bytearray) -> None:
        modes = self.modes
        if modes.icrnl and byte == 0x0D:
            byte = 0x0A
        if modes.isig and byte in (0x03, 0x1C):
            if self.foreground is not None:
                self.foreground.signal(SIGINT if byte == 0x03 else SIGQUIT)
            self._line.clear()
            echo += b"^C" if byte == 0x03 else b"^\\"
            return
        if byte in (0x7F, 0x08):
            if self._line:
                del self._line[-1:]
                if modes.echo:
                    echo += b"\b \b"
            return
        if byte == 0x15:
            if modes.echo:
                echo += b"\b \b" * len(self._line)
            self._line.clear()
            return
        if byte == 0x04:
            self._keep(bytes(self._line), end=not self._line)
            self._line.clear()
            return
        self._line.append(byte)
        if modes.echo:
            shown = byte >= 0x20 or byte in (0x09, 0x0A)
            echo += self._processed(bytes([byte])) if shown else b"^" + bytes([byte ^ 0x40])
        if byte == 0x0A:
            self._keep(bytes(self._line))
            self._line.clear()

    def _keep(self, data: bytes, *, end: bool = False) -> None:
        if self._room is not None:
            data = data[: max(0, self._room - self._held)]
        if data or end:
            self._ready.append(data)
            self._held += len(data)

    def _processed(self, data: bytes) -> bytes:
        if self.modes.opost and self.modes.onlcr:
            return bytes(data).replace(b"\n", b"\r\n")
        return bytes(data)

    # The processes' side (process.Stream)

    def read(self, process: Process, limit: int) -> bytes:
        """A line in cooked mode, what there is in raw mode; ``b""`` for the end character."""
        with self.changed:
            process.wait_on(self.changed, lambda: self._ready or self._ended)
            if not self._ready:
                return b""
            if not self.modes.icanon:
                together = b"".join(self._ready)
                self._ready = [together] if together else []
                if not together:
                    return b""
            first = self._ready.pop(0)
            piece, rest = first[:limit], first[limit:]
            if rest:
                self._ready.insert(0, rest)
            self._held -= len(piece)
            self.changed.notify_all()
            return piece

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        if self._ended:
            raise SimError(Errno.EIO)
        self._transmit(self._processed(data))

    def close(self) -> None:
        return


class Nmdm:
    """A pair of terminals, each of which receives what is written to the other."""

    def __init__(self) -> None:
        self.a = _End(self, "A")
        self.b = _End(self, "B")
        #: How often what is being sent has been echoed already, by thread.
        self.echoes = threading.local()


class _End:
    """One end of a null modem, as a device."""

    def __init__(self, pair: Nmdm, letter: str) -> None:
        self._pair = pair
        self._letter = letter
        self._opened = 0
        self._lost_patience = False
        self.tty = Tty(self._send, room=INPUT)

    @property
    def other(self) -> _End:
        return self._pair.b if self._letter == "A" else self._pair.a

    @property
    def is_open(self) -> bool:
        return self._opened > 0

    def open(self, process: Process, mode: str) -> OpenTty:
        """Open this end; without ``n`` in ``mode`` only the other end's opening lets it go on."""
        with self.tty.changed:
            if not self._opened:
                self.tty.reset()
                self._lost_patience = False
            self._opened += 1
        self.other.tty.carrier()
        try:
            if "n" not in mode:
                self._await_carrier(process)
        except BaseException:
            self.closed()
            raise
        return OpenTty(self)

    def _await_carrier(self, process: Process) -> None:
        with self.tty.changed:
            process.wait_on(self.tty.changed, lambda: self.other.is_open or self.tty.modes.clocal)

    def closed(self) -> None:
        with self.tty.changed:
            self._opened -= 1
            last = self._opened == 0
        if last:
            self.tty.reset()
            self.other.tty.hang_up()

    def _send(self, data: bytes) -> None:
        other, echoes = self.other, self._pair.echoes
        depth = getattr(echoes, "depth", 0)
        if depth >= ECHOES:
            return
        rest = data
        echoes.depth = depth + 1
        try:
            while rest and other.is_open:
                room = self._room(other)
                if not room:
                    # Nobody reads: what comes now is lost.
                    return
                other.tty.received(rest[:room])
                rest = rest[room:]
        finally:
            echoes.depth = depth

    def _room(self, other: _End) -> int:
        """Bytes that the other end takes now, having waited for its reader a while."""
        tty = other.tty
        end = time.monotonic() + PATIENCE
        with tty.changed:
            while tty.room == 0 and other.is_open and not self._lost_patience:
                left = end - time.monotonic()
                if left <= 0:
                    self._lost_patience = True
                tty.changed.wait(max(left, 0))
            if tty.room:
                self._lost_patience = False
            return tty.room


class OpenTty:
    """An open null modem's end: a :class:`~hil.simulated.process.Stream`."""

    def __init__(self, end: _End) -> None:
        self._end = end
        self.tty = end.tty

    def read(self, process: Process, limit: int) -> bytes:
        return self.tty.read(process, limit)

    def write(self, process: Process, data: bytes) -> None:
        self.tty.write(process, data)

    def close(self) -> None:
        self._end.closed()


def terminal(stream: object) -> Tty | None:
    """The terminal behind an open file's stream, if it is one."""
    found = stream if isinstance(stream, Tty) else getattr(stream, "tty", None)
    return found if isinstance(found, Tty) else None
