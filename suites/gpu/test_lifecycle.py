"""A card that works once is not enough: second boots, many guests, a panic in the midst of work."""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice
from hil.errors import GuestError
from hil.guests.guest import Guest
from hil.oracles import leftovers, ownership, picture
from hil.probes.display import Display

pytestmark = pytest.mark.needs(device="gpu", capture=True, guest="linux")


@pytest.mark.catalogue("GP4", bugs=[11, 29, 30])
@pytest.mark.danger(1)
@pytest.mark.needs(capability="flr")
def test_the_card_draws_again_after_the_guests_second_boot(
    device: BenchDevice, running_guest: Guest
) -> None:
    with Display(running_guest, device) as display:
        picture.check_draws(display, device)
    running_guest.reboot()
    ownership.check_bars(running_guest, device)
    with Display(running_guest, device) as display:
        picture.check_draws(display, device)


@pytest.mark.catalogue("GP7", bugs=[29, 30])
@pytest.mark.danger(2)
def test_the_card_draws_again_after_a_panic_in_the_midst_of_drawing(
    device: BenchDevice, last_guest: Guest, lab: Bench
) -> None:
    with Display(last_guest, device) as display:
        picture.check_draws(display, device)
        display.keep_drawing()
        with pytest.raises(GuestError, match="panic"):
            last_guest.crash()
        last_guest.destroy()
    with Display(lab.guests.shared(device), device) as display:
        picture.check_draws(display, device)


@pytest.mark.catalogue("RS8", bugs=[29, 30, 35])
@pytest.mark.danger(2)
def test_the_card_draws_for_one_guest_after_another(
    device: BenchDevice, last_guest: Guest, lab: Bench, cycles: int
) -> None:
    guest = last_guest
    with leftovers.none_expected(device.host):  # of one guest before the first and after the last
        for _ in range(max(cycles, 2) - 1):
            with Display(guest, device) as display:
                picture.check_draws(display, device)
                guest.destroy()
            guest = lab.guests.shared(device)
        with Display(guest, device) as display:
            picture.check_draws(display, device)
