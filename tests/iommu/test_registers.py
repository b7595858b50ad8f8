from __future__ import annotations

import struct

import pytest

from hil.errors import LabError
from hil.iommu.registers import DrhdRegisters
from tests.iommu.vtd_builder import Image

# as QEMU 10's VT-d with aw-bits=48 shows them: one fault record, at 0x220
CAPABILITY = 0x00D2008C222F0606
EXTENDED = 0x00F00F4A


def page(
    *,
    records: list[tuple[int, int]] | None = None,
    capability: int = CAPABILITY,
    status: int = 0,
    global_status: int = 1 << 31,
    root: int = 0x1000000,
) -> bytes:
    data = bytearray(4096)
    struct.pack_into("<I", data, 0, 0x10)
    struct.pack_into("<QQ", data, 8, capability, EXTENDED)
    struct.pack_into("<I", data, 0x1C, global_status)
    struct.pack_into("<Q", data, 0x20, root)
    struct.pack_into("<I", data, 0x34, status)
    for number, (low, high) in enumerate(records or []):
        struct.pack_into("<QQ", data, 0x220 + 16 * number, low, high)
    return bytes(data)


def test_a_unit_s_state() -> None:
    registers = DrhdRegisters(page(status=1))
    assert registers.version == (1, 0)
    assert registers.translation_enabled
    assert not registers.interrupt_remapping_enabled
    assert registers.root_table == 0x1000000
    assert registers.fault_overflow
    assert registers.fault_record_offset == 0x220
    assert registers.fault_record_count == 1
    assert registers.faults() == ()


def test_fault_records_come_oldest_first() -> None:
    three = CAPABILITY & ~(0xFF << 40) | 2 << 40
    read, write = 1 << 63 | 1 << 62, 1 << 63
    records = [
        (0x3000, write | 5 << 32 | 0x0300),
        (0x1000, read | 6 << 32 | 0x0100),
        (0x2000, 0),
    ]
    faults = DrhdRegisters(page(records=records, capability=three, status=1 << 8 | 2)).faults()
    assert [(f.requester_id, f.address, f.reason, f.write) for f in faults] == [
        (0x0100, 0x1000, 6, False),
        (0x0300, 0x3000, 5, True),
    ]


def test_a_request_that_is_neither_read_nor_write() -> None:
    page_request = (0x1000, 1 << 63 | 1 << 28 | 5 << 32 | 0x0300)
    (fault,) = DrhdRegisters(page(records=[page_request])).faults()
    assert fault.write is None


@pytest.mark.parametrize("data", [bytes(4096), b"\xff" * 4096, b"", bytes(100)])
def test_bytes_that_are_no_unit_are_refused(data: bytes) -> None:
    with pytest.raises(LabError):
        DrhdRegisters(data)


def test_fault_records_outside_the_page_are_an_error() -> None:
    far = CAPABILITY | 0x3FF << 24
    with pytest.raises(LabError, match="outside the registers read"):
        DrhdRegisters(page(capability=far)).faults()


def test_a_disabled_unit_has_no_tables() -> None:
    image = Image()
    unit = DrhdRegisters(page(global_status=0)).unit(image, 0xFED90000, 1)
    assert unit.tables is None
    # FreeBSD 13.2's dmardump: "drhd @ 0xfed90000 (version 1.0) PCI segment 0 (disabled):"
    assert unit.describe() == "drhd @ 0xfed90000 PCI segment 1 (disabled)"


def test_scalable_mode_is_refused_by_name() -> None:
    with pytest.raises(LabError, match="scalable mode"):
        DrhdRegisters(page(root=0x1000400)).unit(Image(), 0xFED90000)
