"""Talk to the user-space driver that runs in a guest (:mod:`hil.probes.remote.in_guest`)."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from hil.errors import GuestError, LabError
from hil.guests.guest import Guest
from hil.pci.address import Address
from hil.transport.agent import Agent, AgentEndedError, AgentError, program


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """Locked, physically contiguous 2 MiB pages in a guest.

    ``pages`` are guest physical addresses of the pages in order.
    """

    id: int
    size: int
    pages: tuple[int, ...]

    PAGE = 2 << 20

    def physical(self, offset: int) -> int:
        """Guest physical address of the byte at ``offset``."""
        return self.pages[offset // self.PAGE] + offset % self.PAGE


class GuestAgent:
    """One such driver, running as long as this object is open.

    Raises:
        GuestError: the guest has no Python 3, or what is asked of it fails.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        code = program("hil.probes.remote", "in_guest")
        try:
            self._agent = Agent(guest.ssh, code, guest.limit(30, "the in-guest driver"))
        except AgentEndedError as error:
            raise self._error(error, "has the guest's image Python 3?") from error

    def ask(self, what: str, *, seconds: float = 20, **arguments: object) -> Any:
        """Run one command of the driver and return its answer."""
        deadline = self._guest.limit(seconds, f"{what} by the in-guest driver")
        try:
            return self._agent.ask(what, deadline, **arguments)
        except (AgentError, AgentEndedError) as error:
            raise self._error(error, "has the guest's kernel vfio-pci?") from error

    def _error(self, error: LabError, hint: str) -> GuestError:
        tail = self._guest.console.log.tail(10)
        return GuestError(error.message, seen=error.seen, hint=hint, console=tail)

    def open(self, address: Address) -> None:
        """Take the function from its driver in the guest and switch bus mastering on."""
        self.ask("open", address=str(address))

    def close_function(self, address: Address) -> None:
        """Give the function back to its driver in the guest."""
        self.ask("close", address=str(address))

    def allocate(self, size: int) -> GuestMemory:
        """At least ``size`` bytes of memory for DMA."""
        answer = self.ask("allocate", size=size)
        return GuestMemory(answer["id"], answer["size"], tuple(answer["pages"]))

    def fill(self, memory: GuestMemory, offset: int, data: bytes) -> None:
        """Write ``data`` by the guest's CPU."""
        self.ask("fill", memory=memory.id, offset=offset, data=base64.b64encode(data).decode())

    def dump(self, memory: GuestMemory, offset: int, length: int) -> bytes:
        """Read by the guest's CPU."""
        return base64.b64decode(self.ask("dump", memory=memory.id, offset=offset, length=length))

    def close(self) -> None:
        """End the driver; functions it held stay bound to vfio-pci in the guest."""
        self._agent.close()
