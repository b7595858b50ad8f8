"""Reserve, pass, return: who has the device, and does it work there?"""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice, GuestPool
from hil.errors import ProductError, RefusalError
from hil.guests.guest import Guest
from hil.oracles import leftovers, ownership, race


@pytest.mark.catalogue("AS1", bugs=[2, 10])
@pytest.mark.danger(0)
@pytest.mark.needs
def test_a_guest_sees_the_device_that_it_is_given(device: BenchDevice, guest: Guest) -> None:
    ownership.check_guest_sees(guest, device)


@pytest.mark.catalogue("AS1", bugs=[2, 10])
@pytest.mark.danger(0)
@pytest.mark.needs
def test_a_device_that_a_guest_had_comes_back_working(last_used_device: BenchDevice) -> None:
    driver = last_used_device.host_driver
    last_used_device.give_back()
    ownership.check_back_on_host(last_used_device, driver)


@pytest.mark.catalogue("PF6", bugs=[16])
@pytest.mark.danger(0)
@pytest.mark.needs
def test_the_guest_gets_every_memory_bar_of_the_device(device: BenchDevice, guest: Guest) -> None:
    ownership.check_bars(guest, device)


@pytest.mark.catalogue("AS2")
@pytest.mark.danger(0)
@pytest.mark.needs(platform="freebsd-bhyve", device="nic", features=["address-forms"])
def test_every_form_of_its_address_means_the_same_device(
    device: BenchDevice, guests: GuestPool
) -> None:
    for form in device.host.platform.address_forms:
        guest = guests.fresh(device, form=form)
        ownership.check_guest_sees(guest, device)
        guest.destroy()


@pytest.mark.catalogue("AS3")
@pytest.mark.danger(0)
@pytest.mark.needs(device=["nic", "nvme", "edu"])
def test_a_passed_device_refuses_to_be_returned(device: BenchDevice, guest: Guest) -> None:
    with pytest.raises(RefusalError, match="held by a guest"):
        device.give_back()
    ownership.check_guest_sees(guest, device)


@pytest.mark.catalogue("AS4")
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme", "edu"])
def test_bind_cycles_leave_nothing_behind(
    device: BenchDevice, guests: GuestPool, cycles: int
) -> None:
    guests.give_back(device)
    driver = device.host_driver
    with leftovers.none_expected(device.host):
        for _ in range(cycles):
            device.reserve()
            assert device.look().reserved
            device.give_back()
    ownership.check_back_on_host(device, driver)


@pytest.mark.catalogue("AS5", bugs=[27])
@pytest.mark.danger(0)
@pytest.mark.needs(device="edu")
def test_of_two_guests_that_race_for_a_device_one_wins(device: BenchDevice, lab: Bench) -> None:
    lab.guests.release(device)
    device.reserve()
    outcome = race.two_guests(lab, device)
    race.check_one_won(outcome)


@pytest.mark.catalogue("AS5")
@pytest.mark.danger(0)
def test_control_two_guests_without_a_device_both_win(lab: Bench) -> None:
    outcome = race.two_guests(lab, None)
    with pytest.raises(ProductError, match="2 guests"):
        race.check_one_won(outcome)
