"""Whose memory can a function's DMA reach?  Read from the IOMMU's tables, not believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hil.deadline import Deadline
from hil.errors import ProductError
from hil.iommu.faults import FaultRecord
from hil.iommu.memory import PhysicalMemory
from hil.iommu.vtd import ContextEntry, Translation, TranslationType, VtdTables
from hil.pci.address import Address
from hil.platforms.contract import Machine, Owner, Phase, Platform

#: Guest physical addresses compared with what the tables lead to: all in low RAM that a
#: booted guest has written (its kernel is loaded at 16 MiB).
SAMPLES = (0x1000, 0x100000, 0x1000000, 0x1200000, 0x2000000)
SAMPLE_SIZE = 4096


def entry_of(tables: VtdTables, address: Address) -> ContextEntry | None:
    """The function's table entry if present."""
    entry = tables.entry(address.requester_id)
    return entry if entry is not None and entry.present else None


def maps_guest(
    tables: VtdTables,
    memory: PhysicalMemory,
    address: Address,
    machine: Machine,
    deadline: Deadline,
) -> tuple[str, ...]:
    """Complaints, unless DMA addresses of the function lead to that guest's own memory.

    Each sample is read twice, once through the tables in host physical memory and once
    from the hypervisor's side, with the guest's processors running: a sample counts as
    different only if it differs three times in a row.
    """
    complaints = []
    for sample in SAMPLES:
        if sample + SAMPLE_SIZE > machine.spec.memory:
            continue
        where = tables.translate(address.requester_id, sample, True)
        if not isinstance(where, Translation):
            complaints.append(f"guest address {sample:#x} is not mapped: {where.text}")
            continue
        for _ in range(3):
            through_tables = memory.read(where.physical, SAMPLE_SIZE)
            if through_tables == machine.read_physical(sample, SAMPLE_SIZE, deadline):
                break
        else:
            complaints.append(
                f"guest address {sample:#x} leads to host {where.physical:#x}, "
                "which does not hold that guest's bytes"
            )
    return tuple(complaints)


def owner(tables: VtdTables, address: Address, guests_domain: int | None) -> Owner:
    """Who owns the function's DMA, given the domain of the guest in question, if any."""
    entry = entry_of(tables, address)
    if entry is None:
        return Owner.NOBODY
    if guests_domain is not None and entry.domain == guests_domain:
        return Owner.GUEST
    if entry.translation_type is TranslationType.PASS_THROUGH:
        return Owner.HOST
    if entry.page_table_root == 0:
        return Owner.NOBODY
    return Owner.HOST


def check_phase(
    platform: Platform,
    address: Address,
    phase: Phase,
    deadline: Deadline,
    *,
    machine: Machine | None = None,
    guests_domain: int | None = None,
    expected: Owner | None = None,
) -> ContextEntry | None:
    """The function's table entry is what the platform states for ``phase``.

    Args:
        machine: the guest that holds it, in phase *assigned*: its memory is compared.
        guests_domain: the domain the guest had, in the phases after it.
        expected: instead of the platform's statement (for the control).

    Returns:
        The entry, for comparison with later phases.

    Raises:
        ProductError: with both, and the reason.
    """
    expected = expected or platform.domains[phase]
    tables = platform.tables(deadline)
    entry = entry_of(tables, address)
    complaints: Sequence[str] = ()
    if machine is not None and entry is not None:
        complaints = maps_guest(
            tables, platform.physical_memory(deadline), address, machine, deadline
        )
        found = Owner.HOST if complaints else Owner.GUEST
    else:
        found = owner(tables, address, guests_domain)
    if found is not expected:
        raise ProductError(
            f"in phase {phase.value}, DMA of {address} should reach {expected.value} memory "
            f"and reaches {found.value} memory",
            host=platform.host,
            seen="\n".join([f"table entry: {entry}", *complaints]),
        )
    return entry


def check_distinct(entries: Iterable[tuple[Address, ContextEntry | None]]) -> None:
    """Every function has an entry, with a domain and page tables of its own.

    Raises:
        ProductError: two share one, or one has none.
    """
    domains: dict[int, Address] = {}
    roots: dict[int, Address] = {}
    for address, entry in entries:
        if entry is None:
            raise ProductError(f"{address} has no entry in the IOMMU's tables")
        for key, seen, what in (
            (entry.domain, domains, "domain"),
            (entry.page_table_root, roots, "page-table root"),
        ):
            if key in seen:
                raise ProductError(
                    f"{seen[key]} and {address} share {what} {key:#x}", seen=str(entry)
                )
            seen[key] = address


def new_faults(
    before: Sequence[FaultRecord], after: Sequence[FaultRecord]
) -> tuple[FaultRecord, ...]:
    """Faults in ``after`` that were not in ``before`` (logs only grow, or lose their start)."""
    known = {record.text for record in before}
    return tuple(record for record in after if record.text not in known)


def check_fault(
    faults: Sequence[FaultRecord], address: Address, *, dma_address: int, write: bool
) -> FaultRecord:
    """Among ``faults`` is one of this function, at this address (its page), of this kind.

    Raises:
        ProductError: there is none, or another function is blamed.
    """
    page = dma_address & ~0xFFF
    for record in faults:
        if (
            record.requester_id == address.requester_id
            and (record.address is None or record.address & ~0xFFF == page)
            and (record.write is None or record.write is write)
        ):
            return record
    raise ProductError(
        f"no DMA fault of {address} (requester id {address.requester_id:#06x}) "
        f"at {page:#x} was recorded",
        seen="\n".join(record.text for record in faults) or "no fault at all",
    )


def check_no_faults(faults: Sequence[FaultRecord]) -> None:
    """There are none; else ProductError with all of them."""
    if faults:
        raise ProductError(
            f"{len(faults)} DMA faults were recorded",
            seen="\n".join(record.text for record in faults[:20]),
        )
