"""IOMMUs as hardware: registers, translation by tables in memory, fault records.

They only read what software laid out in the modelled memory; the software is in
:mod:`hil.simulated.remapping`.  Nothing is cached between two accesses, so a missing
invalidation shows no effect here.

References: Intel VT-d specification 4.1 ("VT-d"), AMD I/O Virtualization Technology
specification 48882 3.06 ("AMD").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hil.iommu.vtd import Reason
from hil.simulated.memory import PAGE, HostMemory
from hil.simulated.pci import DmaAborted

_ADDRESS = (1 << 52) - PAGE
_READ, _WRITE = 1, 2

# VT-d registers (VT-d 11.4)
_GCMD, _GSTS, _RTADDR, _CCMD, _FSTS, _FECTL = 0x18, 0x1C, 0x20, 0x28, 0x34, 0x38
_TRANSLATE, _SET_ROOT = 1 << 31, 1 << 30
_FAULT_RECORDS, _IOTLB = 0x220, 0xF8
#: As many as QEMU's unit has; software that clears none sees the first fault only.
_RECORDS = 1
_PENDING, _OVERFLOW = 2, 1
#: 39- and 48-bit tables, 65,536 domains, zero-length reads, a fault record at 0x220.
CAPABILITY = (_FAULT_RECORDS // 16) << 24 | (_RECORDS - 1) << 40 | 47 << 16 | 0x6 << 8 | 6
#: Coherent, pass-through; the IOTLB registers at 0xF0.
EXTENDED_CAPABILITY = (_IOTLB - 8) // 16 << 8 | 1 << 6 | 1
_DEVICE_TLB = 1 << 2
_LEVELS = {1: 3, 2: 4}


class VtdUnit:
    """A VT-d remapping unit.

    Args:
        memory: where its tables are.
        base: physical address of its page of registers.
        covers: whether a requester id is this unit's business.
        device_tlb: whether it supports device TLBs (ECAP.DT).
    """

    def __init__(
        self,
        memory: HostMemory,
        base: int,
        covers: Callable[[int], bool],
        *,
        device_tlb: bool = False,
    ) -> None:
        self.base = base
        self.device_tlb = device_tlb
        self.covers = covers
        self._memory = memory
        self._registers = bytearray(PAGE)
        self._next_record = 0
        self.reset()
        memory.add_window(base, PAGE, self)

    def reset(self) -> None:
        """Power-on."""
        self._registers[:] = bytes(PAGE)
        self._set(0x00, 4, 0x10)
        self._set(0x08, 8, CAPABILITY)
        self._set(0x10, 8, EXTENDED_CAPABILITY | (_DEVICE_TLB if self.device_tlb else 0))
        self._set(_FECTL, 4, 1 << 31)
        self._next_record = 0

    @property
    def enabled(self) -> bool:
        """Whether DMA is translated."""
        return bool(self._get(_GSTS, 4) & _TRANSLATE)

    # -- registers ------------------------------------------------------------------------

    def _get(self, offset: int, width: int) -> int:
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def _set(self, offset: int, width: int, value: int) -> None:
        self._registers[offset : offset + width] = value.to_bytes(width, "little")

    def load(self, offset: int, width: int) -> int:
        """A register read."""
        return self._get(offset, width)

    def store(self, offset: int, width: int, value: int) -> None:
        """A register write, with its effect."""
        if offset == _GCMD:
            status = self._get(_GSTS, 4) & ~_TRANSLATE | value & _TRANSLATE
            if value & _SET_ROOT:
                status |= _SET_ROOT
            self._set(_GSTS, 4, status)
        elif offset in (_RTADDR, _RTADDR + 4, _FECTL):
            self._set(offset, width, value)
        elif offset == _FSTS:
            self._set(_FSTS, 4, self._get(_FSTS, 4) & ~(value & (_OVERFLOW | 0x7C)))
            self._count_pending()
        elif _FAULT_RECORDS <= offset < _FAULT_RECORDS + 16 * _RECORDS:
            record = offset & ~0xF
            top = value >> 8 * (record + 15 - offset) & 0xFF if offset + width > record + 15 else 0
            if top & 0x80:
                self._registers[record + 15] &= 0x7F
                self._count_pending()
        # CCMD and IOTLB: nothing is cached, so an invalidation is complete as it begins and
        # the register reads as done.

    def _count_pending(self) -> None:
        pending = any(self._registers[_FAULT_RECORDS + 16 * n + 15] & 0x80 for n in range(_RECORDS))
        status = self._get(_FSTS, 4) & ~_PENDING
        self._set(_FSTS, 4, status | (_PENDING if pending else 0))

    # -- translation ----------------------------------------------------------------------

    def translate(self, requester_id: int, address: int, write: bool) -> int:
        """Where an access leads (VT-d 3.4 to 3.7).

        Raises:
            DmaAborted: it is refused, and recorded (VT-d 7.2).
        """
        if not self.enabled:
            return address
        outcome = self._walk(requester_id, address, write)
        if isinstance(outcome, Reason):
            self._record(requester_id, address, write, outcome)
            raise DmaAborted(f"{outcome.name} at {address:#x}")
        return outcome

    def _walk(self, requester_id: int, address: int, write: bool) -> int | Reason:
        load = self._memory.load
        root = load((self._get(_RTADDR, 8) & _ADDRESS) + 16 * (requester_id >> 8))
        if not root & 1:
            return Reason.ROOT_NOT_PRESENT
        entry = (root & _ADDRESS) + 16 * (requester_id & 0xFF)
        low, high = load(entry), load(entry + 8)
        if not low & 1:
            return Reason.CONTEXT_NOT_PRESENT
        kind = low >> 2 & 3
        if kind == 2:
            return address
        levels = _LEVELS.get(high & 7)
        if levels is None or kind == 3 or (kind == 1 and not self.device_tlb):
            return Reason.CONTEXT_INVALID
        if address >> 12 + 9 * levels:
            return Reason.ADDRESS_BEYOND_WIDTH
        table = low & _ADDRESS
        for level in range(levels, 0, -1):
            value = load(table + 8 * (address >> 12 + 9 * (level - 1) & 0x1FF))
            if not value & (_WRITE if write else _READ):
                return Reason.WRITE_DENIED if write else Reason.READ_DENIED
            table = value & _ADDRESS
        return table | address & (PAGE - 1)

    def _record(self, requester_id: int, address: int, write: bool, reason: Reason) -> None:
        record = _FAULT_RECORDS + 16 * self._next_record
        status = self._get(_FSTS, 4)
        if self._registers[record + 15] & 0x80:
            self._set(_FSTS, 4, status | _OVERFLOW)
            return
        high = 1 << 63 | (0 if write else 1) << 62 | int(reason) << 32 | requester_id
        self._set(record, 8, address & ~(PAGE - 1))
        self._set(record + 8, 8, high)
        if not status & _PENDING:  # FRI is the oldest record's (VT-d 11.4.9)
            status = status & ~0xFF00 | self._next_record << 8
        self._set(_FSTS, 4, status | _PENDING)
        self._next_record = (self._next_record + 1) % _RECORDS


# AMD registers (AMD 3.4)
DEVICE_TABLE, COMMAND_BASE, EVENT_BASE, CONTROL, FEATURES = 0x0, 0x8, 0x10, 0x18, 0x30
COMMAND_HEAD, COMMAND_TAIL, EVENT_HEAD, EVENT_TAIL, EVENT_STATUS = (
    0x2000,
    0x2008,
    0x2010,
    0x2018,
    0x2020,
)
#: Bits of CONTROL: on, the event log, its interrupt, the command buffer.
IOMMU_ENABLE, EVENT_ENABLE, EVENT_INTERRUPT, COMMAND_ENABLE = 1, 1 << 2, 1 << 3, 1 << 12
_STATUS_OVERFLOW, _STATUS_INTERRUPT, _STATUS_COMPLETION = 1, 2, 4
#: What QEMU's amd-iommu says, and the recorded host printed.
EXTENDED_FEATURES = 0x29D3
IO_PAGE_FAULT = 2
#: Flags of a page fault (AMD 2.5.3): the refusing entry is present, a write, no permission.
_FLAG_PRESENT, _FLAG_WRITE, _FLAG_PERMISSION = 1 << 4, 1 << 5, 1 << 6
_DENIED = _FLAG_PRESENT | _FLAG_PERMISSION
#: Registers take this much address space (AMD 3.4).
AMD_WINDOW = 4 * PAGE


@dataclass(frozen=True, slots=True)
class RequesterRange:
    """Requester ids from ``first`` to ``last``, as an IVHD lists them."""

    first: int
    last: int


class AmdUnit:
    """An AMD IOMMU.

    Args:
        memory: where its tables, commands and events are.
        base: physical address of its registers.
        ranges: the requester ids that it has.
    """

    def __init__(self, memory: HostMemory, base: int, ranges: Sequence[RequesterRange]) -> None:
        self.base = base
        self.ranges = tuple(ranges)
        self.on_event: Callable[[], None] = lambda: None
        self._memory = memory
        self._registers = bytearray(AMD_WINDOW)
        self._suppressed: set[tuple[int, int, bool]] = set()
        self.reset()
        memory.add_window(base, AMD_WINDOW, self)

    def reset(self) -> None:
        """Power-on."""
        self._registers[:] = bytes(AMD_WINDOW)
        self._set(FEATURES, EXTENDED_FEATURES)
        self._suppressed.clear()

    def covers(self, requester_id: int) -> bool:
        """Whether a function is this unit's business."""
        return any(part.first <= requester_id <= part.last for part in self.ranges)

    @property
    def enabled(self) -> bool:
        """Whether DMA is looked at at all."""
        return bool(self._get(CONTROL) & IOMMU_ENABLE)

    # -- registers ------------------------------------------------------------------------

    def _get(self, offset: int) -> int:
        return int.from_bytes(self._registers[offset : offset + 8], "little")

    def _set(self, offset: int, value: int) -> None:
        self._registers[offset : offset + 8] = value.to_bytes(8, "little")

    def load(self, offset: int, width: int) -> int:
        """A register read."""
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def store(self, offset: int, width: int, value: int) -> None:
        """A register write, with its effect."""
        if FEATURES <= offset < FEATURES + 8:
            return
        if offset == EVENT_STATUS:
            self._set(EVENT_STATUS, self._get(EVENT_STATUS) & ~value)
            return
        self._registers[offset : offset + width] = value.to_bytes(width, "little")
        if offset == COMMAND_TAIL:
            self._run_commands()

    def _run_commands(self) -> None:
        """Execute the command buffer up to its tail (AMD 2.4)."""
        if not self.enabled or not self._get(CONTROL) & COMMAND_ENABLE:
            return
        base = self._get(COMMAND_BASE)
        size = 16 << (base >> 56 & 0xF)
        while self._get(COMMAND_HEAD) != self._get(COMMAND_TAIL):
            head = self._get(COMMAND_HEAD)
            low, high = struct.unpack("<QQ", self._memory.read((base & _ADDRESS) + head, 16))
            code = low >> 60
            if code == 1 and low & 1:  # COMPLETION_WAIT, with a store
                self._memory.store(low & (1 << 52) - 8, high)
                self._set(EVENT_STATUS, self._get(EVENT_STATUS) | _STATUS_COMPLETION)
            elif code == 2:  # INVALIDATE_DEVTAB_ENTRY
                requester_id = low & 0xFFFF
                self._suppressed = {key for key in self._suppressed if key[0] != requester_id}
            self._set(COMMAND_HEAD, (head + 16) % size)

    # -- translation ----------------------------------------------------------------------

    def translate(self, requester_id: int, address: int, write: bool) -> int:
        """Where an access leads (AMD 2.2.2, 2.2.3).

        Raises:
            DmaAborted: it is refused, and logged (AMD 2.5).
        """
        if not self.enabled:
            return address
        table = self._get(DEVICE_TABLE) & _ADDRESS
        low, high = struct.unpack("<QQ", self._memory.read(table + 32 * requester_id, 16))
        if not low & 1:
            return address
        needed = 1 << 62 if write else 1 << 61
        physical, flags = self._walk(low, address, needed)
        if physical is None:
            self._log(requester_id, high, address, write, flags)
            raise DmaAborted(f"IO_PAGE_FAULT at {address:#x}")
        return physical

    def _walk(self, entry: int, address: int, needed: int) -> tuple[int | None, int]:
        """Where an address leads, or ``None`` and the flags of the fault."""
        if not entry & 2:
            return None, 0
        if not entry & needed:
            return None, _DENIED
        level = entry >> 9 & 7
        if level == 0:
            return address, 0
        if level < 6 and address >> 12 + 9 * level:
            return None, 0
        table = entry & _ADDRESS
        while True:
            shift = 12 + 9 * (level - 1)
            value = self._memory.load(table + 8 * (address >> shift & 0x1FF))
            if not value & 1:
                return None, 0
            if not value & needed:
                return None, _DENIED
            below = value >> 9 & 7
            if below == 0:
                inside = (1 << shift) - 1
                return value & _ADDRESS & ~inside | address & inside, 0
            if below >= level:
                return None, _FLAG_PRESENT
            level = below
            table = value & _ADDRESS

    def _log(self, requester_id: int, high: int, address: int, write: bool, flags: int) -> None:
        """Append an IO_PAGE_FAULT to the event log (AMD 2.5.3), and interrupt."""
        key = (requester_id, address // PAGE, write)
        if not self._get(CONTROL) & EVENT_ENABLE or high & 1 << 34:
            return
        if high & 1 << 33:
            if key in self._suppressed:
                return
            self._suppressed.add(key)
        base = self._get(EVENT_BASE)
        size = 16 << (base >> 56 & 0xF)
        tail = self._get(EVENT_TAIL)
        after = (tail + 16) % size
        if after == self._get(EVENT_HEAD):
            self._set(EVENT_STATUS, self._get(EVENT_STATUS) | _STATUS_OVERFLOW)
            return
        flags |= _FLAG_WRITE if write else 0
        word = IO_PAGE_FAULT << 60 | flags << 48 | (high & 0xFFFF) << 32 | requester_id
        self._memory.write((base & _ADDRESS) + tail, struct.pack("<QQ", word, address))
        self._set(EVENT_TAIL, after)
        self._set(EVENT_STATUS, self._get(EVENT_STATUS) | _STATUS_INTERRUPT)
        if self._get(CONTROL) & EVENT_INTERRUPT:
            self.on_event()


Unit = VtdUnit | AmdUnit


class Units:
    """All remapping units of a host: each requester id has one, or none."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = tuple(units)

    def unit_of(self, requester_id: int) -> Unit | None:
        """The first that has the function, in the order of the ACPI table."""
        return next((unit for unit in self.units if unit.covers(requester_id)), None)

    def translate(self, requester_id: int, address: int, write: bool) -> int:
        """As the function's unit does it; untranslated where no unit has it.

        Raises:
            DmaAborted: it is refused.
        """
        unit = self.unit_of(requester_id)
        return address if unit is None else unit.translate(requester_id, address, write)
