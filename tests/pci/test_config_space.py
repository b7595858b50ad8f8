from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import LabError
from hil.pci.config import BarRegister, ConfigSpace, PortType
from hil.pci.diff import difference
from hil.pci.reset import defaults_after_reset, reset_facts
from hil.pci.words import describe, registers


class Builder:
    """A configuration space to be filled in."""

    def __init__(self, size: int = 4096) -> None:
        self.data = bytearray(size)
        self.put(0, "<HHHH", 0x8086, 0x10C9, 0, 0x10)
        self._last = 0x34
        self._last_extended = 0

    def put(self, offset: int, layout: str, *values: int) -> Builder:
        struct.pack_into(layout, self.data, offset, *values)
        return self

    def capability(self, offset: int, identity: int, layout: str, *values: int) -> Builder:
        self.data[self._last] = offset
        self._last = offset + 1
        self.put(offset, "<BB", identity, 0)
        return self.put(offset + 2, layout, *values)

    def extended(self, offset: int, identity: int, layout: str, *values: int) -> Builder:
        if self._last_extended:
            self.data[self._last_extended + 2] |= offset << 4 & 0xF0
            self.data[self._last_extended + 3] |= offset >> 4
        self._last_extended = offset
        self.put(offset, "<HH", identity, 1)
        return self.put(offset + 4, layout, *values)

    @property
    def config(self) -> ConfigSpace:
        return ConfigSpace(bytes(self.data))


def nic() -> Builder:
    """A NIC much like an 82576 that a driver has set up."""
    builder = Builder()
    builder.put(0x04, "<H", 0x0406)
    builder.put(0x08, "<I", 0x02000001)
    builder.put(0x0E, "<B", 0x80)
    builder.put(0x10, "<6I", 0xFE000000, 0xD001, 0xC000000C, 0x12, 0, 0)
    builder.put(0x2C, "<HH", 0x8086, 0xA03C)
    builder.capability(0x40, 0x01, "<HH", 0xC823, 0x0000)
    builder.capability(0x50, 0x05, "<HQH", 0x0181, 0xFEE00000, 0x4021)
    builder.capability(0x70, 0x11, "<HII", 0x8009, 0x00000003, 0x00002003)
    builder.capability(0xA0, 0x10, "<HIHHIHH", 2, 0x10008CC2, 0x2810, 0, 0x42, 0, 0x1042)
    builder.extended(0x100, 0x0001, "<I", 0)
    builder.extended(0x140, 0x0003, "<Q", 0x001B21FFFF3C5A10)
    builder.extended(
        0x160,
        0x0010,
        "<IHHHHHHHHHHII6I",
        *(0, 0x9, 0, 8, 8, 2, 0, 0x180, 2, 0, 0x10CA, 0x553, 1, 0xE000000C, 0, 0, 0, 0, 0),
    )
    builder.extended(0x1D0, 0x000D, "<HH", 0x005F, 0x001D)
    builder.extended(0x1E0, 0x000F, "<HH", 0x0020, 0x8000)
    return builder


def test_the_header() -> None:
    config = nic().config
    assert (config.vendor, config.device, config.revision) == (0x8086, 0x10C9, 1)
    assert (config.subsystem_vendor, config.subsystem_device) == (0x8086, 0xA03C)
    assert (config.class_code, config.class_name) == (0x020000, "Ethernet controller")
    assert config.header_type == 0
    assert config.multifunction
    assert not config.absent
    assert config.problems == ()


def test_bars_and_64_bit_pairs() -> None:
    assert nic().config.bars == (
        BarRegister(0, 0xFE000000, True, False, False, 0xFE000000),
        BarRegister(1, 0xD000, False, False, False, 0xD001),
        BarRegister(2, 0x12_C0000000, True, True, True, 0x12_C000000C),
        BarRegister(4, 0, True, False, False, 0),
        BarRegister(5, 0, True, False, False, 0),
    )


def test_typed_capabilities() -> None:
    config = nic().config
    assert [c.id for c in config.capabilities] == [0x01, 0x05, 0x11, 0x10]
    assert [c.id for c in config.extended_capabilities] == [0x1, 0x3, 0x10, 0xD, 0xF]
    msi, msix, pcie, sriov = config.msi, config.msix, config.pcie, config.sriov
    assert msi is not None
    assert (msi.enabled, msi.vectors, msi.wide, msi.maskable) == (True, 1, True, True)
    assert (msi.address, msi.data) == (0xFEE00000, 0x4021)
    assert msix is not None
    assert (msix.vectors, msix.enabled, msix.masked) == (10, True, False)
    assert (msix.table_bar, msix.table_offset, msix.pba_bar, msix.pba_offset) == (3, 0, 3, 0x2000)
    assert pcie is not None
    assert (pcie.type, pcie.flr, pcie.transactions_pending) == (PortType.ENDPOINT, True, False)
    assert (pcie.max_payload_supported, pcie.max_payload, pcie.max_read_request) == (512, 128, 512)
    assert (pcie.link_speed, pcie.link_width, pcie.max_link_speed) == (5.0, 4, 5.0)
    assert sriov is not None
    assert (sriov.enabled, sriov.memory_enabled, sriov.total, sriov.number) == (True, True, 8, 2)
    assert (sriov.first_offset, sriov.stride, sriov.device_id) == (0x180, 2, 0x10CA)
    assert sriov.page_size == 4096
    assert sriov.bars[0] == 0xE000000C
    assert sriov.requester_ids(0x0300) == (0x0480, 0x0482)
    assert config.acs is not None
    assert "P2P request redirect" in config.acs.enabled
    assert "translation blocking" not in config.acs.enabled
    assert config.ats is not None
    assert (config.ats.enabled, config.ats.queue_depth) == (True, 32)
    assert config.serial_number == 0x001B21FFFF3C5A10
    power = config.power_management
    assert power is not None
    assert (power.state, power.no_soft_reset) == (0, False)


