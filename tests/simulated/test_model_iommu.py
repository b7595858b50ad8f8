"""DMA through tables laid out in modelled memory; whose memory a function reaches, and when."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.iommu.amdvi_log import event_of
from hil.iommu.faults import parse_fault_log
from hil.iommu.host import host_faults
from hil.iommu.registers import IvhdRegisters
from hil.iommu.tables import Translation, TranslationFault
from hil.simulated.devices import Edu
from hil.simulated.errno import SimError
from hil.simulated.machine import Machine
from hil.simulated.memory import MIB, PAGE
from hil.simulated.pci import BUS_MASTER, COMMAND, DmaAborted
from hil.simulated.topology import lab, recorded
from hil.simulated.vmm import Vm
from tests.simulated.model import DMA_START, GUEST_MEMORY, Guest, GuestPort, owner, reserve, tables

MACHINES = [
    pytest.param(release, vendor, id=f"{release}-{vendor}")
    for release in ("13.2", "14.3", "15.0", "current")
    for vendor in ("intel", "amd")
]
VENDORS = ["intel", "amd"]


def edu_copy(port: GuestPort, source: int, destination: int, length: int, command: int) -> None:
    """One transfer of the engine, as a guest's driver asks for it."""
    port.config_write(COMMAND, 2, port.config_read(COMMAND, 2) | BUS_MASTER)
    for register, value in ((0x80, source), (0x88, destination), (0x90, length)):
        port.bar_store(0, register, 8, value)
    port.bar_store(0, 0x98, 8, command | 1)


@pytest.mark.parametrize(("release", "vendor"), MACHINES)
def test_at_every_phase_the_reader_finds_the_owner(release: str, vendor: str) -> None:
    machine = Machine(lab(release, vendor))
    function = machine.function_named("nic0")
    rid = function.requester_id
    assert owner(machine, rid) == "host"  # nothing is translated yet
    reserve(machine, "nic0")
    reserve(machine, "edu0")
    guest = Guest(machine, "g1")
    guest.take("edu0")  # switches the IOMMU on
    assert owner(machine, rid) == "nobody"
    guest.take("nic0")
    assert owner(machine, rid) == "g1"
    guest.vm.destroy()
    assert owner(machine, rid) == "nobody"
    machine.kernel.clear_driver("pci0:1:0:0", force=True)
    assert owner(machine, rid) == "host"
    assert machine.kernel.find("pci0:1:0:0").name == "igb0"


@pytest.mark.parametrize("vendor", VENDORS)
def test_before_r325039_an_idle_device_is_in_the_hosts_domain(vendor: str) -> None:
    machine = Machine(lab("11.0", vendor))
    reserve(machine, "nic0")
    guest = Guest(machine, "g1")
    guest.take("nic0")
    assert owner(machine, machine.function_named("nic0").requester_id) == "g1"
    guest.vm.destroy()
    assert owner(machine, machine.function_named("nic0").requester_id) == "host"


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_reader_and_the_hardware_lead_every_function_to_the_same_place(vendor: str) -> None:
    machine = Machine(lab("15.0", vendor))
    for name in ("nic0", "edu0", "nvme0"):
        reserve(machine, name)
    first, second = Guest(machine, "g1"), Guest(machine, "g2")
    first.take("nic0")
    second.take("edu0")
    seen = tables(machine)
    addresses = [0, PAGE, DMA_START, GUEST_MEMORY - 1, GUEST_MEMORY, 1 << 32, machine.memory.end]
    for rid in machine.fabric.functions:
        for address in addresses:
            for write in (False, True):
                expected = seen.translate(rid, address, write)
                try:
                    physical = machine.units.translate(rid, address, write)
                except DmaAborted:
                    assert not isinstance(expected, Translation), (rid, address)
                else:
                    assert isinstance(expected, Translation), (rid, address, expected)
                    assert expected.physical == physical


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_guests_memory_and_nothing_else_is_mapped(vendor: str) -> None:
    machine = Machine(lab("15.0", vendor))
    reserve(machine, "nic0")
    guest = Guest(machine)
    guest.take("nic0")
    rid = machine.function_named("nic0").requester_id
    mappings = tables(machine).mappings(rid)
    assert sum(each.length for each in mappings) == GUEST_MEMORY
    for each in mappings:
        assert guest.vm.host_address(each.iova) == each.physical
    # and the host's devices cannot reach it
    host = tables(machine).translate(machine.function_named("nvme0").requester_id, 0, True)
    assert isinstance(host, Translation)
    hidden = guest.vm.host_address(0)
    assert hidden is not None
    seen = tables(machine).translate(machine.function_named("nvme0").requester_id, hidden, True)
    assert not isinstance(seen, Translation)


