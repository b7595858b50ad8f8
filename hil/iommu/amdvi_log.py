"""Records of AMD-Vi's event log: what an AMD IOMMU reports of faults.

References are to the "AMD I/O Virtualization Technology (IOMMU) Specification", 48882,
revision 3.10, section 2.5.  A record has 16 bytes, little endian: device id in bits 15:0, domain id
(or PASID) in 47:32, flags in 59:48, code in 63:60, address in 127:64; the same layout is
FreeBSD's ``struct amdvi_event`` (sys/amd64/vmm/amd/amdvi_priv.h).
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from hil.errors import LabError
from hil.iommu.amdvi import Reason
from hil.iommu.faults import FaultRecord, amd_write
from hil.iommu.tables import TranslationFault

RECORD_SIZE = 16


class EventCode(enum.IntEnum):
    """Kinds of event, by the names that the specification and Linux's log use."""

    ILLEGAL_DEV_TABLE_ENTRY = 1
    IO_PAGE_FAULT = 2
    DEV_TAB_HARDWARE_ERROR = 3
    PAGE_TAB_HARDWARE_ERROR = 4
    ILLEGAL_COMMAND_ERROR = 5
    COMMAND_HARDWARE_ERROR = 6
    IOTLB_INV_TIMEOUT = 7
    INVALID_DEVICE_REQUEST = 8
    INVALID_PPR_REQUEST = 9
    EVENT_COUNTER_ZERO = 10


_DMA = {
    EventCode.ILLEGAL_DEV_TABLE_ENTRY,
    EventCode.IO_PAGE_FAULT,
    EventCode.DEV_TAB_HARDWARE_ERROR,
    EventCode.PAGE_TAB_HARDWARE_ERROR,
    EventCode.INVALID_DEVICE_REQUEST,
}


class Flag(enum.IntFlag):
    """Flags of a page fault (2.5.3); other events have some of them."""

    GN = 1 << 0
    NX = 1 << 1
    US = 1 << 2
    I = 1 << 3  # noqa: E741 (the specification's name)
    """An interrupt request, not memory."""
    PR = 1 << 4
    """The entry that refuses is present."""
    RW = 1 << 5
    """A write; clear it means a read only if PR is set."""
    PE = 1 << 6
    """No permission."""
    RZ = 1 << 7
    """A reserved bit is not zero; clear: an invalid level."""
    TR = 1 << 8
    """A translation request, not a transaction."""


@dataclass(frozen=True, slots=True)
class Event:
    """One record.

    Args:
        code: bits 63:60; :class:`EventCode` if known.
        requester_id: the function, in events that concern one.
        domain: domain id, in page faults.
        flags: bits 59:48.
        address: DMA address, or physical address of what could not be read.
    """

    code: int
    requester_id: int
    domain: int
    flags: int
    address: int

    @classmethod
    def parse(cls, data: bytes) -> Event:
        """From 16 bytes.

        Raises:
            LabError: too few or too many.
        """
        if len(data) != RECORD_SIZE:
            raise LabError(
                f"an event of AMD-Vi's log has {RECORD_SIZE} bytes, not {len(data)}",
                seen=data[:64].hex(" "),
            )
        low, address = struct.unpack("<QQ", data)
        return cls(low >> 60, low & 0xFFFF, low >> 32 & 0xFFFF, low >> 48 & 0xFFF, address)

    def pack(self) -> bytes:
        """The 16 bytes."""
        low = self.code << 60 | self.flags << 48 | self.domain << 32 | self.requester_id
        return struct.pack("<QQ", low, self.address)

    @property
    def name(self) -> str:
        """The code in words."""
        try:
            return EventCode(self.code).name
        except ValueError:
            return f"event {self.code:#x}"

    def fault(self) -> FaultRecord | None:
        """As a DMA fault; ``None`` if it is not about a function's request.

        Faults of interrupts (flag I) are among them: QEMU sets I for DMA too.
        """
        if self.code not in _DMA:
            return None
        return FaultRecord(
            requester_id=self.requester_id,
            address=self.address,
            reason=None,
            write=amd_write(self.flags),
            text=str(self),
        )

    def __str__(self) -> str:
        return (
            f"{self.name} device={self.requester_id >> 8:02x}:{self.requester_id >> 3 & 31:02x}."
            f"{self.requester_id & 7} domain={self.domain:#06x} address={self.address:#x} "
            f"flags={self.flags:#06x}"
        )


_EVENTS = {
    Reason.ENTRY_RESERVED: (EventCode.ILLEGAL_DEV_TABLE_ENTRY, Flag.RZ),
    Reason.ENTRY_LEVELS: (EventCode.ILLEGAL_DEV_TABLE_ENTRY, Flag(0)),
    Reason.BEYOND_TABLE: (EventCode.IO_PAGE_FAULT, Flag(0)),
    Reason.NOT_TRANSLATED: (EventCode.IO_PAGE_FAULT, Flag(0)),
    Reason.BEYOND_LEVELS: (EventCode.IO_PAGE_FAULT, Flag(0)),
    Reason.NOT_PRESENT: (EventCode.IO_PAGE_FAULT, Flag(0)),
    Reason.SKIPPED_BITS: (EventCode.IO_PAGE_FAULT, Flag.PR),
    Reason.LEVEL_INVALID: (EventCode.IO_PAGE_FAULT, Flag.PR),
    Reason.PAGING_RESERVED: (EventCode.IO_PAGE_FAULT, Flag.PR | Flag.RZ),
    Reason.READ_DENIED: (EventCode.IO_PAGE_FAULT, Flag.PR | Flag.PE),
    Reason.WRITE_DENIED: (EventCode.IO_PAGE_FAULT, Flag.PR | Flag.PE),
}


def event_of(
    fault: TranslationFault, requester_id: int, *, domain: int, address: int, write: bool
) -> Event | None:
    """What the IOMMU logs when it refuses a request of a function.

    Args:
        fault: from :meth:`hil.iommu.amdvi.AmdviTables.translate`.
        requester_id: the function's.
        domain: of its device table entry.
        address: the DMA address.
        write: whether it tried to write.

    Returns:
        ``None`` where nothing is logged: the entry suppresses it, or it is an interrupt.
    """
    known = _EVENTS.get(fault.reason) if isinstance(fault.reason, Reason) else None
    if known is None or not fault.recorded:
        return None
    code, flags = known
    if code is not EventCode.IO_PAGE_FAULT:
        domain = 0
    return Event(code, requester_id, domain, int(flags | (Flag.RW if write else 0)), address)
