"""``acpidump -t``: the firmware's tables in words (usr.sbin/acpi/acpidump/acpi.c).

What the IOMMU's table says is read from the table itself; the others are the recorded
host's, which do not matter to anybody here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from hil.iommu.acpi import Dmar, parse_dmar

#: What differs in the other tables by the processor's vendor.
_BY_VENDOR: Mapping[str, Mapping[str, str]] = {
    "amd": {
        "high": "000000007f7", "low": "7f7", "rsdp": "62", "xsdt": "195", "facp": "239",
        "dsdt": "8937, Revision=1, Checksum=32",
    },
    "intel": {
        "high": "000000007fb", "low": "7fb", "rsdp": "254", "xsdt": "67", "facp": "47",
        "dsdt": "8920, Revision=1, Checksum=54",
    },
}  # fmt: skip


def tables_text(machine: Any) -> str:
    """All tables of a machine."""
    text = (resources.files(__package__) / "acpi.txt").read_text("utf-8")
    values = _BY_VENDOR.get(machine.spec.vendor, _BY_VENDOR["amd"])
    text = re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)
    own = "".join(_table(name, data) for name, data in machine.acpi.tables.items())
    return text.replace("@\n", own)


def _table(name: str, data: bytes) -> str:
    oem, table_id = data[10:16].decode("ascii", "replace"), data[16:24].decode("ascii", "replace")
    revision = int.from_bytes(data[24:28], "little")
    creator = data[28:32].decode("ascii", "replace").rstrip("\0 ")
    creator_revision = int.from_bytes(data[32:36], "little")
    head = (
        f"/*\n  {name}: Length={len(data)}, Revision={data[8]}, Checksum={data[9]},\n"
        f"\tOEMID={oem.rstrip()}, OEM Table ID={table_id.rstrip()}, OEM Revision={revision:#x},\n"
        f"\tCreator ID={creator}, Creator Revision={creator_revision:#x}\n"
    )
    body = "".join(_dmar(parse_dmar(data))) if name == "DMAR" else ""
    return f"{head}{body} */\n"


_SCOPES = {1: "PCI Endpoint Device", 2: "PCI Sub-Hierarchy", 3: "IOAPIC", 4: "HPET"}


def _dmar(table: Dmar) -> Iterator[str]:
    yield f"\tHost Address Width={table.host_address_width}\n"
    yield f"\tFlags={{{'INTR_REMAP' if table.interrupt_remapping else ''}}}\n"
    for unit in table.units:
        length = 16 + sum(6 + 2 * len(scope.path) for scope in unit.scopes)
        yield f"\n\tType=DRHD\n\tLength={length}\n"
        yield f"\tFlags={'{INCLUDE_ALL}' if unit.include_all else ''}\n"
        yield f"\tSegment={unit.segment}\n\tAddress=0x{unit.base:016x}\n\tDevice Scope:\n"
        for index, scope in enumerate(unit.scopes):
            path = "".join(f"{device}:{function}" for device, function in scope.path)
            yield ("\n" if index else "") + (
                f"\t\tType={_SCOPES.get(scope.type, scope.type)}\n"
                f"\t\tLength={6 + 2 * len(scope.path)}\n"
                f"\t\tEnumerationId={scope.enumeration_id}\n"
                f"\t\tStartBusNumber={scope.start_bus}\n\t\tPath={{{path}}}\n"
            )
