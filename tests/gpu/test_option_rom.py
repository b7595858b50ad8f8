"""The option ROM of the emulated lab: by the specification, and as QEMU's card shows it."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.emulated import machine
from hil.emulated.qtest import QTest
from hil.gpu import option_rom
from hil.lab.load import load
from hil.pci.address import Address

IDS = st.integers(0, 0xFFFF)


@given(IDS, IDS, st.integers(0, 0xFFFFFF), st.integers(1, 127))
def test_the_image_is_as_the_specification_wants_it(
    vendor: int, device: int, class_code: int, units: int
) -> None:
    rom = option_rom.make(vendor, device, class_code, "a card", units)
    assert len(rom) == 512 * units
    assert (rom[0:2], rom[2]) == (b"\x55\xaa", units)
    assert sum(rom) % 256 == 0
    (at,) = struct.unpack_from("<H", rom, 0x18)
    assert at % 4 == 0
    pcir = rom[at : at + 0x1C]
    assert pcir[:4] == b"PCIR"
    assert struct.unpack_from("<HH", pcir, 4) == (vendor, device)
    assert struct.unpack_from("<H", pcir, 0x0A) == (len(pcir),)
    assert int.from_bytes(pcir[0x0D:0x10], "little") == class_code
    assert struct.unpack_from("<H", pcir, 0x10) == (units,)
    assert pcir[0x14] == 0, "for PCs"
    assert pcir[0x15] == 0x80, "the last image"
    assert rom[3] == 0xCB, "what runs it is back at once"


def test_no_two_parts_of_it_are_the_same() -> None:
    rom = option_rom.make(1, 2, 3, "a card")
    parts = [rom[at : at + 64] for at in range(0, len(rom), 64)]
    assert len(set(parts)) == len(parts)


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_the_emulated_lab_s_card_shows_it(tmp_path: Path) -> None:
    file = tmp_path / machine.ROM
    file.write_bytes(machine.rom())
    devices = machine.devices(machine.find_qemu(), file)
    (model,) = (one for one in devices if f"id={machine.ROM_OF}," in one)
    port, card = Address(0, 0, 2, 0), Address(0, 1, 0, 0)
    options = [f"pcie-root-port,id=port-{machine.ROM_OF},chassis=1,addr=2"]
    with QTest([*options, model]) as qemu:
        qemu.open_bridge(port, 1)
        config = qemu.config(card)
        ids = struct.unpack_from("<HH", machine.rom(), option_rom._PCIR + 4)
        assert (config.vendor, config.device) == ids
        assert config.class_code.to_bytes(3, "little") == machine.rom()[0x29:0x2C]
        # It is read through its BAR, whose lowest bit opens it (PCI 6.2.5.2).
        place = qemu.map_bar(card, 1)
        qemu.config_store(card, 0x14, 4, 0)
        qemu.config_store(card, 0x30, 4, place | 1)
        qemu.enable(card)
        words = [qemu.load(place + at, 4) for at in range(0, len(machine.rom()), 4)]
        assert struct.pack(f"<{len(words)}I", *words) == machine.rom()


def test_only_one_card_of_the_lab_has_one_and_the_inventory_names_it() -> None:
    qemu = machine.Qemu("/usr/bin/qemu-system-x86_64", (10, 0), "QEMU 10.0")
    cards = [card for card in machine.devices(qemu, Path("/a,b")) if "romfile=/a,,b" in card]
    assert [f"id={machine.ROM_OF}," in card for card in cards] == [True]
    assert not [card for card in machine.devices(qemu) if "romfile=," not in card + ","]
    named = {name: device.rom for name, device in load("emulated").devices.items() if device.rom}
    assert named == {machine.ROM_OF: machine.ROM_FILE}
