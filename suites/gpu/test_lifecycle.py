"""A card that works once is not enough: second boots, many guests, a panic in the midst of work."""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice, GuestPool
from hil.errors import GuestError
from hil.oracles import leftovers, picture
from hil.probes.display import Display

pytestmark = pytest.mark.needs(device="gpu", capture=True, guest="linux")


@pytest.mark.catalogue("GP4", bugs=[11, 29, 30])
@pytest.mark.danger(1)
@pytest.mark.needs(capability="flr")
def test_the_card_draws_again_after_the_guests_second_boot(
    device: BenchDevice, guests: GuestPool
) -> None:
    guest = guests.shared(device)
    with Display(guest, device) as display:
        picture.check_draws(display, device)
    guest.reboot()
    with Display(guest, device) as display:
        picture.check_draws(display, device)


@pytest.mark.catalogue("RS8", bugs=[29, 30, 35])
@pytest.mark.danger(2)
def test_the_card_draws_for_one_guest_after_another(
    device: BenchDevice, guests: GuestPool, cycles: int
) -> None:
    guests.release(device)
    device.reserve()
    with leftovers.none_expected(device.host):
        for _ in range(cycles):
            guest = guests.fresh(device)
            with Display(guest, device) as display:
                picture.check_draws(display, device)
                guest.destroy()


@pytest.mark.catalogue("GP7", bugs=[29, 30])
@pytest.mark.danger(2)
def test_the_card_draws_again_after_a_panic_in_the_midst_of_drawing(
    device: BenchDevice, guests: GuestPool
) -> None:
    guest = guests.shared(device)
    with Display(guest, device) as display:
        picture.check_draws(display, device)
        display.keep_drawing()
        with pytest.raises(GuestError, match="panic"):
            guest.crash()
        guest.destroy()
    with Display(guests.shared(device), device) as display:
        picture.check_draws(display, device)
