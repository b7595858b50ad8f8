"""Controls: each preflight check refuses what it is there to refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hil.bench import Bench, BenchDevice
from hil.errors import ProductError
from hil.oracles import preflight
from hil.platforms.contract import Bar


@pytest.mark.catalogue("PF1")
@pytest.mark.danger(0)
def test_control_a_host_without_an_iommu_is_refused(lab_without_iommu: Bench) -> None:
    with pytest.raises(ProductError, match=r"no IOMMU|does not use it"):
        preflight.check_iommu(lab_without_iommu.host.facts())


@pytest.mark.catalogue("PF6", bugs=[16])
@pytest.mark.danger(0)
@pytest.mark.needs
def test_control_a_bar_that_no_guest_has_room_for_is_told(device: BenchDevice) -> None:
    function = device.look()
    large = Bar(0, 0, 1 << 55, memory=True, prefetchable=True, wide=True)
    found = {device.name: [replace(function, bars=(*function.bars, large))]}
    with pytest.raises(ProductError, match="a guest has no room for BAR0"):
        preflight.check_budget(found, device.host.bar_windows(), device.guest_memory)


@pytest.mark.catalogue("PF7")
@pytest.mark.danger(0)
@pytest.mark.needs(device="edu")
def test_control_a_device_with_no_reset_is_refused(device: BenchDevice) -> None:
    with pytest.raises(ProductError, match="no reset of its own"):
        preflight.check_reset(device.look())


@pytest.mark.catalogue("PF11")
@pytest.mark.danger(0)
def test_control_the_management_nic_is_refused(lab: Bench) -> None:
    management = [f for f in lab.host.functions() if f.in_use_as == "management NIC"]
    assert len(management) == 1, "the host's management NIC should be recognised"
    with pytest.raises(ProductError, match="management NIC"):
        preflight.check_free(management[0])


@pytest.mark.catalogue("PF4")
@pytest.mark.danger(0)
def test_control_a_function_without_msi_is_refused(lab: Bench) -> None:
    without = [f for f in lab.host.functions() if not f.config.msi and not f.config.msix]
    assert without, "every host has some such function, if only its host bridge"
    with pytest.raises(ProductError, match="neither MSI nor MSI-X"):
        preflight.check_interrupts(without[0])