@pytest.mark.parametrize("vendor", VENDORS)
def test_memory_that_is_not_wired_is_not_mapped(vendor: str) -> None:
    machine = Machine(lab("15.0", vendor))
    reserve(machine, "nic0")
    guest = Guest(machine, wired=False)
    guest.take("nic0")
    assert tables(machine).mappings(machine.function_named("nic0").requester_id) == ()


@pytest.fixture(scope="module", params=VENDORS)
def passed_edu(request: pytest.FixtureRequest) -> tuple[Guest, GuestPort]:
    machine = Machine(lab("15.0", request.param))
    reserve(machine, "edu0")
    guest = Guest(machine)
    return guest, guest.take("edu0")


@settings(max_examples=60, deadline=None)
@given(
    place=st.integers(0, GUEST_MEMORY - PAGE),
    length=st.integers(1, PAGE),
    data=st.data(),
)
def test_dma_lands_exactly_where_the_driver_asked(
    passed_edu: tuple[Guest, GuestPort], place: int, length: int, data: st.DataObject
) -> None:
    guest, port = passed_edu
    source = GUEST_MEMORY - PAGE if place < GUEST_MEMORY // 2 else 0
    pattern = data.draw(st.binary(min_size=length, max_size=length))
    guest.write(place, b"\xee" * PAGE)
    guest.write(source, pattern)
    edu_copy(port, source, Edu.BUFFER, length, 0)
    edu_copy(port, Edu.BUFFER, place, length, 2)
    assert guest.read(place, length) == pattern
    assert guest.read(place + length, PAGE - length) == b"\xee" * (PAGE - length)


