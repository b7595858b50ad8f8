"""The whole card, with its driver: each check fails where it should."""

from __future__ import annotations

import base64
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from hil.deadline import Deadline
from hil.errors import GuestError, LabError, ProductError
from hil.gpu.amd import AMD
from hil.gpu.nvidia import NVIDIA
from hil.guests.linux import LinuxGuest
from hil.guests.os import SeenFunction
from hil.oracles import gpu_card, preflight
from hil.pci.address import Address
from hil.platforms.bar_windows import BHYVE
from hil.platforms.contract import Bar
from hil.transport.base import Result
from tests.fakes import function

HERE = Address(0, 0, 16, 0)


def test_a_driver_of_the_vendor_s_is_well() -> None:
    seen = SeenFunction(HERE, 0x10DE, 0x1B39, "nvidia")
    assert gpu_card.driver_complaint(seen, NVIDIA) == ""
    assert gpu_card.driver_complaint(seen, None) == ""


@pytest.mark.parametrize("driver", [None, "vfio-pci", "amdgpu"])
def test_no_driver_and_another_s_are_seen(driver: str | None) -> None:
    complaint = gpu_card.driver_complaint(SeenFunction(HERE, 0x10DE, 1, driver), NVIDIA)
    assert complaint == f"{HERE} has {driver or 'no driver'}, not nvidia or nouveau"
    assert gpu_card.driver_complaint(SeenFunction(HERE, 1, 1, None), None).endswith("not any")


def test_what_is_known_of_the_card_is_the_hint() -> None:
    assert "R465" in gpu_card.hint(NVIDIA, function())
    assert gpu_card.hint(AMD, function()) == "has the guest's image its driver?"
    assert gpu_card.hint(None, function()) == "has the guest's image a driver for it?"


def test_a_card_for_which_a_guest_has_no_room_is_told_before_the_start() -> None:
    fits = [function(bars=[Bar(0, 0, 16 << 30, True, True, True)])]
    preflight.check_budget({"gpu0": fits}, BHYVE, 1 << 30)
    large = [function(bars=[Bar(0, 0, 64 << 30, True, True, True)])]
    with pytest.raises(ProductError, match=r"no room for BAR0 of .* \(64 GiB\)") as caught:
        preflight.check_budget({"gpu0": large}, BHYVE, 1 << 30)
    assert "NO PLACE" in caught.value.seen
    assert caught.value.hint == "no guest of bhyve has room for gpu0"


def test_where_windows_are_not_known_nothing_is_judged() -> None:
    with pytest.raises(LabError, match="does not state"):
        preflight.check_budget({"gpu0": [function()]}, None, 1 << 30)


# ---- all functions, in a guest ---------------------------------------------------------------


def guest_that_sees(*seen: SeenFunction) -> Any:
    return SimpleNamespace(
        name="g1",
        functions=lambda: seen,
        address_of=lambda address: Address(0, 0, 16 + address.function, 0),
    )


def card_of(*functions: Any) -> Any:
    return SimpleNamespace(look_at_all=lambda: functions)


GPU, AUDIO = function(Address(0, 3, 0, 0)), function(Address(0, 3, 0, 1))
SEEN = SeenFunction(HERE, GPU.vendor, GPU.device, "x")
SEEN_AUDIO = SeenFunction(Address(0, 0, 17, 0), AUDIO.vendor, AUDIO.device, None)


def test_a_card_with_all_its_functions_is_whole() -> None:
    gpu_card.check_whole(guest_that_sees(SEEN, SEEN_AUDIO), card_of(GPU, AUDIO))


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ([SEEN], "0000:03:00.1: not at 0000:00:11.0"),
        ([SEEN, replace(SEEN_AUDIO, device=1)], "0000:03:00.1: at 0000:00:11.0 is 8086:0001"),
    ],
)
def test_a_function_that_is_missing_or_another_is_seen(
    seen: list[SeenFunction], words: str
) -> None:
    with pytest.raises(ProductError, match="has not the whole of") as caught:
        gpu_card.check_whole(guest_that_sees(*seen), card_of(GPU, AUDIO))
    assert words in caught.value.seen


# ---- option ROMs --------------------------------------------------------------------------------

ROM = b"\x55\xaa\x02" + bytes(range(253)) * 4


@pytest.mark.parametrize("seen", [ROM, ROM[:512], ROM + bytes(1024)])
def test_the_option_rom_that_was_given_is_well(seen: bytes) -> None:
    assert gpu_card.rom_complaint(ROM, seen) == ""


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (b"", "0 bytes are read, 1015 were given"),
        (ROM[:100] + b"!" + ROM[101:], "differ from byte 0x64 on"),
    ],
)
def test_another_or_no_option_rom_is_seen(seen: bytes, words: str) -> None:
    assert words in gpu_card.rom_complaint(ROM, seen)


def guest_with_rom(status: int, printed: str) -> Any:
    return SimpleNamespace(
        name="g1",
        address_of=lambda address: address,
        os=LinuxGuest(),
        run=lambda command: Result(tuple(command), status, printed.encode(), b"", 0.0),
    )


def card_with_rom(rom: bytes) -> Any:
    host = SimpleNamespace(
        limit=Deadline,
        platform=SimpleNamespace(
            transport=SimpleNamespace(get=lambda path, deadline: rom if path == "/rom" else b"")
        ),
    )
    return SimpleNamespace(rom="/rom", address=GPU.address, host=host)


def test_what_the_guest_prints_of_its_rom_is_compared() -> None:
    device, text = card_with_rom(ROM), base64.b64encode(ROM).decode()
    gpu_card.check_rom(guest_with_rom(0, text), device)
    gpu_card.check_no_rom(guest_with_rom(1, ""), device)
    with pytest.raises(ProductError, match="does not read the option ROM"):
        gpu_card.check_rom(guest_with_rom(1, ""), device)
    with pytest.raises(ProductError, match="was given none"):
        gpu_card.check_no_rom(guest_with_rom(0, text), device)
    with pytest.raises(GuestError, match="no known form"):
        gpu_card.check_rom(guest_with_rom(0, "***"), device)
