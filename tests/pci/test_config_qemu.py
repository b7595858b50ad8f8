"""The parser against devices that QEMU emulates, read with no guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hil.emulated.qtest import QTest
from hil.pci.address import Address
from hil.pci.config import ConfigSpace, PortType
from hil.pci.diff import difference
from hil.pci.reset import defaults_after_reset, reset_facts
from hil.pci.words import describe

DEVICES = {
    "igb": ("01:00.0", "igb"),
    "nvme": ("02:00.0", "nvme,serial=1"),
    "e1000e": ("03:00.0", "e1000e"),
    "virtio-gpu": ("04:00.0", "virtio-gpu-pci,disable-legacy=on"),
    "edu": ("05:00.0", "edu"),
}


@pytest.fixture(scope="module")
def machine() -> Iterator[QTest]:
    devices = []
    for number, (_, device) in enumerate(DEVICES.values(), start=1):
        devices.append(f"pcie-root-port,id=rp{number},chassis={number},addr={number + 1}")
        devices.append(f"{device},bus=rp{number}")
    with QTest(devices, options=["-device", "e1000,addr=10"]) as running:
        for number in range(1, len(DEVICES) + 1):
            running.open_bridge(Address(0, 0, number + 1, 0), number)
        yield running


def config(machine: QTest, name: str) -> ConfigSpace:
    return machine.config(Address.parse(DEVICES[name][0]))


@pytest.mark.parametrize(
    ("name", "vendor", "device", "class_name", "methods"),
    [
        # what the bytes promise: e1000e has only D3, and its D3 is known to change nothing
        ("igb", 0x8086, 0x10C9, "Ethernet controller", ("flr", "pm")),
        ("nvme", 0x1B36, 0x0010, "NVMe controller", ("flr",)),
        ("e1000e", 0x8086, 0x10D3, "Ethernet controller", ("pm",)),
        ("virtio-gpu", 0x1AF4, 0x1050, "display controller", ("flr", "pm")),
        ("edu", 0x1234, 0x11E8, "unclassified device", ()),
    ],
)
def test_identity_and_resets(
    machine: QTest,
    name: str,
    vendor: int,
    device: int,
    class_name: str,
    methods: tuple[str, ...],
) -> None:
    read = config(machine, name)
    assert read.problems == ()
    assert (read.vendor, read.device, read.class_name) == (vendor, device, class_name)
    assert reset_facts(read).methods == methods
    assert defaults_after_reset(read) == ()
    assert describe(read)


def test_igb_has_sriov_and_msix(machine: QTest) -> None:
    read = config(machine, "igb")
    assert read.sriov is not None
    assert (read.sriov.total, read.sriov.device_id, read.sriov.enabled) == (8, 0x10CA, False)
    assert read.msix is not None
    assert read.msix.vectors == 10
    assert read.pcie is not None
    assert read.pcie.type is PortType.ENDPOINT
    assert read.serial_number is not None or read.extended_capabilities


def test_a_root_port(machine: QTest) -> None:
    read = machine.config(Address.parse("00:02.0"))
    assert read.header_type == 1
    assert read.buses == (0, 1, 1)
    assert read.pcie is not None
    assert read.pcie.type is PortType.ROOT_PORT
    assert read.acs is not None
    assert "source validation" in read.acs.supported
    assert read.subsystem_vendor == 0x1B36


def test_an_empty_slot_is_absent(machine: QTest) -> None:
    assert machine.config(Address.parse("00:1e.0")).absent


def test_a_driver_s_settings_show_in_the_difference_and_as_complaints(machine: QTest) -> None:
    address = Address.parse(DEVICES["e1000e"][0])
    before = machine.config(address)
    base = machine.map_bar(address, 0)
    machine.enable(address)
    assert before.msix is not None
    machine.config_store(address, before.msix.offset + 2, 2, 0x8000)
    after = machine.config(address)
    text = difference(before, after)
    assert f"+BAR0: memory {base:#x}" in text
    assert "+COMMAND: 0006 (memory, bus master)" in text
    complaints = defaults_after_reset(after)
    assert len(complaints) == 4
    assert any("MSI-X is enabled" in line for line in complaints)


def test_flr_of_nvme_restores_the_defaults_and_a_lying_one_is_seen(machine: QTest) -> None:
    for name, honest in (("nvme", True), ("e1000e", False)):
        address = Address.parse(DEVICES[name][0])
        machine.enable(address)
        pcie = machine.config(address).pcie
        assert pcie is not None
        # Initiate Function Level Reset; e1000e has none, and takes no notice
        control = machine.config_load(address, pcie.offset + 8, 2)
        machine.config_store(address, pcie.offset + 8, 2, control | 1 << 15)
        complaints = defaults_after_reset(machine.config(address), bars_restored=True)
        assert any("bus master" in line for line in complaints) is not honest
