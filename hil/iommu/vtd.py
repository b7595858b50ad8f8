"""Read Intel VT-d tables out of physical memory."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from hil.iommu.memory import PhysicalMemory


class TranslationType(enum.Enum):
    """What a context entry does with requests (VT-d spec 9.3, field TT)."""

    UNTRANSLATED = 0
    """Untranslated requests go through the second-level tables; others are blocked."""
    DEVICE_TLB = 1
    """As above, and the device may cache translations (ATS)."""
    PASS_THROUGH = 2
    """Requests are not translated: the DMA address is the physical address."""
    RESERVED = 3


class Reason(enum.IntEnum):
    """Fault reasons of legacy mode (VT-d spec 7.1.3), as the hardware reports them."""

    ROOT_NOT_PRESENT = 1
    CONTEXT_NOT_PRESENT = 2
    CONTEXT_INVALID = 3
    ADDRESS_BEYOND_WIDTH = 4
    WRITE_DENIED = 5
    READ_DENIED = 6
    NEXT_TABLE_UNREADABLE = 7
    ROOT_TABLE_UNREADABLE = 8
    CONTEXT_TABLE_UNREADABLE = 9
    ROOT_RESERVED = 0xA
    CONTEXT_RESERVED = 0xB
    PAGING_RESERVED = 0xC
    TRANSLATION_BLOCKED = 0xD


@dataclass(frozen=True, slots=True)
class ContextEntry:
    """One function's entry, present or not."""

    requester_id: int
    present: bool
    domain: int
    translation_type: TranslationType
    page_table_root: int
    address_width: int
    """Bits of DMA address: 39, 48 or 57 (0: reserved encoding)."""
    fault_disabled: bool


@dataclass(frozen=True, slots=True)
class Translation:
    """Where a DMA address leads.  ``page_size`` is 0 for pass-through."""

    physical: int
    page_size: int
    readable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class TranslationFault:
    """Why a DMA address leads nowhere."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """A contiguous range of DMA addresses on contiguous physical memory."""

    iova: int
    physical: int
    length: int
    readable: bool
    writable: bool


class VtdTables:
    """The tables of one DMA remapping unit."""

    def __init__(
        self,
        memory: PhysicalMemory,
        root_table_address: int,
        *,
        capability: int | None = None,
        extended_capability: int | None = None,
    ) -> None:
        raise NotImplementedError

    def entry(self, requester_id: int) -> ContextEntry | None:
        raise NotImplementedError

    def entries(self) -> Iterator[ContextEntry]:
        raise NotImplementedError

    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        raise NotImplementedError

    def mappings(self, requester_id: int, limit: int = 65536) -> tuple[Mapping, ...]:
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError
