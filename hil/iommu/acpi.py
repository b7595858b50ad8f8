"""Parse the ACPI DMAR table, which says where the IOMMUs are (VT-d specification 8)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hil.errors import LabError

_HEADER = 48
_SCOPE_TYPES = {
    1: "endpoint",
    2: "bridge hierarchy",
    3: "I/O APIC",
    4: "HPET",
    5: "ACPI device",
}


@dataclass(frozen=True, slots=True)
class Scope:
    """A device scope: a device, or a bridge and all behind it (8.3.1)."""

    type: int
    start_bus: int
    path: tuple[tuple[int, int], ...]
    """Device and function numbers, from the start bus down."""
    enumeration_id: int = 0

    @property
    def kind(self) -> str:
        """The type in words."""
        return _SCOPE_TYPES.get(self.type, f"type {self.type}")


@dataclass(frozen=True, slots=True)
class Drhd:
    """A DMA remapping unit (8.3)."""

    base: int
    segment: int
    include_all: bool
    """Has every function of its segment that no other unit names."""
    scopes: tuple[Scope, ...]


@dataclass(frozen=True, slots=True)
class Rmrr:
    """Memory that named devices must always reach (8.4); ``limit`` is the last byte."""

    segment: int
    base: int
    limit: int
    scopes: tuple[Scope, ...]


@dataclass(frozen=True, slots=True)
class Dmar:
    """The table."""

    host_address_width: int
    """Bits of a physical address that DMA can use."""
    interrupt_remapping: bool
    units: tuple[Drhd, ...]
    reserved: tuple[Rmrr, ...]
    problems: tuple[str, ...]
    """What is wrong with it, checksum included; empty if nothing."""


def parse_dmar(data: bytes) -> Dmar:
    """The DMAR table from its bytes (Linux: ``/sys/firmware/acpi/tables/DMAR``).

    A structure that is cut off, or has no length, ends the list; ``problems`` says so.

    Raises:
        LabError: the bytes are not a DMAR table.
    """
    if len(data) < _HEADER or data[:4] != b"DMAR":
        raise LabError(
            "not an ACPI DMAR table",
            seen=f"{len(data)} bytes, beginning {data[:16].hex(' ')}",
            hint="is VT-d on in the firmware?",
        )
    problems: list[str] = []
    length = int.from_bytes(data[4:8], "little")
    if not _HEADER <= length <= len(data):
        problems.append(f"length field {length}, but {len(data)} bytes are there")
        length = len(data)
    if sum(data[:length]) % 256:
        problems.append("bad checksum")
    units: list[Drhd] = []
    reserved: list[Rmrr] = []
    position = _HEADER
    while position < length:
        kind, size = _two_words(data, position)
        if size < 4 or position + size > length:
            problems.append(f"structure at {position:#x} has length {size}")
            break
        body = data[position : position + size]
        if kind == 0 and size >= 16:
            segment, base = struct.unpack_from("<HQ", body, 6)
            scopes = _scopes(body[16:], problems)
            units.append(Drhd(base, segment, bool(body[4] & 1), scopes))
        elif kind == 1 and size >= 24:
            segment, base, limit = struct.unpack_from("<HQQ", body, 6)
            reserved.append(Rmrr(segment, base, limit, _scopes(body[24:], problems)))
        elif kind in (0, 1):
            problems.append(f"structure at {position:#x} is too short: {size} bytes")
        position += size
    return Dmar(
        host_address_width=data[36] + 1,
        interrupt_remapping=bool(data[37] & 1),
        units=tuple(units),
        reserved=tuple(reserved),
        problems=tuple(problems),
    )


def _scopes(data: bytes, problems: list[str]) -> tuple[Scope, ...]:
    scopes = []
    position = 0
    while position < len(data):
        size = data[position + 1] if position + 1 < len(data) else 0
        if size < 6 or size % 2 or position + size > len(data):
            problems.append(f"device scope has length {size}")
            break
        entry = data[position : position + size]
        path = tuple(zip(entry[6::2], entry[7::2], strict=True))
        scopes.append(Scope(entry[0], entry[5], path, entry[4]))
        position += size
    return tuple(scopes)


def _two_words(data: bytes, position: int) -> tuple[int, int]:
    word = int.from_bytes(data[position : position + 4], "little")
    return word & 0xFFFF, word >> 16
