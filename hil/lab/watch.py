"""Notices that a host is dead while something waits for it.

Two signs: its console, where somebody can read it, and its heart.  A small loop on the host
says a word every :data:`BEAT` seconds, by a channel of the run's own connection.  When nothing
was heard for :data:`SILENCE` seconds, a new connection is tried, for as long again: a host that
lets nobody in either is dead, and a connection that broke says nothing of its host.  Both times
are multiplied by the lab's pace.

Once a host is known to be dead, the connection to it is closed: whatever waits for it is told
so at once, rather than at its own deadline.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable

from hil.console.console import Console
from hil.deadline import Deadline
from hil.errors import HilError
from hil.transport.base import ByteStream, Transport

#: Seconds between two beats; without one before a new connection is tried, and for that.
BEAT, SILENCE = 2.0, 10.0
#: Seconds for a kernel that panics to print its trace.
LAST_WORDS = 1.0

_BEATS = 'while echo; do sleep "$1"; done'

#: A way to a host that is independent of the connection the run has.
Reach = Callable[[Deadline], Transport]


class Watch:
    """Watches one host until :meth:`close`.

    Args:
        host: its name.
        transport: the run's connection, which is closed when the host is dead.
        reach: makes another connection.
        boot_id: a command that prints a text that differs after each boot.
        console: the host's serial console, if somebody reads it.
        pace: how much slower than hardware the host is.

    Raises:
        LabError: the host does not answer.
    """

    def __init__(
        self,
        host: str,
        transport: Transport,
        reach: Reach,
        boot_id: list[str],
        *,
        console: Console | None = None,
        pace: float = 1.0,
    ) -> None:
        self.host = host
        self.reach = reach
        self.limit = SILENCE * pace
        self.console = console
        self._transport = transport
        self._boot_id = boot_id
        self._silent = ""
        self._over = threading.Event()
        self._heard = time.monotonic()
        self._stream: ByteStream | None = None
        try:
            self.boot = self.boot_of(transport)
            self._listen()
        except BaseException:
            self.close()
            raise
        if console is not None:
            self._tell_others = console.log.when_panicked
            console.log.when_panicked = self._panicked
        threading.Thread(target=self._watch, daemon=True, name=f"watch over {host}").start()

    @property
    def death(self) -> str:
        """What ended the host: its kernel's words, or how long it was silent; empty: it lives."""
        if self.console is not None and self.console.log.panic is not None:
            return self.console.log.panic.line
        return self._silent

    def boot_of(self, transport: Transport) -> str:
        """A text that differs after each boot of the host."""
        deadline = Deadline(2 * self.limit, f"{self.host} to tell which boot it is")
        return transport.run(self._boot_id, deadline=deadline).check().stdout.strip()

    def give_up(self) -> None:
        """Close the run's connection: whatever still waits for the host is told so at once."""
        self._transport.close()

    def close(self) -> None:
        """Watch no longer.  Safe to call twice."""
        self._over.set()
        if self._stream is not None:
            self._stream.close()

    def _listen(self) -> None:
        command = ["sh", "-c", _BEATS, "hil", f"{BEAT:g}"]
        deadline = Deadline(2 * self.limit, f"the heartbeat of {self.host}")
        self._stream = stream = self._transport.open_stream(command, deadline=deadline)
        self._heard = time.monotonic()

        def listen() -> None:
            with contextlib.suppress(HilError, OSError):
                while stream.read():
                    self._heard = time.monotonic()

        threading.Thread(target=listen, daemon=True, name=f"heart of {self.host}").start()

    def _watch(self) -> None:
        while not self._over.wait(min(BEAT, self.limit / 4)):
            seconds = time.monotonic() - self._heard
            if seconds < self.limit or self._lives():
                continue
            if not self._over.is_set() and time.monotonic() - self._heard >= self.limit:
                silence = time.monotonic() - self._heard
                self._silent = f"no heartbeat for {silence:.0f} s, and it lets nobody in"
                self.give_up()
                return

    def _lives(self) -> bool:
        """Whether the host answers on a new connection; then its heart is listened to anew."""
        try:
            self.reach(Deadline(self.limit, f"{self.host} to answer")).close()
        except HilError:
            return False
        with contextlib.suppress(HilError):
            self._listen()
        # If the run's own connection is broken, who uses it hears so by themselves.
        self._heard = time.monotonic()
        return True

    def _panicked(self) -> None:
        self._tell_others()
        # A moment later, so that the kernel's trace stands in the evidence of the test.
        timer = threading.Timer(LAST_WORDS, self.give_up)
        timer.daemon = True
        timer.start()


def same_boot(one: str, other: str) -> bool:
    """Whether two boot ids are of one boot.

    FreeBSD's is the time of the boot, ``{ sec = 1700000000, usec = 5 } …``, which moves a little
    when the clock is set right (sys/kern/kern_tc.c).
    """
    times = [re.match(r"\{ sec = (\d+), usec = (\d+) \}", text) for text in (one, other)]
    if times[0] is not None and times[1] is not None:
        first, second = (int(t[1]) + int(t[2]) / 1e6 for t in times if t is not None)
        return abs(first - second) < 1
    return one == other
