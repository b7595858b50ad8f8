"""What one guest leaves in a card's memory is none of the next guest's business."""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import picture, remnant
from hil.probes.device_memory import device_memory
from hil.probes.display import Display


@pytest.mark.catalogue("GP8")
@pytest.mark.danger(1)
@pytest.mark.needs(device="gpu", capability="vram", guest="linux")
def test_control_a_planted_remnant_is_found(device: BenchDevice, running_guest: Guest) -> None:
    tag = remnant.new_tag()
    with device_memory(running_guest, device) as memory:
        memory.mark(tag)
        with pytest.raises(ProductError, match="a data leak"):
            remnant.check_nothing_left(memory, device, tag)


@pytest.mark.catalogue("GP8")
@pytest.mark.danger(1)
@pytest.mark.needs(device="gpu", capture=True, guest="linux")
def test_control_a_picture_that_stays_is_seen(device: BenchDevice, running_guest: Guest) -> None:
    with Display(running_guest, device) as display:
        drawn = picture.check_draws(display, device)
        with pytest.raises(ProductError, match="still shows"):
            picture.check_gone(device, drawn)


@pytest.mark.catalogue("GP8")
@pytest.mark.danger(1)
@pytest.mark.needs(device="gpu", capability="vram", guest="linux")
def test_the_next_guest_finds_nothing_in_the_cards_memory(
    device: BenchDevice, last_guest: Guest, lab: Bench
) -> None:
    remnant.check_next_guest(last_guest, device, lab.guests)


@pytest.mark.catalogue("GP8")
@pytest.mark.danger(1)
@pytest.mark.needs(device="gpu", capture=True, guest="linux")
def test_the_screen_shows_nothing_of_a_guest_that_has_ended(
    device: BenchDevice, last_guest: Guest
) -> None:
    with Display(last_guest, device) as display:
        drawn = picture.check_draws(display, device)
        last_guest.destroy()
    picture.check_gone(device, drawn)
