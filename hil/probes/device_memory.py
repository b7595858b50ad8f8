"""Memory of a device's own that stands in a BAR: fill it with a pattern, and search for one.

Driven from the guest that holds the device, whose own driver may run meanwhile.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hil.bench import BenchDevice
from hil.errors import LabError
from hil.guests.guest import Guest
from hil.pci.address import Address
from hil.platforms.contract import Bar
from hil.probes.agent import GuestAgent

PAGE = 4096
#: Bytes of a prefetchable BAR that is taken for memory of the device's own.
MINIMUM = 1 << 20
#: Bytes that are filled and searched, at most, from the memory's end backwards: that is where
#: drivers of displays put nothing.
AMOUNT = 2 << 20


@dataclass(frozen=True, slots=True)
class Trace:
    """A piece of a pattern that was found; all in bytes."""

    offset: int
    """From the BAR's start."""
    meant_for: int
    """The offset that the pattern was written for."""
    length: int

    def __str__(self) -> str:
        moved = "" if self.offset == self.meant_for else f", written at {self.meant_for:#x}"
        return f"{self.length:#x} bytes at {self.offset:#x}{moved}"


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Such a memory.

    ``start``: guest physical address of the BAR; ``first`` and ``length``: what of it is used, in
    bytes from there.
    """

    agent: GuestAgent
    address: Address
    bar: int
    start: int
    first: int
    length: int

    def mark(self, tag: int) -> None:
        """Fill it by the guest's CPU: each 8 bytes hold ``tag`` (24 bits) and their offset."""
        self._ask("mark", tag)

    def search(self, tag: int) -> tuple[Trace, ...]:
        """Where the pattern of ``tag`` stands."""
        return tuple(Trace(*found) for found in self._ask("search", tag))

    def put(self, offset: int, data: bytes) -> None:
        """Write by the guest's CPU; ``offset`` from the BAR's start, in bytes, as for all here."""
        self.agent.ask("put", **self._place, offset=offset, data=base64.b64encode(data).decode())

    def get(self, offset: int, length: int) -> bytes:
        """Read by the guest's CPU."""
        return base64.b64decode(self.agent.ask("get", **self._place, offset=offset, length=length))

    @property
    def _place(self) -> dict[str, Any]:
        return {"address": str(self.address), "bar": self.bar}

    def _ask(self, what: str, tag: int) -> list[list[int]]:
        answer: list[list[int]] = self.agent.ask(
            what,
            seconds=60,
            **self._place,
            offset=self.first,
            length=self.length,
            tag=tag,
        )
        return answer


@contextlib.contextmanager
def device_memory(guest: Guest, device: BenchDevice) -> Iterator[DeviceMemory]:
    """The memory of a passed device: its largest prefetchable BAR.

    Raises:
        LabError: it has none.
    """
    bar = memory_bar(device)
    start = guest.bars(device.address)[bar.index].address
    address = guest.address_of(device.address)
    length = min(bar.size, AMOUNT)
    agent = GuestAgent(guest)
    try:
        agent.open(address)
        yield DeviceMemory(agent, address, bar.index, start, bar.size - length, length)
    finally:
        agent.close()


def memory_bar(device: BenchDevice) -> Bar:
    """The largest BAR that is memory of the device's own, of its first function.

    Raises:
        LabError: it has none.
    """
    bars = [bar for bar in device.look().bars if is_memory(bar)]
    if not bars:
        raise LabError(
            f"{device} has no memory of its own in a BAR",
            hint="leave vram out of its capabilities in the inventory",
        )
    return max(bars, key=lambda bar: bar.size)


def is_memory(bar: Bar) -> bool:
    """Whether a BAR is memory, by its being prefetchable, and its size, rather than registers."""
    return bar.memory and bar.prefetchable and bar.size >= MINIMUM
