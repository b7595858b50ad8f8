"""DMA faults as hosts record them: one record, and the parsers of kernel logs.

Formats, each from the source that prints it:

- Linux, Intel: ``drivers/iommu/intel/dmar.c``, ``dmar_fault_do_one``; before 4.x
  over two lines, up to 5.13 with ``PASID ffffffff`` and a decimal reason, in 5.14 and
  5.15 with the device as ``0x04:0x00.0``, since 5.14 with ``NO_PASID`` and ``0x05``.
- Linux, AMD: ``drivers/iommu/amd/iommu.c``, ``amd_iommu_report_page_fault`` and
  ``iommu_print_event``; older kernels print it in two parts, on two lines.
- FreeBSD's host IOMMU on Intel: ``sys/x86/iommu/intel_fault.c``.
- bhyve on AMD: ``sys/amd64/vmm/amd/amdvi_hw.c``, ``amdvi_decode_evt``.  bhyve on
  Intel prints none: read the registers (:mod:`hil.iommu.registers`).

Faults of interrupt remapping (``[INTR-REMAP] …``) are not DMA faults and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

#: Longest :attr:`FaultRecord.text`, in characters.
TEXT_LIMIT = 400


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
        source: what told it, where that is not the kernel's log: a unit.  Records of one source
            come in order; those of two are not told apart by when they came.
    """

    requester_id: int
    address: int | None
    reason: int | None
    write: bool | None
    text: str
    domain: int = 0
    source: str = ""


_BDF = (
    r"(?:(?P<domain>[0-9a-f]{4,8}):)?"
    r"(?:0x)?(?P<bus>[0-9a-f]{1,2}):(?:0x)?(?P<device>[01]?[0-9a-f])\.(?P<function>[0-7])"
)
# a line's end, and the next line's time stamp and kernel prefix
_BREAK = r"[ \t\r]*(?:\n[^\n\[]{0,40}(?:\[[ 0-9.:]{1,20}\])?[^\n\[]{0,80})?"

_LINUX_INTEL = re.compile(
    r"\[DMA (?P<kind>Read|Write)(?: [^\]\n]{0,40})?\] Request device \[" + _BDF + r"\]"
    r"(?: PASID [0-9a-fx]{1,10})? fault addr:? (?:0x)?(?P<address>[0-9a-f]{1,16})"
    + _BREAK
    + r"\[fault reason (?P<reason>0x[0-9a-f]{1,2}|[0-9]{1,3})\][^\n]{0,120}",
    re.IGNORECASE,
)

_LINUX_AMD = re.compile(
    r"(?:(?P<owner>[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): )?"
    r"AMD-Vi: Event logged \["
    + _BREAK
    + r"(?P<event>IO_PAGE_FAULT|ILLEGAL_DEV_TABLE_ENTRY|INVALID_DEVICE_REQUEST"
    r"|DEV_TAB_HARDWARE_ERROR|PAGE_TAB_HARDWARE_ERROR)"
    r"(?: device=" + _BDF + r")?(?: (?:domain|pasid)=(?:0x)?[0-9a-f]{1,8}){0,2}"
    r" address=(?:0x)?(?P<address>[0-9a-f]{1,16}) flags=(?:0x)?(?P<flags>[0-9a-f]{1,4})",
    re.IGNORECASE,
)

_FREEBSD_DMAR = re.compile(
    r"DMAR[0-9]{1,3}: ?[^\n]{0,40}?pci[0-9]{1,3}:[0-9]{1,3}:[0-9]{1,3}:? "
    r"sid (?P<sid>[0-9a-f]{1,4}) fault acc (?P<access>[0-9a-f]{1,2}) adt 0x[0-9a-f]{1,2}"
    r" reason 0x(?P<reason>[0-9a-f]{1,2}) addr (?:0x)?(?P<address>[0-9a-f]{1,16})"
)

