"""Is a function quiet and clean between two owners?"""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice, GuestPool
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import reset, traffic
from hil.oracles.crosstalk import Pair
from hil.oracles.dma import HostCanary
from hil.probes import nic


@pytest.mark.catalogue("RS1", bugs=[6, 10])
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme"], capability="flr")
def test_registers_are_at_their_defaults_after_a_guest_powered_off(
    device: BenchDevice, last_guest: Guest
) -> None:
    last_guest.power_off()
    last_guest.destroy()
    reset.check_quiet(
        device.config_as_reserved,
        device.look().config,
        f"{device} after the guest's power-off",
        mastering=device.host.platform.masters_while_idle,
    )


@pytest.mark.catalogue("RS2", bugs=[3, 6])
@pytest.mark.danger(3)
@pytest.mark.needs(device="nic", capability="flr", peer=True)
def test_a_guest_killed_at_full_receive_rate_leaves_no_dma_behind(
    device: BenchDevice, guests: GuestPool, canary: HostCanary, watch: float
) -> None:
    guest = guests.shared(device)
    peer = nic.join(guest, device)
    with traffic.full_rate(guest, device, peer) as still_sending:
        guest.kill()
        guest.destroy()
        with traffic.canary_in_freed_memory(device) as freed:
            traffic.check_nothing_arrives(device, [canary, freed], watch)
        still_sending()


@pytest.mark.catalogue("RS2")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="flr", peer=True)
def test_control_late_dma_into_a_canary_is_seen(device: BenchDevice, canary: HostCanary) -> None:
    canary.spoil()
    with pytest.raises(ProductError, match="host memory changed"):
        traffic.check_nothing_arrives(device, [canary], 0.0)


@pytest.mark.catalogue("RS3", bugs=[29])
@pytest.mark.danger(1)
@pytest.mark.needs(capability="flr")
def test_a_reset_waits_long_enough_and_ends_in_time(device: BenchDevice, guests: GuestPool) -> None:
    guests.release(device)
    device.reserve()
    assert reset.timed_reset(device) >= reset.FLR_WAIT


@pytest.mark.catalogue("RS4", bugs=[6, 29, 30])
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme"], capability="flr")
def test_a_sentinel_register_does_not_survive_the_reset(
    device: BenchDevice, guests: GuestPool
) -> None:
    guests.release(device)
    device.reserve()
    mark = reset.plant(device)
    reset.timed_reset(device)
    reset.check_gone(device, mark)


@pytest.mark.catalogue("RS4", bugs=[6])
@pytest.mark.danger(1)
@pytest.mark.needs(device=["nic", "nvme"], capability="flr")
def test_a_sentinel_register_does_not_reach_the_next_guest(
    device: BenchDevice, guests: GuestPool
) -> None:
    guests.release(device)
    device.reserve()
    mark = reset.plant(device)
    guests.prepare(device).destroy()
    reset.check_gone(device, mark)


@pytest.mark.catalogue("RS5", bugs=[3])
@pytest.mark.danger(1)
@pytest.mark.needs
def test_a_device_that_nobody_owns_can_do_no_dma(used_device: BenchDevice) -> None:
    reset.check_cannot_reach_memory(used_device)


@pytest.mark.catalogue("RS5")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu")
def test_control_bus_mastering_left_on_is_seen(device: BenchDevice, guests: GuestPool) -> None:
    guests.release(device)
    device.reserve()
    if device.host.platform.masters_while_idle:
        # The tables would block it; those of a device on the host do not.
        device.give_back()
    with reset.bus_mastering(device), pytest.raises(ProductError, match="bus mastering is on"):
        reset.check_cannot_reach_memory(device)


@pytest.mark.catalogue("RS6", bugs=[19])
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="flr", peer=True)
def test_traffic_goes_on_after_a_reset_by_the_guest(device: BenchDevice, guest: Guest) -> None:
    peer = nic.join(guest, device)
    nic.echo(guest, peer, sizes=nic.SIZES[-2:])
    guest.reset_function(device.address)
    peer = nic.join(guest, device)
    nic.echo(guest, peer, sizes=nic.SIZES[-2:])


@pytest.mark.catalogue("RS7")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="sriov", vfs=2, peer=True)
def test_a_sibling_keeps_its_traffic_during_a_reset(
    two_guests_with_vfs: Pair,
) -> None:
    traffic.check_sibling_undisturbed(two_guests_with_vfs)


@pytest.mark.catalogue("RS9", bugs=[29, 30])
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="pm", without="flr")
def test_control_a_reset_that_changes_nothing_is_seen(
    device: BenchDevice, guests: GuestPool
) -> None:
    guests.release(device)
    device.reserve()
    mark = reset.plant(device)
    reset.d3_reset(device)
    with pytest.raises(ProductError, match="survived the reset"):
        reset.check_gone(device, mark)


@pytest.mark.catalogue("RS9")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu")
def test_control_a_device_whose_state_no_reset_clears_is_seen(
    device: BenchDevice, guests: GuestPool
) -> None:
    guests.release(device)
    device.reserve()
    mark = reset.plant(device)
    guests.prepare(device).destroy()
    with pytest.raises(ProductError, match="survived the reset"):
        reset.check_gone(device, mark)
