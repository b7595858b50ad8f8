"""The echo oracle: each packet crosses guest memory twice by DMA and comes back unchanged."""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import crosstalk
from hil.oracles.crosstalk import Pair
from hil.probes import nic


@pytest.mark.catalogue("DM1", bugs=[1])
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", peer=True)
def test_echoes_of_every_size_come_back_unchanged(device: BenchDevice, guest: Guest) -> None:
    peer = nic.join(guest, device)
    assert nic.echo(guest, peer) >= len(nic.SIZES)


@pytest.mark.catalogue("DM1")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", peer=True)
def test_control_lost_echoes_are_seen(device: BenchDevice, guest: Guest) -> None:
    peer = nic.join(guest, device)
    with pytest.raises(ProductError, match="lost or changed"):
        nic.echo(guest, nic.nobody(peer), sizes=nic.SIZES[:1])


@pytest.mark.catalogue("DM1")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", peer=True, features=["raw-frames"])
def test_control_changed_echoes_are_seen(device: BenchDevice, guest: Guest) -> None:
    peer = nic.join(guest, device)
    with nic.liar(peer) as liar, pytest.raises(ProductError, match="lost or changed"):
        nic.echo(guest, liar, sizes=nic.SIZES[:3])


@pytest.mark.catalogue("DM6")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="sriov", vfs=2, peer=True)
def test_two_guests_with_a_vf_each_never_see_each_others_bytes(
    two_guests_with_vfs: Pair,
) -> None:
    crosstalk.check_separate(two_guests_with_vfs)


@pytest.mark.catalogue("DM6")
@pytest.mark.danger(1)
@pytest.mark.needs(device="nic", capability="sriov", vfs=2, peer=True)
def test_control_a_leaked_tag_is_seen(two_guests_with_vfs: Pair) -> None:
    with pytest.raises(ProductError, match="bytes of the other"):
        crosstalk.check_separate(two_guests_with_vfs, leak=True)
