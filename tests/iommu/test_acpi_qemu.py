"""The DMAR and IVRS tables that QEMU makes for its own IOMMUs, taken from its fw_cfg device.

The machine is that of the recordings (``tests/recorded/freebsd-13.2``): what FreeBSD printed of
its tables must be what is parsed here.
"""

from __future__ import annotations

import re
import struct

from hil.emulated.qtest import QTest
from hil.iommu.acpi import parse_dmar, parse_ivrs
from hil.iommu.registers import DrhdRegisters, IvhdRegisters
from hil.pci.address import Address
from tests.recorded import recorded

_DIRECTORY = 0x19
_CONTROL = 0x1000
_BUFFER = 0x10000

MACHINE = [
    "virtio-rng-pci,addr=2",
    "virtio-rng-pci,addr=3",
    "e1000e,addr=5",
    "igb,addr=6",
    "nvme,serial=1,addr=7",
    "pcie-root-port,id=rp1,addr=8,chassis=1",
    "edu,addr=9",
    "e1000e,bus=rp1",
]


def fw_cfg(machine: QTest, key: int, length: int) -> bytes:
    """Read an item by fw_cfg's DMA interface (QEMU: docs/specs/fw_cfg.rst)."""
    machine.write(_CONTROL, struct.pack(">IIQ", key << 16 | 1 << 3 | 1 << 1, length, _BUFFER))
    machine.command("outl 0x514 0")
    machine.command(f"outl 0x518 {int.from_bytes(struct.pack('>I', _CONTROL), 'little'):#x}")
    return machine.read(_BUFFER, length)


def acpi_table(machine: QTest, signature: bytes) -> bytes:
    count = int.from_bytes(fw_cfg(machine, _DIRECTORY, 4), "big")
    directory = fw_cfg(machine, _DIRECTORY, 4 + 64 * count)[4:]
    files = {
        name.rstrip(b"\0"): (key, size)
        for size, key, name in struct.iter_unpack(">IHxx56s", directory)
    }
    tables = fw_cfg(machine, *files[b"etc/acpi/tables"])
    start = tables.index(signature)
    return tables[start : start + int.from_bytes(tables[start + 4 : start + 8], "little")]


class Registers:
    """Device registers, 8 bytes at a time."""

    def __init__(self, machine: QTest) -> None:
        self._machine = machine

    def read(self, address: int, length: int) -> bytes:
        words = (self._machine.load(at, 8) for at in range(address, address + length, 8))
        return b"".join(word.to_bytes(8, "little") for word in words)


def test_qemu_s_dmar_leads_to_its_unit_and_is_what_freebsd_printed() -> None:
    with QTest(["intel-iommu,intremap=on,aw-bits=48", *MACHINE]) as machine:
        dmar = parse_dmar(acpi_table(machine, b"DMAR"))
        # the firmware, which is not run here, would fill the checksum in
        assert dmar.problems == ("bad checksum",)
        (unit,) = dmar.units
        page = Registers(machine).read(unit.base, 0x230)
        assert DrhdRegisters(page.ljust(4096, b"\0")).version == (1, 0)

    printed = recorded("8-vtd-machine/006").text
    assert f"Host Address Width={dmar.host_address_width}" in printed
    assert ("{INTR_REMAP}" in printed) is dmar.interrupt_remapping
    assert f"Address={unit.base:#018x}" in printed
    names = {"I/O APIC": "IOAPIC", "endpoint": "PCI Endpoint Device",
             "bridge hierarchy": "PCI Sub-Hierarchy"}  # fmt: skip
    scopes = [
        (names[scope.kind], str(scope.start_bus), ",".join(f"{d}:{f}" for d, f in scope.path))
        for scope in unit.scopes
    ]
    pattern = r"Type=(.*)\n.*Length=8\n.*\n\s*StartBusNumber=(\d+)\n\s*Path=\{(.*)\}"
    assert scopes == re.findall(pattern, printed)
    assert len(scopes) == 20


def test_qemu_s_ivrs_leads_to_its_unit_and_is_what_freebsd_printed() -> None:
    with QTest(["amd-iommu", *MACHINE]) as machine:
        machine.open_bridge(Address.parse("00:08.0"), 1)
        table = acpi_table(machine, b"IVRS")
        ivrs = parse_ivrs(table)
        assert ivrs.problems == ("bad checksum",)
        assert [block.type for block in ivrs.blocks] == [0x10, 0x11]
        (unit,) = ivrs.units
        registers = IvhdRegisters.read(Registers(machine), unit.base)
        assert registers.extended_features == unit.extended_features

    assert f"IVRS: Length={len(table)}," in recorded("1-host-setup/031").text
    printed = recorded("1-host-setup/036").text + recorded("1-host-setup/052").text
    ranges = re.findall(r"ivhd0: device \[0x([0-9a-f]+) - 0x([0-9a-f]+)\]", printed)
    assert {(part.first, part.last) for part in unit.ranges} == {
        (int(first, 16), int(last, 16)) for first, last in ranges
    }
    assert {part.alias for part in unit.ranges} == {None}
    assert f"PAsize = {ivrs.physical_bits} " in printed
    assert f"VAsize = {ivrs.virtual_bits} " in printed
    assert f"Extended features[31:0]:{unit.extended_features:x}<" in printed
    assert f"dev.ivhd.0.pci_rid: {unit.requester_id}\n" in recorded("1-host-setup/056").text
    assert unit.has(0x0100)
    assert not unit.has(0x0200)
