"""What an IOMMU's tables say, whichever vendor's they are.

:mod:`hil.iommu.vtd` and :mod:`hil.iommu.amdvi` read one unit's tables out of memory;
:class:`HostTables` is the union of a host's units.  All offer :class:`Tables`.
Requester ids are 16 bits: bus, device, function.
"""

from __future__ import annotations

import enum
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hil.errors import DeadlineExceeded, LabError
from hil.iommu.memory import CachedMemory, PhysicalMemory
from hil.pci.address import Address

INTERRUPT_RANGE = range(0xFEE00000, 0xFEF00000)
"""Requests here are interrupt messages and never translated (VT-d 3.14, AMD 2.1.2)."""

RANGE_LIMIT = 65536
"""Most ranges that one function's address space is told in."""


class Kind(enum.Enum):
    """What becomes of a function's DMA."""

    TRANSLATED = "translated"
    """It goes through page tables: what they do not map faults."""
    PASS_THROUGH = "pass-through"  # noqa: S105 (no password)
    """DMA addresses are physical addresses: all memory can be reached."""
    BLOCKED = "blocked"
    """All of it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(ABC):
    """One function's entry in its unit's tables, present or not."""

    requester_id: int
    present: bool
    """Whether the entry is valid.  What a missing one means, :attr:`kind` says."""
    domain: int
    """Domain id; those of different units have nothing to do with one another."""
    page_table_root: int
    """Physical address; whatever stands there, also in entries that use no page table."""
    address_width: int
    """Bits of DMA address that the page tables take; 0 without page tables."""
    unit: int = 0
    """Physical address of the unit's registers, 0 if not known."""

    @property
    @abstractmethod
    def kind(self) -> Kind: ...

    @abstractmethod
    def describe(self) -> str:
        """One line for people, in the vendor's words."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Where a DMA address leads."""

    physical: int
    page_size: int
    """Bytes of the page it is in; 0 for pass-through."""
    readable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class TranslationFault:
    """Why a DMA address leads nowhere."""

    reason: enum.Enum
    """:class:`hil.iommu.vtd.Reason` or :class:`hil.iommu.amdvi.Reason`."""
    text: str
    recorded: bool = True
    """False if the function's entry disables the recording of such faults."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """A contiguous range of DMA addresses on contiguous physical memory."""

    iova: int
    physical: int
    length: int
    readable: bool
    writable: bool

    def __str__(self) -> str:
        rights = ("r" if self.readable else "-") + ("w" if self.writable else "-")
        return (
            f"{self.iova:#x}-{self.iova + self.length - 1:#x} -> {self.physical:#x} "
            f"{rights} {self.length:#x} bytes"
        )


class Tables(Protocol):
    """The tables of one unit, or of a host, as they were when this was made.

    They show what memory says: an IOMMU may still use what it cached before.  Every
    method raises :class:`~hil.errors.LabError` where tables cannot be read, or are in a
    mode that is not read here.
    """

    def entry(self, requester_id: int) -> Entry | None:
        """The function's entry, present or not; ``None`` if the tables have no place for it."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Every present entry, by requester id."""
        ...

    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        """Where an untranslated request of the function to ``address`` leads.

        What the hardware would refuse is a value, not an exception.
        """
        ...

    def mappings(self, requester_id: int, limit: int = RANGE_LIMIT) -> tuple[Mapping, ...]:
        """All that the function can reach, merged into ranges, by DMA address.

        Entries that fault on every access are left out.  A function in pass-through has
        one range: everything.  More than ``limit`` ranges are an error.
        """
        ...

    def describe(self) -> str:
        """All present entries, a line each."""
        ...


# -- for readers of a vendor's tables ------------------------------------------------------


