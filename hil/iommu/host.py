"""All remapping units of a host together: from ACPI tables, registers and memory.

Any platform gives three sources of bytes, and gets the same in return.  PCI segment 0 only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from hil.errors import LabError
from hil.iommu.acpi import Drhd, Ivhd, parse_dmar, parse_ivrs
from hil.iommu.faults import FaultRecord
from hil.iommu.memory import PhysicalMemory, read_many
from hil.iommu.registers import DrhdRegisters, IvhdRegisters
from hil.iommu.scope import Topology, drhd_of, ivhd_of
from hil.iommu.tables import HostTables, Unit


def host_tables(
    *,
    dmar: bytes | None,
    ivrs: bytes | None,
    registers: PhysicalMemory,
    memory: PhysicalMemory,
    topology: Callable[[], Topology] = Topology,
) -> HostTables:
    """The tables of all units of a host, as they are now.

    Args:
        dmar: the ACPI DMAR table, ``None`` if there is none.
        ivrs: the ACPI IVRS table, ``None`` if there is none.
        registers: reads the units' registers, by physical address.
        memory: reads RAM.
        topology: tells the host's bridges and virtual functions; asked once, when first
            needed, and only where there are several units.

    Returns:
        All units, those too whose translation is disabled.

    Raises:
        LabError: there is neither table, or no unit in it; registers cannot be read; a unit is
            in a mode that is not read here.
    """
    drhds, width = _drhds(dmar)
    ivhds = _ivhds(ivrs)
    if not drhds and not ivhds:
        raise LabError(
            "the firmware tells of no IOMMU",
            seen="no ACPI DMAR or IVRS table" if dmar is ivrs is None else "a table without units",
            hint="turn VT-d or AMD-Vi on in the firmware",
        )
    several = len(drhds) + len(ivhds) > 1
    where = functools.cache(topology if several else Topology)
    units: dict[int, Unit] = {}
    heads = read_many(registers, [(drhd.base, DrhdRegisters.HEAD) for drhd in drhds])
    for drhd, head in zip(drhds, heads, strict=True):
        found = DrhdRegisters(head)
        units[drhd.base] = found.unit(memory, drhd.base, host_address_width=width)
    for ivhd in ivhds:
        units[ivhd.base] = IvhdRegisters.read(registers, ivhd.base).unit(memory, ivhd.base)

    @functools.cache
    def responsible(requester_id: int) -> Unit | None:
        found: Drhd | Ivhd | None = (
            drhd_of(drhds, requester_id, where())
            if drhds
            else ivhd_of(ivhds, requester_id, where())
        )
        return None if found is None else units[found.base]

    return HostTables(tuple(units.values()), responsible)


def host_faults(
    *,
    dmar: bytes | None,
    ivrs: bytes | None,
    registers: PhysicalMemory,
    memory: PhysicalMemory,
) -> tuple[FaultRecord, ...]:
    """DMA faults that the units themselves hold: Intel's in registers, AMD's in a log in memory.

    An Intel unit keeps the first few until software clears them; AMD's log keeps the last
    ones, those too that the host has read.  Arguments and errors are those of
    :func:`host_tables`; no table is no fault.
    """
    found: list[FaultRecord] = []
    for drhd in _drhds(dmar)[0]:
        held = DrhdRegisters.read(registers, drhd.base, faults=True).faults()
        found += (replace(record, source=f"drhd @ {drhd.base:#x}") for record in held)
    for ivhd in _ivhds(ivrs):
        for event in IvhdRegisters.read(registers, ivhd.base).events(memory):
            record = event.fault()
            if record is not None:
                found.append(replace(record, source=f"ivhd @ {ivhd.base:#x}"))
    return tuple(found)


def fault_clearing(
    *, dmar: bytes | None, registers: PhysicalMemory
) -> tuple[tuple[int, bytes], ...]:
    """What to write so that Intel's units record faults anew: physical address and bytes of each.

    Without it a unit loses all faults but the first few since its records were last cleared;
    the host's own driver clears them, bhyve's reads none.  AMD's log wraps by itself.
    Arguments and errors are those of :func:`host_faults`.
    """
    return tuple(
        (drhd.base + offset, data)
        for drhd in _drhds(dmar)[0]
        for offset, data in DrhdRegisters.read(registers, drhd.base, faults=True).clearing_writes()
    )


def _drhds(dmar: bytes | None) -> tuple[tuple[Drhd, ...], int]:
    """Intel's units of segment 0, and the bits of a physical address."""
    if dmar is None:
        return (), 52
    table = parse_dmar(dmar)
    units = tuple(unit for unit in table.units if unit.segment == 0)
    return units, table.host_address_width


def _ivhds(ivrs: bytes | None) -> tuple[Ivhd, ...]:
    """AMD's units of segment 0."""
    if ivrs is None:
        return ()
    return tuple(unit for unit in parse_ivrs(ivrs).units if unit.segment == 0)
