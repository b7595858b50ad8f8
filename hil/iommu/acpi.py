"""Parse the ACPI tables that say where the IOMMUs are: DMAR (Intel) and IVRS (AMD).

References are to the VT-d specification, revision 4.1, chapter 8, and to the AMD I/O
Virtualization Technology specification, 48882, revision 3.10, section 5.2.
"""

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
    problems: list[str] = []
    length = _checked(data, "DMAR", "VT-d", problems)
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


# -- AMD -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequesterRange:
    """Requester ids from ``first`` to ``last``, both included (IVHD device entries)."""

    first: int
    last: int
    alias: int | None = None
    """The requester id that these functions' requests bear, where it is another."""


@dataclass(frozen=True, slots=True)
class Ivhd:
    """A block that describes an IOMMU (IVHD); several may describe one."""

    type: int
    """10h; 11h or 40h, which newer systems use instead."""
    base: int
    """Physical address of the registers."""
    segment: int
    requester_id: int
    """Of the IOMMU itself, as a PCI function."""
    ranges: tuple[RequesterRange, ...]
    extended_features: int = 0
    """As the firmware tells them (types 11h and 40h)."""

    def has(self, requester_id: int) -> bool:
        """Whether the block names the function, or its alias."""
        return any(
            part.first <= requester_id <= part.last or part.alias == requester_id
            for part in self.ranges
        )


@dataclass(frozen=True, slots=True)
class Ivmd:
    """Memory that named functions must always reach (IVMD); ``limit`` is the last byte."""

    type: int
    """20h: all functions; 21h: one; 22h: a range."""
    first: int
    last: int
    """Requester ids."""
    base: int
    limit: int
    exclusion: bool
    """It is to be an exclusion range: never translated."""


@dataclass(frozen=True, slots=True)
class Ivrs:
    """The table."""

    physical_bits: int
    """Bits of a physical address (PAsize)."""
    virtual_bits: int
    """Bits of a DMA address (VAsize)."""
    blocks: tuple[Ivhd, ...]
    """All, in the table's order."""
    reserved: tuple[Ivmd, ...]
    problems: tuple[str, ...]
    """What is wrong with it, checksum included; empty if nothing."""

    @property
    def units(self) -> tuple[Ivhd, ...]:
        """Each IOMMU once, by its block of the highest type, as FreeBSD and Linux choose."""
        best: dict[tuple[int, int], Ivhd] = {}
        for block in self.blocks:
            key = (block.segment, block.requester_id)
            if key not in best or block.type > best[key].type:
                best[key] = block
        return tuple(best.values())


_IVHD_HEADERS = {0x10: 24, 0x11: 40, 0x40: 40}


def parse_ivrs(data: bytes) -> Ivrs:
    """The IVRS table from its bytes (Linux: ``/sys/firmware/acpi/tables/IVRS``).

    A structure that is cut off, or has no length, ends the list; ``problems`` says so.

    Raises:
        LabError: the bytes are not an IVRS table.
    """
    problems: list[str] = []
    length = _checked(data, "IVRS", "AMD-Vi", problems)
    information = int.from_bytes(data[36:40], "little")
    blocks: list[Ivhd] = []
    reserved: list[Ivmd] = []
    position = _HEADER
    while position < length:
        size, kind = _two_words(data, position)[1], data[position]
        if size < 4 or position + size > length:
            problems.append(f"structure at {position:#x} has length {size}")
            break
        body = data[position : position + size]
        if kind in _IVHD_HEADERS and size >= _IVHD_HEADERS[kind]:
            blocks.append(_ivhd(body, problems))
        elif kind in (0x20, 0x21, 0x22) and size >= 32:
            first, last, base, extent = struct.unpack_from("<HH8xQQ", body, 4)
            last = {0x20: 0xFFFF, 0x21: first, 0x22: last}[kind]
            first = 0 if kind == 0x20 else first
            exclusion = bool(body[1] & 8)
            reserved.append(Ivmd(kind, first, last, base, base + extent - 1, exclusion))
        elif kind in (*_IVHD_HEADERS, 0x20, 0x21, 0x22):
            problems.append(f"structure at {position:#x} is too short: {size} bytes")
        position += size
    return Ivrs(
        physical_bits=information >> 8 & 0x7F,
        virtual_bits=information >> 15 & 0x7F,
        blocks=tuple(blocks),
        reserved=tuple(reserved),
        problems=tuple(problems),
    )


def _ivhd(body: bytes, problems: list[str]) -> Ivhd:
    kind = body[0]
    requester_id, base, segment = struct.unpack_from("<H2xQH", body, 4)
    header = _IVHD_HEADERS[kind]
    return Ivhd(
        type=kind,
        base=base,
        segment=segment,
        requester_id=requester_id,
        ranges=_ranges(body[header:], problems),
        extended_features=int.from_bytes(body[24:32], "little") if header == 40 else 0,
    )


# device entries: one function, the start of a range (plain, with alias, extended)
_SELECT, _ALIAS_SELECT, _EXTENDED_SELECT = 0x02, 0x42, 0x46
_START, _ALIAS_START, _EXTENDED_START = 0x03, 0x43, 0x47
_ALL, _END, _ACPI = 0x01, 0x04, 0xF0


def _ranges(data: bytes, problems: list[str]) -> tuple[RequesterRange, ...]:
    """IVHD device entries; those of I/O APICs and HPETs, which do no DMA, are passed over."""
    found: list[RequesterRange] = []
    start: tuple[int, int | None] | None = None
    position = 0
    while position < len(data):
        kind = data[position]
        size = 4 << (kind >> 6)
        if kind == _ACPI and position + 22 <= len(data):
            size = 22 + data[position + 21]
        if position + size > len(data):
            problems.append(f"device entry of type {kind:#04x} is cut off")
            break
        identity = int.from_bytes(data[position + 1 : position + 3], "little")
        alias: int | None = None
        if kind in (_ALIAS_SELECT, _ALIAS_START):
            alias = int.from_bytes(data[position + 5 : position + 7], "little")
        if kind == _ALL:
            found.append(RequesterRange(0, 0xFFFF))
        elif kind in (_SELECT, _ALIAS_SELECT, _EXTENDED_SELECT, _ACPI):
            found.append(RequesterRange(identity, identity, alias))
        elif kind in (_START, _ALIAS_START, _EXTENDED_START):
            start = (identity, alias)
        elif kind == _END:
            if start is None or identity < start[0]:
                problems.append(f"range of devices ends at {identity:#06x} without a start")
            else:
                found.append(RequesterRange(start[0], identity, start[1]))
            start = None
        position += size
    if start is not None:
        problems.append(f"range of devices from {start[0]:#06x} has no end")
    return tuple(found)


# -- both ----------------------------------------------------------------------------------


def _checked(data: bytes, signature: str, what: str, problems: list[str]) -> int:
    """Length of a table whose head is right; its faults go into ``problems``."""
    if len(data) < _HEADER or data[:4] != signature.encode("ascii"):
        raise LabError(
            f"not an ACPI {signature} table",
            seen=f"{len(data)} bytes, beginning {data[:16].hex(' ')}",
            hint=f"is {what} on in the firmware?",
        )
    length = int.from_bytes(data[4:8], "little")
    if not _HEADER <= length <= len(data):
        problems.append(f"length field {length}, but {len(data)} bytes are there")
        length = len(data)
    if sum(data[:length]) % 256:
        problems.append("bad checksum")
    return length


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
