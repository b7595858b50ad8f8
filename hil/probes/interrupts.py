"""Make a device send each of its interrupt messages, and count what arrives in the guest."""

from __future__ import annotations

from dataclasses import dataclass

from hil.bench import BenchDevice
from hil.errors import LabError
from hil.guests.guest import Guest
from hil.pci.address import Address
from hil.probes.agent import GuestAgent

MSI, MSIX = 1, 2


@dataclass(frozen=True, slots=True)
class Trigger:
    """How software makes a device send its messages; writes are (offset, width, value).

    Message ``n`` is bit ``n`` of ``register``.  ``before`` prepares the device and
    ``after`` re-arms it after each message; ``source`` is the specification.
    """

    index: int
    bar: int
    before: tuple[tuple[int, int, int], ...]
    register: int
    after: tuple[tuple[int, int, int], ...]
    source: str
    limit: int = 32


_ALL = 0x01FF_FFFF
#: By ``vendor:device``.  82576: GPIE for MSI-X, then masks open, then EICS sets causes;
#: EICR is cleared by writing ones.
TRIGGERS: dict[str, Trigger] = {
    "8086:10c9": Trigger(
        MSIX,
        0,
        ((0x1514, 4, 0x8000_0011), (0x1528, 4, 0xFFFF_FFFF), (0x1524, 4, _ALL)),
        0x1520,
        ((0x1580, 4, _ALL), (0x1524, 4, _ALL)),
        "82576 datasheet 8.8",
        limit=10,
    ),
    # 82574: IMS opens cause 0, ICS sets it, ICR is cleared by writing ones.
    "8086:10d3": Trigger(
        MSI,
        0,
        ((0xD8, 4, 0xFFFF_FFFF), (0xD0, 4, 1)),
        0xC8,
        ((0xC0, 4, 0xFFFF_FFFF),),
        "82574 datasheet 10.2.4",
        limit=1,
    ),
    "1234:11e8": Trigger(
        MSI, 0, (), 0x60, ((0x64, 4, 0xFFFF_FFFF),), "QEMU docs/specs/edu.rst", limit=1
    ),
}


def triggered_each(
    guest: Guest, device: BenchDevice, *, leave_out: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Send each of the device's messages once; the events per vector after each.

    ``leave_out`` does not send that one: for controls.
    """
    look = device.look()
    trigger = TRIGGERS.get(f"{look.vendor:04x}:{look.device:04x}")
    if trigger is None:
        raise LabError(f"no way is known to make {device} send each of its messages")
    address = guest.address_of(device.address)
    agent = GuestAgent(guest)
    try:
        agent.open(address)
        counts = _trigger(agent, address, trigger, leave_out)
        agent.close_function(address)
    finally:
        agent.close()
    return counts


def _trigger(
    agent: GuestAgent, address: Address, trigger: Trigger, leave_out: int | None
) -> tuple[tuple[int, ...], ...]:
    name = str(address)

    def write(offset: int, width: int, value: int) -> None:
        agent.ask("write", address=name, bar=trigger.bar, offset=offset, width=width, value=value)

    there = int(agent.ask("vectors", address=name, index=trigger.index))
    count = min(there, trigger.limit)
    agent.ask("open_vectors", address=name, index=trigger.index, count=count)
    for step in trigger.before:
        write(*step)
    agent.ask("counts", address=name, settle=0.05)
    rows = []
    for vector in range(count):
        if vector != leave_out:
            write(trigger.register, 4, 1 << vector)
        rows.append(tuple(agent.ask("counts", address=name, settle=0.05)))
        for step in trigger.after:
            write(*step)
    return tuple(rows)
