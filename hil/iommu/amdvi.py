"""Read AMD-Vi device tables and I/O page tables out of physical memory.

References are to the "AMD I/O Virtualization Technology (IOMMU) Specification", 48882,
revision 3.10.  Read are the device table (2.2.2) and host page tables (2.2.3) with 1 to
6 levels, skipped levels and all sizes of page.  Guest page tables are refused by name where
a function's ordinary requests go through them; requests with a PASID are not looked at.
HyperTransport's special addresses (2.1.2) are taken for ordinary ones.

What differs from VT-d and surprises: a function whose entry is not valid (V=0) is **not
translated at all**, so tables that nobody has touched let all DMA pass.

bhyve (FreeBSD: sys/amd64/vmm/amd/amdvi_hw.c) has one device table of 2 MiB for all units,
always uses four levels and pages of 4 KiB, and sets V, TV, Mode, root, IR, IW and SE when it adds a
function.  When it removes one it only writes V, SE and the domain's id again: root, TV, IR
and IW stay as they were.

The reader shows what the tables say *now*; an IOMMU may still use what it cached.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hil.errors import LabError
from hil.iommu.memory import PAGE, PhysicalMemory
from hil.iommu.tables import (
    INTERRUPT_RANGE,
    RANGE_LIMIT,
    Entry,
    Kind,
    Mapping,
    TableMemory,
    Translation,
    TranslationFault,
    described,
    is_run,
    merged,
    too_much,
)

ENTRY_SIZE = 32
"""Bytes of a device table entry (2.2.2.1)."""

_ADDRESS = (1 << 52) - PAGE
_VALID = 1 << 0
_TRANSLATION_VALID = 1 << 1
_READ = 1 << 61
_WRITE = 1 << 62
_PRESENT = 1 << 0
_LEVEL_SHIFT = 9
_TABLE_LEVELS = range(1, 7)
# Reserved in every revision of the specification; later ones gave meaning to the others.
_ENTRY_RESERVED = 1 << 63 | 3 << 2
# bits 60:52 of a directory entry and 58:52 of a page's (2.2.3)
_DIRECTORY_RESERVED = 0x1FF << 52
_PAGE_RESERVED = 0x7F << 52


class Reason(enum.Enum):
    """Why the IOMMU refuses a request; the hardware's event is :mod:`hil.iommu.amdvi_log`'s."""

    BEYOND_TABLE = "the device table has no entry for this requester id"
    ENTRY_RESERVED = "the device table entry has reserved bits"
    ENTRY_LEVELS = "the device table entry has a paging mode that the IOMMU lacks"
    NOT_TRANSLATED = "the device table entry is valid without translation information"
    BEYOND_LEVELS = "the address is beyond what the levels of page table can hold"
    NOT_PRESENT = "a paging entry is not present"
    SKIPPED_BITS = "address bits of a skipped level are not zero"
    LEVEL_INVALID = "a paging entry leads to no lower level"
    PAGING_RESERVED = "a paging entry has reserved bits"
    READ_DENIED = "an entry gives no read permission"
    WRITE_DENIED = "an entry gives no write permission"
    INTERRUPT_ADDRESS = "the address is in the interrupt range"


_NEVER_SILENCED = {Reason.ENTRY_RESERVED, Reason.ENTRY_LEVELS}
"""Reasons that make another event than IO_PAGE_FAULT: SA does not suppress it (2.2.2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTableEntry(Entry):
    """One function's entry (DTE), valid or not, as its bits say (2.2.2.1).

    ``present`` is V.  ``address_width`` is 12 + 9 bits for each level, 64 at most; 0 where
    ``mode`` is none of 1 to 6.
    """

    translation_valid: bool
    """TV."""
    mode: int
    """Levels of page table, 1 to 6; 0 for none; 7 is reserved."""
    readable: bool
    """IR."""
    writable: bool
    """IW."""
    suppress_second: bool
    """SE: of several page faults in a row only the first is logged."""
    suppress_all: bool
    """SA: no page fault of this function is logged."""
    guest_translation: bool
    """GV with GIoV: requests without a PASID go through guest page tables first."""
    reserved_bits: bool
    """A bit that must be 0 in valid entries is set."""

    @property
    def kind(self) -> Kind:
        """As :attr:`Entry.kind`; what is not valid passes."""
        if not self.present:
            return Kind.PASS_THROUGH
        if self.reserved_bits or not self.translation_valid or self.mode == 7:
            return Kind.BLOCKED
        if not (self.readable or self.writable):
            return Kind.BLOCKED
        return Kind.TRANSLATED if self.mode else Kind.PASS_THROUGH

    def describe(self) -> str:
        """The fields, by the specification's names."""
        if not self.present:
            words = ["V=0 (untranslated)"]
        else:
            words = [f"TV={self.translation_valid:d} mode {self.mode}"]
        if self.page_table_root or self.mode:
            words.append(f"root {self.page_table_root:#x}")
        words.append(f"IR={self.readable:d} IW={self.writable:d} domain {self.domain}")
        words += ["SE"] if self.suppress_second else []
        words += ["SA"] if self.suppress_all else []
        words += ["GV"] if self.guest_translation else []
        words += ["(reserved bits set)"] if self.reserved_bits else []
        return " ".join(words)


class AmdviTables:
    """The tables of one IOMMU: a :class:`~hil.iommu.tables.Tables`.

    Tables are cached as they are first read: make a new reader to see changes.

    Args:
        memory: the host's physical memory.
        device_table: the Device Table Base Address register (MMIO 0x0): address, and in
            bits 8:0 its size in pages less one.
        extended_features: the Extended Feature register (MMIO 0x30), which tells how many
            levels there can be; without it, six.
        unit: physical address of the unit's registers, for its entries to tell.
    """

    #: Most paging structures that one walk over a function's whole address space reads.
    TABLE_LIMIT = 65536

    def __init__(
        self,
        memory: PhysicalMemory,
        device_table: int,
        *,
        extended_features: int | None = None,
        unit: int = 0,
    ) -> None:
        self.device_table = device_table & _ADDRESS
        self.size = ((device_table & 0x1FF) + 1) * PAGE
        self._memory = TableMemory(memory)
        self._unit = unit
        # HATS, bits 11:10: 4, 5 or 6 levels
        self._levels = 6 if extended_features is None else min(4 + (extended_features >> 10 & 3), 6)

    # -- entries ----------------------------------------------------------------------

    def entry(self, requester_id: int) -> DeviceTableEntry | None:
        """The function's entry; ``None`` if the table is too short to have one."""
        offset = requester_id * ENTRY_SIZE
        if offset >= self.size:
            return None
        words = self._memory.words(self.device_table + offset, 4, "device table")
        return self._entry(requester_id, words)

    def entries(self) -> Iterator[DeviceTableEntry]:
        """Every valid entry, by requester id."""
        table = self._memory.read(self.device_table, self.size, "device table")
        for requester_id, words in enumerate(struct.iter_unpack("<4Q", table)):
            if words[0] & _VALID:
                yield self._entry(requester_id, words)

    def _entry(self, requester_id: int, words: tuple[int, ...]) -> DeviceTableEntry:
        low, middle = words[0], words[1]
        mode = low >> _LEVEL_SHIFT & 7
        return DeviceTableEntry(
            requester_id=requester_id,
            present=bool(low & _VALID),
            domain=middle & 0xFFFF,
            page_table_root=low & _ADDRESS,
            address_width=_width(mode),
            unit=self._unit,
            translation_valid=bool(low & _TRANSLATION_VALID),
            mode=mode,
            readable=bool(low & _READ),
            writable=bool(low & _WRITE),
            suppress_second=bool(middle >> 33 & 1),
            suppress_all=bool(middle >> 34 & 1),
            guest_translation=low >> 54 & 3 == 3,
            reserved_bits=bool(low & _ENTRY_RESERVED),
        )

    # -- one address ------------------------------------------------------------------

    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        """Where an untranslated request of the function to ``address`` leads.

        What the hardware would refuse is a value, not an exception.  A request to the
        interrupt range is an interrupt, not DMA; it gives
        :attr:`Reason.INTERRUPT_ADDRESS`.

        Raises:
            LabError: the tables cannot be read, or the request would go through guest page
                tables.
        """
        entry = self.entry(requester_id)
        outcome = self._translate(entry, address, write)
        if isinstance(outcome, Translation):
            return outcome
        reason, text = outcome
        silenced = entry is not None and entry.suppress_all and reason not in _NEVER_SILENCED
        return TranslationFault(reason, text, recorded=not silenced)

    def _translate(
        self, entry: DeviceTableEntry | None, address: int, write: bool
    ) -> Translation | tuple[Reason, str]:
        if address in INTERRUPT_RANGE:
            return Reason.INTERRUPT_ADDRESS, f"{address:#x} is in the interrupt range"
        refused = self._refusal(entry)
        if refused:
            return refused
        assert entry is not None  # a missing one was refused
        if not entry.present:
            return Translation(address, 0, readable=True, writable=True)
        denied = _denied(entry.readable, entry.writable, write)
        if denied:
            return denied, f"the device table entry gives no {_verb(write)} permission"
        if entry.mode == 0:
            return Translation(address, 0, entry.readable, entry.writable)
        if address >> entry.address_width:
            return Reason.BEYOND_LEVELS, (
                f"{address:#x} is beyond the {entry.address_width} bits of {entry.mode} levels"
            )
        return self._walk(entry, address, write)

    def _refusal(self, entry: DeviceTableEntry | None) -> tuple[Reason, str] | None:
        """Why all requests of the function are refused, if they are."""
        if entry is None:
            entries = self.size // ENTRY_SIZE
            return Reason.BEYOND_TABLE, f"the device table ends after {entries:#x} entries"
        if not entry.present:
            return None
        if entry.reserved_bits:
            return Reason.ENTRY_RESERVED, f"device table entry: {entry.describe()}"
        if not entry.translation_valid:
            return Reason.NOT_TRANSLATED, f"device table entry: {entry.describe()}"
        if entry.mode > self._levels:
            return Reason.ENTRY_LEVELS, f"paging mode {entry.mode}; there are {self._levels} levels"
        if entry.guest_translation:
            raise LabError(
                "the function's requests go through guest page tables (GIoV), not read here",
                seen=entry.describe(),
                hint="boot the host with host page tables (Linux: amd_iommu=pgtbl_v1)",
            )
        return None

    def _walk(
        self, entry: DeviceTableEntry, address: int, write: bool
    ) -> Translation | tuple[Reason, str]:
        table, level = entry.page_table_root, entry.mode
        readable, writable = entry.readable, entry.writable
        while True:
            at = table + 8 * (address >> _shift(level) & 0x1FF)
            (value,) = self._memory.words(at, 1, f"level {level} table")
            where = f"level {level} entry {value:#x} at {at:#x}"
            below = self._below(level, value)
            if isinstance(below, Reason):
                return below, f"{where}: {below.value}"
            readable = readable and bool(value & _READ)
            writable = writable and bool(value & _WRITE)
            denied = _denied(bool(value & _READ), bool(value & _WRITE), write)
            if denied:
                return denied, f"{where} gives no {_verb(write)} permission"
            base = value & _ADDRESS
            if below == 0:
                size = _page_size(level, value)
                physical = base & ~(size - 1) | address & (size - 1)
                return Translation(physical, size, readable, writable)
            if address & _span(level) - 1 & ~(_span(below + 1) - 1):
                return Reason.SKIPPED_BITS, f"{where} skips to level {below}; address {address:#x}"
            table, level = base, below

    def _below(self, level: int, value: int) -> int | Reason:
        """Level of the table that an entry of ``level`` leads to; 0 if it leads to a page."""
        if not value & _PRESENT:
            return Reason.NOT_PRESENT
        below = value >> _LEVEL_SHIFT & 7
        leaf = below in (0, 7)
        if value & self._reserved(leaf):
            return Reason.PAGING_RESERVED
        if leaf:
            return 0 if _page_size(level, value) >= _span(level) else Reason.LEVEL_INVALID
        return below if below < level else Reason.LEVEL_INVALID

    def _reserved(self, leaf: bool) -> int:
        """Mask of the bits that must be 0 in a paging entry that is present (2.2.3)."""
        return _PAGE_RESERVED if leaf else _DIRECTORY_RESERVED

    # -- the whole address space ------------------------------------------------------

    def mappings(self, requester_id: int, limit: int = RANGE_LIMIT) -> tuple[Mapping, ...]:
        """As :meth:`~hil.iommu.tables.Tables.mappings`.

        Raises:
            LabError: the tables cannot be read, or hold more than ``limit`` ranges or
                :attr:`TABLE_LIMIT` paging structures, which only damaged ones do.
        """
        entry = self.entry(requester_id)
        if self._refusal(entry) or entry is None:
            return ()
        if not entry.present:
            return (Mapping(0, 0, 1 << 64, readable=True, writable=True),)
        if not (entry.readable or entry.writable):
            return ()
        if entry.mode == 0:
            return (Mapping(0, 0, 1 << 64, entry.readable, entry.writable),)
        return merged(self._leaves(entry), requester_id, limit)

    def _leaves(self, entry: DeviceTableEntry) -> Iterator[Mapping]:
        budget = self.TABLE_LIMIT

        def walk(above: Mapping, level: int) -> Iterator[Mapping]:
            nonlocal budget
            budget -= 1
            if budget < 0:
                what = f"more than {self.TABLE_LIMIT} paging structures"
                raise too_much(what, entry.requester_id)
            span = _span(level)
            table = self._memory.words(above.physical, 512, f"level {level} table")
            run = (
                level == 1
                and above.length >= len(table) * span
                and not table[0] >> _LEVEL_SHIFT & 7
                and self._below(1, table[0]) == self._below(1, table[-1]) == 0
                and is_run(table, span)
            )
            self._memory.expect(
                value & _ADDRESS for value in table if self._below(level, value) in _TABLE_LEVELS
            )
            # the six levels could hold more than an address has bits
            for index, value in enumerate(table[: 1 if run else max(1, above.length // span)]):
                below = self._below(level, value)
                readable = above.readable and bool(value & _READ)
                writable = above.writable and bool(value & _WRITE)
                if isinstance(below, Reason) or not (readable or writable):
                    continue
                iova, base = above.iova + index * span, value & _ADDRESS
                if below == 0:
                    size = _page_size(level, value)
                    physical = base & ~(size - 1) | iova & (size - 1)
                    length = span * len(table) if run else span
                    yield Mapping(iova, physical, length, readable, writable)
                else:
                    length = min(span, _span(below + 1))
                    yield from walk(Mapping(iova, base, length, readable, writable), below)

        length = 1 << entry.address_width
        rights = (entry.readable, entry.writable)
        return walk(Mapping(0, entry.page_table_root, length, *rights), entry.mode)

    def describe(self) -> str:
        """All valid entries, a line each."""
        head = f"device table @ {self.device_table:#018x}, {self.size // ENTRY_SIZE:#x} entries"
        return described(head, self.entries())


def _width(mode: int) -> int:
    return min(12 + 9 * mode, 64) if 1 <= mode <= 6 else 0


def _shift(level: int) -> int:
    return 12 + 9 * (level - 1)


def _span(level: int) -> int:
    """Bytes of DMA address that one entry of a table of ``level`` stands for."""
    return 1 << _shift(level)


def _page_size(level: int, value: int) -> int:
    """Bytes of the page that an entry leads to: its level's, or as coded in the address.

    With Next Level 7 the lowest 0 of address bits 51:12 tells: bit 12 means 8 KiB, and so on
    (2.2.3, table 14).
    """
    if value >> _LEVEL_SHIFT & 7 != 7:
        return _span(level)
    inverted = ~(value & _ADDRESS) >> 12
    return PAGE << (inverted & -inverted).bit_length()


def _denied(readable: bool, writable: bool, write: bool) -> Reason | None:
    if write:
        return None if writable else Reason.WRITE_DENIED
    return None if readable else Reason.READ_DENIED


def _verb(write: bool) -> str:
    return "write" if write else "read"
