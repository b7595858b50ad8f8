"""What is known of GPUs: vendors, what belongs to a card, links, and what a reset leaves."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from hil.gpu.known import VENDORS, is_gpu, never_has, rest_of_card, vendor_of
from hil.gpu.link import Link, links
from hil.gpu.statement import statement
from hil.pci.address import Address
from hil.pci.config import ConfigSpace
from hil.platforms.contract import Function
from tests.fakes import FLR, MSI, MSIX, PM_KEEPS, PM_RESETS, config, function

CARD = Address(0, 3, 0, 0)


def of_class(found: Function, code: int) -> Function:
    data = bytearray(found.config.data)
    data[9:12] = code.to_bytes(3, "little")
    return replace(found, config=ConfigSpace(bytes(data)))


def card(vendor: int, device: int, code: int = 0x030000, **more: object) -> Function:
    made = function(CARD, config=config(vendor=vendor, device=device, capabilities=[MSI, FLR]))
    return of_class(replace(made, **more), code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (card(0x10DE, 0x1B39), "NVIDIA"),
        (card(0x10DE, 0x2330, 0x030200), "NVIDIA"),
        (card(0x1002, 0x66A1, 0x038000), "AMD"),
        (card(0x1002, 0x74A1, 0x120000), "AMD"),
        (card(0x8086, 0x56A0), "Intel"),
        (card(0x1AF4, 0x1050, 0x038000), "virtio-gpu"),
        (card(0x1234, 0x1111, 0x038000), "QEMU's bochs-display"),
    ],
)
def test_a_card_s_vendor_is_known(found: Function, name: str) -> None:
    vendor = vendor_of(found)
    assert vendor is not None
    assert vendor.name == name


def test_what_a_card_can_never_have_is_known_of_displays_only() -> None:
    for ids in ((0x1AF4, 0x1050), (0x1234, 0x1111)):
        assert never_has(*ids) == {"compute"}
    # A vendor's card that we do not know, and nobody's: they may have anything.
    for ids in ((0x10DE, 0x1B39), (0x1002, 0xFFFF), (0x8086, 0x56A0), (0x1A03, 0x2000)):
        assert never_has(*ids) == set()


@pytest.mark.parametrize(
    "found",
    [
        card(0x10DE, 0x10EF, 0x040300),  # a card's audio function
        card(0x8086, 0x10C9, 0x020000),
        card(0x1AF4, 0x1041),  # virtio, but no display of its own kind
        card(0x1A03, 0x2000),  # a display of somebody else's
    ],
)
def test_what_is_no_gpu_or_nobody_s_has_no_vendor(found: Function) -> None:
    assert vendor_of(found) is None


def test_every_vendor_says_what_a_guest_needs() -> None:
    for vendor in VENDORS:
        assert vendor.drivers
        assert bool(vendor.tool) == bool(vendor.opencl), "whoever computes has a tool"
        assert all(quirk.reference for quirk in vendor.quirks)
    assert len({vendor.vendor for vendor in VENDORS}) == len(VENDORS)


def test_quirks_are_of_the_devices_they_name() -> None:
    amd, nvidia = vendor_of(card(0x1002, 0x66A1)), vendor_of(card(0x10DE, 0x1EB8))
    assert amd is not None
    assert nvidia is not None
    assert [q.reference[:4] for q in amd.quirks_of(0x66A1)] == ["gnif"]
    assert [q.reference[:4] for q in amd.quirks_of(0x74A1)] == ["amd/"]
    assert amd.quirks_of(0x73BF) == ()
    assert any("bus reset" in quirk.what for quirk in nvidia.quirks_of(0x1EB8))
    assert not any("bus reset" in quirk.what for quirk in nvidia.quirks_of(0x1B39))


def test_a_card_is_all_functions_of_its_slot() -> None:
    gpu, audio = card(0x10DE, 1), function(Address(0, 3, 0, 1))
    vf = function(Address(0, 3, 0, 2), physical_function=CARD)
    elsewhere = function(Address(0, 3, 1, 0))
    every = [gpu, audio, vf, elsewhere]
    assert rest_of_card(gpu, every) == (audio,)
    assert rest_of_card(vf, every) == ()
    assert is_gpu(gpu)
    assert not is_gpu(audio)


# ---- links -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("speed", "width", "limit"),
    [(2.5, 1, 0.25), (5, 8, 4.0), (8, 16, 15.754), (16, 16, 31.508), (32, 16, 63.015)],
)
def test_a_link_s_limit_is_what_its_coding_leaves(speed: float, width: int, limit: float) -> None:
    assert Link(speed, width).limit / 1e9 == pytest.approx(limit, abs=0.001)
    assert f"{speed:g} GT/s x{width}, at most" in str(Link(speed, width))


def test_both_links_are_read_from_the_capability() -> None:
    # PCI Express capability: link capabilities 16 GT/s x16, status 2.5 GT/s x16
    body = bytes(2 + 4 + 4) + struct.pack("<IHH", 0x104, 0, 0x101)
    now, best = links(config(capabilities=[(0x10, body)]).pcie)
    assert (now, best) == (Link(2.5, 16), Link(16, 16))
    assert links(None) == (Link(0, 0), Link(0, 0))
    assert str(Link(0, 0)) == "no link told"


# ---- between two guests --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "methods", "words"),
    [
        ([MSI, FLR], ("flr",), "has FLR; the platform resets it by flr; registers and DMA"),
        ([MSIX, PM_RESETS], ("pm",), "has a D3hot that resets; the platform resets it by pm"),
        (
            [MSI, PM_KEEPS],
            (),
            "(NoSoftRst); the platform resets it by nothing; registers, device memory and DMA",
        ),
        ([MSI], ("bus",), "has no reset of its own; the platform resets it by bus; all that"),
        ([MSI], ("device_specific",), "by device_specific; by the vendor's own way"),
        ([MSI], ("tomorrow",), "by tomorrow"),
    ],
)
def test_what_a_reset_leaves_is_told(
    capabilities: list[tuple[int, bytes]], methods: tuple[str, ...], words: str
) -> None:
    said = statement(function(config=config(capabilities=capabilities), reset_methods=methods))
    assert words in str(said)
    assert said.resets == bool(methods)


def test_interrupts_and_the_option_rom_are_told() -> None:
    def told(space: ConfigSpace) -> str:
        return str(statement(function(config=space)))

    assert "MSI-X with 4 vectors" in told(config(capabilities=[MSIX, MSI]))
    assert "MSI with 1 message(s)" in told(config(capabilities=[MSI]))
    assert told(config()).endswith("no interrupts; no option ROM")
    data = bytearray(config().data)
    data[0x3D], data[0x30:0x34] = 1, (0xFB000001).to_bytes(4, "little")
    assert told(ConfigSpace(bytes(data))).endswith(
        "INTx only; its option ROM is not given to guests"
    )


def test_what_is_known_of_the_card_comes_along() -> None:
    (quirk,) = statement(card(0x1002, 0x74A1)).quirks
    assert "reads ff until the host reboots (amd/MxGPU-Virtualization issue 25" in str(quirk)
