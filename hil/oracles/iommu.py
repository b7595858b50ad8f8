"""Whose memory can a function's DMA reach?  Read from the IOMMU's tables, not believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hil.bench import BenchDevice, BenchHost, GuestPool
from hil.deadline import Deadline
from hil.errors import LabError, ProductError, RefusalError
from hil.guests.guest import Guest
from hil.iommu.faults import FaultRecord
from hil.iommu.memory import PhysicalMemory
from hil.iommu.tables import Entry, Kind, Tables, Translation
from hil.pci.address import Address
from hil.platforms.contract import Feature, GuestSpec, Owner, Phase

#: Places of the token that are compared; a search may find copies in freed memory too.
PLACES = 8


def _words(entry: Entry | None) -> str:
    return f"table entry: {entry.describe()}" if entry is not None else "no table entry"


def _live(device: BenchDevice, tables: Tables) -> Entry:
    """The device's entry, which must be present and let DMA pass."""
    entry = tables.entry(device.requester_id)
    if entry is None or not entry.present or entry.kind is Kind.BLOCKED:
        raise ProductError(
            f"{device} has no entry in the IOMMU's tables through which DMA can pass",
            seen=_words(entry),
        )
    return entry


def _strangeness(
    tables: Tables, memory: PhysicalMemory, address: Address, guest: Guest, deadline: Deadline
) -> tuple[str, ...]:
    """Complaints, unless DMA addresses of the function lead to that guest's own memory.

    A random token is put into the guest's memory, found there from the hypervisor's side, and
    must stand in host memory where the function's tables lead.  Memory that all guests
    have alike, such as a kernel's text, would prove nothing.
    """
    complaints = []
    with guest.token() as token:
        (places,) = guest.machine.search_physical([token], deadline)
        for place in places[:PLACES]:
            where = tables.translate(address.requester_id, place, True)
            if not isinstance(where, Translation):
                complaints.append(f"guest address {place:#x} is not mapped: {where.text}")
            elif memory.read(where.physical, len(token)) == token.encode():
                return ()
            else:
                complaints.append(
                    f"guest address {place:#x} leads to host {where.physical:#x}, "
                    f"which does not hold the token of guest {guest.name}"
                )
    return tuple(complaints) or (f"guest {guest.name} does not hold its own token",)


def _owner(entry: Entry | None, before: Entry | None) -> Owner:
    """Who owns the function's DMA, given the entry it had while a guest held it, if any."""
    if entry is None or entry.kind is Kind.BLOCKED:
        return Owner.NOBODY
    if (
        before is not None
        and entry.kind is Kind.TRANSLATED
        and entry.page_table_root == before.page_table_root
    ):
        return Owner.GUEST
    return Owner.HOST


def check_phase(
    device: BenchDevice,
    phase: Phase,
    *,
    guest: Guest | None = None,
    before: Entry | None = None,
    expected: Owner | None = None,
) -> Entry | None:
    """The device's table entry is what the platform states for ``phase``.

    Args:
        device: reserved, passed or on the host.
        phase: where it stands.
        guest: who holds the device, in phase *assigned*: its memory is compared.
        before: the entry while a guest held it, in the phases after that.
        expected: instead of the platform's statement: for controls.

    Returns:
        The entry, for comparison with later phases.

    Raises:
        ProductError: with what was found and what should be.
    """
    platform = device.host.platform
    deadline = device.host.limit(30, f"the tables in phase {phase.value}")
    expected = expected or platform.domains[phase]
    tables = platform.tables(deadline)
    entry = tables.entry(device.requester_id)
    complaints: Sequence[str] = ()
    found = _owner(entry, before)
    if guest is not None and entry is not None and entry.kind is Kind.TRANSLATED:
        memory = platform.physical_memory(deadline)
        complaints = _strangeness(tables, memory, device.address, guest, deadline)
        found = Owner.HOST if complaints else Owner.GUEST
    if found is not expected:
        raise ProductError(
            f"in phase {phase.value}, DMA of {device} should reach the memory of "
            f"{expected.value} and reaches that of {found.value}",
            host=platform.host,
            seen="\n".join([_words(entry), *complaints]),
        )
    return entry


def is_on(host: BenchHost) -> bool:
    """Whether some remapping unit is enabled and has an entry for somebody."""
    if Feature.TABLES not in host.platform.features:
        return False
    tables = host.platform.tables(host.limit(30, "the tables"))
    return next(tables.entries(), None) is not None


def check_switched(host: BenchHost, on: bool) -> None:
    """The IOMMU is on, or off, whatever the host's settings say of it.

    Raises:
        ProductError: it is the other way.
    """
    if is_on(host) is not on:
        raise ProductError(
            f"the IOMMU of {host.name} should be {'on' if on else 'off'} now and is not",
            host=host.name,
            seen=host.platform.tables(host.limit(30, "the tables")).describe(),
        )


def host_reach(host: BenchHost) -> int:
    """Bytes of memory that the host's own functions reach, all of them in one domain."""
    platform = host.platform
    tables = platform.tables(host.limit(30, "the tables"))
    for function in platform.functions(host.limit(30, "the list of functions")):
        entry = tables.entry(function.address.requester_id)
        if function.driver and not function.reserved and _owner(entry, None) is Owner.HOST:
            return sum(m.length for m in tables.mappings(function.address.requester_id))
    raise LabError(f"no function of {host.name} reaches the host's memory", host=host.name)