_BHYVE_AMD = re.compile(
    r"\[(?:IO_PAGE_FAULT|DEV_TAB_HW_ERR|PAGE_TAB_HW_ERR) EVT: devId:0x(?P<sid>[0-9a-f]{1,4})"
    r" DomId:0x[0-9a-f]{1,8} Addr:0x(?P<address>[0-9a-f]{1,16})"
    r"(?: 0x(?P<flags>[0-9a-f]{1,4})(?:<[A-Z,]{0,40}>)?\])?"
)

_BHYVE_AMD_REQUEST = re.compile(
    r"\[INV_DTE devid:0x(?P<sid>[0-9a-f]{1,4}) addr:0x(?P<address>[0-9a-f]{1,16})[^\n\]]{0,40}\]?"
)


def _linux_intel(match: re.Match[str]) -> FaultRecord | None:
    reason = match["reason"]
    return FaultRecord(
        requester_id=_requester(match),
        address=int(match["address"], 16),
        # without 0x it is decimal: "%02d"
        reason=int(reason, 16) if reason.lower().startswith("0x") else int(reason),
        write=match["kind"].lower() == "write",
        text=_text(match),
        domain=int(match["domain"] or "0", 16),
    )


def _linux_amd(match: re.Match[str]) -> FaultRecord | None:
    where = match
    if match["bus"] is None:
        if match["owner"] is None:
            return None  # names no device: nothing to hold it against
        owner = re.fullmatch(_BDF, match["owner"], re.IGNORECASE)
        assert owner is not None  # the pattern above has the same shape
        where = owner
    return FaultRecord(
        requester_id=_requester(where),
        address=int(match["address"], 16),
        reason=None,
        write=amd_write(int(match["flags"], 16)),
        text=_text(match),
        domain=int(where["domain"] or "0", 16),
    )


def _freebsd_dmar(match: re.Match[str]) -> FaultRecord | None:
    return FaultRecord(
        requester_id=int(match["sid"], 16),
        address=int(match["address"], 16),
        reason=int(match["reason"], 16),
        write=int(match["access"], 16) == 0,
        text=_text(match),
    )


def _bhyve_amd(match: re.Match[str]) -> FaultRecord | None:
    flags = match.groupdict().get("flags")
    return FaultRecord(
        requester_id=int(match["sid"], 16),
        address=int(match["address"], 16),
        reason=None,
        write=amd_write(int(flags, 16)) if flags else None,
        text=_text(match),
    )


_FORMATS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], FaultRecord | None]], ...] = (
    (_LINUX_INTEL, _linux_intel),
    (_LINUX_AMD, _linux_amd),
    (_FREEBSD_DMAR, _freebsd_dmar),
    (_BHYVE_AMD, _bhyve_amd),
    (_BHYVE_AMD_REQUEST, _bhyve_amd),
)


def parse_fault_log(text: str) -> tuple[FaultRecord, ...]:
    """Every DMA fault in a kernel's log, in its order; other lines are passed over.

    Kernels limit the rate of these lines: presence counts, number does not.
    """
    found: list[tuple[int, FaultRecord]] = []
    for pattern, convert in _FORMATS:
        for match in pattern.finditer(text):
            record = convert(match)
            if record is not None:
                found.append((match.start(), record))
    return tuple(record for _, record in sorted(found, key=lambda pair: pair[0]))


def _requester(match: re.Match[str]) -> int:
    bus, device, function = (int(match[name], 16) for name in ("bus", "device", "function"))
    return bus << 8 | device << 3 | function


def amd_write(flags: int) -> bool | None:
    """Whether a DMA fault was a write, by its event's flags; ``None`` if they do not tell.

    RW (bit 5) tells; a clear one means little unless PR (bit 4) is set (AMD I/O
    Virtualization Technology Specification 3.08, 2.5.3).
    """
    if flags & 0x20:
        return True
    return False if flags & 0x10 else None


def _text(match: re.Match[str]) -> str:
    return " ".join(match[0].split())[:TEXT_LIMIT]
