"""All units of a host together, on memory and registers that a test builds."""

from __future__ import annotations

import struct

import pytest

from hil.errors import LabError
from hil.iommu.amdvi_log import Event
from hil.iommu.host import fault_clearing, host_faults, host_tables
from hil.iommu.scope import Topology
from hil.iommu.tables import HostTables, Kind, Mapping, Translation, TranslationFault
from hil.iommu.vtd import Reason
from tests.iommu import amdvi_builder, vtd_builder
from tests.iommu.memory_image import MemoryImage
from tests.iommu.test_acpi import block, drhd, ivrs, plain, scope, table
from tests.iommu.test_registers import page

NIC, DISK, DEEP, GHOST = 0x0010, 0x0018, 0x0210, 0x0300
FIRST, SECOND = 0xFED90000, 0xFED91000
TWO_DRHDS = table(
    drhd(SECOND, 0, 1),
    drhd(FIRST, 0, 0, scope(1, 0, (2, 0)), scope(2, 0, (28, 0))),
    drhd(0xFED92000, 1, 1),
)
PORT = Topology(buses={0x00E0: range(2, 3)})


class Registers:
    """Register pages, by their address."""

    def __init__(self, pages: dict[int, bytes]) -> None:
        self.pages = pages

    def read(self, address: int, length: int) -> bytes:
        start = max(base for base in self.pages if base <= address)
        data = self.pages[start][address - start : address - start + length]
        if len(data) != length:
            raise LabError(f"nothing at {address:#x}")
        return data


class Memory:
    """Several images as one memory."""

    def __init__(self, *images: MemoryImage) -> None:
        self._images = images

    def read(self, address: int, length: int) -> bytes:
        for image in self._images:
            if address & -4096 in image.pages:
                return image.read(address, length)
        raise LabError(f"no memory at {address:#x}")


def intel(*, second_on: bool = True, topology: Topology = PORT) -> HostTables:
    """Two units; both map DMA address 0x5000 of all functions, each to a page of its own."""
    first, second = vtd_builder.Image(0x100_0000), vtd_builder.Image(0x200_0000)
    for image, domain, target in ((first, 1, 0x7000_0000), (second, 1, 0x7100_0000)):
        for requester_id in (NIC, DISK, DEEP):
            root = image.context(requester_id, domain=domain)
            image.map(root, 48, 0x5000, target)
    return host_tables(
        dmar=TWO_DRHDS,
        ivrs=None,
        registers=Registers(
            {
                FIRST: page(root=first.root),
                SECOND: page(root=second.root, global_status=int(second_on) << 31),
            }
        ),
        memory=Memory(first, second),
        topology=lambda: topology,
    )


def test_each_function_is_read_from_its_own_unit() -> None:
    tables = intel()
    assert [unit.base for unit in tables.units] == [SECOND, FIRST]
    assert tables.enabled
    for requester_id, unit, target in (
        (NIC, FIRST, 0x7000_0000),
        (DEEP, FIRST, 0x7000_0000),
        (DISK, SECOND, 0x7100_0000),
    ):
        entry = tables.entry(requester_id)
        assert entry is not None
        assert (entry.unit, entry.domain, entry.kind) == (unit, 1, Kind.TRANSLATED)
        found = tables.translate(requester_id, 0x5008, True)
        assert found == Translation(target + 8, 4096, True, True)
        assert tables.mappings(requester_id) == (Mapping(0x5000, target, 4096, True, True),)


def test_entries_for_functions_of_another_unit_are_left_out() -> None:
    found = [(entry.requester_id, entry.unit) for entry in intel().entries()]
    assert found == [(NIC, FIRST), (DISK, SECOND), (DEEP, FIRST)]


def test_the_topology_decides() -> None:
    entry = intel(topology=Topology()).entry(DEEP)
    assert entry is not None
    assert entry.unit == SECOND


def test_a_unit_that_is_off_lets_its_functions_pass() -> None:
    tables = intel(second_on=False)
    assert tables.enabled
    entry = tables.entry(DISK)
    assert entry is not None
    assert (entry.kind, entry.present, entry.unit) == (Kind.PASS_THROUGH, False, SECOND)
    assert entry.describe() == "behind no remapping unit that is enabled"
    assert tables.translate(DISK, 0x1234, True) == Translation(0x1234, 0, True, True)
    assert tables.mappings(DISK) == (Mapping(0, 0, 1 << 64, True, True),)
    assert [entry.requester_id for entry in tables.entries()] == [NIC, DEEP]
    assert tables.describe().splitlines()[0] == f"drhd @ {SECOND:#x} PCI segment 0 (disabled)"
    refused = tables.translate(NIC, 0x6000, True)
    assert isinstance(refused, TranslationFault)
    assert refused.reason is Reason.WRITE_DENIED


def test_a_function_of_no_unit_passes() -> None:
    image = vtd_builder.Image()
    tables = host_tables(
        dmar=table(drhd(FIRST, 0, 0, scope(1, 0, (2, 0))), drhd(SECOND, 0, 0)),
        ivrs=None,
        registers=Registers({FIRST: page(root=image.root), SECOND: page(root=image.root)}),
        memory=image,
    )
    ghost, nic = tables.entry(GHOST), tables.entry(NIC)
    assert ghost is not None
    assert (ghost.kind, ghost.unit) == (Kind.PASS_THROUGH, 0)
    assert nic is None


