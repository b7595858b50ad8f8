"""Did DMA move exactly the bytes that it should, and nothing else?"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from hil.errors import ProductError
from hil.oracles.pattern import Mismatch, compare, tagged
from hil.probes.agent import GuestAgent, GuestMemory
from hil.probes.edu import BUFFER_SIZE, EduEngine

#: Bytes before and after a destination that must not change.
RED_ZONE = 512


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy to be checked: offsets in the memory, and bytes."""

    source: int
    destination: int
    length: int


def default_copies() -> tuple[Copy, ...]:
    """Sizes from 1 byte to the engine's buffer, odd alignments, page crossings."""
    source, destination = 0x10000, 0x80000
    sizes = [1, 2, 3, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1023, 2048, 4095, BUFFER_SIZE]
    copies = [Copy(source, destination, size) for size in sizes]
    copies += [Copy(source + shift, destination + 7 - shift, 1000) for shift in range(8)]
    # Across a 4 KiB page on either side, and over a whole page from its middle.
    copies += [
        Copy(source + 4096 - 5, destination, 10),
        Copy(source, destination + 4096 - 5, 10),
        Copy(source + 2048, destination + 2048, BUFFER_SIZE),
        Copy(source + 4095, destination + 1, BUFFER_SIZE),
    ]
    return tuple(copies)


def check_copies(
    agent: GuestAgent,
    engine: EduEngine,
    memory: GuestMemory,
    copies: Iterable[Copy],
    *,
    spoil: bool = False,
) -> int:
    """Each copy by DMA gives exactly the source's bytes, with both red zones intact.

    ``spoil`` changes one byte between the DMA and the check: the control.  Returns the
    number of copies done.

    Raises:
        ProductError: with the first wrong bytes of each wrong copy.
    """
    tag = secrets.randbits(24)
    wrong: list[str] = []
    count = 0
    for copy in copies:
        expected = tagged(tag, memory.physical(copy.source), copy.length)
        zone_start = copy.destination - RED_ZONE
        zone = tagged(~tag, memory.physical(zone_start), copy.length + 2 * RED_ZONE)
        agent.fill(memory, copy.source, expected)
        agent.fill(memory, zone_start, zone)
        engine.copy_in(memory.physical(copy.source), copy.length)
        engine.copy_out(memory.physical(copy.destination), copy.length)
        if spoil:
            flipped = bytes([expected[copy.length // 2] ^ 0x40])
            agent.fill(memory, copy.destination + copy.length // 2, flipped)
        got = agent.dump(memory, zone_start, len(zone))
        whole = zone[:RED_ZONE] + expected + zone[RED_ZONE + copy.length :]
        wrong += describe(compare(whole, got, memory.physical(zone_start), tag), copy)
        count += 1
    if wrong:
        raise ProductError(f"DMA moved wrong bytes in {len(wrong)} places", seen="\n".join(wrong))
    return count


def describe(mismatches: Iterable[Mismatch], copy: Copy) -> list[str]:
    """One line a mismatch, with the copy it belongs to."""
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
