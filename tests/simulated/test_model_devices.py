"""The modelled devices do I/O by DMA, for the host's drivers and for a guest's."""

from __future__ import annotations

import ipaddress

import pytest

from hil.pci.config import ConfigSpace
from hil.platforms.freebsd_pci import PciEntry, parse_pciconf
from hil.simulated import nic
from hil.simulated.devices import Edu, Gpu
from hil.simulated.drivers import NicDriver, NvmeDriver, enable_device
from hil.simulated.machine import Machine
from hil.simulated.memory import MIB
from hil.simulated.net import Echo, EchoReply, Interface, Stack
from hil.simulated.pci import COMMAND, MEMORY_DECODE, PciFunction
from hil.simulated.topology import lab, recorded
from tests.recorded import recorded as recording
from tests.simulated.model import Guest, GuestPort, reserve

VENDORS = ["intel", "amd"]


def config_of(function: PciFunction) -> ConfigSpace:
    """All of a function's configuration space."""
    size = 4096 if function.peek(0x100, 4) != 0xFFFFFFFF else 256
    return ConfigSpace(bytes(function.peek(at, 1) for at in range(size)))


def passed(name: str) -> GuestPort:
    """A function of a new machine, which a guest has and has enabled."""
    machine = Machine(lab())
    reserve(machine, name)
    port = Guest(machine).take(name)
    enable_device(port)
    return port


# -- configuration space against the recorded host --------------------------------------------


def entries(name: str) -> dict[str, PciEntry]:
    return {str(entry.address): entry for entry in parse_pciconf(recording(name).text)}


@pytest.mark.parametrize(
    ("vendor", "name"),
    [("amd", "1-host-setup/018"), ("intel", "8-vtd-machine/009")],
)
def test_functions_are_those_that_the_host_printed(vendor: str, name: str) -> None:
    machine = Machine(recorded("13.2", vendor))
    expected = entries(name)
    assert [str(d.address) for d in machine.kernel.devices()] == list(expected)
    for device in machine.kernel.devices():
        seen, function = expected[str(device.address)], device.function
        config = config_of(function)
        assert (seen.vendor, seen.device) == (function.vendor, function.device)
        assert seen.class_code == function.class_code
        assert (seen.revision, seen.header_type) == (config.revision, function.header_type)
        assert seen.name == device.name or seen.name.startswith("none")
        bars = [(bar.index, bar.address, bar.size, bar.memory) for bar in function.bars]
        assert bars == [(bar.index, bar.address, bar.size, bar.memory) for bar in seen.bars]
        capabilities = [(c.identity, c.offset, c.extended) for c in seen.capabilities]
        modelled = [(c.id, c.offset, False) for c in config.capabilities]
        modelled += [(c.id, c.offset, True) for c in config.extended_capabilities]
        assert modelled == capabilities, device.selector


def test_flr_and_soft_reset_are_what_the_capabilities_say() -> None:
    machine = Machine(recorded())
    flr = {f.name for f in machine.spec.functions if machine.function_named(f.name).has_flr}
    assert flr == {"igb0", "nvme0"}
    assert machine.function_named("nvme0").no_soft_reset
    assert not machine.function_named("em0").no_soft_reset


def test_sizing_a_bar_gives_its_size_and_moving_it_moves_its_registers() -> None:
    machine = Machine(recorded())
    edu = machine.function_named("edu0")
    edu.config_write(0x10, 4, 0xFFFFFFFF)
    assert edu.config_read(0x10, 4) == 0xFFF00000
    edu.config_write(0x10, 4, 0xC800_0000)
    assert machine.memory.load(0xC800_0000, 4) == 0x010000ED
    assert machine.memory.load(0xC020_0000, 4) == 0xFFFFFFFF
    edu.config_write(COMMAND, 2, edu.command & ~MEMORY_DECODE)
    assert machine.memory.load(0xC800_0000, 4) == 0xFFFFFFFF


# -- edu ------------------------------------------------------------------------------------