def amd_pages(image: amdvi_builder.Image | None, control: int = 0x1005) -> bytes:
    register = image.register if image is not None else 0
    low = struct.pack("<8Q", register, 0, 0x30_0000 | 8 << 56, control, 0, 0, 0x29D3, 0)
    return low.ljust(0x2000, b"\0") + struct.pack("<5Q", 0, 0, 0, 0x10, 0)


TWO_IVHDS = ivrs(
    block(0x11, 0x0002, FIRST, plain(3, 0), plain(4, 0x01FF)),
    block(0x11, 0x4002, SECOND, plain(3, 0x0200), plain(4, 0x03FF)),
)


def test_amd_s_units() -> None:
    image = amdvi_builder.Image(table_pages=8)
    for requester_id in (NIC, DEEP):
        image.device(requester_id, domain=requester_id)
    # as bhyve does it: one device table for all units
    tables = host_tables(
        dmar=None,
        ivrs=TWO_IVHDS,
        registers=Registers({FIRST: amd_pages(image), SECOND: amd_pages(image)}),
        memory=image,
    )
    assert [(e.requester_id, e.unit) for e in tables.entries()] == [(NIC, FIRST), (DEEP, SECOND)]
    untouched = tables.entry(DISK)
    assert untouched is not None
    assert untouched.kind is Kind.PASS_THROUGH


def test_units_that_are_all_off() -> None:
    tables = host_tables(
        dmar=None,
        ivrs=TWO_IVHDS,
        registers=Registers({FIRST: amd_pages(None, 0), SECOND: amd_pages(None, 0)}),
        memory=MemoryImage(0),
    )
    assert not tables.enabled
    entry = tables.entry(NIC)
    assert entry is not None
    assert entry.kind is Kind.PASS_THROUGH


@pytest.mark.parametrize(
    ("dmar", "seen"), [(None, "no ACPI DMAR or IVRS table"), (table(), "a table without units")]
)
def test_a_host_without_units(dmar: bytes | None, seen: str) -> None:
    with pytest.raises(LabError, match="tells of no IOMMU") as caught:
        host_tables(dmar=dmar, ivrs=None, registers=Registers({}), memory=MemoryImage(0))
    assert caught.value.seen == seen


def test_the_topology_is_asked_only_where_it_matters() -> None:
    def never() -> Topology:
        raise AssertionError("asked")

    image = vtd_builder.Image()
    sources = Registers({FIRST: page(root=image.root), SECOND: page(root=image.root)})
    one, two = (
        host_tables(dmar=dmar, ivrs=None, registers=sources, memory=image, topology=never)
        for dmar in (table(drhd(FIRST, 0, 0)), TWO_DRHDS)
    )
    one.entry(NIC)
    with pytest.raises(AssertionError, match="asked"):
        two.entry(NIC)


def test_faults_of_intel_s_units() -> None:
    write = (0x3000, 1 << 63 | 5 << 32 | NIC)
    found = host_faults(
        dmar=TWO_DRHDS,
        ivrs=None,
        registers=Registers({FIRST: page(records=[write]), SECOND: page()}),
        memory=MemoryImage(0),
    )
    assert [(f.requester_id, f.address, f.reason, f.write, f.source) for f in found] == [
        (NIC, 0x3000, 5, True, "drhd @ 0xfed90000")
    ]


def test_what_clears_the_faults_of_all_units() -> None:
    taken = (0x3000, 1 << 63 | 5 << 32 | NIC)
    registers = Registers({FIRST: page(records=[taken], status=1), SECOND: page(records=[taken])})
    one = (1 << 63).to_bytes(8, "little")
    assert fault_clearing(dmar=TWO_DRHDS, registers=registers) == (
        (SECOND + 0x228, one),
        (FIRST + 0x228, one),
        (FIRST + 0x34, b"\1\0\0\0"),
    )
    assert fault_clearing(dmar=None, registers=registers) == ()


def test_faults_of_amd_s_units() -> None:
    memory = MemoryImage(0x30_0000)
    memory.page()
    for number, event in enumerate((Event(2, NIC, 1, 0x70, 0x3000), Event(5, 0, 0, 0, 0x99))):
        low, high = struct.unpack("<QQ", event.pack())
        memory.set_qword(0x30_0000 + 16 * number, low)
        memory.set_qword(0x30_0008 + 16 * number, high)
    registers = Registers({FIRST: amd_pages(None), SECOND: amd_pages(None, 0)})
    found = host_faults(dmar=None, ivrs=TWO_IVHDS, registers=registers, memory=memory)
    assert [(f.requester_id, f.address, f.write, f.source) for f in found] == [
        (NIC, 0x3000, True, "ivhd @ 0xfed90000")
    ]
    assert host_faults(dmar=None, ivrs=None, registers=registers, memory=memory) == ()
