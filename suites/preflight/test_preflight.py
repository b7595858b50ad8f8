"""Before anything is touched: can these devices be passed on this host?"""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice, BenchHost
from hil.oracles import preflight, room


@pytest.mark.catalogue("PF1")
@pytest.mark.danger(0)
def test_the_host_has_an_iommu_and_uses_it(lab: Bench) -> None:
    for host in lab.hosts.values():
        preflight.check_iommu(host.facts())


@pytest.mark.catalogue("PF4")
@pytest.mark.danger(0)
@pytest.mark.needs
def test_the_device_can_send_message_signalled_interrupts(device: BenchDevice) -> None:
    preflight.check_interrupts(device.look())


@pytest.mark.catalogue("PF5")
@pytest.mark.danger(0)
@pytest.mark.needs
def test_every_memory_bar_covers_whole_pages(device: BenchDevice) -> None:
    preflight.check_bars(device.look())


@pytest.mark.catalogue("PF6", bugs=[16])
@pytest.mark.danger(0)
@pytest.mark.needs
def test_a_guest_has_room_for_every_bar_of_the_device(device: BenchDevice) -> None:
    found = {device.name: device.look_at_all()}
    preflight.check_budget(found, device.host.bar_windows(), device.guest_memory)


@pytest.mark.catalogue("PF7")
@pytest.mark.danger(0)
@pytest.mark.needs(capability="flr")
def test_the_device_promises_a_reset_of_its_own(device: BenchDevice) -> None:
    preflight.check_reset(device.look())


@pytest.mark.catalogue("PF8")
@pytest.mark.danger(0)
@pytest.mark.needs
def test_no_function_of_the_card_is_left_behind(device: BenchDevice) -> None:
    preflight.check_whole(device.look_at_all(), device.host.functions())


@pytest.mark.catalogue("PF9")
@pytest.mark.danger(0)
@pytest.mark.needs(features=["pinned-memory"])
def test_the_host_has_memory_for_a_guest_with_any_of_its_devices(
    host: BenchHost, lab: Bench
) -> None:
    mine = [device for device in lab.devices.values() if device.host is host]
    for largest in sorted(mine, key=lambda device: device.guest_memory)[-1:]:
        room.check_memory([[largest]], lab.guests)


@pytest.mark.catalogue("PF11")
@pytest.mark.danger(0)
@pytest.mark.needs
def test_the_host_does_not_need_the_device_itself(device: BenchDevice) -> None:
    preflight.check_free(device.look())