def test_edu_has_the_registers_of_its_specification() -> None:
    machine = Machine(recorded())
    edu = machine.function_named("edu0")
    assert isinstance(edu, Edu)
    edu.bar_store(0, 0x04, 4, 0x12345678)
    assert edu.bar_load(0, 0x04, 4) == 0xEDCBA987
    edu.bar_store(0, 0x08, 4, 5)
    assert edu.bar_load(0, 0x08, 4) == 120
    edu.bar_store(0, 0x60, 4, 0x11)
    edu.bar_store(0, 0x60, 4, 0x02)
    assert edu.bar_load(0, 0x24, 4) == 0x13
    edu.bar_store(0, 0x64, 4, 0x11)
    assert edu.bar_load(0, 0x24, 4) == 0x02
    assert edu.bar_load(0, 0x04, 1) == 0xFF


def test_edus_interrupt_reaches_the_guest_once_and_the_host_counts_it() -> None:
    port = passed("edu0")
    guest = port.guest
    hits: list[int] = []
    assert port.enable_interrupts([("edu", lambda: hits.append(1))]) == 1
    port.bar_store(0, 0x60, 4, 1)
    assert hits == [1]
    machine = guest.machine
    counted = {i.name: i.count for i in machine.kernel.interrupts()}
    assert counted["ppt0"] == 1
    guest.vm.destroy()
    machine.function_named("edu0").bar_store(0, 0x60, 4, 1)
    assert hits == [1]
    assert sum(i.count for i in machine.kernel.interrupts() if i.irq >= 24) <= 1 + counted.get(
        "nvme0:admin", 0
    ) + sum(n for name, n in counted.items() if name.startswith("nvme0"))


# -- NVMe -----------------------------------------------------------------------------------


def test_the_host_reads_what_it_wrote_and_a_guest_reads_it_too() -> None:
    machine = Machine(lab("15.0"))
    disk = machine.kernel.disks["nda0"]
    pattern = bytes(range(256)) * 4096  # 1 MiB: PRP lists of several commands
    disk.write(4096, pattern)
    assert disk.read(4096, len(pattern)) == pattern
    assert disk.size == 256 * MIB
    reserve(machine, "nvme0")
    assert machine.kernel.disks == {}
    guest = Guest(machine)
    driver = NvmeDriver(guest.take("nvme0"), guest)
    driver.attach()
    assert (driver.size, driver.model) == (disk.size, "QEMU NVMe Ctrl")
    assert driver.read(4096, 4096) == pattern[:4096]
    driver.write(0, b"guest" * 1024 + bytes(512 - 5120 % 512))
    guest.vm.destroy()
    machine.kernel.clear_driver("pci0:3:0:0", force=True)
    assert machine.kernel.disks["nda0"].read(0, 512)[:5] == b"guest"


def test_each_disk_request_interrupts_its_owner_once() -> None:
    machine = Machine(lab())
    reserve(machine, "nvme0")
    guest = Guest(machine)
    driver = NvmeDriver(guest.take("nvme0"), guest)
    driver.attach()
    before = sum(guest.counts.values())
    for number in range(10):
        driver.read(number * 4096, 4096)
    assert sum(guest.counts.values()) - before == 10


# -- NICs -----------------------------------------------------------------------------------


def ping(stack: Stack, address: str, payload: bytes) -> EchoReply | None:
    echo = stack.echo(address, stack.new_identifier(), 0, payload)
    assert isinstance(echo, Echo)
    return echo.reply


def guest_interface(
    guest: Guest, port: GuestPort, kind: str, address: str
) -> tuple[Stack, NicDriver]:
    """Bring a passed NIC up in the guest."""
    driver = NicDriver(port, guest, kind)
    driver.attach()
    stack = Stack()
    interface = Interface("em0", driver.mac, driver.transmit)
    interface.addresses = [ipaddress.IPv4Interface(address)]
    interface.on_up = lambda up: driver.start() if up else driver.stop()
    driver.on_frame = interface.receive
    stack.add(interface)
    interface.set_up(True)
    return stack, driver


