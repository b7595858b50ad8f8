"""A Linux host's IOMMU tables: which files, which registers, which unit."""

from __future__ import annotations

import struct

import pytest

from hil.errors import LabError, ProductError
from hil.iommu.tables import Kind, Translation
from hil.pci.config import ConfigSpace
from hil.platforms.linux import ACPI, LinuxVfio
from tests.fakes import Answer, FakeTransport, soon
from tests.iommu import amdvi_builder, vtd_builder
from tests.iommu.memory_image import MemoryImage
from tests.iommu.test_acpi import drhd, scope, table
from tests.iommu.test_host import TWO_IVHDS, amd_pages
from tests.iommu.test_registers import page
from tests.platforms.survey import Written, survey
from tests.platforms.test_linux_memory import core

NIC = 0x0010
FIRST, SECOND = 0xFED90000, 0xFED91000
RAM = 0x100_0000
"""Where the image starts that is the host's memory, and where in the core file."""


class Host:
    """``tables``: ACPI files; ``registers``: pages of /dev/mem by address."""

    def __init__(
        self, tables: dict[str, bytes], registers: dict[int, bytes], memory: MemoryImage
    ) -> None:
        words = b"".join(struct.pack("<512Q", *memory.pages[at]) for at in sorted(memory.pages))
        self._kcore = core([(RAM, len(words), 0x4000)], data={0x4000: words})
        self._tables = tables
        self._registers = registers
        self.functions: list[Written] = []
        self.transport = FakeTransport(self.command)
        self.transport.files = {f"{ACPI}/{name}": data for name, data in tables.items()}
        self.platform = LinuxVfio("lab1", self.transport, python=False)

    def command(self, command: tuple[str, ...], _stdin: bytes) -> Answer:
        if command[0] == "ls":
            return 0, "\n".join(["APIC", "FACP", *self._tables]) + "\n", ""
        if command[0] == "sh":
            return 0, survey(self.functions), ""
        words = dict(word.partition("=")[::2] for word in command[1:])
        start, count = int(words["skip"]), int(words["count"])
        if words["if"] == "/proc/kcore":
            return 0, self._kcore[start : start + count], ""
        base = max((at for at in self._registers if at <= start), default=0)
        return 0, self._registers.get(base, b"")[start - base : start - base + count], ""


def test_one_unit() -> None:
    image = vtd_builder.Image(RAM)
    image.map(image.context(NIC, domain=3), 48, 0x5000, 0x7000_0000)
    host = Host({"DMAR": table(drhd(FIRST, 0, 1))}, {FIRST: page(root=image.root)}, image)
    tables = host.platform.tables(soon())
    assert tables.translate(NIC, 0x5004, True) == Translation(0x7000_0004, 4096, True, True)
    host.transport.commands.clear()
    host.platform.tables(soon())
    assert {command[0] for command in host.transport.commands} == {"dd"}, "firmware's are read once"


def test_two_units_and_a_function_behind_a_port() -> None:
    image = vtd_builder.Image(RAM)
    image.context(0x0200, domain=3)
    rest, port = drhd(FIRST, 0, 1), drhd(SECOND, 0, 0, scope(2, 0, (28, 0)))
    registers = {FIRST: page(root=image.root), SECOND: page(root=image.root)}
    host = Host({"DMAR": table(rest, port)}, registers, image)
    behind = bytearray(256)
    behind[0:4] = b"\x86\x80\x01\x00"
    behind[0x0E] = 1
    behind[0x18:0x1B] = bytes([0, 2, 2])
    host.functions = [Written("0000:00:1c.0", ConfigSpace(bytes(behind)))]
    entry = host.platform.tables(soon()).entry(0x0200)
    assert entry is not None
    assert (entry.unit, entry.domain) == (SECOND, 3)


def test_amd_s_units() -> None:
    image = amdvi_builder.Image(RAM, table_pages=8)
    image.device(NIC, domain=3)
    registers = {FIRST: amd_pages(image), SECOND: amd_pages(image)}
    tables = Host({"IVRS": TWO_IVHDS}, registers, image).platform.tables(soon())
    entry = tables.entry(NIC)
    assert entry is not None
    assert (entry.unit, entry.domain, entry.kind) == (FIRST, 3, Kind.TRANSLATED)


def test_remapping_that_is_off_is_the_product_s_fault() -> None:
    image = vtd_builder.Image(RAM)
    host = Host({"DMAR": table(drhd(FIRST, 0, 1))}, {FIRST: page(global_status=0)}, image)
    with pytest.raises(ProductError, match="DMA remapping is off on lab1") as caught:
        host.platform.tables(soon())
    assert caught.value.seen == f"drhd @ {FIRST:#x} PCI segment 0 (disabled)"


def test_a_host_whose_firmware_has_no_iommu() -> None:
    with pytest.raises(LabError, match="tells of no IOMMU"):
        Host({}, {}, vtd_builder.Image(RAM)).platform.tables(soon())


def test_registers_that_the_kernel_keeps_to_itself() -> None:
    host = Host({"DMAR": table(drhd(FIRST, 0, 1))}, {}, vtd_builder.Image(RAM))
    with pytest.raises(LabError, match="cannot be read through /dev/mem") as caught:
        host.platform.tables(soon())
    assert "iomem=relaxed" in caught.value.hint
