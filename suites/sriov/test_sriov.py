"""Virtual functions that come and go after the IOMMU was set up."""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice
from hil.errors import ProductError, RefusalError
from hil.oracles import iommu, isolation, ownership
from hil.oracles.crosstalk import Pair
from hil.platforms.contract import Phase
from hil.probes import nic

pytestmark = pytest.mark.needs(device="nic", capability="sriov", vfs=2, peer=True)


@pytest.mark.catalogue("HP1", bugs=[5, 8])
@pytest.mark.danger(1)
@pytest.mark.needs(features=["tables"])
def test_vfs_made_later_get_entries_of_their_own_and_lose_them(
    device: BenchDevice, lab: Bench
) -> None:
    iommu.switch_on(device, lab.guests)
    with lab.vfs(device, 2) as vfs:
        for vf in vfs:
            iommu.check_phase(vf, Phase.BOOT)
        if not device.host.platform.one_host_domain:
            iommu.check_distinct((device, *vfs))
    for vf in vfs:
        iommu.check_no_ghost(vf)


@pytest.mark.catalogue("HP1", bugs=[5])
@pytest.mark.danger(1)
@pytest.mark.needs(features=["tables"])
def test_control_the_entry_of_a_living_vf_passes_for_a_ghost(
    device: BenchDevice, lab: Bench
) -> None:
    iommu.switch_on(device, lab.guests)
    with lab.vfs(device, 1) as (vf,), pytest.raises(ProductError, match="still has an entry"):
        iommu.check_no_ghost(vf)


@pytest.mark.catalogue("HP1")
@pytest.mark.danger(1)
def test_dma_of_a_vf_works_in_a_guest(two_guests_with_vfs: Pair) -> None:
    guest, vf = two_guests_with_vfs.guests[0], two_guests_with_vfs.devices[0]
    nic.echo(guest, nic.join(guest, vf))


@pytest.mark.catalogue("HP2")
@pytest.mark.danger(1)
def test_vfs_cannot_be_taken_away_while_a_guest_has_one(
    two_guests_with_vfs: Pair,
) -> None:
    guest, vf = two_guests_with_vfs.guests[0], two_guests_with_vfs.devices[0]
    with pytest.raises(RefusalError, match=r"held by a guest|a guest holds one"):
        isolation.take_vfs_away(vf)
    ownership.check_guest_sees(guest, vf)


@pytest.mark.catalogue("HP5")
@pytest.mark.danger(0)
def test_a_vf_gets_no_frames_for_another_address(two_guests_with_vfs: Pair) -> None:
    isolation.check_unicast_is_private(two_guests_with_vfs)


@pytest.mark.catalogue("HP5")
@pytest.mark.danger(0)
def test_control_frames_for_everybody_reach_the_other_vf(
    two_guests_with_vfs: Pair,
) -> None:
    with pytest.raises(ProductError, match="frames for"):
        isolation.check_unicast_is_private(two_guests_with_vfs, broadcast=True)
