"""How a guest's network is reached from its host: virtio NICs on taps, and its SSH server.

No TCP is modelled: a connection that the host's sshd is asked to forward to a guest's
address is led to the loopback port where that guest's server really listens, if the guest
has that address on an interface that is up, and the host's end of its wire is up too.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hil.simulated import net

if TYPE_CHECKING:
    from hil.simulated.guest import Guest
    from hil.simulated.server import SshServer


@dataclass(frozen=True, slots=True)
class Tap:
    """A virtio NIC of a guest, and the host's interface that it is wired to."""

    mac: str
    """As ``02:00:00:00:00:01``."""
    interface: net.Tap


@dataclass(frozen=True, slots=True)
class Listener:
    """A guest's SSH server."""

    guest: Guest
    port: int
    """In the guest."""
    server: SshServer


class GuestNetworks:
    """The SSH servers of one host's guests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def add(self, guest: Guest, port: int, server: SshServer) -> None:
        """``server`` listens on ``port`` of ``guest``."""
        with self._lock:
            self._listeners.append(Listener(guest, port, server))

    def of(self, guest: Guest) -> tuple[Listener, ...]:
        """What listens in ``guest``."""
        with self._lock:
            return tuple(entry for entry in self._listeners if entry.guest is guest)

    def remove(self, guest: Guest) -> None:
        """``guest`` is gone: its connections are cut, beside whoever calls this."""
        gone = self.of(guest)
        with self._lock:
            self._listeners = [entry for entry in self._listeners if entry not in gone]
        for entry in gone:
            threading.Thread(target=entry.server.close, name="end-of-sshd", daemon=True).start()

    def forward(self, host: str, port: int) -> tuple[str, int] | None:
        """Where a connection to a guest's address really goes; ``None``: nobody answers."""
        with self._lock:
            listeners = tuple(self._listeners)
        for entry in listeners:
            if entry.port == port and entry.guest.kernel.reachable_at(host):
                return "127.0.0.1", entry.server.port
        return None
