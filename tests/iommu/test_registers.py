from __future__ import annotations

import struct

import pytest

from hil.errors import LabError
from hil.iommu.amdvi_log import Event
from hil.iommu.registers import DrhdRegisters, IvhdRegisters
from hil.iommu.tables import TranslationFault
from tests.iommu import amdvi_builder
from tests.iommu.memory_image import MemoryImage
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


def test_only_what_is_recorded_is_cleared() -> None:
    assert DrhdRegisters(page(records=[(0x1000, 0)])).clearing_writes() == ()
    three = CAPABILITY & ~(0xFF << 40) | 2 << 40
    taken = 1 << 63 | 5 << 32 | 0x0300
    registers = DrhdRegisters(
        page(records=[(0x3000, taken), (0, 0), (0x2000, taken)], capability=three, status=3)
    )
    one = (1 << 63).to_bytes(8, "little")
    assert registers.clearing_writes() == ((0x228, one), (0x248, one), (0x34, b"\1\0\0\0"))


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


@pytest.mark.parametrize(("faults", "asked"), [(False, [(0, 64)]), (True, [(0, 64), (0x220, 32)])])
def test_no_more_registers_are_read_than_needed(faults: bool, asked: list[tuple[int, int]]) -> None:
    base = 0xFED90000
    record = (0x1000, 1 << 63 | 6 << 32 | 0x0100)
    data = page(records=[(0, 0), record], capability=CAPABILITY & ~(0xFF << 40) | 1 << 40)
    seen = []

    class Source:
        def read(self, address: int, length: int) -> bytes:
            seen.append((address - base, length))
            return data[address - base :][:length]

    registers = DrhdRegisters.read(Source(), base, faults=faults)
    assert seen == asked
    assert registers.root_table == DrhdRegisters(data).root_table
    if faults:
        assert registers.faults() == DrhdRegisters(data).faults() != ()


def test_a_disabled_unit_has_no_tables() -> None:
    image = Image()
    unit = DrhdRegisters(page(global_status=0)).unit(image, 0xFED90000, 1)
    assert unit.tables is None
    # FreeBSD 13.2's dmardump: "drhd @ 0xfed90000 (version 1.0) PCI segment 0 (disabled):"
    assert unit.describe() == "drhd @ 0xfed90000 PCI segment 1 (disabled)"


def test_scalable_mode_is_refused_by_name() -> None:
    with pytest.raises(LabError, match="scalable mode"):
        DrhdRegisters(page(root=0x1000400)).unit(Image(), 0xFED90000)


# -- AMD's --------------------------------------------------------------------------------

EVENTS = 0x20_0000


def ivhd(
    image: amdvi_builder.Image | None = None,
    *,
    control: int = 0x1005,
    event_base: int = EVENTS | 8 << 56,
    exclusion: int = 0,
    features: int = 0x29D3,
    head: int = 0,
    tail: int = 0,
    status: int = 0x18,
) -> IvhdRegisters:
    register = image.register if image is not None else 0x100_01FF
    low = struct.pack(
        "<8Q", register, 0x130_0000 | 8 << 56, event_base, control, exclusion, 0, features, 0
    )
    return IvhdRegisters(low, struct.pack("<5Q", 0x10, 0x10, head, tail, status))


def test_an_amd_unit_s_state() -> None:
    registers = ivhd(head=0x20, tail=0x40, status=0x19)
    assert registers.device_table == 0x100_01FF
    assert registers.translation_enabled
    assert registers.event_log_enabled
    assert (registers.event_log, registers.event_log_size) == (EVENTS, 4096)
    assert (registers.event_head, registers.event_tail) == (0x20, 0x40)
    assert registers.fault_overflow
    assert not ivhd(control=4).translation_enabled
    assert not ivhd(control=1).event_log_enabled


def test_an_amd_unit_s_tables() -> None:
    image = amdvi_builder.Image()
    image.device(0x10, domain=4)
    unit = ivhd(image).unit(image, 0xFED80000)
    assert unit.tables is not None
    (entry,) = unit.tables.entries()
    assert (entry.domain, entry.unit) == (4, 0xFED80000)
    # HATS = 0: four levels
    image.device(0x10, mode=5)
    tables = ivhd(image, features=0).unit(image, 0xFED80000).tables
    assert tables is not None
    assert tables.mappings(0x10) == ()
    assert isinstance(tables.translate(0x10, 0, True), TranslationFault)


def test_an_amd_unit_that_is_off() -> None:
    unit = ivhd(control=0).unit(Image(), 0xFED80000)
    assert unit.tables is None
    assert unit.describe() == "ivhd @ 0xfed80000 PCI segment 0 (disabled)"


@pytest.mark.parametrize(
    ("registers", "words"),
    [(ivhd(control=1 | 3 << 34), "8 segments"), (ivhd(exclusion=0x7000_0001), "exclusion range")],
)
def test_what_is_not_read_of_amd_s_is_refused_by_name(registers: IvhdRegisters, words: str) -> None:
    with pytest.raises(LabError, match=words):
        registers.unit(Image(), 0xFED80000)


def log(*records: tuple[int, Event]) -> MemoryImage:
    memory = MemoryImage(EVENTS)
    memory.page()
    for offset, event in records:
        low, high = struct.unpack("<QQ", event.pack())
        memory.set_qword(EVENTS + offset, low)
        memory.set_qword(EVENTS + offset + 8, high)
    return memory


def test_the_event_log_from_its_oldest_record_on() -> None:
    first, second, third = (Event(2, 0x10, 1, 0, page << 12) for page in (1, 2, 3))
    assert ivhd(tail=0x30).events(log((0, first), (0x10, second), (0x20, third))) == (
        first,
        second,
        third,
    )
    # the ring has wrapped: what stands behind the tail is older
    wrapped = log((0xFE0, first), (0xFF0, second), (0, third))
    assert ivhd(head=0x10, tail=0x10).events(wrapped) == (first, second, third)
    assert ivhd(control=1).events(wrapped) == ()
    assert ivhd().events(log()) == ()


def test_a_log_without_length_is_an_error() -> None:
    with pytest.raises(LabError, match="no valid length") as caught:
        ivhd(event_base=EVENTS).events(log())
    assert "0x0000000000200000" in caught.value.seen


def test_registers_are_read_where_they_are() -> None:
    asked: list[tuple[int, int]] = []

    class Source:
        def read(self, address: int, length: int) -> bytes:
            asked.append((address, length))
            return bytes([1] * length)

    IvhdRegisters.read(Source(), 0xFED80000)
    assert asked == [(0xFED80000, 64), (0xFED82000, 40)]


@pytest.mark.parametrize("low", [bytes(64), b"\xff" * 64, bytes([1] * 63)])
def test_bytes_that_are_no_amd_unit_are_refused(low: bytes) -> None:
    with pytest.raises(LabError):
        IvhdRegisters(low, bytes(40))
    with pytest.raises(LabError, match="at 0x2000"):
        IvhdRegisters(bytes([1] * 64), bytes(39))
