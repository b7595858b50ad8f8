"""What the built-in inventory states of the emulated lab, against QEMU's own devices."""

from __future__ import annotations

from dataclasses import replace

from hil.emulated.qtest import QTest
from hil.lab.check import capabilities, check_against
from hil.lab.load import load
from hil.pci.address import Address
from hil.platforms.contract import Bar
from tests.lab.test_check import function

DEVICES = (
    "igb",
    "igb",
    "nvme,serial=hil",
    "edu",
    "e1000e",
    "virtio-gpu-pci,iommu_platform=on,disable-legacy=on",
    "virtio-gpu-pci,iommu_platform=on,disable-legacy=on",
    "edu",
    "bochs-display,vgamem=4194304",
)


def memory_bars(machine: QTest, address: Address) -> tuple[Bar, ...]:
    """The function's memory BARs, sized as PCI 6.2.5.1 says; they have no address afterwards."""
    found = []
    for bar in machine.config(address).bars:
        if bar.memory:
            register = 0x10 + 4 * bar.index
            machine.config_store(address, register, 4, 0xFFFFFFFF)
            size = (~(machine.config_load(address, register, 4) & ~0xF) & 0xFFFFFFFF) + 1
            machine.config_store(address, register, 4, 0)
            found.append(Bar(bar.index, 0, size, memory=True, prefetchable=bar.prefetchable))
    return tuple(found)


def test_the_devices_have_what_the_inventory_states_and_no_more() -> None:
    arguments = []
    for number, device in enumerate(DEVICES, start=1):
        arguments.append(f"pcie-root-port,id=rp{number},chassis={number},addr={number + 1:#x}")
        arguments.append(f"{device},bus=rp{number}")
    functions = []
    with QTest(arguments) as machine:
        for number in range(1, len(DEVICES) + 1):
            machine.open_bridge(Address(0, 0, number + 1, 0), number)
            address = Address(0, number, 0, 0)
            seen = function(str(address), machine.config(address))
            functions.append(replace(seen, bars=memory_bars(machine, address)))
    lab = load("emulated")
    (host,) = lab.hosts
    found = check_against(lab, host, functions)
    assert list(found) == list(lab.devices)
    for name, (first, *_) in found.items():
        assert set(lab.devices[name].capabilities) == capabilities(first), name
