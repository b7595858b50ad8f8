"""Records of AMD-Vi's event log, and what a fault becomes in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import LabError
from hil.iommu.amdvi import AmdviTables, Reason
from hil.iommu.amdvi_log import Event, EventCode, Flag, event_of
from hil.iommu.faults import parse_fault_log
from hil.iommu.tables import TranslationFault
from hil.iommu.vtd import Reason as VtdReason
from tests.iommu.amdvi_builder import READ, Image

# device 03:02.0, domain 5, IO_PAGE_FAULT with PR, RW and PE, at 0x123456789abc
RECORD = bytes.fromhex("1003 0000 0500 7020 bc9a 7856 3412 0000")


def test_a_record() -> None:
    event = Event.parse(RECORD)
    assert event == Event(EventCode.IO_PAGE_FAULT, 0x0310, 5, 0x070, 0x123456789ABC)
    assert event.pack() == RECORD
    assert str(event) == (
        "IO_PAGE_FAULT device=03:02.0 domain=0x0005 address=0x123456789abc flags=0x0070"
    )
    fault = event.fault()
    assert fault is not None
    assert (fault.requester_id, fault.address, fault.write) == (0x0310, 0x123456789ABC, True)


@given(st.binary(min_size=16, max_size=16))
def test_any_record_is_read_and_told(data: bytes) -> None:
    event = Event.parse(data)
    assert str(event)
    fault = event.fault()
    if fault is not None:
        assert (fault.requester_id, fault.address) == (event.requester_id, event.address)
        assert Event.parse(event.pack()) == event


@given(
    st.sampled_from([code for code in EventCode if code in (1, 2, 3, 4, 8)]),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFF),
    st.integers(0, 2**64 - 1),
)
def test_linux_tells_the_same_of_it(
    code: EventCode, requester_id: int, domain: int, flags: int, address: int
) -> None:
    """drivers/iommu/amd/iommu.c prints the fields in this form."""
    event = Event(code, requester_id, domain, flags, address)
    fault = event.fault()
    assert fault is not None
    line = (
        f"AMD-Vi: Event logged [{event.name} device=0000:{requester_id >> 8:02x}:"
        f"{requester_id >> 3 & 31:02x}.{requester_id & 7} domain={domain:#06x} "
        f"address={address:#x} flags={flags:#06x}]"
    )
    (found,) = parse_fault_log(line)
    assert (found.requester_id, found.address, found.write) == (
        fault.requester_id,
        fault.address,
        fault.write,
    )


@pytest.mark.parametrize("code", [5, 6, 7, 9, 10, 11, 15])
def test_events_that_are_no_dma_faults(code: int) -> None:
    event = Event(code, 0x10, 0, 0, 0x1000)
    assert event.fault() is None
    assert event.name in {one.name for one in EventCode} | {f"event {code:#x}"}


@pytest.mark.parametrize("data", [b"", RECORD[:15], RECORD + b"\0"])
def test_records_have_16_bytes(data: bytes) -> None:
    with pytest.raises(LabError, match="has 16 bytes"):
        Event.parse(data)


@pytest.mark.parametrize(
    ("reason", "code", "flags"),
    [
        (Reason.ENTRY_RESERVED, EventCode.ILLEGAL_DEV_TABLE_ENTRY, Flag.RZ),
        (Reason.ENTRY_LEVELS, EventCode.ILLEGAL_DEV_TABLE_ENTRY, Flag(0)),
        (Reason.NOT_PRESENT, EventCode.IO_PAGE_FAULT, Flag(0)),
        (Reason.PAGING_RESERVED, EventCode.IO_PAGE_FAULT, Flag.PR | Flag.RZ),
        (Reason.LEVEL_INVALID, EventCode.IO_PAGE_FAULT, Flag.PR),
        (Reason.WRITE_DENIED, EventCode.IO_PAGE_FAULT, Flag.PR | Flag.PE),
    ],
)
def test_what_a_refusal_is_logged_as(reason: Reason, code: EventCode, flags: Flag) -> None:
    fault = TranslationFault(reason, "")
    for write in (False, True):
        event = event_of(fault, 0x310, domain=5, address=0x1234, write=write)
        assert event is not None
        assert (event.code, event.flags) == (code, flags | (Flag.RW if write else 0))
        assert (event.requester_id, event.address) == (0x310, 0x1234)
        assert event.domain == (5 if code is EventCode.IO_PAGE_FAULT else 0)


def test_every_reason_but_the_interrupt_s_is_logged() -> None:
    for reason in Reason:
        event = event_of(TranslationFault(reason, ""), 1, domain=0, address=0, write=True)
        assert (event is None) is (reason is Reason.INTERRUPT_ADDRESS)


def test_what_is_not_logged() -> None:
    image = Image()
    image.device(0x10, more=1 << 34)
    fault = AmdviTables(image, image.register).translate(0x10, 0x1000, True)
    assert isinstance(fault, TranslationFault)
    assert event_of(fault, 0x10, domain=1, address=0x1000, write=True) is None
    image.device(0x10, rights=READ)
    fault = AmdviTables(image, image.register).translate(0x10, 0x1000, True)
    assert isinstance(fault, TranslationFault)
    assert event_of(fault, 0x10, domain=1, address=0x1000, write=True) is not None
    intels = TranslationFault(VtdReason.WRITE_DENIED, "")
    assert event_of(intels, 0x10, domain=1, address=0x1000, write=True) is None