@pytest.mark.parametrize("size", [0, 1, 17, 18, 64, 1472])
def test_the_hosts_own_nic_pings_its_far_end(size: int) -> None:
    machine = Machine(recorded())
    interface = machine.kernel.interfaces()["em0"]
    interface.addresses = [ipaddress.IPv4Interface("10.0.50.15/24")]
    interface.set_up(True)
    payload = bytes(n & 0xFF for n in range(size))
    reply = ping(machine.kernel.stack, "10.0.50.2", payload)
    assert reply is not None
    assert (reply.ttl, reply.payload) == (255, payload)
    counts = {i.name: i.count for i in machine.kernel.interrupts()}
    assert counts["em0:rxq0"] == interface.received == 2  # ARP, then the echo


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("name", ["nic0", "nic1"])
def test_a_guest_pings_through_its_own_memory(vendor: str, name: str) -> None:
    machine = Machine(lab("15.0", vendor))
    peer = machine.kernel.interfaces()["igb1"]
    peer.addresses = [ipaddress.IPv4Interface("10.0.60.2/24")]
    peer.set_up(True)
    reserve(machine, name)
    guest = Guest(machine)
    network = {"nic0": "10.0.60", "nic1": "10.0.50"}[name]
    kind = machine.function_named(name).kind
    stack, driver = guest_interface(guest, guest.take(name), kind, f"{network}.15/24")
    for size in (56, 1472):
        reply = ping(stack, f"{network}.2", bytes(size))
        assert reply is not None
        assert reply.payload == bytes(size)
    assert driver.received == driver.sent == 3
    assert sum(guest.counts.values()) >= 3


def test_two_guests_with_a_vf_each_and_the_peer_see_only_their_own_frames() -> None:
    machine = Machine(lab())
    peer = machine.kernel.interfaces()["igb1"]
    peer.addresses = [ipaddress.IPv4Interface("10.0.60.2/24")]
    peer.set_up(True)
    if not machine.kernel.has_module("vmm"):
        machine.kernel.load_module("vmm")
    machine.kernel.iov_create("igb0", 2, {0: True, 1: True})
    vfs = [d for d in machine.kernel.devices() if d.virtual_function_of is not None]
    assert [vf.driver_name for vf in vfs] == ["ppt", "ppt"]
    assert [machine.kernel.read_config(vf.selector, 0, 4) for vf in vfs] == [0x10CA8086] * 2
    assert vfs[0].function.config_read(0, 4) == 0xFFFFFFFF
    stacks = []
    seen: list[list[bytes]] = [[], []]
    for number, vf in enumerate(vfs):
        guest = Guest(machine, f"g{number}")
        address = f"10.0.60.{15 + number}/24"
        stack, _ = guest_interface(guest, guest.take_at(vf.address), "igbvf", address)
        stack.interfaces["em0"].listen(
            lambda frame, out, frames=seen[number]: None if out else frames.append(frame)  # type: ignore[misc]
        )
        stacks.append(stack)
    for number, stack in enumerate(stacks):
        reply = ping(stack, "10.0.60.2", bytes([number + 1]) * 64)
        assert reply is not None
    assert ping(stacks[0], "10.0.60.16", b"between siblings" * 2) is not None
    for number, frames in enumerate(seen):
        other = bytes([2 - number]) * 64
        assert frames
        assert not any(other in frame for frame in frames)


def test_every_vector_of_igb_is_delivered_by_its_own_message() -> None:
    port = passed("nic0")
    hits: list[int] = []
    port.enable_interrupts([(str(n), lambda n=n: hits.append(n)) for n in range(10)])  # type: ignore[misc]
    port.bar_store(0, nic.EIMS, 4, 0x3FF)
    for vector in range(10):
        port.bar_store(0, nic.EICS, 4, 1 << vector)
    assert hits == list(range(10))


def test_a_masked_vector_stays_pending_and_is_delivered_once() -> None:
    port = passed("nic0")
    hits: list[int] = []
    port.enable_interrupts([("only", lambda: hits.append(1))])
    port.bar_store(0, nic.EIMS, 4, 1)
    port.bar_store(3, 12, 4, 1)
    for _ in range(3):
        port.bar_store(0, nic.EICS, 4, 1)
    assert hits == []
    port.bar_store(3, 12, 4, 0)
    assert hits == [1]


# -- the GPU's BAR ----------------------------------------------------------------------------


def test_a_large_bar_is_placed_above_4_gib_and_holds_what_is_written() -> None:
    machine = Machine(lab())
    reserve(machine, "gpu0")
    guest = Guest(machine)
    port = guest.take("gpu0")
    bars = {bar.index: bar for bar in port.passthru.bars}
    assert bars[Gpu.MEMORY_BAR].size == 256 * MIB
    assert bars[Gpu.MEMORY_BAR].address >= 1 << 32
    port.bar_store(Gpu.MEMORY_BAR, 200 * MIB, 8, 0x1122334455667788)
    assert port.bar_load(Gpu.MEMORY_BAR, 200 * MIB, 8) == 0x1122334455667788
