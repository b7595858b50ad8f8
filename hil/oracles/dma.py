"""Did DMA move exactly the bytes that it should, and nothing else?"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hil.bench import BenchDevice, BenchHost
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.iommu.tables import Translation
from hil.oracles.pattern import Mismatch, compare, tagged
from hil.platforms.contract import Canary
from hil.probes.agent import GuestMemory
from hil.probes.edu import BUFFER_SIZE, EduEngine

PAGE = 4096
#: Bytes before and after a destination that must not change.
RED_ZONE = 512
_SOURCE, _DESTINATION = 0x10000, 0x80000
_COMPLEMENT = bytes(255 - byte for byte in range(256))


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy to be checked: offsets in the memory, and bytes."""

    source: int
    destination: int
    length: int


#: Changes what the DMA left, before it is checked: a control.
Spoil = Callable[[EduEngine, GuestMemory, Copy], None]


def default_copies() -> tuple[Copy, ...]:
    """Sizes from 1 byte to the engine's buffer, and every alignment within 8 bytes."""
    sizes = [1, 2, 3, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1023, 2048, 4095, BUFFER_SIZE]
    copies = [Copy(_SOURCE, _DESTINATION, size) for size in sizes]
    copies += [Copy(_SOURCE + shift, _DESTINATION + 7 - shift, 1000) for shift in range(8)]
    return tuple(copies)


def edge_copies() -> tuple[Copy, ...]:
    """Copies that start or end next to a page boundary, or cross one."""
    return (
        Copy(_SOURCE + PAGE - 5, _DESTINATION, 10),
        Copy(_SOURCE, _DESTINATION + PAGE - 5, 10),
        Copy(_SOURCE + 2048, _DESTINATION + 2048, BUFFER_SIZE),
        Copy(_SOURCE + PAGE - 1, _DESTINATION + 1, BUFFER_SIZE),
        Copy(_SOURCE, _DESTINATION, PAGE),
        Copy(_SOURCE, _DESTINATION + PAGE - 1, 1),
    )


def flip_a_bit(engine: EduEngine, memory: GuestMemory, copy: Copy) -> None:
    """Control: one bit of the destination, changed by the guest's CPU."""
    at = copy.destination + copy.length // 2
    byte = engine.agent.dump(memory, at, 1)[0]
    engine.agent.fill(memory, at, bytes([byte ^ 0x40]))


def one_byte_more(engine: EduEngine, memory: GuestMemory, copy: Copy) -> None:
    """Control: the device writes one byte behind the destination."""
    engine.copy_out(memory.physical(copy.destination + copy.length), 1)


def check_copies(
    engine: EduEngine,
    memory: GuestMemory,
    copies: Iterable[Copy],
    *,
    spoil: Spoil | None = None,
) -> int:
    """Each copy by DMA gives exactly the source's bytes, with both red zones intact.

    Returns the number of copies done.

    Raises:
        ProductError: with the first wrong bytes of each wrong copy.
    """
    agent = engine.agent
    wrong: list[str] = []
    count = 0
    for copy in copies:
        tag = secrets.randbits(24)  # of each copy: old data of the same place is not taken for new
        zone_start = copy.destination - RED_ZONE
        # What stands at the destination is the source's complement, byte for byte: a copy
        # that is not done, or goes on too long, shows in each byte whatever its value.
        source_start = copy.source - RED_ZONE
        length = copy.length + 2 * RED_ZONE
        source = tagged(tag, memory.physical(source_start), length)
        zone = source.translate(_COMPLEMENT)
        agent.fill(memory, source_start, source)
        agent.fill(memory, zone_start, zone)
        engine.copy_in(memory.physical(copy.source), copy.length)
        engine.copy_out(memory.physical(copy.destination), copy.length)
        if spoil is not None:
            spoil(engine, memory, copy)
        got = agent.dump(memory, zone_start, len(zone))
        whole = zone[:RED_ZONE] + source[RED_ZONE:-RED_ZONE] + zone[-RED_ZONE:]
        wrong += _describe(compare(whole, got, memory.physical(zone_start), tag), copy)
        count += 1
    if wrong:
        raise ProductError(f"DMA moved wrong bytes in {len(wrong)} places", seen="\n".join(wrong))
    return count


def _describe(mismatches: Iterable[Mismatch], copy: Copy) -> list[str]:
    return [
        f"{copy.length} bytes from +{copy.source:#x} to +{copy.destination:#x}: {mismatch}"
        for mismatch in mismatches
    ]


def check_equal(expected: bytes, got: bytes, address: int, what: str, tag: int = -1) -> None:
    """``got`` is exactly ``expected``; else ProductError with where it differs."""
    mismatches = compare(expected, got, address, tag)
    if mismatches:
        raise ProductError(
            f"{what}: {sum(m.length for m in mismatches)} bytes differ",
            seen="\n".join(map(str, mismatches[:20])),
        )


def _device_writes(engine: EduEngine, memory: GuestMemory, misplace: int) -> tuple[int, bytes]:
    """A page that the device wrote: its guest physical address, and what should be there."""
    tag = secrets.randbits(24)
    target = memory.physical(_DESTINATION)
    expected = tagged(tag, target, PAGE)
    engine.agent.fill(memory, _SOURCE, expected)
    engine.agent.fill(memory, _DESTINATION, bytes(2 * PAGE))
    engine.copy_in(memory.physical(_SOURCE), PAGE)
    engine.copy_out(target + misplace, PAGE)
    return target, expected


def check_seen_from_outside(
    guest: Guest, engine: EduEngine, memory: GuestMemory, *, misplace: int = 0
) -> None:
    """What the device wrote stands in the guest's memory as the hypervisor reads it.

    ``misplace`` makes the device write that many bytes further on: the control.
    """
    target, expected = _device_writes(engine, memory, misplace)
    deadline = guest.limit(20, "a read of its memory")
    got = guest.machine.read_physical(target, PAGE, deadline)
    check_equal(expected, got, target, "guest memory read from outside")


def check_through_tables(
    device: BenchDevice, guest: Guest, engine: EduEngine, memory: GuestMemory
) -> None:
    """What the device wrote stands in host memory, where its own page tables lead."""
    target, expected = _device_writes(engine, memory, 0)
    platform = device.host.platform
    deadline = device.host.limit(20, "a walk of the tables")
    where = platform.tables(deadline).translate(device.requester_id, target, True)
    if not isinstance(where, Translation):
        raise ProductError(
            f"{device} wrote to {target:#x} of guest {guest.name}, which its tables do not map",
            seen=where.text,
        )
    got = platform.physical_memory(deadline).read(where.physical, PAGE)
    check_equal(expected, got, where.physical, "host memory where the tables lead")


class HostCanary:
    """Host memory that nothing may change while it is watched."""

    SIZE = 4 << 20

    def __init__(self, host: BenchHost, size: int = SIZE) -> None:
        self._host = host
        self._canary: Canary = host.platform.canary(size, host.limit(60, "canary memory"))

    def check_intact(self) -> None:
        """Every byte is as it was filled; else ProductError with the changed pages."""
        changes = self._canary.changes(self._host.limit(60, "the look at canary memory"))
        if changes:
            raise ProductError(
                f"host memory changed: {len(changes)} pages of the canary",
                host=self._host.name,
                seen="\n".join(changes[:50]),
            )

    def spoil(self) -> None:
        """Change one byte: the control."""
        self._canary.spoil(PAGE * 5 + 17, b"\xa5", self._host.limit(20, "one byte of the canary"))

    def close(self) -> None:
        """Free the memory."""
        self._canary.close(self._host.limit(20, "the end of canary memory"))