def test_a_gone_function_is_absent_but_a_vf_is_not() -> None:
    gone = ConfigSpace(b"\xff" * 4096)
    assert gone.absent
    assert gone.problems
    assert gone.capabilities == ()
    virtual = nic().put(0, "<HH", 0xFFFF, 0xFFFF).config
    assert not virtual.absent
    assert virtual.msix is not None


@pytest.mark.parametrize("size", [0, 1, 63, 255, 4095, 4097])
def test_odd_sizes_are_refused(size: int) -> None:
    with pytest.raises(LabError, match=f"{size} bytes"):
        ConfigSpace(bytes(size))


def test_64_bytes_say_that_the_rest_was_not_read() -> None:
    config = ConfigSpace(bytes(nic().data[:64]))
    assert config.device == 0x10C9
    assert config.capabilities == ()
    assert config.problems == ("capabilities not read: only the first 64 bytes are here",)


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (0x34, 0x10, "points into the header"),
        (0x41, 0x40, "loops back to 0x40"),
        (0x71, 0x40, "loops back to 0x40"),
        (0x50, 0xFF, "capability at 0x50 reads ff"),
        (0x103, 0x0F, "below 0x100"),
        (0x143, 0x14, "loops back to 0x140"),
    ],
)
def test_lying_pointers_end_the_list_and_are_told(offset: int, value: int, problem: str) -> None:
    builder = nic()
    builder.data[offset] = value
    if offset == 0x103:
        builder.data[0x102] = 0x01
    if offset == 0x143:
        builder.data[0x142] = 0x01
    assert any(problem in text for text in builder.config.problems), builder.config.problems


def test_registers_have_unique_names_and_one_line_each() -> None:
    names = [name for name, _ in registers(nic().config)]
    assert len(names) == len(set(names))
    text = describe(nic().config)
    assert len(text.splitlines()) == len(names)
    assert "COMMAND: 0406 (memory, bus master, INTx disable)" in text
    assert "MSI-X [70]: enabled yes, masked no, vectors 10, table bar 3" in text


def test_a_difference_names_registers() -> None:
    before = nic()
    after = nic().put(0x04, "<H", 0).put(0x72, "<H", 0x0009)
    text = difference(before.config, after.config)
    assert "-COMMAND: 0406 (memory, bus master, INTx disable)" in text
    assert "+COMMAND: 0000" in text
    assert "+MSI-X [70]: enabled no" in text
    assert "BAR" not in text
    assert difference(before.config, before.config) == ""


def test_a_difference_in_bytes_that_no_register_shows_is_still_told() -> None:
    after = nic()
    after.data[0x800] = 0x5A
    text = difference(nic().config, after.config)
    assert "+other bytes: 0x800=5a" in text


def test_reset_facts() -> None:
    facts = reset_facts(nic().config)
    assert facts.methods == ("flr", "pm")
    keeps_state = nic().put(0x44, "<H", 0x0008).config
    assert reset_facts(keeps_state).methods == ("flr",)
    assert reset_facts(Builder().config).methods == ()
    af = Builder().capability(0x40, 0x13, "<BBBB", 6, 3, 0, 0)
    assert reset_facts(af.config).methods == ("af_flr",)
    half = Builder().capability(0x40, 0x13, "<BBBB", 6, 2, 0, 0)
    assert reset_facts(half.config).methods == ()


def test_defaults_after_reset() -> None:
    fresh = nic().put(0x04, "<H", 0).put(0x10, "<6I", 0, 1, 0xC, 0, 0, 0)
    fresh.put(0x52, "<H", 0x0180).put(0x72, "<H", 0x0009).put(0x168, "<H", 0)
    assert defaults_after_reset(fresh.config) == ()
    complaints = "\n".join(defaults_after_reset(nic().config))
    for word in ("bus master", "memory decode", "INTx", "MSI is", "MSI-X is", "SR-IOV", "BAR0"):
        assert word in complaints
    assert "BAR" not in "\n".join(defaults_after_reset(nic().config, bars_restored=True))
    pending = nic().put(0xAA, "<H", 0x20).config
    assert any("transactions are pending" in line for line in defaults_after_reset(pending))
    asleep = nic().put(0x44, "<H", 3).config
    assert "power state is D3" in defaults_after_reset(asleep)
    assert defaults_after_reset(ConfigSpace(b"\xff" * 256)) == (
        "the function does not answer: all ones",
    )


def everything(config: ConfigSpace) -> None:
    describe(config)
    defaults_after_reset(config)
    reset_facts(config)
    difference(config, nic().config)
    assert len(config.capabilities) <= 48
    assert len(config.extended_capabilities) <= 960


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([64, 256, 4096]))
def test_any_bytes_are_read_without_an_error(rng: object, size: int) -> None:
    data = bytearray(rng.randbytes(size))  # type: ignore[attr-defined]
    data[0x06] |= 0x10
    data[0x0E] &= 0x83
    everything(ConfigSpace(bytes(data)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0x34, 0xFF), st.integers(0x100, 0x1FF)), st.integers(0, 255)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_a_damaged_space_is_read_without_an_error(damage: list[tuple[int, int]]) -> None:
    builder = nic()
    for offset, value in damage:
        builder.data[offset] = value
    everything(builder.config)
