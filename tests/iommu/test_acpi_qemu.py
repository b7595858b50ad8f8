"""The DMAR table that QEMU makes for its own VT-d, taken from its fw_cfg device."""

from __future__ import annotations

import struct

from hil.emulated.qtest import QTest
from hil.iommu.acpi import parse_dmar
from hil.iommu.registers import DrhdRegisters

_DIRECTORY = 0x19
_CONTROL = 0x1000
_BUFFER = 0x10000


def fw_cfg(machine: QTest, key: int, length: int) -> bytes:
    """Read an item by fw_cfg's DMA interface (QEMU: docs/specs/fw_cfg.rst)."""
    machine.write(_CONTROL, struct.pack(">IIQ", key << 16 | 1 << 3 | 1 << 1, length, _BUFFER))
    machine.command("outl 0x514 0")
    machine.command(f"outl 0x518 {int.from_bytes(struct.pack('>I', _CONTROL), 'little'):#x}")
    return machine.read(_BUFFER, length)


def test_qemu_s_table_leads_to_its_unit() -> None:
    with QTest(["intel-iommu,intremap=on,aw-bits=48", "edu,addr=2"]) as machine:
        count = int.from_bytes(fw_cfg(machine, _DIRECTORY, 4), "big")
        directory = fw_cfg(machine, _DIRECTORY, 4 + 64 * count)[4:]
        files = {
            name.rstrip(b"\0"): (key, size)
            for size, key, name in struct.iter_unpack(">IHxx56s", directory)
        }
        tables = fw_cfg(machine, *files[b"etc/acpi/tables"])
        start = tables.index(b"DMAR")
        length = int.from_bytes(tables[start + 4 : start + 8], "little")
        dmar = parse_dmar(tables[start : start + length])
        # the firmware, which is not run here, would fill the checksum in
        assert dmar.problems == ("bad checksum",)
        assert dmar.host_address_width == 48
        (unit,) = dmar.units
        assert (2, 0) in {scope.path[0] for scope in unit.scopes}
        page = b"".join(
            machine.load(unit.base + offset, 8).to_bytes(8, "little")
            for offset in range(0, 0x230, 8)
        )
        assert DrhdRegisters(page.ljust(4096, b"\0")).version == (1, 0)
