"""The ACPI tables of simulated hosts that say where IOMMUs are, and how to find them.

References: ACPI 6.5 section 5.2; VT-d specification 4.1 chapter 8; AMD 48882 section 5.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hil.pci.address import Address
from hil.simulated.iommu import EXTENDED_FEATURES, RequesterRange
from hil.simulated.memory import HostMemory

_HEADER = 36
_OEM = b"BOCHS BXPC    \x01\0\0\0BXPC\x01\0\0\0"


def table(signature: bytes, body: bytes, revision: int = 1) -> bytes:
    """A table with its header and checksum."""
    head = signature + struct.pack("<IBB", _HEADER + len(body), revision, 0) + _OEM
    whole = bytearray(head + body)
    whole[9] = -sum(whole) & 0xFF
    return bytes(whole)


Scope = tuple[int, int, tuple[tuple[int, int], ...]]
"""Type (1 endpoint, 2 bridge, 3 I/O APIC), start bus, path of (device, function)."""


def drhd(base: int, *, include_all: bool, scopes: Sequence[Scope]) -> bytes:
    """A remapping unit's structure (VT-d 8.3)."""
    parts = b"".join(
        struct.pack("<BBHBB", kind, 6 + 2 * len(path), 0, 0, bus) + bytes(sum(path, ()))
        for kind, bus, path in scopes
    )
    return struct.pack("<HHBBHQ", 0, 16 + len(parts), int(include_all), 0, 0, base) + parts


def dmar(units: Sequence[bytes], width: int = 48) -> bytes:
    """The DMAR table (VT-d 8.1), with interrupt remapping."""
    return table(b"DMAR", struct.pack("<BB10x", width - 1, 1) + b"".join(units))


def ivrs(iommu: Address, base: int, ranges: Sequence[RequesterRange]) -> bytes:
    """The IVRS table with one IOMMU, as types 10h and 11h (AMD 5.2)."""
    entries = b""
    for part in ranges:
        if part.first == part.last:
            entries += struct.pack("<BHB", 2, part.first, 0)
        else:
            entries += struct.pack("<BHB", 3, part.first, 0) + struct.pack("<BHB", 4, part.last, 0)
    # the I/O APIC, by its southbridge's id
    entries += struct.pack("<BHBBHB", 0x48, 0, 0, 0, 0xA0, 1)
    blocks = b""
    for kind, flags, more in (
        (0x10, 0xD1, struct.pack("<I", 0x44)),
        (0x11, 0x11, struct.pack("<IQQ", 0, EXTENDED_FEATURES, 0)),
    ):
        length = 20 + len(more) + len(entries)
        head = struct.pack("<BBHHHQHH", kind, flags, length, iommu.requester_id, 0x40, base, 0, 0)
        blocks += head + more + entries
    return table(b"IVRS", struct.pack("<I8x", 40 << 8 | 1) + blocks)


class AcpiTables:
    """Tables laid out in memory, with the root pointer that leads to them.

    ``root`` is what ``sysctl machdep.acpi_root`` says.
    """

    def __init__(self, memory: HostMemory, tables: Sequence[bytes], top: int) -> None:
        self.addresses: dict[str, int] = {}
        self.tables: dict[str, bytes] = {}
        at = top
        for data in tables:
            at -= 4096
            name = data[:4].decode("ascii")
            self.addresses[name] = at
            self.tables[name] = data
            memory.write(at, data)
        self.xsdt = top + 0x40E8
        pointers = struct.pack(f"<{len(tables)}Q", *self.addresses.values())
        memory.write(self.xsdt, table(b"XSDT", pointers))
        self.root = top + 0x5014
        body = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, b"BOCHS ", 2, 0, 36, 0, 0))
        body[24:32] = self.xsdt.to_bytes(8, "little")
        body[8] = -sum(body[:20]) & 0xFF
        body[32] = -sum(body) & 0xFF
        memory.write(self.root, bytes(body))
