"""The modelled devices against QEMU's own, driven with no guest.

Tests go from the state after reset to others: their order in this file matters.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.emulated.qtest import QTest
from hil.pci.address import Address
from hil.simulated.devices import Edu
from hil.simulated.memory import GIB, MIB, HostMemory
from hil.simulated.nic import E1000e, Igb, Port, Wire
from hil.simulated.nvme import Nvme
from hil.simulated.pci import Fabric, PciFunction

MAC = bytes.fromhex("525400123456")
DEVICES = ("e1000e", "igb", "nvme", "edu")


@pytest.fixture(scope="module")
def qemu() -> Iterator[QTest]:
    devices = []
    for number, name in enumerate(DEVICES, start=1):
        devices.append(f"pcie-root-port,id=rp{number},chassis={number},addr={number + 1}")
        more = ",serial=hil" if name == "nvme" else ",romfile=" if name != "edu" else ""
        devices.append(f"{name},bus=rp{number}{more}")
    with QTest(devices) as running:
        for number in range(1, len(DEVICES) + 1):
            running.open_bridge(Address(0, 0, number + 1, 0), number)
        yield running


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    made = Fabric(HostMemory(GIB))
    wire = Wire()
    made.add(E1000e(place("e1000e"), MAC, Port(wire)))
    made.add(Igb(place("igb"), MAC, Port(wire)))
    made.add(Nvme(place("nvme"), 64 * MIB))
    made.add(Edu(place("edu")))
    return made


def place(name: str) -> Address:
    """Alone on a bus."""
    return Address(0, DEVICES.index(name) + 1, 0, 0)


def modelled(fabric: Fabric, name: str) -> PciFunction:
    return fabric.functions[place(name).requester_id]


#: Serial numbers and addresses differ by machine.
_OWN = {"e1000e": range(0x144, 0x14C)}


@pytest.mark.parametrize("name", DEVICES)
def test_configuration_space_after_reset_is_qemus(qemu: QTest, fabric: Fabric, name: str) -> None:
    function = modelled(fabric, name)
    seen = qemu.config(place(name)).data
    size = 256 if name == "edu" else 0x200
    own = _OWN.get(name, range(0))
    wrong = [
        f"{at:#05x}: QEMU {seen[at]:#04x}, modelled {function.peek(at, 1):#04x}"
        for at in range(size)
        if at not in own and seen[at] != function.peek(at, 1)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", DEVICES)
@settings(deadline=None, max_examples=40)
@given(
    offset=st.one_of(
        st.integers(4, 9).map(lambda n: 4 * n),  # the BARs
        st.sampled_from([0x04, 0x0C, 0x2C, 0x34, 0x3C]),
    ),
    value=st.one_of(st.just(0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)),
)
def test_what_software_writes_is_kept_as_in_qemu(
    qemu: QTest, fabric: Fabric, name: str, offset: int, value: int
) -> None:
    function = modelled(fabric, name)
    # no decoding, no bus mastering: QEMU's address map stays as it is
    value = value & ~0x7 if offset == 0x04 else value
    at = place(name)
    qemu.config_store(at, offset, 4, value)
    function.config_write(offset, 4, value)
    assert qemu.config_load(at, offset, 4) == function.config_read(offset, 4)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0x00, 0x04, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90]),
            st.sampled_from([4, 8]),
            st.one_of(st.none(), st.integers(0, (1 << 32) - 1)),
        ),
        max_size=20,
    )
)
def test_edus_registers_answer_as_qemus(
    qemu: QTest, fabric: Fabric, actions: list[tuple[int, int, int | None]]
) -> None:
    at = place("edu")
    # Whatever a test before has left in its BAR.
    qemu.config_store(at, 4, 2, 0)
    qemu.config_store(at, 0x10, 4, 0xFD00_0000)
    qemu.config_store(at, 4, 2, 2)
    base = qemu.config_load(at, 0x10, 4) & ~0xF
    edu = modelled(fabric, "edu")
    for register, width, value in actions:
        if width == 8 and register < 0x80:
            continue  # QEMU splits what the device does not take
        if value is not None:
            qemu.store(base + register, width, value)
            edu.bar_store(0, register, width, value)
        else:
            assert qemu.load(base + register, width) == edu.bar_load(0, register, width)
