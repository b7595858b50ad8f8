"""The IOMMU's tables say whose memory a device can reach; they are read, not believed."""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice
from hil.errors import InventoryError, ProductError, RefusalError
from hil.guests.guest import Guest
from hil.oracles import iommu, leftovers, ownership, strayed
from hil.oracles.crosstalk import Pair
from hil.oracles.dma import HostCanary
from hil.platforms.contract import Owner, Phase


@pytest.mark.catalogue("IO2", bugs=[1, 7, 9])
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme", "edu"], features=["tables"])
def test_dma_is_translated_once_a_device_is_passed(device: BenchDevice, guest: Guest) -> None:
    iommu.check_translated(device, guest)


@pytest.mark.catalogue("IO3", bugs=[1, 24, "D7448"])
@pytest.mark.danger(0)
def test_without_an_iommu_a_device_is_refused_and_nothing_is_half_made(
    lab_without_iommu: Bench,
) -> None:
    device = next(iter(lab_without_iommu.devices.values()))
    driver = device.look().driver
    with leftovers.none_expected(device.host):
        with pytest.raises(RefusalError) as refused:
            lab_without_iommu.guests.prepare(device)
        device.give_back()
    ownership.check_back_on_host(device, driver)
    iommu.check_says_what_is(device.host)
    refused.match(r"IOMMU (of .* is off or absent|off)")


@pytest.mark.catalogue("IO3")
@pytest.mark.danger(0)
def test_control_without_an_iommu_a_plain_guest_still_boots(lab_without_iommu: Bench) -> None:
    guest = lab_without_iommu.guests.fresh(host=lab_without_iommu.host)
    ownership.check_unharmed(guest)
    guest.destroy()


@pytest.mark.catalogue("IO4", bugs=[2, 3, 4, 5, 20])
@pytest.mark.danger(0)
@pytest.mark.needs(device=["nic", "nvme", "edu"], features=["tables", "physical-memory"])
def test_without_a_guest_the_device_reaches_the_memory_that_the_platform_states(
    device: BenchDevice, lab: Bench
) -> None:
    iommu.switch_on(device, lab.guests)
    lab.guests.give_back(device)
    iommu.check_phase(device, Phase.BOOT)
    device.reserve()
    iommu.check_phase(device, Phase.IDLE)


@pytest.mark.catalogue("IO4", bugs=[2, 3, 4, 5, 20])
@pytest.mark.danger(0)
@pytest.mark.needs(device=["nic", "nvme", "edu"], features=["tables", "physical-memory"])
def test_in_a_guest_the_device_reaches_the_memory_that_the_platform_states(
    device: BenchDevice, guest: Guest
) -> None:
    iommu.check_phase(device, Phase.ASSIGNED, guest=guest)
    iommu.check_says_what_is(device.host)


@pytest.mark.catalogue("IO4", bugs=[2, 3, 4, 5, 20])
@pytest.mark.danger(0)
@pytest.mark.needs(device=["nic", "nvme", "edu"], features=["tables", "physical-memory"])
def test_after_its_guest_the_device_reaches_the_memory_that_the_platform_states(
    used_device: BenchDevice,
) -> None:
    iommu.check_phase(used_device, Phase.DESTROYED, before=used_device.entry_in_guest)


@pytest.mark.catalogue("IO4", bugs=[2, 3, 4, 5, 20])
@pytest.mark.danger(0)
@pytest.mark.needs(device=["nic", "nvme", "edu"], features=["tables", "physical-memory"])
def test_back_on_the_host_the_device_reaches_the_memory_that_the_platform_states(
    returned_device: BenchDevice,
) -> None:
    iommu.check_phase(returned_device, Phase.RETURNED, before=returned_device.entry_in_guest)


@pytest.mark.catalogue("IO4")
@pytest.mark.danger(0)
@pytest.mark.needs(device="nic", capability="flr", features=["tables", "physical-memory"])
@pytest.mark.parametrize("wrong", [Owner.HOST, Owner.NOBODY], ids=lambda owner: owner.value)
def test_control_a_wrong_expectation_is_refused(
    device: BenchDevice, guest: Guest, wrong: Owner
) -> None:
    with pytest.raises(ProductError, match="should reach"):
        iommu.check_phase(device, Phase.ASSIGNED, guest=guest, expected=wrong)


@pytest.mark.catalogue("IO4")
@pytest.mark.danger(0)
@pytest.mark.needs(device="nic", capability="flr", features=["tables", "physical-memory"])
def test_control_another_guests_memory_is_not_taken_for_the_owners(
    device: BenchDevice, guest: Guest, lab: Bench
) -> None:
    # Some platforms read a guest's memory only by way of a device that it has.
    others = [other for other in lab.devices.values() if other is not device]
    if not others:
        pytest.skip("the lab has no second device")
    stranger = lab.guests.fresh(others[-1])
    with pytest.raises(ProductError, match="should reach"):
        iommu.check_phase(device, Phase.ASSIGNED, guest=stranger)
    stranger.destroy()


@pytest.mark.catalogue("IO5", bugs=[1])
@pytest.mark.danger(2)
@pytest.mark.needs(device="edu", features=["faults"])
def test_dma_outside_the_guests_memory_faults_and_harms_nobody(
    device: BenchDevice, guest: Guest, neighbour: Guest, canary: HostCanary
) -> None:
    strayed.check_blocked(device, guest)
    canary.check_intact()
    ownership.check_unharmed(guest)
    ownership.check_unharmed(neighbour)


@pytest.mark.catalogue("IO5")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu", features=["faults"])
def test_control_dma_inside_the_guests_memory_does_not_pass_for_a_fault(
    device: BenchDevice, guest: Guest
) -> None:
    with pytest.raises(ProductError, match="no DMA fault"):
        strayed.check_blocked(device, guest, inside=True)


@pytest.mark.catalogue("IO5", bugs=[22])
@pytest.mark.danger(2)
@pytest.mark.needs(platform="freebsd-bhyve", device="edu", features=["event-log"])
def test_each_fault_is_told_once_however_often_the_log_wraps(
    device: BenchDevice, guest: Guest
) -> None:
    strayed.check_told_once(device, guest)


@pytest.mark.catalogue("IO5")
@pytest.mark.danger(2)
@pytest.mark.needs(platform="freebsd-bhyve", device="edu", features=["event-log"])
def test_control_a_fault_that_is_told_twice_is_seen(device: BenchDevice, guest: Guest) -> None:
    with pytest.raises(ProductError, match="told again"):
        strayed.check_told_once(device, guest, again=True)


@pytest.mark.catalogue("IO7")
@pytest.mark.danger(0)
@pytest.mark.needs(device="nic", capability="sriov", vfs=2, features=["tables"])
def test_two_guests_have_domains_and_page_tables_of_their_own(
    two_guests_with_vfs: Pair,
) -> None:
    iommu.check_distinct(two_guests_with_vfs.devices)


@pytest.mark.catalogue("IO7")
@pytest.mark.danger(0)
@pytest.mark.needs(device="nic", capability="sriov", vfs=2, features=["tables"])
def test_control_one_domain_for_two_is_refused(two_guests_with_vfs: Pair) -> None:
    twice = two_guests_with_vfs.devices[0]
    with pytest.raises(ProductError, match="share domain"):
        iommu.check_distinct((twice, twice))


@pytest.mark.catalogue("IO4")
@pytest.mark.danger(0)
def test_control_a_bridge_cannot_be_passed(lab: Bench) -> None:
    bridge = next(f for f in lab.host.functions() if f.config.header_type == 1)
    with pytest.raises(InventoryError, match="bridge"):
        lab.host.reserve(bridge.address)