def test_dma_outside_the_guest_is_recorded_and_harms_nobody(
    passed_edu: tuple[Guest, GuestPort],
) -> None:
    guest, port = passed_edu
    machine = guest.machine
    unit = machine.kernel.md_create(MIB)
    machine.kernel.md_write(unit, 0, b"\xa5" * MIB)
    target = machine.kernel.md_units()[unit].chunks[0][0] + GUEST_MEMORY
    edu_copy(port, Edu.BUFFER, target, 64, 2)
    assert machine.kernel.md_read(unit, 0, MIB) == b"\xa5" * MIB
    rid = machine.function_named("edu0").requester_id
    records = host_faults(
        dmar=machine.acpi.tables.get("DMAR"),
        ivrs=machine.acpi.tables.get("IVRS"),
        registers=machine.memory,
        memory=machine.memory,
    )
    seen = [
        (record.requester_id, (record.address or 0) // PAGE, record.write) for record in records
    ]
    assert (rid, target // PAGE, True) in seen
    if machine.spec.vendor == "amd":
        logged = parse_fault_log("\n".join(machine.kernel.dmesg))
        assert [(record.requester_id, record.address) for record in logged] == [(rid, target)]
        assert machine.kernel.sysctls()["dev.ivhd.0.event_intr_count"].value == "1"


@pytest.mark.parametrize("entry", ["as it is", "not translated", "not writable", "page read-only"])
def test_amd_event_log_entries_are_what_the_specification_says(entry: str) -> None:
    machine = Machine(lab("15.0", "amd"))
    reserve(machine, "edu0")
    guest = Guest(machine)
    guest.take("edu0")
    edu = machine.function_named("edu0")
    edu.config_write(COMMAND, 2, edu.command | BUS_MASTER)
    rid = edu.requester_id
    unit = machine.units.units[0]
    memory = machine.memory
    device_table = memory.load(unit.base) & ~0xFFF
    at = device_table + 32 * rid
    clear = {"not translated": 1 << 1, "not writable": 1 << 62}.get(entry, 0)
    memory.store(at, memory.load(at) & ~clear)
    address = 1 << 33
    if entry == "page read-only":
        address = DMA_START
        table = memory.load(at) & ((1 << 52) - PAGE)
        for level in (4, 3, 2):
            table = memory.load(table + 8 * (address >> 12 + 9 * (level - 1) & 0x1FF))
            table &= (1 << 52) - PAGE
        page = table + 8 * (address >> 12 & 0x1FF)
        memory.store(page, memory.load(page) & ~(1 << 62))
    with pytest.raises(DmaAborted):
        edu.dma_write(address, b"x")
    held = tables(machine).entry(rid)
    fault = tables(machine).translate(rid, address, True)
    assert held is not None
    assert isinstance(fault, TranslationFault)
    expected = event_of(fault, rid, domain=held.domain, address=address, write=True)
    assert expected is not None
    events = IvhdRegisters.read(memory, unit.base).events(memory)
    assert [event.pack() for event in events] == [expected.pack()]


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_function_that_may_not_master_the_bus_moves_nothing(vendor: str) -> None:
    machine = Machine(lab("15.0", vendor))
    edu = machine.function_named("edu0")
    assert isinstance(edu, Edu)
    edu.config_write(COMMAND, 2, edu.command & ~BUS_MASTER)
    with pytest.raises(DmaAborted):
        edu.dma_write(DMA_START, b"x")
    edu.config_write(COMMAND, 2, edu.command | BUS_MASTER)
    edu.dma_write(DMA_START, b"x")
    assert machine.memory.read(DMA_START, 1) == b"x"


@pytest.mark.parametrize("vendor", VENDORS)
def test_plain_guests_leave_the_iommu_off(vendor: str) -> None:
    machine = Machine(lab("15.0", vendor))
    guest = Guest(machine)
    guest.vm.start()
    assert machine.kernel.sysctls()["hw.vmm.iommu.initialized"].value == "0"
    assert not tables(machine).enabled
    reserve(machine, "edu0")
    guest.take("edu0")
    assert machine.kernel.sysctls()["hw.vmm.iommu.initialized"].value == "1"
    assert tables(machine).enabled


@pytest.mark.parametrize("vendor", VENDORS)
def test_virtual_functions_get_entries_of_their_own_and_lose_them(vendor: str) -> None:
    machine = Machine(lab("15.0", vendor))
    reserve(machine, "edu0")
    Guest(machine).take("edu0")
    machine.kernel.iov_create("igb0", 2, {1: True})
    native, passed = (vf.requester_id for vf in machine.function_named("nic0").virtual_functions)  # type: ignore[attr-defined]
    assert owner(machine, native) == "host"
    assert owner(machine, passed) == "nobody"
    machine.kernel.iov_delete("igb0")
    assert owner(machine, native) == "nobody"
    assert owner(machine, passed) == "nobody"


def test_domains_and_commands_are_as_many_as_on_the_recorded_host() -> None:
    """3-each-failure-from-fresh, 001 to 030: dev.ivhd.0.command_count 81, domain_id 9."""
    machine = Machine(recorded())
    for name in ("em0", "igb0", "nvme0", "smbus", "edu0"):
        reserve(machine, name)

    def start(*functions: tuple[int, int, int]) -> Vm:
        vm = machine.vmm.create("g1")
        vm.setup_memory(GUEST_MEMORY, wired=True)
        for where in functions:
            try:
                vm.assign(*where)
            except SimError:
                # bhyve's clean-up
                with contextlib.suppress(SimError):
                    vm.unassign(*where)
        return vm

    em, igb, nvme, edu = (0, 5, 0), (0, 6, 0), (0, 7, 0), (0, 9, 0)
    for where in ((29, 0, 0), (1, 0, 0), (0, 3, 0), (0, 8, 0), em):
        start(where).destroy()
    vm = start((0, 31, 3))
    vm.unassign(0, 31, 3)  # it has no MSI
    vm.destroy()
    start(em, em).destroy()
    start(em, igb, nvme, edu)
    shown = {name: each.value for name, each in machine.kernel.sysctls().items()}
    assert shown["hw.vmm.amdvi.domain_id"] == "9"
    assert shown["dev.ivhd.0.command_count"] == "81"
    assert shown["dev.ivhd.0.command_head"] == shown["dev.ivhd.0.command_tail"] == "1296"


def test_interrupt_numbers_are_those_of_the_recorded_host() -> None:
    """3-each-failure-from-fresh, 029: irq29 and irq34 and irq49 are the first of their devices."""
    machine = Machine(recorded())
    guest_devices = ("em0", "igb0", "nvme0")
    for name in guest_devices:
        reserve(machine, name)
    guest = Guest(machine)
    for name in guest_devices:
        guest.take(name).enable_interrupts([("first", lambda: None)])
    first: dict[str, int] = {}
    for source in machine.kernel.interrupts():
        first.setdefault(source.name, source.irq)
    assert (first["ppt0"], first["ppt1"], first["ppt2"]) == (29, 34, 49)
