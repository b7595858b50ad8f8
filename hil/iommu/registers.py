"""Registers of an Intel DMA remapping unit (DRHD), from their bytes.

References are to the VT-d specification, revision 4.1, chapter 11.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hil.errors import LabError
from hil.iommu.faults import FaultRecord
from hil.iommu.memory import PhysicalMemory
from hil.iommu.tables import Unit
from hil.iommu.vtd import VtdTables

PAGE_SIZE = 4096


@dataclass(frozen=True, slots=True)
class DrhdRegisters:
    """A unit's registers at one moment.

    Args:
        data: the first 4096 bytes of its register page, little endian.

    Raises:
        LabError: too few bytes, or none that a unit would show.
    """

    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) < PAGE_SIZE:
            raise LabError(f"{len(self.data)} bytes of IOMMU registers: {PAGE_SIZE} are needed")
        version = self._u32(0x00)
        if version in (0, 0xFFFFFFFF) or self.capability in (0, 0xFFFFFFFFFFFFFFFF):
            raise LabError(
                "no IOMMU answers at this address",
                seen=f"version {version:#x}, capability {self.capability:#x}",
                hint="compare the address with the DRHD's in the ACPI DMAR table",
            )

    def _u32(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 4], "little")

    def _u64(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 8], "little")

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor version of the architecture (VER, 11.4.1)."""
        value = self._u32(0x00)
        return value >> 4 & 0xF, value & 0xF

    @property
    def capability(self) -> int:
        """CAP (11.4.2)."""
        return self._u64(0x08)

    @property
    def extended_capability(self) -> int:
        """ECAP (11.4.3)."""
        return self._u64(0x10)

    @property
    def translation_enabled(self) -> bool:
        """Whether DMA is translated at all (GSTS.TES, 11.4.4.2)."""
        return bool(self._u32(0x1C) & 1 << 31)

    @property
    def interrupt_remapping_enabled(self) -> bool:
        """GSTS.IRES (11.4.4.2)."""
        return bool(self._u32(0x1C) & 1 << 25)

    @property
    def root_table(self) -> int:
        """RTADDR (11.4.5), its mode bits included."""
        return self._u64(0x20)

    @property
    def fault_overflow(self) -> bool:
        """Whether faults were lost (FSTS.PFO, 11.4.9)."""
        return bool(self._u32(0x34) & 1)

    @property
    def fault_record_offset(self) -> int:
        """Byte offset of the first fault recording register from the unit's base."""
        return (self.capability >> 24 & 0x3FF) * 16

    @property
    def fault_record_count(self) -> int:
        """Number of fault recording registers."""
        return (self.capability >> 40 & 0xFF) + 1

    def faults(self) -> tuple[FaultRecord, ...]:
        """What the fault recording registers hold (11.4.14), oldest first.

        Raises:
            LabError: they are outside the page that was read.
        """
        start, count = self.fault_record_offset, self.fault_record_count
        if start + 16 * count > len(self.data):
            raise LabError(
                f"the IOMMU's fault records are at {start:#x}, outside the registers read",
                hint=f"read {start + 16 * count} bytes",
            )
        # the oldest is at FSTS.FRI while a fault is pending (11.4.9)
        first = (self._u32(0x34) >> 8 & 0xFF) % count
        records = []
        for index in (*range(first, count), *range(first)):
            low, high = struct.unpack_from("<QQ", self.data, start + 16 * index)
            if high >> 63:
                records.append(_record(index, low, high))
        return tuple(records)

    def unit(
        self, memory: PhysicalMemory, base: int, segment: int = 0, *, host_address_width: int = 52
    ) -> Unit:
        """The unit with its tables, which are read through ``memory``.

        Raises:
            LabError: translation is on in a mode that is not read here.
        """
        if not self.translation_enabled:
            return Unit("drhd", base, segment, None)
        tables = VtdTables(
            memory,
            self.root_table,
            capability=self.capability,
            extended_capability=self.extended_capability,
            host_address_width=host_address_width,
            unit=base,
        )
        return Unit("drhd", base, segment, tables)


def _record(index: int, low: int, high: int) -> FaultRecord:
    # two type bits: T1 (126) and T2 (92); T2 clear, T1 is 0 for a write and 1 for a read
    write = None if high >> 28 & 1 else not high >> 62 & 1
    return FaultRecord(
        requester_id=high & 0xFFFF,
        address=low & ~(PAGE_SIZE - 1),
        reason=high >> 32 & 0xFF,
        write=write,
        text=f"FRCD[{index}] {high:#018x}:{low:#018x}",
    )
