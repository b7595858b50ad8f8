"""Read and write a function's registers without a driver and without resetting it.

Used on the lab host on a reserved function, by what its system has for that
(:meth:`hil.guests.os.GuestOS.register`).
The values written are *sentinels*: registers that software may write, that mean nothing while
the device is idle, and that a reset returns to another value.
"""

from __future__ import annotations

from dataclasses import dataclass

from hil.deadline import Deadline
from hil.errors import LabError
from hil.guests.os import guest_os
from hil.pci.address import Address
from hil.platforms.contract import Platform


@dataclass(frozen=True, slots=True)
class Sentinel:
    """A register for the purpose.  ``width`` in bytes; ``source`` is its specification."""

    bar: int
    offset: int
    width: int
    value: int
    name: str
    source: str


#: By ``vendor:device``.
SENTINELS: dict[str, Sentinel] = {
    "8086:10c9": Sentinel(0, 0x5478, 4, 0x5AC3_0FF1, "RAL[15]", "82576 datasheet 8.10.17"),
    "8086:10ca": Sentinel(0, 0x2800, 4, 0x5AC3_0F80, "VFRDBAL[0]", "82576 datasheet 8.27"),
    "8086:10d3": Sentinel(0, 0x5478, 4, 0x5AC3_0FF1, "RAL[15]", "82574 datasheet 10.2.5.24"),
    # Not AQA: QEMU 10.0 keeps it over an FLR.
    "1b36:0010": Sentinel(0, 0x0C, 4, 0x5AC3_0FF1, "INTMS", "NVMe base specification 3.1.3.3"),
    "1234:11e8": Sentinel(0, 0x80, 8, 0x5AC3_0FF1_0000, "DMA source", "QEMU docs/specs/edu.rst"),
}


def sentinel_of(vendor: int, device: int) -> Sentinel | None:
    """The sentinel register of a kind of device, if one is known."""
    return SENTINELS.get(f"{vendor:04x}:{device:04x}")


class Registers:
    """Registers of a function that the host has reserved."""

    def __init__(self, platform: Platform, address: Address) -> None:
        self._platform = platform
        self._address = address

    def read(self, sentinel: Sentinel, deadline: Deadline) -> int:
        """The register's value; memory decoding is switched on for the moment."""
        return self._run(sentinel, None, deadline)

    def write(self, sentinel: Sentinel, deadline: Deadline) -> int:
        """Write the sentinel's value and return what is read back."""
        return self._run(sentinel, sentinel.value, deadline)

    def _run(self, sentinel: Sentinel, value: int | None, deadline: Deadline) -> int:
        bars = self._platform.function(self._address, deadline).bars
        bar = next((bar for bar in bars if bar.index == sentinel.bar), None)
        if bar is None:
            raise LabError(f"{self._address} has no BAR {sentinel.bar}", host=self._platform.host)
        command = guest_os(self._platform.system).register(
            self._address, bar, sentinel.offset, sentinel.width, value
        )
        result = self._platform.transport.run(command, deadline=deadline)
        if result.status != 0:
            raise LabError(
                f"register {sentinel.name} of {self._address} cannot be reached",
                host=self._platform.host,
                seen=result.stderr[-1000:],
            )
        return int(result.stdout)
