"""A guest draws on a passed display; what comes out of it is compared pixel by pixel."""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import ownership, picture
from hil.probes.display import Display

pytestmark = pytest.mark.needs(device="gpu", capture=True, guest="linux")


@pytest.mark.catalogue("GP1", bugs=[16])
@pytest.mark.danger(1)
def test_the_driver_draws_and_every_pixel_arrives(
    device: BenchDevice, running_guest: Guest
) -> None:
    ownership.check_bars(running_guest, device)
    with Display(running_guest, device) as display:
        picture.check_draws(display, device)
        picture.check_draws(display, device)


@pytest.mark.catalogue("GP1")
@pytest.mark.danger(1)
def test_control_one_pixel_that_was_drawn_otherwise_is_seen(
    device: BenchDevice, running_guest: Guest
) -> None:
    with Display(running_guest, device) as display:
        with pytest.raises(ProductError, match="does not show what was drawn"):
            picture.check_draws(display, device, spoil=picture.flip_a_pixel)