def check_not_passed_unless_reserved(device: BenchDevice, image: str) -> None:
    """The host's own driver has the device: a guest that asks for it is refused.

    Raises:
        ProductError: the guest was made.
    """
    device.give_back()
    deadline = device.host.limit(60, "a guest that is refused")
    spec = GuestSpec("refused", image, devices=device.functions)
    try:
        machine = device.host.platform.create_guest(spec, deadline)
    except RefusalError:
        return
    machine.destroy(deadline)
    raise ProductError(f"a guest got {device}, which was not reserved")


def check_reach(host: BenchHost, before: int) -> None:
    """The host's own functions reach as much memory as ``before``.

    Raises:
        ProductError: some of it is lost to them, or they reach more.
    """
    now = host_reach(host)
    if now != before:
        raise ProductError(
            f"the functions of {host.name} reached {before:#x} bytes and reach {now:#x} now",
            host=host.name,
        )


def check_says_what_is(host: BenchHost) -> None:
    """The hypervisor says that it uses the IOMMU if, and only if, the IOMMU is on.

    Raises:
        ProductError: who believes it is deceived.
    """
    says = host.platform.iommu_in_use(host.limit(20, "what is said of the IOMMU"))
    if says is not is_on(host):
        raise ProductError(
            f"{host.name} says that its IOMMU is {'in use' if says else 'not in use'}, and it is "
            f"{'not' if says else 'on'}",
            host=host.name,
        )


def switch_on(device: BenchDevice, guests: GuestPool) -> None:
    """Where only an assignment switches the IOMMU on, have had one since the host's boot."""
    if device.host.platform.lazy_iommu and not is_on(device.host):
        guests.prepare(device).destroy()
        guests.give_back(device)


def is_blocked(host: BenchHost, address: Address) -> bool:
    """Whether the IOMMU lets no DMA of the function pass."""
    tables = host.platform.tables(host.limit(30, "the tables"))
    return _owner(tables.entry(address.requester_id), None) is Owner.NOBODY


def check_idle(host: BenchHost) -> None:
    """Every function that is reserved, by whomever, reaches what the platform states for *idle*.

    No guest exists.

    Raises:
        ProductError: with each that reaches something else.
    """
    platform = host.platform
    expected = platform.domains[Phase.IDLE]
    tables = platform.tables(host.limit(30, "the tables"))
    wrong = []
    for function in platform.functions(host.limit(30, "the list of functions")):
        if function.reserved:
            entry = tables.entry(function.address.requester_id)
            found = _owner(entry, None)
            if found is not expected:
                wrong.append(f"{function.address} reaches that of {found.value}: {_words(entry)}")
    if wrong:
        raise ProductError(
            f"reserved functions that nobody owns should reach the memory of {expected.value}",
            host=platform.host,
            seen="\n".join(wrong),
        )


def check_translated(device: BenchDevice, guest: Guest) -> None:
    """The device has an entry whose requests are translated, and the guest's memory is in it.

    Raises:
        ProductError: no entry, or one that passes addresses through.
    """
    deadline = device.host.limit(30, "the tables")
    tables = device.host.platform.tables(deadline)
    entry = _live(device, tables)
    if entry.kind is Kind.PASS_THROUGH:
        raise ProductError(f"DMA of {device} is not translated", seen=_words(entry))
    mapped = sum(m.length for m in tables.mappings(device.requester_id) if m.iova < 1 << 32)
    if mapped < guest.machine.spec.memory:
        raise ProductError(
            f"{device} can reach {mapped:#x} bytes, less than the guest's memory",
            seen=_words(entry),
        )


def check_distinct(devices: Iterable[BenchDevice]) -> None:
    """Every device has an entry, with a domain and page tables of its own.

    Raises:
        ProductError: two share one, or one has none.
    """
    owners: dict[tuple[object, ...], BenchDevice] = {}
    for device in devices:
        host = device.host
        entry = _live(device, host.platform.tables(host.limit(30, "the tables")))
        for key, what, value in (
            # a domain id means something within its unit only
            ((host.name, entry.unit, "domain", entry.domain), "domain", entry.domain),
            ((host.name, "root", entry.page_table_root), "page-table root", entry.page_table_root),
        ):
            if key in owners:
                raise ProductError(
                    f"{owners[key]} and {device} share {what} {value:#x}", seen=_words(entry)
                )
            owners[key] = device


def watch_faults(host: BenchHost) -> tuple[FaultRecord, ...]:
    """Be ready to see DMA faults: those there are now, for :func:`new_faults`."""
    deadline = host.limit(30, "the fault log")
    host.platform.clear_faults(deadline)
    return host.platform.faults(deadline)


def new_faults(
    before: Sequence[FaultRecord], after: Sequence[FaultRecord]
) -> tuple[FaultRecord, ...]:
    """Faults in ``after`` that were not in ``before``: logs grow, or lose their start.

    The same fault may come again, so records are told apart by where they stand in their
    source, not by their text.
    """
    found: list[FaultRecord] = []
    for source in dict.fromkeys(record.source for record in after):
        old = [record.text for record in before if record.source == source]
        new = [record for record in after if record.source == source]
        texts = [record.text for record in new]
        known = next(
            n for n in range(min(len(old), len(new)), -1, -1) if old[len(old) - n :] == texts[:n]
        )
        found += new[known:]
    return tuple(found)


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


def check_no_ghost(device: BenchDevice) -> None:
    """A function that is gone has no entry left in the tables.

    Raises:
        ProductError: it has: the next function with this requester id would inherit it.
    """
    tables = device.host.platform.tables(device.host.limit(30, "the tables"))
    entry = tables.entry(device.requester_id)
    if entry is not None and entry.present and entry.kind is not Kind.BLOCKED:
        raise ProductError(f"{device} still has an entry in the tables", seen=_words(entry))
