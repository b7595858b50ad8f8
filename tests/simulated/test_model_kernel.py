"""The modelled kernel says and does what the recorded host did (tests/recorded/freebsd-13.2)."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import pytest

from hil.errors import InventoryError
from hil.platforms.freebsd_memory import acpi_table
from hil.simulated.errno import Errno, SimError
from hil.simulated.faults import FAULTS, fault_named
from hil.simulated.machine import Machine
from hil.simulated.memory import GIB, MIB, PAGE
from hil.simulated.panic import HostPanic
from hil.simulated.topology import lab, recorded, spec_named
from tests.recorded import recorded as recording
from tests.simulated.model import Guest, reserve


def errno_of(call: Callable[[], object]) -> Errno | None:
    """The number that a call fails with; ``None`` if it does not."""
    try:
        call()
    except SimError as error:
        return error.number
    return None


def names(machine: Machine) -> dict[str, str]:
    """Selector to name, as pciconf -l shows them; without names, ``-``."""
    return {device.selector: device.name or "-" for device in machine.kernel.devices()}


def lines(name: str) -> list[str]:
    return recording(name).text.splitlines()


# -- devctl -----------------------------------------------------------------------------------


def test_devctls_requests_end_as_on_the_recorded_host() -> None:
    """1-host-setup, 060 to 108, in the recorded order."""
    machine = Machine(recorded())
    kernel = machine.kernel
    assert errno_of(lambda: kernel.set_driver("pci0:0:9:0", "ppt")) is Errno.ENOENT  # 037
    kernel.load_module("vmm")
    assert errno_of(lambda: kernel.load_module("vmm")) is Errno.EEXIST
    assert errno_of(lambda: kernel.load_module("nosuch")) is Errno.ENOENT
    assert errno_of(lambda: kernel.set_driver("pci0:0:5:0", "ppt")) is Errno.EBUSY
    assert errno_of(lambda: kernel.set_driver("em0", "ppt")) is Errno.EBUSY
    kernel.set_driver("pci0:0:9:0", "ppt")
    kernel.set_driver("pci0:0:9:0", "ppt")
    assert errno_of(lambda: kernel.clear_driver("pci0:0:9:0")) is Errno.EBUSY
    assert errno_of(lambda: kernel.set_driver("pci0:0:29:0", "ppt")) is Errno.ENOENT
    unknown = errno_of(lambda: kernel.set_driver("pci0:0:9:0", "nosuchdriver", force=True))
    assert unknown is Errno.ENOENT
    assert names(machine)["pci0:0:9:0"] == "ppt0"
    wrong = errno_of(lambda: kernel.set_driver("pci0:0:9:0", "nvme", force=True))
    assert wrong is Errno.ENXIO
    assert names(machine)["pci0:0:9:0"] == "nvme1"
    bridge = errno_of(lambda: kernel.set_driver("pci0:0:8:0", "ppt", force=True))
    assert bridge is Errno.ENXIO
    assert names(machine)["pci0:0:8:0"] == "ppt0"
    assert "pci0:1:0:0" not in names(machine)
    kernel.set_driver("pci0:0:5:0", "ppt", force=True)
    assert names(machine)["pci0:0:5:0"] == "ppt1"
    kernel.set_driver("igb0", "ppt", force=True)
    assert names(machine)["pci0:0:6:0"] == "ppt2"
    assert kernel.sysctls()["hw.vmm.ppt.devices"].value == "2"  # 084
    shown = {name: each.value for name, each in kernel.sysctls().items() if "dev.ppt" in name}
    expected = dict(line.split(": ", 1) for line in lines("1-host-setup/085"))
    assert list(shown) == list(expected)
    assert shown["dev.ppt.1.%pnpinfo"] == expected["dev.ppt.1.%pnpinfo"]
    kernel.clear_driver("ppt0", force=True)  # 087: the bridge comes back, and what is behind it
    assert names(machine)["pci0:0:8:0"] == "pcib1"
    assert names(machine)["pci0:1:0:0"] == "em0"
    assert errno_of(lambda: kernel.clear_driver("ppt7", force=True)) is Errno.ENOENT
    kernel.detach("pci0:0:6:0")
    assert names(machine)["pci0:0:6:0"] == "ppt2"
    assert not kernel.find("pci0:0:6:0").attached
    assert errno_of(lambda: kernel.detach("pci0:0:6:0")) is Errno.ENXIO
    kernel.attach("pci0:0:6:0")
    assert errno_of(lambda: kernel.attach("pci0:0:6:0")) is Errno.EBUSY
    kernel.disable("pci0:0:6:0", force=True)
    assert names(machine)["pci0:0:6:0"] == "ppt2"
    kernel.enable("pci0:0:6:0")
    kernel.rescan("pci0")
    assert errno_of(lambda: kernel.rescan("em0")) is Errno.ENODEV  # 102
    kernel.reset("pci0:0:6:0")
    kernel.reset("pci0:0:6:0", detach=True)
    kernel.delete("pci0:0:9:0", force=True)
    assert "pci0:0:9:0" not in names(machine)
    kernel.rescan("pci0")
    assert names(machine)["pci0:0:9:0"] == "-"
    assert errno_of(lambda: kernel.set_driver("pci0:0:7:0", "ppt")) is Errno.EBUSY
    kernel.set_driver("pci0:0:7:0", "ppt", force=True)
    assert names(machine)["pci0:0:7:0"] == "ppt0"
    kernel.clear_driver("pci0:0:7:0", force=True)
    assert names(machine)["pci0:0:7:0"] == "nvme0"
    # the kernel's own words, but for links, which come when they come
    wanted = [line for line in lines("1-host-setup/116") if "link state" not in line]
    seen = [line for line in kernel.dmesg if "link state" not in line]
    assert seen[-len(wanted) :] == wanted


def test_devices_without_a_native_driver_are_let_go_with_an_error() -> None:
    """3-each-failure-from-fresh, 034 and 035."""
    machine = Machine(recorded())
    for selector in ("pci0:0:5:0", "pci0:0:6:0", "pci0:0:7:0", "pci0:0:31:3", "pci0:0:9:0"):
        if not machine.kernel.has_module("vmm"):
            machine.kernel.load_module("vmm")
        machine.kernel.set_driver(selector, "ppt", force=True)
    ended = [
        errno_of(lambda n=n: machine.kernel.clear_driver(f"ppt{n}", force=True))  # type: ignore[misc]
        for n in range(5)
    ]
    assert ended == [None, None, None, Errno.ENXIO, Errno.ENXIO]
    assert names(machine)["pci0:0:31:3"] == "-"
    assert machine.kernel.dmesg[-3:] == lines("3-each-failure-from-fresh/035")[-3:]


def test_devices_of_pptdevs_are_reserved_from_boot_and_clear_changes_nothing() -> None:
    """7-pptdevs-at-boot."""
    spec = dataclasses.replace(
        recorded(),
        loader_conf={
            "vmm_load": "YES",
            "pptdevs": "0/5/0 0/6/0",
            "hw.vmm.amdvi.enable": "1",
        },
    )
    machine = Machine(spec)
    expected = {
        line.split("@")[1].split(":\t")[0]: line.split("@")[0]
        for line in lines("7-pptdevs-at-boot/031")
    }
    shown = {s: n for s, n in names(machine).items() if n != "-"}
    assert shown == {s: n for s, n in expected.items() if not n.startswith("none")}
    machine.kernel.clear_driver("ppt0", force=True)
    assert names(machine)["pci0:0:5:0"] == "ppt0"
    machine.kernel.set_driver("pci0:0:5:0", "em", force=True)
    assert names(machine)["pci0:0:5:0"] == "em1"


def test_what_a_guest_has_is_not_let_go_but_can_be_reset() -> None:
    """4-in-use, 014 to 018; 10-behind-a-root-port, 004."""
    machine = Machine(recorded())
    reserve(machine, "em0")
    reserve(machine, "em1")
    guest = Guest(machine)
    guest.take("em0")
    guest.take("em1")
    guest.vm.start()
    kernel = machine.kernel
    for call in (
        lambda: kernel.clear_driver("ppt0", force=True),
        lambda: kernel.detach("ppt0", force=True),
        lambda: kernel.set_driver("pci0:0:5:0", "em", force=True),
        lambda: kernel.detach("pci0:0:8:0", force=True),
        guest.vm.reinit,
    ):
        assert errno_of(call) is Errno.EBUSY
    assert names(machine)["pci0:0:5:0"] == "ppt0"
    kernel.reset("pci0:0:5:0")
    guest.vm.stop()
    assert errno_of(lambda: kernel.clear_driver("ppt0", force=True)) is Errno.EBUSY
    guest.vm.destroy()
    kernel.clear_driver("ppt0", force=True)
    assert names(machine)["pci0:0:5:0"] == "em0"


# -- vmm --------------------------------------------------------------------------------------


def test_loading_vmm_prints_what_the_recorded_host_printed() -> None:
    machine = Machine(recorded())
    before = len(machine.kernel.dmesg)
    machine.kernel.load_module("vmm")
    assert machine.kernel.dmesg[before:] == [
        line for line in lines("2-failures-then-guest/004") if "boot" not in line
    ]
    shown = [
        f"{name}: {each.value}"
        for name, each in machine.kernel.sysctls().items()
        if name.startswith("hw.vmm.")
    ]
    assert shown == lines("1-host-setup/053")
    assert machine.kernel.sysctls()["hw.vmm.iommu.enable"].tunable


def test_a_processor_without_vmx_loads_vmm_and_makes_no_vm() -> None:
    """8-vtd-machine."""
    machine = Machine(recorded("13.2", "intel"))
    machine.kernel.load_module("vmm")
    assert machine.kernel.dmesg[-2:] == lines("8-vtd-machine/018")[-2:]
    assert [name for _, name in machine.kernel.modules()[-1].submodules] == [
        "pci/ppt",
        "pci/amdiommu",
        "acpi/ivhd",
    ]
    shown = [
        f"{name}: {each.value}"
        for name, each in machine.kernel.sysctls().items()
        if name.startswith("hw.vmm.") and name != "hw.vmm.amdvi.enable"
    ]
    assert shown == [line for line in lines("8-vtd-machine/019") if "amdvi.enable" not in line]
    assert errno_of(lambda: machine.vmm.create("g1")) is Errno.ENXIO


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ((64 * MIB, True), (64 * MIB, True), None),
        ((64 * MIB, False), (64 * MIB, True), Errno.EEXIST),
        ((64 * MIB, True), (64 * MIB, False), Errno.EEXIST),
        ((64 * MIB, True), (32 * MIB, True), Errno.EINVAL),
    ],
)
def test_memory_that_the_loader_set_up_otherwise_is_refused(
    first: tuple[int, bool], then: tuple[int, bool], expected: Errno | None
) -> None:
    vm = Machine(lab()).vmm.create("g1")
    vm.setup_memory(first[0], wired=first[1])
    assert errno_of(lambda: vm.setup_memory(then[0], wired=then[1])) is expected


def test_after_a_failed_assignment_the_memory_is_refused_until_it_is_made_anew() -> None:
    """4-in-use, 035 to 039."""
    machine = Machine(recorded())
    reserve(machine, "em0")
    guest = Guest(machine)
    assert errno_of(lambda: guest.vm.assign(29, 0, 0)) is Errno.ENOENT
    assert machine.kernel.sysctls()["hw.vmm.iommu.initialized"].value == "1"
    size = guest.vm.memory_size
    assert errno_of(lambda: guest.vm.setup_memory(size, wired=True)) is Errno.EEXIST
    guest.vm.destroy()
    guest = Guest(machine)
    guest.take("em0")


def test_more_wired_memory_than_the_limit_is_refused_and_counted() -> None:
    machine = Machine(lab())
    vm = machine.vmm.create("g1")
    assert errno_of(lambda: vm.setup_memory(64 * GIB, wired=True)) is Errno.ENOMEM
    vm.setup_memory(2 * GIB, wired=True)
    shown = machine.kernel.sysctls()
    assert shown["vm.stats.vm.v_user_wire_count"].value == str(2 * GIB // PAGE)
    limit = int(shown["vm.max_user_wired"].value) * PAGE
    other = machine.vmm.create("g2")
    too_much = (limit - 2 * GIB) // MIB * MIB + 2 * MIB
    assert errno_of(lambda: other.setup_memory(too_much, wired=True)) is Errno.ENOMEM
    other.setup_memory(64 * MIB, wired=True)


def test_two_guests_cannot_have_one_device_nor_one_guest_have_it_twice() -> None:
    machine = Machine(recorded())
    reserve(machine, "em0")
    first, second = Guest(machine, "g1"), Guest(machine, "g2")
    first.take("em0")
    assert errno_of(lambda: second.vm.assign(0, 5, 0)) is Errno.EBUSY
    assert errno_of(lambda: first.vm.assign(0, 5, 0)) is Errno.EBUSY
    assert errno_of(lambda: second.vm.unassign(0, 5, 0)) is Errno.EBUSY
    assert errno_of(lambda: second.vm.assign(1, 0, 0)) is Errno.ENOENT


@pytest.mark.parametrize(
    "kenv",
    [{}, {"hw.vmm.amdvi.enable": "1", "hw.vmm.iommu.enable": "0"}],
    ids=["amdvi-default", "iommu-disabled"],
)
def test_without_the_iommu_an_assignment_fails_and_plain_guests_do_not(
    kenv: dict[str, str],
) -> None:
    """6-iommu-disabled."""
    machine = Machine(dataclasses.replace(recorded(), loader_conf=kenv))
    reserve(machine, "em0")
    guest = Guest(machine)
    assert errno_of(lambda: guest.vm.assign(0, 5, 0)) is Errno.ENXIO
    # what 13.2's bhyve shows is the number of the clean-up that follows
    assert errno_of(lambda: guest.vm.unassign(0, 5, 0)) is Errno.EBUSY
    assert machine.kernel.sysctls()["hw.vmm.iommu.initialized"].value == "0"
    if not kenv:
        assert machine.kernel.dmesg[-1] == lines("6-iommu-disabled/008")[-1]
    size = guest.vm.memory_size
    assert errno_of(lambda: guest.vm.setup_memory(size, wired=True)) is None


def test_unloading_vmm_lets_ppt_go_and_keeps_the_names() -> None:
    """6-iommu-disabled, 025 to 027."""
    machine = Machine(recorded())
    reserve(machine, "em0")
    machine.kernel.unload_module("vmm")
    assert machine.kernel.dmesg[-7:] == lines("6-iommu-disabled/027")[-7:]
    assert names(machine)["pci0:0:5:0"] == "ppt0"
    assert not any(name.startswith("hw.vmm") for name in machine.kernel.sysctls())
    machine.kernel.load_module("vmm")
    assert machine.kernel.find("ppt0").attached


def test_unloading_vmm_under_a_vm_fails_and_the_next_assignment_panics() -> None:
    """9-host-panics."""
    machine = Machine(recorded())
    reserve(machine, "em0")
    guest = Guest(machine, "g1")
    assert errno_of(lambda: machine.kernel.unload_module("vmm")) is Errno.EBUSY
    assert machine.kernel.dmesg[-3:] == [
        "ivhd0: detached",
        "amdiommu0: detached",
        "pci0: <base peripheral, IOMMU> at device 1.0 (no driver attached)",
    ]
    with pytest.raises(HostPanic, match="page fault"):
        guest.vm.assign(0, 5, 0)
    assert machine.panic == "page fault"
    with pytest.raises(HostPanic):
        machine.kernel.devices()
    machine.boot()
    assert names(machine)["pci0:0:5:0"] == "em0"


def test_destroying_a_vm_gives_back_all_that_it_had() -> None:
    machine = Machine(lab())
    reserve(machine, "nic0")
    Guest(machine, "warm").take("nic0")
    machine.vmm.open("warm").destroy()
    before = machine.memory.free
    irqs = [i.irq for i in machine.kernel.interrupts() if i.name]
    for number in range(3):
        guest = Guest(machine, f"g{number}")
        port = guest.take("nic0")
        port.enable_interrupts([("a", lambda: None)])
        told: list[str] = []
        guest.vm.on_destroy.append(lambda told=told: told.append("gone"))  # type: ignore[misc]
        guest.vm.destroy()
        assert told == ["gone"]
    assert machine.memory.free == before
    assert [i.irq for i in machine.kernel.interrupts() if i.name] == irqs
    assert errno_of(lambda: machine.vmm.open("g0")) is Errno.ENOENT


# -- the rest ---------------------------------------------------------------------------------


def test_a_memory_disk_lies_in_host_memory_where_guest_addresses_would_hit_it() -> None:
    machine = Machine(lab())
    unit = machine.kernel.md_create(5 * MIB + 512)
    data = bytes(range(256)) * (5 * 4096) + b"end" * 170
    assert machine.kernel.md_write(unit, 0, data) == len(data)
    assert machine.kernel.md_read(unit, 0, len(data)) == data
    address, _ = machine.kernel.md_units()[unit].chunks[0]
    assert address < 64 * MIB
    machine.memory.write(address + 10, b"!")
    assert machine.kernel.md_read(unit, 10, 1) == b"!"
    assert len(machine.kernel.md_read(unit, 5 * MIB, PAGE)) == 512
    machine.kernel.md_destroy(unit)
    assert errno_of(lambda: machine.kernel.md_read(unit, 0, 1)) is Errno.ENOENT


def test_acpi_tables_are_found_from_the_root_pointer() -> None:
    for spec, name, length, checksum in (
        (recorded(), "IVRS", 304, 107),
        (recorded("13.2", "intel"), "DMAR", 224, 205),
    ):
        machine = Machine(spec)
        root = int(machine.kernel.sysctls()["machdep.acpi_root"].value)
        table = acpi_table(machine.memory, root, name)
        assert table is not None
        # as acpidump printed them on the recorded host
        assert (len(table), table[9], sum(table) % 256) == (length, checksum, 0)
    other = acpi_table(machine.memory, root, "IVRS")
    assert other is None


def test_a_tap_on_a_bridge_carries_frames_between_host_and_process() -> None:
    machine = Machine(lab())
    kernel = machine.kernel
    tap = kernel.create_interface("tap")
    bridge = kernel.create_interface("bridge7")
    kernel.add_member("bridge7", tap.name)
    assert errno_of(lambda: kernel.add_member("bridge7", tap.name)) is Errno.EEXIST
    for each in (tap, bridge):
        each.set_up(True)
    seen: list[bytes] = []
    tap.far_end = seen.append  # type: ignore[attr-defined]
    bridge.send(b"\xff" * 6 + bytes(54))
    assert len(seen) == 1
    tap.receive(b"\xff" * 6 + bytes(54))
    assert bridge.received == 1
    kernel.destroy_interface(tap.name)
    assert bridge.members == []
    assert errno_of(lambda: kernel.destroy_interface("igb0")) is Errno.EINVAL


def test_contents_of_disks_survive_a_power_cycle_and_registers_do_not() -> None:
    machine = Machine(lab("13.2"))
    machine.kernel.disks["nvd0"].write(0, b"kept".ljust(512))
    machine.function_named("edu0").bar_store(0, 0x80, 8, 7)
    machine.boot({"hw.vmm.iommu.enable": "0"})
    assert machine.kernel.disks["nvd0"].read(0, 512)[:4] == b"kept"
    assert machine.function_named("edu0").bar_load(0, 0x80, 8) == 0
    assert machine.kernel.kenv == {"hw.vmm.iommu.enable": "0"}
    assert not machine.kernel.has_module("vmm")


def test_one_lock_keeps_racing_guests_apart() -> None:
    machine = Machine(lab())
    reserve(machine, "edu0")
    guests = [Guest(machine, f"g{n}") for n in range(8)]
    at = machine.function_named("edu0").address
    start = threading.Barrier(len(guests))
    ended: list[Errno | None] = []

    def assign(guest: Guest) -> None:
        start.wait(60)
        ended.append(errno_of(lambda: guest.vm.assign(at.bus, at.device, at.function)))

    threads = [threading.Thread(target=assign, args=(guest,)) for guest in guests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended, key=str) == [Errno.EBUSY] * 7 + [None]


@pytest.mark.parametrize(
    "text", ["freebsd-15", "linux-15-intel", "freebsd-9-amd", "freebsd-15-arm"]
)
def test_an_unknown_host_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(InventoryError):
        spec_named(text)


def test_hosts_and_faults_have_names() -> None:
    assert spec_named("freebsd-15-intel").name == "freebsd-15.0-intel"
    assert fault_named("20").name == "20-stale-device-table"
    with pytest.raises(InventoryError, match="no fault"):
        fault_named("99")
    with pytest.raises(InventoryError, match="cannot be had on intel"):
        Machine(lab("15.0", "intel"), faults=["20"])
    for fault in FAULTS:
        assert fault.name.startswith(f"{fault.number}-")
        assert fault.sentence.endswith(".")
        assert fault.reference
