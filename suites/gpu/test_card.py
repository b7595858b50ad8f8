"""A GPU is a card: all its functions, its driver, and its option ROM."""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice, GuestPool
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import gpu_card, preflight
from hil.probes.gpu import report

pytestmark = pytest.mark.needs(device="gpu")


@pytest.mark.catalogue("GP5")
@pytest.mark.danger(0)
def test_every_function_of_the_card_is_in_the_guest(device: BenchDevice, guest: Guest) -> None:
    preflight.check_whole(device.look_at_all(), device.host.functions())
    gpu_card.check_whole(guest, device)


@pytest.mark.catalogue("GP1", bugs=[16, 29, 35])
@pytest.mark.danger(0)
@pytest.mark.needs(guest="linux")
def test_its_own_driver_takes_the_card(device: BenchDevice, guest: Guest) -> None:
    gpu_card.check_driver(guest, device)
    report(guest, device)


@pytest.mark.catalogue("GP6")
@pytest.mark.danger(1)
@pytest.mark.needs(rom=True, guest="linux")
def test_the_guest_reads_the_option_rom_that_it_is_given(
    device: BenchDevice, guests: GuestPool
) -> None:
    guest = guests.fresh(device, cold=True, roms=True)
    gpu_card.check_rom(guest, device)
    gpu_card.check_driver(guest, device)


@pytest.mark.catalogue("GP6")
@pytest.mark.danger(1)
@pytest.mark.needs(rom=True, guest="linux")
def test_the_card_works_without_an_option_rom(device: BenchDevice, guest: Guest) -> None:
    gpu_card.check_no_rom(guest, device)
    gpu_card.check_driver(guest, device)


@pytest.mark.catalogue("GP6")
@pytest.mark.danger(1)
@pytest.mark.needs(rom=True, guest="linux")
def test_control_an_option_rom_that_was_not_given_is_missed(
    device: BenchDevice, guest: Guest
) -> None:
    with pytest.raises(ProductError, match="does not read the option ROM"):
        gpu_card.check_rom(guest, device)
