"""QEMU's edu device: a DMA engine that copies between memory and its own 4 KiB buffer.

Source: QEMU's docs/specs/edu.rst.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hil.bench import BenchDevice
from hil.errors import GuestError
from hil.guests.guest import Guest
from hil.pci.address import Address
from hil.probes.agent import GuestAgent, GuestMemory

IDENTIFICATION = 0x010000ED
BUFFER = 0x40000
BUFFER_SIZE = 4096
_IDENT, _LIVENESS = 0x00, 0x04
_SOURCE, _DESTINATION, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_START, _FROM_DEVICE = 1, 2
_BAR = 0


class EduEngine:
    """The engine, driven from the guest that holds it.

    ``address`` is the function's address in the guest.
    """

    def __init__(self, agent: GuestAgent, address: Address) -> None:
        self.agent = agent
        self.address = address
        agent.open(address)
        seen = self._read(_IDENT)
        if seen != IDENTIFICATION:
            raise GuestError(
                f"{address} is no edu device: its identification register reads {seen:#010x}",
                hint="all ones mean that memory decoding is off or the device is gone",
            )

    def copy_in(self, physical: int, length: int, offset: int = 0) -> None:
        """The device reads ``length`` bytes of memory into its buffer at ``offset``."""
        self._transfer(physical, BUFFER + offset, length, _START)

    def copy_out(self, physical: int, length: int, offset: int = 0) -> None:
        """The device writes ``length`` bytes of its buffer to memory."""
        self._transfer(BUFFER + offset, physical, length, _START | _FROM_DEVICE)

    def _transfer(self, source: int, destination: int, length: int, command: int) -> None:
        self.agent.ask(
            "transfer",
            address=str(self.address),
            bar=_BAR,
            writes=[
                [_SOURCE, 8, source],
                [_DESTINATION, 8, destination],
                [_COUNT, 8, length],
                [_COMMAND, 8, command],
            ],
            wait=[_COMMAND, 8, _START, 0, 10],
        )

    def registers(self) -> dict[str, int]:
        """The DMA engine's registers, which survive everything but a power cycle."""
        names = {"source": _SOURCE, "destination": _DESTINATION, "count": _COUNT}
        return {name: self._read(at, 8) for name, at in names.items()}

    def alive(self) -> bool:
        """Whether the liveness register answers with the complement of what was written."""
        self._write(_LIVENESS, 0x1234_5678)
        return self._read(_LIVENESS) == 0x1234_5678 ^ 0xFFFF_FFFF

    def _read(self, offset: int, width: int = 4) -> int:
        return int(
            self.agent.ask("read", address=str(self.address), bar=_BAR, offset=offset, width=width)
        )

    def _write(self, offset: int, value: int) -> None:
        self.agent.ask(
            "write", address=str(self.address), bar=_BAR, offset=offset, width=4, value=value
        )


@contextlib.contextmanager
def edu_engine(guest: Guest, device: BenchDevice) -> Iterator[tuple[EduEngine, GuestMemory]]:
    """The engine of a passed device, with 2 MiB of guest memory for its DMA."""
    address = guest.address_of(device.address)
    agent = GuestAgent(guest)
    try:
        engine = EduEngine(agent, address)
        yield engine, agent.allocate(GuestMemory.PAGE)
        agent.close_function(address)
    finally:
        agent.close()
