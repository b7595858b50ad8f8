"""Guests come and go, in order and out of order, and leave nothing behind."""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice, GuestPool
from hil.errors import GuestError, ProductError
from hil.guests.guest import Guest, GuestState
from hil.oracles import iommu, leftovers, ownership
from hil.oracles.crosstalk import Pair
from hil.platforms.contract import Phase
from hil.probes import nic


@pytest.mark.catalogue("LC1", bugs=[11])
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="flr", peer=True)
def test_the_device_works_after_each_reboot_of_the_guest(
    device: BenchDevice, guest: Guest, cycles: int
) -> None:
    for _ in range(cycles):
        guest.reboot()
        nic.echo(guest, nic.join(guest, device), sizes=nic.SIZES[-2:])


@pytest.mark.catalogue("LC2")
@pytest.mark.danger(1)
@pytest.mark.needs(
    device="nic",
    capability="flr",
    peer=True,
    guest="linux",
    features=["restarts-after-triple-fault"],
)
def test_the_device_works_after_a_triple_fault(device: BenchDevice, guest: Guest) -> None:
    guest.triple_fault()
    guest.wait_for_reboot()
    nic.echo(guest, nic.join(guest, device), sizes=nic.SIZES[-2:])


@pytest.mark.catalogue("LC2")
@pytest.mark.danger(1)
def test_a_panic_is_told_as_the_guests_at_once(guests: GuestPool, lab: Bench) -> None:
    guest = guests.fresh(host=lab.host)
    with pytest.raises(GuestError, match="panic"):
        guest.crash()
    assert guest.state is GuestState.CRASHED
    guest.destroy()


@pytest.mark.catalogue("HP1", bugs=[5, "r305497"])
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme"], capability="flr", features=["tables"])
def test_a_function_that_was_gone_for_a_moment_works_on_the_host_and_in_a_guest(
    device: BenchDevice, guests: GuestPool
) -> None:
    iommu.switch_on(device, guests)
    guests.give_back(device)
    driver = device.host_driver
    device.host.platform.replug(device.address, device.host.limit(60, f"the return of {device}"))
    ownership.check_back_on_host(device, driver)
    iommu.check_phase(device, Phase.BOOT)
    guest = guests.shared(device)
    ownership.check_guest_sees(guest, device)
    iommu.check_translated(device, guest)


@pytest.mark.catalogue("LC4")
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme"], capability="flr")
def test_a_guest_destroyed_at_work_gives_a_working_device_back(
    device: BenchDevice, guests: GuestPool
) -> None:
    driver = device.host_driver
    guest = guests.shared(device)
    with guest.working(device.address):
        guest.destroy()
    device.give_back()
    ownership.check_back_on_host(device, driver)


@pytest.mark.catalogue("LC7")
@pytest.mark.danger(0)
@pytest.mark.needs(device="edu")
def test_guests_that_come_and_go_leave_nothing_on_the_host(
    device: BenchDevice, lab: Bench, cycles: int
) -> None:
    iommu.switch_on(device, lab.guests)
    lab.guests.give_back(device)
    lab.guests.provide(device.host)
    with leftovers.none_expected(device.host):
        for _ in range(cycles):
            lab.guests.prepare(device).destroy()
            device.give_back()


@pytest.mark.catalogue("LC7")
@pytest.mark.danger(0)
def test_control_a_guest_that_was_forgotten_is_seen(lab: Bench) -> None:
    forgotten: list[Guest] = []
    with pytest.raises(ProductError, match="left behind"), leftovers.none_expected(lab.host):
        forgotten.append(lab.guests.prepare(host=lab.host))
    forgotten[0].destroy()


@pytest.mark.catalogue("LC8")
@pytest.mark.danger(2)
@pytest.mark.needs(device="nic", capability="sriov", vfs=2, peer=True)
def test_several_guests_with_devices_run_side_by_side(
    two_guests_with_vfs: Pair, lab: Bench
) -> None:
    one_of_each = {d.kind: d for d in lab.devices.values() if d.kind in ("edu", "nvme")}
    others = lab.guests.fresh_each(*one_of_each.values())
    held_by = two_guests_with_vfs.held_by | others
    for guest, held in held_by.items():
        ownership.check_unharmed(guest)
        ownership.check_guest_sees(guest, held)
    assert held_by.keys() <= set(lab.guests.living)
    for guest in others:
        guest.destroy()
