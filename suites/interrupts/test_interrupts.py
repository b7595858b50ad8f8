"""Each message a device sends arrives once, where it should, and none when nobody listens."""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice, GuestPool
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import interrupts
from hil.probes.interrupts import triggered_each


@pytest.mark.catalogue("IN1", bugs=[12, 13, 31])
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="msi")
def test_every_vector_delivers_each_message_once(device: BenchDevice, guest: Guest) -> None:
    interrupts.check_each_once(triggered_each(guest, device))


@pytest.mark.catalogue("IN1", bugs=[12, 13, 31])
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu", capability="msi", guest="linux", features=["line-interrupts"])
def test_a_message_reaches_a_driver_in_user_space(device: BenchDevice, guest: Guest) -> None:
    interrupts.check_each_once(triggered_each(guest, device))


@pytest.mark.catalogue("IN1")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability=["msi", "flr"])
def test_control_a_message_that_was_not_sent_is_missed(device: BenchDevice, guest: Guest) -> None:
    with pytest.raises(ProductError, match="counted"):
        interrupts.check_each_once(triggered_each(guest, device, leave_out=0))


@pytest.mark.catalogue("IN1", bugs=[31])
@pytest.mark.danger(1)
@pytest.mark.needs(device="nvme")
def test_every_disk_request_interrupts_the_guest(device: BenchDevice, guest: Guest) -> None:
    interrupts.check_disk_interrupts(guest, device)


@pytest.mark.catalogue("IN6")
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme", "edu"])
def test_the_host_gets_no_interrupts_of_the_device_after_its_guest(
    used_device: BenchDevice, watch: float
) -> None:
    interrupts.check_silent(used_device, watch)


@pytest.mark.catalogue("IN6")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nvme")
def test_control_interrupts_on_the_host_are_seen(device: BenchDevice, guests: GuestPool) -> None:
    guests.give_back(device)
    with interrupts.busy_on_host(device), pytest.raises(ProductError, match="interrupts on"):
        interrupts.check_silent(device, 10.0)
