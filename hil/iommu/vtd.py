"""Read Intel VT-d tables out of physical memory: this project's own dmardump.

References are to the "Intel Virtualization Technology for Directed I/O Architecture
Specification", revision 4.1.  Read are the tables of legacy mode (9.1, 9.3, 9.8):
root, context and second-stage ("second-level") paging, with 3, 4 or 5 levels and
pages of 4 KiB, 2 MiB and 1 GiB.  Other modes are refused by name.

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

_ADDRESS = (1 << 52) - PAGE
_READ = 1 << 0
_WRITE = 1 << 1
_PAGE_SIZE = 1 << 7
_SNOOP = 1 << 11
_TRANSIENT = 1 << 62
_IGNORED = 0x3FF << 52 | 1 << 63

_WIDTHS = {1: 39, 2: 48, 3: 57}
"""Address Width field of a context entry to bits of DMA address (9.3)."""


class TranslationType(enum.Enum):
    """What a context entry does with requests (9.3, field TT)."""

    UNTRANSLATED = 0
    """Untranslated requests go through the page tables; all others are blocked."""
    DEVICE_TLB = 1
    """As above, and the device may cache translations (ATS)."""
    PASS_THROUGH = 2
    """Requests are not translated: the DMA address is the physical address."""
    RESERVED = 3


class Reason(enum.IntEnum):
    """Fault reasons of legacy mode, as the hardware reports them (7.1.3)."""

    ROOT_NOT_PRESENT = 0x1
    CONTEXT_NOT_PRESENT = 0x2
    CONTEXT_INVALID = 0x3
    ADDRESS_BEYOND_WIDTH = 0x4
    WRITE_DENIED = 0x5
    READ_DENIED = 0x6
    NEXT_TABLE_UNREADABLE = 0x7
    ROOT_TABLE_UNREADABLE = 0x8
    CONTEXT_TABLE_UNREADABLE = 0x9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    PAGING_RESERVED = 0xC
    TRANSLATION_BLOCKED = 0xD
    INTERRUPT_ADDRESS = 0xE


_UNQUALIFIED = {Reason.ROOT_NOT_PRESENT, Reason.ROOT_RESERVED, Reason.CONTEXT_RESERVED}
"""Reasons that come before a valid context entry: its FPD does not silence them (7.1.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextEntry(Entry):
    """One function's entry, present or not, as its bits say (9.3).

    ``address_width`` is 39, 48 or 57 bits; 0 for a reserved encoding.
    """

    translation_type: TranslationType
    fault_disabled: bool
    """FPD: qualified faults are neither recorded nor reported."""
    reserved_bits: bool = False
    """A bit that must be 0 is set: all requests fault."""

    @property
    def kind(self) -> Kind:
        """As :attr:`Entry.kind`; a missing entry blocks."""
        if (
            not self.present
            or self.reserved_bits
            or not self.address_width
            or self.translation_type is TranslationType.RESERVED
        ):
            return Kind.BLOCKED
        if self.translation_type is TranslationType.PASS_THROUGH:
            return Kind.PASS_THROUGH
        return Kind.TRANSLATED

    def describe(self) -> str:
        """The entry much as FreeBSD's dmardump prints it."""
        words = [] if self.present else ["(not present)"]
        words += ["FPD"] if self.fault_disabled else []
        words.append(_SHORT[self.translation_type])
        if self.translation_type in (TranslationType.UNTRANSLATED, TranslationType.DEVICE_TLB):
            words.append(f"SLPT {self.page_table_root:#x} width {self.address_width}")
        words.append(f"domain {self.domain}")
        words += ["(reserved bits set)"] if self.reserved_bits else []
        return " ".join(words)


class VtdTables:
    """The tables of one DMA remapping unit: a :class:`~hil.iommu.tables.Tables`.

    Tables are cached as they are first read: make a new reader to see changes.

    Args:
        memory: the host's physical memory.
        root_table_address: the RTADDR register (11.4.5), or the root table's address.
        capability: the CAP register (11.4.2); without it, all widths and sizes of
            page are taken to be supported.
        extended_capability: the ECAP register (11.4.3); likewise.
        host_address_width: bits of a physical address; paging entries with higher
            address bits set are faulty.  The ACPI DMAR table tells it.
        unit: physical address of the unit's registers, for its entries to tell.

    Raises:
        LabError: the unit is in scalable, extended or abort mode.
    """

    #: Most paging structures that one walk over a function's whole address space reads.
    TABLE_LIMIT = 65536

    def __init__(
        self,
        memory: PhysicalMemory,
        root_table_address: int,
        *,
        capability: int | None = None,
        extended_capability: int | None = None,
        host_address_width: int = 52,
        unit: int = 0,
    ) -> None:
        mode = root_table_address >> 10 & 3
        if mode:
            name = {1: "scalable mode", 2: "extended mode (ECS)", 3: "abort-DMA mode"}[mode]
            raise LabError(
                f"the IOMMU's root table is in {name}, which is not read here",
                seen=f"RTADDR {root_table_address:#018x}, bits 11:10 = {mode:02b}",
                hint="boot the host with the IOMMU in legacy mode "
                "(Linux: intel_iommu=on,sm_off; QEMU: no x-scalable-mode)",
            )
        self.root_table = root_table_address & ~(PAGE - 1)
        self._memory = TableMemory(memory)
        self._unit = unit
        self._physical_limit = 1 << min(host_address_width, 52)
        # without CAP, assume what the newest hardware has
        self._widths = {
            bits
            for field, bits in _WIDTHS.items()
            if capability is None or capability >> 8 >> field & 1
        }
        self._max_address_width = 57 if capability is None else (capability >> 16 & 0x3F) + 1
        self._big_pages = {
            level
            for level, bit in ((2, 34), (3, 35))
            if capability is None or capability >> bit & 1
        }
        extended = (
            (1 << 2 | 1 << 6 | 1 << 7) if extended_capability is None else extended_capability
        )
        self._device_tlb = bool(extended & 1 << 2)
        self._pass_through = bool(extended & 1 << 6)
        self._snoop_control = bool(extended & 1 << 7)

    # -- entries ----------------------------------------------------------------------

    def entry(self, requester_id: int) -> ContextEntry | None:
        """The function's context entry; ``None`` if its bus has no context table.

        An entry with ``present`` false shows what an earlier owner left in it.

        Raises:
            LabError: the tables cannot be read.
        """
        root_low, _ = self._root_entry(requester_id >> 8)
        if not root_low & 1:
            return None
        table = root_low & ~(PAGE - 1)
        low, high = self._memory.words(table + 16 * (requester_id & 0xFF), 2, "context table")
        return self._context_entry(requester_id, low, high)

    def entries(self) -> Iterator[ContextEntry]:
        """Every present entry, by requester id.

        Raises:
            LabError: the tables cannot be read.
        """
        for bus in range(256):
            root_low, _ = self._root_entry(bus)
            if not root_low & 1:
                continue
            table = self._memory.read(root_low & ~(PAGE - 1), PAGE, "context table")
            for number, (low, high) in enumerate(struct.iter_unpack("<QQ", table)):
                if low & 1:
                    yield self._context_entry(bus << 8 | number, low, high)

    def _root_entry(self, bus: int) -> tuple[int, int]:
        low, high = self._memory.words(self.root_table + 16 * bus, 2, "root table")
        return low, high

    def _context_entry(self, requester_id: int, low: int, high: int) -> ContextEntry:
        reserved = low & 0xFF0 or high >> 24 or high & 0x80
        beyond = (low & ~(PAGE - 1)) >= self._physical_limit
        return ContextEntry(
            requester_id=requester_id,
            present=bool(low & 1),
            domain=high >> 8 & 0xFFFF,
            translation_type=TranslationType(low >> 2 & 3),
            page_table_root=low & ~(PAGE - 1),
            address_width=_WIDTHS.get(high & 7, 0),
            fault_disabled=bool(low & 2),
            reserved_bits=bool(reserved or beyond),
            unit=self._unit,
        )

    # -- one address ------------------------------------------------------------------

    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        """Where an untranslated request of the function to ``address`` leads.

        What the hardware would refuse is a value, not an exception.  A request to
        :data:`INTERRUPT_RANGE` is an interrupt, not DMA; it gives
        :attr:`Reason.INTERRUPT_ADDRESS`.

        Raises:
            LabError: the tables cannot be read.
        """
        entry = self.entry(requester_id)
        outcome = self._translate(requester_id, entry, address, write)
        if isinstance(outcome, Translation):
            return outcome
        reason, text = outcome
        silenced = entry is not None and entry.fault_disabled and reason not in _UNQUALIFIED
        return TranslationFault(reason, text, recorded=not silenced)

    def _translate(
        self, requester_id: int, entry: ContextEntry | None, address: int, write: bool
    ) -> Translation | tuple[Reason, str]:
        if address in INTERRUPT_RANGE:
            return Reason.INTERRUPT_ADDRESS, f"{address:#x} is in the interrupt range"
        refused = self._refusal(requester_id, entry)
        if refused:
            return refused
        assert entry is not None  # a missing one was refused
        if entry.translation_type is TranslationType.PASS_THROUGH:
            if address >> self._max_address_width:
                return Reason.ADDRESS_BEYOND_WIDTH, _beyond(address, self._max_address_width)
            return Translation(address, 0, readable=True, writable=True)
        width = min(entry.address_width, self._max_address_width)
        if address >> width:
            return Reason.ADDRESS_BEYOND_WIDTH, _beyond(address, width)
        return self._walk(entry, address, write)

    def _refusal(self, requester_id: int, entry: ContextEntry | None) -> tuple[Reason, str] | None:
        """Why all requests of the function are refused, if they are."""
        root = self._root_entry(requester_id >> 8)
        if entry is None:
            return Reason.ROOT_NOT_PRESENT, f"no context table for bus {requester_id >> 8:02x}"
        if root[1] or root[0] & 0xFFE or (root[0] & ~(PAGE - 1)) >= self._physical_limit:
            return Reason.ROOT_RESERVED, f"root entry {root[1]:#x}:{root[0]:#x} has reserved bits"
        if not entry.present:
            return Reason.CONTEXT_NOT_PRESENT, "no context entry for this function"
        if entry.reserved_bits:
            return Reason.CONTEXT_RESERVED, "the context entry has reserved bits"
        if entry.address_width not in self._widths:
            return Reason.CONTEXT_INVALID, f"address width {entry.address_width} is not supported"
        supported = {
            TranslationType.UNTRANSLATED: True,
            TranslationType.DEVICE_TLB: self._device_tlb,
            TranslationType.PASS_THROUGH: self._pass_through,
            TranslationType.RESERVED: False,
        }
        if not supported[entry.translation_type]:
            kind = entry.translation_type.name.lower()
            return Reason.CONTEXT_INVALID, f"translation type {kind} is not supported"
        return None

    def _walk(
        self, entry: ContextEntry, address: int, write: bool
    ) -> Translation | tuple[Reason, str]:
        table = entry.page_table_root
        readable = writable = True
        for level in range(_levels(entry.address_width), 0, -1):
            shift = 12 + 9 * (level - 1)
            index = address >> shift & 0x1FF
            what = f"level {level} table"
            (value,) = self._memory.words(table + 8 * index, 1, what)
            where = f"level {level} entry {value:#x} at {table + 8 * index:#x}"
            readable = readable and bool(value & _READ)
            writable = writable and bool(value & _WRITE)
            if write and not value & _WRITE:
                return Reason.WRITE_DENIED, f"{where} gives no write permission"
            if not write and not value & _READ:
                return Reason.READ_DENIED, f"{where} gives no read permission"
            if value & self._reserved(level, value):
                return Reason.PAGING_RESERVED, f"{where} has reserved bits"
            base = value & _ADDRESS
            if self._is_leaf(level, value):
                size = 1 << shift
                physical = base | address & (size - 1)
                if physical in INTERRUPT_RANGE:
                    return Reason.INTERRUPT_ADDRESS, f"{where} leads into the interrupt range"
                return Translation(physical, size, readable, writable)
            table = base
        raise AssertionError("a level 1 entry is always a leaf")

    def _is_leaf(self, level: int, value: int) -> bool:
        return level == 1 or bool(level in self._big_pages and value & _PAGE_SIZE)

    def _reserved(self, level: int, value: int) -> int:
        """Mask of the bits that must be 0 in this paging entry (9.8)."""
        mask = ((1 << 52) - 1) & ~(self._physical_limit - 1)
        leaf = self._is_leaf(level, value)
        if leaf:
            mask |= (1 << 12 + 9 * (level - 1)) - PAGE
            mask |= 0 if self._snoop_control else _SNOOP
            mask |= 0 if self._device_tlb else _TRANSIENT
        else:
            mask |= _PAGE_SIZE | _SNOOP | _TRANSIENT
        return mask & ~_IGNORED

    # -- the whole address space ------------------------------------------------------

    def mappings(self, requester_id: int, limit: int = RANGE_LIMIT) -> tuple[Mapping, ...]:
        """As :meth:`~hil.iommu.tables.Tables.mappings`.

        Raises:
            LabError: the tables cannot be read, or hold more than ``limit`` ranges or
                :attr:`TABLE_LIMIT` paging structures, which only damaged ones do.
        """
        entry = self.entry(requester_id)
        if self._refusal(requester_id, entry) or entry is None:
            return ()
        everything = Mapping(0, 0, 1 << self._max_address_width, readable=True, writable=True)
        if entry.translation_type is TranslationType.PASS_THROUGH:
            return (everything,)
        return merged(self._leaves(entry), requester_id, limit)

    def _leaves(self, entry: ContextEntry) -> Iterator[Mapping]:
        budget = self.TABLE_LIMIT

        def walk(above: Mapping, level: int) -> Iterator[Mapping]:
            nonlocal budget
            budget -= 1
            if budget < 0:
                what = f"more than {self.TABLE_LIMIT} paging structures"
                raise too_much(what, entry.requester_id)
            size = 1 << 12 + 9 * (level - 1)
            table = self._memory.words(above.physical, 512, f"level {level} table")
            run = (
                self._is_leaf(level, table[0])
                and is_run(table, size)
                and not table[-1] & self._reserved(level, table[-1])
            )
            if level > 1:
                self._memory.expect(
                    value & _ADDRESS
                    for value in table
                    if value & (_READ | _WRITE)
                    and not self._is_leaf(level, value)
                    and not value & self._reserved(level, value)
                )
            for index, value in enumerate(table[:1] if run else table):
                readable = above.readable and bool(value & _READ)
                writable = above.writable and bool(value & _WRITE)
                if not (readable or writable) or value & self._reserved(level, value):
                    continue
                address = above.iova + index * size
                base = value & _ADDRESS
                inner = Mapping(address, base, size * 512 if run else size, readable, writable)
                if self._is_leaf(level, value):
                    yield inner
                else:
                    yield from walk(inner, level - 1)

        whole = Mapping(0, entry.page_table_root, 1 << entry.address_width, True, True)
        return walk(whole, _levels(entry.address_width))

    def describe(self) -> str:
        """All present entries, a line each, much as FreeBSD's dmardump prints them."""
        return described(f"root table @ {self.root_table:#018x}", self.entries())


def _levels(address_width: int) -> int:
    return (address_width - 12) // 9


def _beyond(address: int, width: int) -> str:
    return f"{address:#x} is beyond the {width} bits of address"


_SHORT = {
    TranslationType.UNTRANSLATED: "UNTR",
    TranslationType.DEVICE_TLB: "TR",
    TranslationType.PASS_THROUGH: "PASS",
    TranslationType.RESERVED: "RSVD",
}
