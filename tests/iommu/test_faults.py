"""Fault lines as kernels print them: from bug reports, or their format strings filled in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.iommu.faults import FaultRecord, parse_fault_log

# From reports on the Linux mailing lists and x86/iommu.rst; "decimal", "time stamp" and
# some addresses are filled in after dmar_fault_do_one and iommu_print_event.
LINUX_INTEL = [
    (
        "since 5.14",
        (
            "[    1.587809] DMAR: [DMA Write NO_PASID] Request device [05:00.0] "
            "fault addr 0x69974000 [fault reason 0x05] PTE Write access is not set"
        ),
        (0x0500, 0x69974000, 5, True),
    ),
    (
        "5.14 and 5.15, device in hexadecimal",
        (
            "[    3.148558] DMAR: DRHD: handling fault status reg 2\n"
            "[    3.148561] DMAR: [DMA Write NO_PASID] Request device [0x04:0x00.0] "
            "fault addr 0x69974000 [fault reason 0x05] PTE Write access is not set"
        ),
        (0x0400, 0x69974000, 5, True),
    ),
    (
        "4.20 to 5.13",
        (
            "[   12.546923] DMAR: [DMA Read] Request device [02:00.0] PASID ffffffff "
            "fault addr 791dd000 [fault reason 02] Present bit in context entry is clear"
        ),
        (0x0200, 0x791DD000, 2, False),
    ),
    (
        "a reason above 9, in decimal",
        (
            "DMAR: [DMA Read] Request device [07:1f.3] fault addr fffd3000 "
            "[fault reason 12] non-zero reserved fields in PTE"
        ),
        (0x07FB, 0xFFFD3000, 0xC, False),
    ),
    (
        "with a PASID",
        (
            "DMAR: [DMA Write PASID 0x1] Request device [6a:01.0] fault addr 0x1234600000 "
            "[fault reason 0x71] SM: Present bit in first-level paging entry is clear"
        ),
        (0x6A08, 0x1234600000, 0x71, True),
    ),
    (
        "two lines, up to 4.x",
        (
            "DMAR:[DMA Write] Request device [00:02.0] fault addr 6df084000 \n"
            "DMAR:[fault reason 05] PTE Write access is not set"
        ),
        (0x0010, 0x6DF084000, 5, True),
    ),
    (
        "two lines, each with a time stamp",
        (
            "[    0.905514] dmar: DMAR:[DMA Read] Request device [03:00.1] fault addr ffff0000 \n"
            "[    0.905514] DMAR:[fault reason 06] PTE Read access is not set"
        ),
        (0x0301, 0xFFFF0000, 6, False),
    ),
]

LINUX_AMD = [
    (
        "driver known",
        (
            "[Thu Jan  4 23:12:54 2024] ahci 0000:28:00.0: AMD-Vi: Event logged "
            "[IO_PAGE_FAULT domain=0x0035 address=0x7fffff00000 flags=0x0000]"
        ),
        (0x2800, 0x7FFFFF00000, None, None),
    ),
    (
        "write to a page that is there",
        (
            "thunderbolt 0000:06:00.0: AMD-Vi: Event logged "
            "[IO_PAGE_FAULT domain=0x0010 address=0xbb0e3400 flags=0x0030]"
        ),
        (0x0600, 0xBB0E3400, None, True),
    ),
    (
        "no driver",
        (
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=0a:00.0 domain=0x001d "
            "address=0x000000000637c000 flags=0x0010]"
        ),
        (0x0A00, 0x637C000, None, False),
    ),
    (
        "with a segment",
        (
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:0a:00.1 domain=0x001d "
            "address=0x637c000 flags=0x0020]"
        ),
        (0x0A01, 0x637C000, None, True),
    ),
    (
        "two lines",
        (
            "[   10.000000] AMD-Vi: Event logged [\n"
            "[   10.000001] IO_PAGE_FAULT device=07:00.0 domain=0x0007 "
            "address=0xffffc02000 flags=0x0000]"
        ),
        (0x0700, 0xFFFFC02000, None, None),
    ),
]

# Formats of sys/x86/iommu/intel_fault.c and sys/amd64/vmm/amd/amdvi_hw.c, filled in.
FREEBSD = [
    (
        "dmar, device known",
        "DMAR0: em0: pci3:0:0 sid 300 fault acc 1 adt 0x0 reason 0x6 addr 7fff1000",
        (0x0300, 0x7FFF1000, 6, False),
    ),
    (
        "dmar, device unknown",
        "DMAR1: <unknown dev>:pci0:31:2 sid fa fault acc 0 adt 0x0 reason 0x2 addr 1000",
        (0x00FA, 0x1000, 2, True),
    ),
    (
        "bhyve, AMD",
        (
            "ivhd0: EVT INTR 3 Status:0xa EVT Head:0x10 Tail:0x20]\n"
            "  [CMD Total 0x40] Tail:0x400, Head:0x400.\n"
            "ivhd0: \t[Event0: Head:0x10 Tail:0x20]\n"
            "\t[IO_PAGE_FAULT EVT: devId:0x30 DomId:0x2 Addr:0xdeadb000 0x30<PR,RW>]"
        ),
        (0x0030, 0xDEADB000, None, True),
    ),
    (
        "bhyve, AMD, no flag set",
        "\t[IO_PAGE_FAULT EVT: devId:0x100 DomId:0x2 Addr:0x0 0x0]",
        (0x0100, 0, None, None),
    ),
    (
        "bhyve, AMD, invalid request",
        "\t[INV_DTE devid:0x30 addr:0xfee00000 type:0x1 tr:0]",
        (0x0030, 0xFEE00000, None, None),
    ),
]

ALL = LINUX_INTEL + LINUX_AMD + FREEBSD


@pytest.mark.parametrize(("text", "expected"), [pytest.param(t, e, id=n) for n, t, e in ALL])
def test_each_format(text: str, expected: tuple[int, int, int | None, bool | None]) -> None:
    for variant in (text, text.replace("\n", "\r\n"), f"noise\n{text}\nnoise"):
        (record,) = parse_fault_log(variant)
        assert (record.requester_id, record.address, record.reason, record.write) == expected
        assert record.text


def test_a_whole_log_keeps_its_order() -> None:
    log = "\n".join(text for _, text, _ in ALL)
    found = parse_fault_log(log)
    assert [(r.requester_id, r.address, r.reason, r.write) for r in found] == [e for _, _, e in ALL]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "DMAR: DRHD: handling fault status reg 2",
        "dmar_fault: 44 callbacks suppressed",
        "DMAR0: Fault Overflow",
        "DMAR: [INTR-REMAP] Request device [00:1f.0] fault index 0x20 [fault reason 0x22] x",
        "AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0007 address=0xffffc02000 flags=0x0000]",
        "AMD-Vi: Event logged [IOTLB_INV_TIMEOUT device=0a:00.0 address=0x1000]",
        "ivhd0: <AMD-Vi/IOMMU ivhd with EFR> on acpi0",
        "DMAR: [DMA Read] Request device [03:40.0] fault addr 1000 [fault reason 06] x",
    ],
)
def test_what_is_no_dma_fault_of_a_known_device_is_passed_over(text: str) -> None:
    assert parse_fault_log(text) == ()


def test_the_segment_is_kept() -> None:
    (record,) = parse_fault_log(
        "nvme 0001:02:00.0: AMD-Vi: Event logged "
        "[IO_PAGE_FAULT domain=0x0035 address=0x1000 flags=0x0000]"
    )
    assert record.domain == 1


def test_the_text_of_a_flood_is_bounded() -> None:
    line = ALL[0][1] + "x" * 100_000
    (record,) = parse_fault_log(line)
    assert len(record.text) <= 400


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert all(isinstance(record, FaultRecord) for record in parse_fault_log(text))


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([*(text for _, text, _ in ALL), "[", "]", "\n", "DMAR: "])), st.data()
)
def test_a_cut_log_is_read(lines: list[str], data: st.DataObject) -> None:
    text = "".join(lines)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(0, len(text)))
    parse_fault_log(text[start:end])


def test_a_log_of_near_misses_takes_linear_work() -> None:
    """A pattern that backtracks would not end here."""
    assert parse_fault_log("[DMA Write] Request device [00:02.0] fault addr 1 \n[" * 20_000) == ()
