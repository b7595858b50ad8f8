"""Registers of DMA remapping units, from their bytes.

References are to the VT-d specification, revision 4.1, chapter 11, for Intel's (DRHD), and to
the AMD I/O Virtualization Technology specification, 48882, revision 3.10, section 3.4, for
AMD's (IVHD).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hil.errors import LabError
from hil.iommu.amdvi import AmdviTables
from hil.iommu.amdvi_log import RECORD_SIZE, Event
from hil.iommu.faults import FaultRecord
from hil.iommu.memory import PhysicalMemory, read_many
from hil.iommu.tables import Unit
from hil.iommu.vtd import VtdTables

PAGE_SIZE = 4096
#: VT-d's fault status register (11.4.9).
_FSTS = 0x34


@dataclass(frozen=True, slots=True)
class DrhdRegisters:
    """A unit's registers at one moment.

    Args:
        data: the first bytes of its register page, little endian: 64 at least, and for its
            fault records as far as these go.

    Raises:
        LabError: too few bytes, or none that a unit would show.
    """

    data: bytes

    HEAD = 0x40

    def __post_init__(self) -> None:
        if len(self.data) < self.HEAD:
            raise LabError(f"{len(self.data)} bytes of IOMMU registers: {self.HEAD} are needed")
        version = self._u32(0x00)
        if version in (0, 0xFFFFFFFF) or self.capability in (0, 0xFFFFFFFFFFFFFFFF):
            raise LabError(
                "no IOMMU answers at this address",
                seen=f"version {version:#x}, capability {self.capability:#x}",
                hint="compare the address with the DRHD's in the ACPI DMAR table",
            )

    @classmethod
    def read(cls, registers: PhysicalMemory, base: int, *, faults: bool = False) -> DrhdRegisters:
        """Those of the unit at ``base``, read through ``registers``: no more than is needed.

        Args:
            registers: reads physical memory.
            base: the unit's physical address.
            faults: its fault records too, wherever they are.
        """
        head = cls(registers.read(base, cls.HEAD))
        if not faults:
            return head
        start = head.fault_record_offset
        records = registers.read(base + start, 16 * head.fault_record_count)
        # Nobody asks for what stands between.
        return cls(head.data.ljust(start, b"\0")[:start] + records)

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
        return bool(self._u32(_FSTS) & 1)

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
        count = self.fault_record_count
        # the oldest is at FSTS.FRI while a fault is pending (11.4.9)
        first = (self._u32(_FSTS) >> 8 & 0xFF) % count
        return tuple(
            _record(index, low, high)
            for index in (*range(first, count), *range(first))
            for low, high in [self._fault_record(index)]
            if high >> 63
        )

    def clearing_writes(self) -> tuple[tuple[int, bytes], ...]:
        """What to write to have the unit record faults anew: offset and bytes of each, in order.

        A record that is taken, and an overflow, stay until software writes ones to their bits
        (11.4.9, 11.4.14); until then further faults are lost.  Empty where nothing is to clear.

        Raises:
            LabError: the records are outside the page that was read.
        """
        start = self.fault_record_offset
        writes = [
            (start + 16 * index + 8, (1 << 63).to_bytes(8, "little"))
            for index in range(self.fault_record_count)
            if self._fault_record(index)[1] >> 63
        ]
        if self.fault_overflow:
            writes.append((_FSTS, (1).to_bytes(4, "little")))
        return tuple(writes)

    def _fault_record(self, index: int) -> tuple[int, int]:
        start, count = self.fault_record_offset, self.fault_record_count
        if start + 16 * count > len(self.data):
            raise LabError(
                f"the IOMMU's fault records are at {start:#x}, outside the registers read",
                hint=f"read {start + 16 * count} bytes",
            )
        low, high = struct.unpack_from("<QQ", self.data, start + 16 * index)
        return int(low), int(high)

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


@dataclass(frozen=True, slots=True)
class IvhdRegisters:
    """An AMD unit's registers at one moment.

    Args:
        low: the first 64 bytes of its registers (MMIO 0x0 to 0x3f).
        high: the 40 bytes from MMIO 0x2000 on: pointers and status.

    Raises:
        LabError: too few bytes, or none that a unit would show.
    """

    low: bytes
    high: bytes

    LOW = range(0x40)
    HIGH = range(0x2000, 0x2028)

    def __post_init__(self) -> None:
        for data, where in ((self.low, self.LOW), (self.high, self.HIGH)):
            if len(data) != len(where):
                raise LabError(
                    f"{len(data)} bytes of IOMMU registers at {where.start:#x}: "
                    f"{len(where)} are needed"
                )
        if not self.low.strip(b"\0") or not self.low.strip(b"\xff"):
            raise LabError(
                "no IOMMU answers at this address",
                seen=self.low.hex(" "),
                hint="compare the address with the IVHD's in the ACPI IVRS table",
            )

    @classmethod
    def read(cls, registers: PhysicalMemory, base: int) -> IvhdRegisters:
        """Those of the unit at ``base``, read through ``registers``."""
        low, high = read_many(
            registers, [(base + where.start, len(where)) for where in (cls.LOW, cls.HIGH)]
        )
        return cls(low, high)

    def _register(self, offset: int) -> int:
        data, start = (self.low, 0) if offset in self.LOW else (self.high, self.HIGH.start)
        return int.from_bytes(data[offset - start : offset - start + 8], "little")

    @property
    def device_table(self) -> int:
        """Device Table Base Address (0x0), its size field included."""
        return self._register(0x00)

    @property
    def control(self) -> int:
        """Control register (0x18)."""
        return self._register(0x18)

    @property
    def extended_features(self) -> int:
        """Extended Feature register (0x30)."""
        return self._register(0x30)

    @property
    def translation_enabled(self) -> bool:
        """Whether the unit does anything (IommuEn)."""
        return bool(self.control & 1)

    @property
    def event_log_enabled(self) -> bool:
        """EventLogEn."""
        return bool(self.control & 1 << 2)

    @property
    def event_log(self) -> int:
        """Physical address of the event log (0x10)."""
        return self._register(0x10) & (1 << 52) - PAGE_SIZE

    @property
    def event_log_size(self) -> int:
        """Bytes of the event log; 0 for a reserved length (0x10, EventLen)."""
        length = self._register(0x10) >> 56 & 0xF
        return RECORD_SIZE << length if length >= 8 else 0

    @property
    def event_head(self) -> int:
        """Offset of the record that software reads next (0x2010)."""
        return self._register(0x2010) & 0x7FFF0

    @property
    def event_tail(self) -> int:
        """Offset where the unit writes next (0x2018)."""
        return self._register(0x2018) & 0x7FFF0

    @property
    def fault_overflow(self) -> bool:
        """Whether events were lost (Status, 0x2020, EventOverflow)."""
        return bool(self._register(0x2020) & 1)

    def events(self, memory: PhysicalMemory) -> tuple[Event, ...]:
        """All records that the log still holds, oldest first, those already read by the host too.

        The ring is read from the tail on, whose next record is the oldest; places never written
        (code 0) are left out.  So a host that takes its records at once hides none.

        Raises:
            LabError: the log cannot be read, or has no valid length.
        """
        if not self.event_log_enabled:
            return ()
        size = self.event_log_size
        if not size:
            raise LabError(
                "AMD-Vi's event log has no valid length",
                seen=f"event log base register {self._register(0x10):#018x}",
            )
        ring = memory.read(self.event_log, size)
        start = self.event_tail % size
        ring = ring[start:] + ring[:start]
        found = (Event.parse(ring[at : at + RECORD_SIZE]) for at in range(0, size, RECORD_SIZE))
        return tuple(event for event in found if event.code)

    def unit(self, memory: PhysicalMemory, base: int, segment: int = 0) -> Unit:
        """The unit with its tables, which are read through ``memory``.

        Raises:
            LabError: translation is on in a way that is not read here.
        """
        if not self.translation_enabled:
            return Unit("ivhd", base, segment, None)
        segments = self.control >> 34 & 7
        if segments:
            raise LabError(
                f"the IOMMU at {base:#x} has a device table in {1 << segments} segments, "
                "which are not read here",
                seen=f"control register {self.control:#018x}, DevTblSegEn = {segments}",
            )
        if self._register(0x20) & 1:
            raise LabError(
                f"the IOMMU at {base:#x} has an exclusion range, which is not read here",
                seen=f"exclusion base register {self._register(0x20):#018x}",
                hint="the firmware's IVMD blocks ask for it",
            )
        tables = AmdviTables(
            memory, self.device_table, extended_features=self.extended_features, unit=base
        )
        return Unit("ivhd", base, segment, tables)
