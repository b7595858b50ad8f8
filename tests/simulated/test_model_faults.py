"""Each fault of the catalogue, re-enacted: with it something is wrong, without it nothing is."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
from collections.abc import Callable

import pytest

from hil.iommu.faults import parse_fault_log
from hil.iommu.tables import Translation
from hil.simulated import nic
from hil.simulated.devices import Edu, Gpu
from hil.simulated.drivers import NicDriver, enable_device
from hil.simulated.errno import SimError
from hil.simulated.faults import FAULTS
from hil.simulated.machine import Machine
from hil.simulated.memory import MIB, PAGE
from hil.simulated.panic import HostPanic
from hil.simulated.passthru import PassthruError, Refusal
from hil.simulated.pci import BUS_MASTER, COMMAND, PCIE
from hil.simulated.topology import lab
from tests.simulated.model import DMA_START, Guest, GuestPort, owner, reserve, tables

#: A value that a sentinel register holds only if nothing has reset it.
MARK = 0x5AC3_0FF1
RAL15 = 0x5478

Check = Callable[[Machine], bool]
"""Whether the host is as it should be."""

CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """The observation by which a fault shows."""

    def keep(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return keep


def edu_write(port: GuestPort, address: int, data: bytes) -> None:
    """Let the engine write bytes to a DMA address."""
    enable_device(port)
    port.guest.write(0, data)
    for source, target, command in ((0, Edu.BUFFER, 1), (Edu.BUFFER, address, 3)):
        for register, value in ((0x80, source), (0x88, target), (0x90, len(data)), (0x98, command)):
            port.bar_store(0, register, 8, value)


def warm_up(machine: Machine) -> None:
    """Switch the IOMMU on by a first assignment, of the GPU."""
    reserve(machine, "gpu0")
    guest = Guest(machine, "warm")
    guest.take("gpu0")
    guest.vm.destroy()


@check("1-no-translation")
def dma_lands_in_the_guest(machine: Machine) -> bool:
    reserve(machine, "edu0")
    guest = Guest(machine)
    port = guest.take("edu0")
    edu_write(port, DMA_START, b"in the guest")
    on = machine.kernel.sysctls()["hw.vmm.iommu.initialized"].value == "1"
    return on and guest.read(DMA_START, 12) == b"in the guest"


@check("2-host-domain-not-restored")
def a_returned_nic_works_on_the_host(machine: Machine) -> bool:
    reserve(machine, "nic0")
    guest = Guest(machine)
    guest.take("nic0")
    guest.vm.destroy()
    machine.kernel.clear_driver("pci0:1:0:0", force=True)
    one, other = (machine.kernel.interfaces()[name] for name in ("igb0", "igb1"))
    one.addresses = [ipaddress.IPv4Interface("10.0.60.1/24")]
    one.set_up(True)
    other.set_up(True)
    machine.kernel.stack.echo("10.0.60.2", 1, 1, b"")
    return other.received == 1


@check("3-host-domain-while-idle")
def a_killed_guests_nic_leaves_host_memory_alone(machine: Machine) -> bool:
    peer = machine.kernel.interfaces()["igb1"]
    peer.set_up(True)
    reserve(machine, "nic1")
    reserve(machine, "edu0")
    guest = Guest(machine)
    port = guest.take("edu0")
    unit = machine.kernel.md_create(16 * MIB)
    guest.vm.destroy()
    # a device that no reset stops goes on with the guest's addresses
    edu = machine.function_named("edu0")
    edu.config_write(COMMAND, 2, edu.command | BUS_MASTER)
    target = machine.kernel.md_units()[unit].chunks[0][0]
    for register, value in ((0x80, Edu.BUFFER), (0x88, target), (0x90, 64), (0x98, 3)):
        edu.bar_store(0, register, 8, value)
    assert port.passthru.function is edu
    assert owner(machine, edu.requester_id) in ("nobody", "host")
    untouched = machine.kernel.md_read(unit, 0, 16 * MIB) == bytes(16 * MIB)
    return untouched and owner(machine, edu.requester_id) == "nobody"


@check("5-domains-not-updated")
def virtual_functions_get_and_lose_their_entries(machine: Machine) -> bool:
    warm_up(machine)
    machine.kernel.iov_create("igb0", 1, {})
    rid = machine.function_named("nic0").virtual_functions[0].requester_id  # type: ignore[attr-defined]
    living = owner(machine, rid)
    machine.kernel.iov_delete("igb0")
    return (living, owner(machine, rid)) == ("host", "nobody")


@check("6-no-flr")
def a_sentinel_does_not_reach_the_next_guest(machine: Machine) -> bool:
    reserve(machine, "nic0")
    machine.function_named("nic0").access_store(0, RAL15, 4, MARK)
    guest = Guest(machine)
    return guest.take("nic0").bar_load(0, RAL15, 4) != MARK


@check("7-multi-drhd")
def the_hosts_disk_survives_the_first_assignment(machine: Machine) -> bool:
    disk = machine.kernel.disks["nda0"]
    assert disk.read(0, 4096) == bytes(4096)
    reserve(machine, "edu0")
    Guest(machine).take("edu0")
    try:
        return disk.read(0, 4096) == bytes(4096)
    except SimError:
        return False


@check("8-wrong-rid-range")
def dma_of_a_vf_is_translated(machine: Machine) -> bool:
    machine.kernel.iov_create("igb0", 2, {0: True, 1: True})
    vf = machine.function_named("nic0").virtual_functions[1]  # type: ignore[attr-defined]
    Guest(machine, "g").take_at(vf.address)
    return owner(machine, vf.requester_id) == "g"


@check("9-iommu-init-fails")
def the_iommu_initializes(machine: Machine) -> bool:
    reserve(machine, "edu0")
    with contextlib.suppress(PassthruError):
        Guest(machine).take("edu0")
    return machine.kernel.sysctls()["hw.vmm.iommu.initialized"].value == "1"


@check("10-bogus-command-register")
def the_next_guest_can_switch_bus_mastering_on(machine: Machine) -> bool:
    reserve(machine, "edu0")
    for name in ("g1", "g2"):
        guest = Guest(machine, name)
        port = guest.take("edu0")
        edu_write(port, DMA_START, b"mastered")
        seen = guest.read(DMA_START, 8)
        if name == "g1":
            assert seen == b"mastered"  # the first guest never minds
        guest.vm.destroy()
    return seen == b"mastered"


@check("11-msix-bar-busy")
def a_second_start_maps_the_msix_table(machine: Machine) -> bool:
    reserve(machine, "nvme0")
    for name in ("g1", "g2"):
        guest = Guest(machine, name)
        refusal = None
        try:
            guest.take("nvme0")
        except PassthruError as error:
            refusal = error.refusal
            # and it was given back
            guest.vm.assign(3, 0, 0)
        guest.vm.destroy()
    return refusal is not Refusal.MSIX_MAP


@check("16-bar-unassigned")
def every_bar_is_placed(machine: Machine) -> bool:
    reserve(machine, "gpu0")
    bars = {bar.index: bar for bar in Guest(machine).take("gpu0").passthru.bars}
    return bars[Gpu.MEMORY_BAR].address != 0


@check("19-guest-flr-raw")
def registers_answer_after_a_reset_by_the_guest(machine: Machine) -> bool:
    reserve(machine, "nic0")
    port = Guest(machine).take("nic0")
    control = machine.function_named("nic0").capability(PCIE) + 8
    port.config_write(control, 2, port.config_read(control, 2) | 0x8000)
    return port.bar_load(0, nic.STATUS, 4) != 0xFFFFFFFF


@check("20-stale-device-table")
def nothing_is_left_in_the_device_table(machine: Machine) -> bool:
    reserve(machine, "edu0")
    rid = machine.function_named("edu0").requester_id
    guest = Guest(machine)
    guest.take("edu0")
    held = tables(machine).entry(rid)
    guest.vm.destroy()
    left = tables(machine).entry(rid)
    assert held is not None
    assert left is not None
    return left.page_table_root != held.page_table_root


@check("21-untouched-entry-passes")
def a_function_that_ppt_held_before_is_blocked(machine: Machine) -> bool:
    reserve(machine, "edu0")
    warm_up(machine)
    return owner(machine, machine.function_named("edu0").requester_id) == "nobody"


@check("22-replayed-events")
def each_fault_is_reported_once(machine: Machine) -> bool:
    reserve(machine, "edu0")
    port = Guest(machine).take("edu0")
    count = 300
    for number in range(count):
        edu_write(port, (1 << 33) + number * PAGE, b"x")
    return len(parse_fault_log("\n".join(machine.kernel.dmesg))) == count


@check("23-state-left-behind")
def the_hosts_devices_reach_all_memory_after_a_failed_assignment(machine: Machine) -> bool:
    warm_up(machine)
    guest = Guest(machine)
    physical = guest.vm.host_address(0)
    assert physical is not None
    with contextlib.suppress(SimError):
        guest.vm.assign(29, 0, 0)
    guest.vm.destroy()
    rid = machine.function_named("nvme0").requester_id
    return isinstance(tables(machine).translate(rid, physical, True), Translation)


@check("24-initialized-lies")
def initialized_means_that_devices_can_be_passed(machine: Machine) -> bool:
    machine = Machine(
        dataclasses.replace(machine.spec, has_iommu=False),
        [fault.name for fault in machine.faults.active],
    )
    reserve(machine, "edu0")
    with pytest.raises(PassthruError):
        Guest(machine).take("edu0")
    return machine.kernel.sysctls()["hw.vmm.iommu.initialized"].value == "0"


@check("26-kldunload-panics")
def unloading_vmm_is_survived(machine: Machine) -> bool:
    reserve(machine, "edu0")
    try:
        machine.kernel.unload_module("vmm")
    except HostPanic:
        assert machine.panic
        return False
    return True


@check("27-double-bind")
def one_of_two_starting_guests_gets_the_device(machine: Machine) -> bool:
    reserve(machine, "edu0")
    at = machine.function_named("edu0").address
    got = []
    for name in ("g1", "g2"):
        guest = Guest(machine, name)
        try:
            guest.vm.assign(at.bus, at.device, at.function)
        except SimError:
            continue
        got.append(name)
    return got == ["g1"]


@check("28-unchecked-mapping")
def only_bars_can_be_mapped(machine: Machine) -> bool:
    reserve(machine, "edu0")
    guest = Guest(machine)
    guest.take("edu0")
    at = machine.function_named("edu0").address
    secret = machine.memory.allocate(PAGE)
    machine.memory.write(secret, b"the host's")
    try:
        guest.vm.map_mmio(at.bus, at.device, at.function, 0xD000_0000, PAGE, secret)
    except SimError:
        return True
    return guest.read(0xD000_0000, 10) != b"the host's"


@check("29-lying-flr")
def a_reset_clears_a_sentinel(machine: Machine) -> bool:
    reserve(machine, "nic0")
    function = machine.function_named("nic0")
    function.access_store(0, RAL15, 4, MARK)
    machine.kernel.reset("pci0:1:0:0")
    return function.access_load(0, RAL15, 4) != MARK


@check("29-slow-flr")
def a_function_answers_after_its_reset_as_before(machine: Machine) -> bool:
    reserve(machine, "nic0")
    before = [machine.kernel.read_config("pci0:1:0:0", at, 4) for at in range(0, 0x40, 4)]
    machine.kernel.reset("pci0:1:0:0")
    after = [machine.kernel.read_config("pci0:1:0:0", at, 4) for at in range(0, 0x40, 4)]
    return before == after


@check("30-nosoftrst-ignored")
def a_reset_clears_the_state_of_a_disk(machine: Machine) -> bool:
    reserve(machine, "nvme0")
    function = machine.function_named("nvme0")
    function.access_store(0, 0x0C, 4, MARK)
    machine.kernel.reset("pci0:3:0:0")
    return function.access_load(0, 0x0C, 4) != MARK


CASES = [
    pytest.param(fault.name, vendor, id=f"{fault.name}-{vendor}")
    for fault in FAULTS
    for vendor in fault.vendors
]


@pytest.mark.parametrize(("name", "vendor"), CASES)
def test_with_the_fault_something_is_wrong_and_without_it_nothing(name: str, vendor: str) -> None:
    assert CHECKS[name](Machine(lab("15.0", vendor)))
    assert not CHECKS[name](Machine(lab("15.0", vendor), [name]))


@pytest.mark.parametrize("vendor", ["intel", "amd"])
@pytest.mark.parametrize("faults", [[], ["3-host-domain-while-idle"]], ids=["none", "3"])
def test_a_nic_without_a_working_reset_writes_frames_into_host_memory_only_with_the_fault(
    vendor: str, faults: list[str]
) -> None:
    """The canary's case: the peer goes on sending after the guest is gone."""
    machine = Machine(lab("15.0", vendor), faults)
    reserve(machine, "nic1")
    function = machine.function_named("nic1")
    assert isinstance(function, nic.E1000e)
    guest = Guest(machine)
    driver = NicDriver(guest.take("nic1"), guest, "e1000e")
    driver.attach()
    driver.start()
    frame = driver.mac + bytes(6) + b"\x88\xb5" + b"after the end" * 10
    function.port.receive(frame)
    assert driver.received == 1
    guest.vm.destroy()
    canary = machine.kernel.md_create(32 * MIB)
    for _ in range(8):
        function.port.receive(frame)
    assert driver.received == 1
    intact = machine.kernel.md_read(canary, 0, 32 * MIB) == bytes(32 * MIB)
    assert intact is not bool(faults)
