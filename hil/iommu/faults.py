"""DMA faults as hosts record them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One DMA fault, from a kernel's log or from an IOMMU's registers.

    Args:
        requester_id: 16 bits, the function that was refused.
        address: the DMA address (often only its page), ``None`` if not told.
        reason: the IOMMU's own reason code, ``None`` if not told.  Intel's codes are
            those of :class:`hil.iommu.vtd.Reason`; AMD tells none.
        write: whether the device tried to write; ``None`` if not told.
        text: what the record was read from, bounded.
        domain: PCI segment, 0 where the source does not say.
    """

    requester_id: int
    address: int | None
    reason: int | None
    write: bool | None
    text: str
    domain: int = 0


def parse_fault_log(text: str) -> tuple[FaultRecord, ...]:
    """Every DMA fault in a kernel log, in order; other lines are passed over."""
    raise NotImplementedError
