"""Bugs of the past that must never come back, each as its report or its review told it."""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice, GuestPool
from hil.oracles import iommu, leftovers, ownership
from hil.oracles.crosstalk import Pair
from hil.probes import nic

#: Their like on other platforms stands in the other suites.
BHYVE = "freebsd-bhyve"


@pytest.mark.catalogue("AS1", bugs=["r305485"])
@pytest.mark.danger(1)
@pytest.mark.needs(platform=BHYVE, device="nic", capability="flr", peer=True)
def test_the_workflow_from_the_hosts_driver_to_a_guest_and_back(
    device: BenchDevice, guests: GuestPool
) -> None:
    guests.give_back(device)
    driver = device.host_driver
    device.reserve()
    guest = guests.fresh(device)
    ownership.check_guest_sees(guest, device)
    nic.echo(guest, nic.join(guest, device), sizes=nic.SIZES[-2:])
    guest.power_off()
    guest.destroy()
    device.give_back()
    ownership.check_back_on_host(device, driver)


@pytest.mark.catalogue("IO1", "IO2", bugs=["r304858", "D7448"])
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="sriov", vfs=1, features=["tables"])
def test_the_first_passed_vf_switches_the_iommu_on_and_a_plain_guest_does_not(
    device: BenchDevice, pristine_lab: Bench
) -> None:
    host = device.host
    iommu.check_switched(host, not host.platform.lazy_iommu)
    plain = pristine_lab.guests.fresh(host=host)
    iommu.check_switched(host, not host.platform.lazy_iommu)
    plain.destroy()
    with pristine_lab.vfs(device, 1) as (vf,):
        guest = pristine_lab.guests.fresh(vf)
        iommu.check_switched(host, True)
        iommu.check_translated(vf, guest)


@pytest.mark.catalogue("IO4", bugs=[3, 20, "r325039"])
@pytest.mark.danger(0)
@pytest.mark.needs(platform=BHYVE, features=["tables"])
def test_whatever_is_reserved_and_belongs_to_nobody_reaches_what_the_platform_states(
    device: BenchDevice, guests: GuestPool
) -> None:
    iommu.switch_on(device, guests)
    guests.close()
    device.reserve()
    iommu.check_idle(device.host)


@pytest.mark.catalogue("IO4", bugs=[21, "r325039"])
@pytest.mark.danger(1)
@pytest.mark.needs(platform=BHYVE, features=["tables"])
def test_what_was_reserved_before_the_iommu_was_on_reaches_what_the_platform_states(
    pristine_lab: Bench,
) -> None:
    first, *others = pristine_lab.devices.values()
    if not others:
        pytest.skip("the lab has no second device")
    for device in others:
        device.reserve()
    pristine_lab.guests.prepare(first).destroy()
    iommu.check_idle(first.host)


@pytest.mark.catalogue("AS6")
@pytest.mark.danger(1)
@pytest.mark.needs(platform=BHYVE)
def test_one_guest_gets_two_cards_that_were_reserved_together(lab: Bench) -> None:
    cards = [device for device in lab.devices.values() if device.kind in ("nic", "nvme")][:2]
    if len(cards) < 2:
        pytest.skip("the lab has no two cards")
    guest = lab.guests.fresh(*cards)
    for card in cards:
        ownership.check_guest_sees(guest, card)
    guest.destroy()


@pytest.mark.catalogue("IO8", bugs=[26])
@pytest.mark.danger(2)
@pytest.mark.needs(platform=BHYVE, device="edu", features=["reload"])
def test_the_hypervisors_module_is_unloaded_and_loaded_with_a_device_reserved(
    device: BenchDevice, lab: Bench
) -> None:
    lab.guests.close()
    device.reserve()
    device.host.platform.reload(device.host.limit(60, "the hypervisor's module"))
    device.give_back()
    lab.guests.prepare(device).destroy()


@pytest.mark.catalogue("LC7")
@pytest.mark.danger(1)
@pytest.mark.needs(platform=BHYVE, device="edu")
def test_a_guest_that_was_killed_leaves_nothing_once_it_is_destroyed(
    device: BenchDevice, guests: GuestPool
) -> None:
    iommu.switch_on(device, guests)
    guests.release(device)
    device.reserve()
    with leftovers.none_expected(device.host):
        guest = guests.fresh(device)
        guest.kill()
        guest.destroy()
        guests.prepare(device).destroy()


@pytest.mark.catalogue("HP1", bugs=[5, 8, "r305497"])
@pytest.mark.danger(1)
@pytest.mark.needs(platform=BHYVE, device="nic", capability="sriov", vfs=2, peer=True)
def test_vfs_made_after_the_first_assignment_move_frames_in_guests(
    two_guests_with_vfs: Pair,
) -> None:
    for index, (guest, vf) in enumerate(two_guests_with_vfs.held_by.items()):
        nic.echo(guest, nic.join(guest, vf, index), sizes=nic.SIZES[-2:])


@pytest.mark.catalogue("LC7", bugs=[23])
@pytest.mark.danger(1)
@pytest.mark.needs(platform=BHYVE, device="edu", features=["tables"])
def test_an_assignment_that_failed_takes_no_memory_from_the_hosts_devices(
    device: BenchDevice, guests: GuestPool
) -> None:
    if not device.host.platform.one_host_domain:
        pytest.skip("on this platform each of the host's devices has a domain of its own")
    iommu.switch_on(device, guests)
    guests.close()
    before = iommu.host_reach(device.host)
    iommu.check_not_passed_unless_reserved(device, guests.image)
    iommu.check_reach(device.host, before)