class TableMemory:
    """Memory that tables are read from; an error names what was being read."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = CachedMemory(memory)

    def read(self, address: int, length: int, what: str) -> bytes:
        """``length`` bytes at ``address``, which are (part of) ``what``."""
        try:
            return self._memory.read(address, length)
        except DeadlineExceeded:
            raise  # says nothing of the tables
        except LabError as error:
            raise LabError(
                f"the IOMMU's {what} at {address:#x} cannot be read",
                seen=error.explain(),
                hint="if that address is no memory at all, the tables themselves are damaged",
            ) from error

    def expect(self, tables: Iterable[int]) -> None:
        """Have the tables at these addresses read together: a walk comes to all of them."""
        self._memory.expect(tables)

    def words(self, address: int, count: int, what: str) -> tuple[int, ...]:
        """``count`` little-endian 64-bit words at ``address``."""
        return struct.unpack(f"<{count}Q", self.read(address, 8 * count, what))


def is_run(table: tuple[int, ...], step: int) -> bool:
    """Whether each entry of a paging structure is the one before plus ``step``.

    It is where contiguous memory is mapped, and millions of pages need no look at each: all but
    the addresses in such entries is the same.
    """
    return table[1] - table[0] == step and table == tuple(
        range(table[0], table[0] + len(table) * step, step)
    )


def merged(leaves: Iterable[Mapping], requester_id: int, limit: int) -> tuple[Mapping, ...]:
    """``leaves``, which come by DMA address, with neighbours that continue one another joined.

    Raises:
        LabError: more than ``limit`` ranges are left.
    """
    found: list[Mapping] = []
    for leaf in leaves:
        last = found[-1] if found else None
        rights = (leaf.readable, leaf.writable)
        if (
            last is not None
            and last.iova + last.length == leaf.iova
            and last.physical + last.length == leaf.physical
            and (last.readable, last.writable) == rights
        ):
            found[-1] = Mapping(last.iova, last.physical, last.length + leaf.length, *rights)
            continue
        if len(found) == limit:
            raise too_much(f"more than {limit} ranges", requester_id)
        found.append(leaf)
    return tuple(found)


def too_much(what: str, requester_id: int) -> LabError:
    """The error for page tables that hold more than any real ones do."""
    address = Address.from_requester_id(requester_id)
    return LabError(
        f"the IOMMU page tables of {address} hold {what}: damaged, or not tables at all"
    )


def described(head: str, entries: Iterable[Entry]) -> str:
    """A list of entries as text, much as FreeBSD's dmardump prints it."""
    lines = [head]
    bus = -1
    for entry in entries:
        if entry.requester_id >> 8 != bus:
            bus = entry.requester_id >> 8
            lines.append(f"  bus {bus:02x}:")
        address = Address.from_requester_id(entry.requester_id)
        lines.append(f"    {address.device:02x}.{address.function} {entry.describe()}")
    return "\n".join(lines)


# -- all units of a host -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """A DMA remapping unit of a host and its tables."""

    name: str
    """``drhd`` (Intel) or ``ivhd`` (AMD)."""
    base: int
    """Physical address of its registers."""
    segment: int
    tables: Tables | None
    """``None`` while its translation is disabled: all DMA passes."""

    def describe(self) -> str:
        """The unit and its tables as text."""
        head = f"{self.name} @ {self.base:#x} PCI segment {self.segment}"
        return f"{head} (disabled)" if self.tables is None else f"{head}:\n{self.tables.describe()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Untranslated(Entry):
    """Stands for a function whose requests no enabled unit sees."""

    @property
    def kind(self) -> Kind:
        """Always pass-through."""
        return Kind.PASS_THROUGH

    def describe(self) -> str:
        """As :meth:`Entry.describe`."""
        return "behind no remapping unit that is enabled"


class _NoUnit:
    """The tables of a unit that is disabled, or not there: all DMA passes."""

    def __init__(self, unit: int) -> None:
        self._unit = unit

    def entry(self, requester_id: int) -> Entry:
        return Untranslated(
            requester_id=requester_id,
            present=False,
            domain=0,
            page_table_root=0,
            address_width=0,
            unit=self._unit,
        )

    def entries(self) -> Iterator[Entry]:
        return iter(())

    def translate(self, _requester_id: int, address: int, _write: bool) -> Translation:
        return Translation(address, 0, readable=True, writable=True)

    def mappings(self, _requester_id: int, _limit: int = RANGE_LIMIT) -> tuple[Mapping, ...]:
        return (Mapping(0, 0, 1 << 64, readable=True, writable=True),)

    def describe(self) -> str:
        return ""


class HostTables:
    """The tables of all units of one PCI segment: each function's from its own unit.

    It is a :class:`Tables`.

    Args:
        units: of this segment, in the order of the firmware's table.
        responsible: the unit that a requester id belongs to, ``None`` if none has it (see
            :mod:`hil.iommu.scope`): its requests then pass untranslated.
    """

    def __init__(self, units: Sequence[Unit], responsible: Callable[[int], Unit | None]) -> None:
        self.units = tuple(units)
        self._responsible = responsible

    @property
    def enabled(self) -> bool:
        """Whether any unit translates."""
        return any(unit.tables is not None for unit in self.units)

    def _tables(self, requester_id: int) -> Tables:
        unit = self._responsible(requester_id)
        if unit is None or unit.tables is None:
            return _NoUnit(0 if unit is None else unit.base)
        return unit.tables

    def entry(self, requester_id: int) -> Entry | None:
        """As :meth:`Tables.entry`."""
        return self._tables(requester_id).entry(requester_id)

    def entries(self) -> Iterator[Entry]:
        """As :meth:`Tables.entries`; what a unit holds for functions of another is left out."""
        found = [
            entry
            for unit in self.units
            if unit.tables is not None
            for entry in unit.tables.entries()
            if self._responsible(entry.requester_id) is unit
        ]
        return iter(sorted(found, key=lambda entry: entry.requester_id))

    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        """As :meth:`Tables.translate`."""
        return self._tables(requester_id).translate(requester_id, address, write)

    def mappings(self, requester_id: int, limit: int = RANGE_LIMIT) -> tuple[Mapping, ...]:
        """As :meth:`Tables.mappings`."""
        return self._tables(requester_id).mappings(requester_id, limit)

    def describe(self) -> str:
        """Every unit with its tables."""
        return "\n".join(unit.describe() for unit in self.units)
