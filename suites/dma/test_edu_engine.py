"""A DMA engine driven from the guest: exact bytes, and nothing beside them."""

from __future__ import annotations

import pytest

from hil.bench import BenchDevice
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles import dma
from hil.probes.edu import edu_engine


@pytest.mark.catalogue("DM1")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu")
def test_patterns_of_every_size_and_alignment_arrive_exactly(
    device: BenchDevice, guest: Guest
) -> None:
    with edu_engine(guest, device) as (engine, memory):
        assert dma.check_copies(engine, memory, dma.default_copies()) > 20


@pytest.mark.catalogue("DM1")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu")
def test_control_one_flipped_bit_is_seen(device: BenchDevice, guest: Guest) -> None:
    with edu_engine(guest, device) as (engine, memory):
        with pytest.raises(ProductError, match="wrong bytes"):
            dma.check_copies(engine, memory, dma.default_copies()[:3], spoil=dma.flip_a_bit)


@pytest.mark.catalogue("DM3")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu")
def test_red_zones_around_each_destination_stay_intact(device: BenchDevice, guest: Guest) -> None:
    with edu_engine(guest, device) as (engine, memory):
        dma.check_copies(engine, memory, dma.edge_copies())


@pytest.mark.catalogue("DM3")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu")
def test_control_dma_one_byte_too_long_is_seen(device: BenchDevice, guest: Guest) -> None:
    with edu_engine(guest, device) as (engine, memory):
        with pytest.raises(ProductError, match="wrong bytes"):
            dma.check_copies(engine, memory, dma.edge_copies()[:2], spoil=dma.one_byte_more)


@pytest.mark.catalogue("DM3")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu")
def test_host_memory_stays_intact_during_dma(
    device: BenchDevice, guest: Guest, canary: dma.HostCanary
) -> None:
    with edu_engine(guest, device) as (engine, memory):
        dma.check_copies(engine, memory, dma.edge_copies())
    canary.check_intact()


@pytest.mark.catalogue("DM3")
@pytest.mark.danger(0)
def test_control_one_changed_byte_of_host_memory_is_seen(canary: dma.HostCanary) -> None:
    canary.check_intact()
    canary.spoil()
    with pytest.raises(ProductError, match="host memory changed"):
        canary.check_intact()


@pytest.mark.catalogue("DM7")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu", features=["guest-memory"])
def test_the_hypervisor_sees_what_the_device_wrote(device: BenchDevice, guest: Guest) -> None:
    with edu_engine(guest, device) as (engine, memory):
        dma.check_seen_from_outside(guest, engine, memory)


@pytest.mark.catalogue("DM7")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu", features=["guest-memory"])
def test_control_dma_to_another_place_is_seen_from_outside(
    device: BenchDevice, guest: Guest
) -> None:
    with edu_engine(guest, device) as (engine, memory):
        with pytest.raises(ProductError, match="from outside"):
            dma.check_seen_from_outside(guest, engine, memory, misplace=dma.PAGE)


@pytest.mark.catalogue("DM7")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu", features=["tables", "physical-memory"])
def test_host_memory_holds_the_bytes_where_the_tables_lead(
    device: BenchDevice, guest: Guest
) -> None:
    with edu_engine(guest, device) as (engine, memory):
        dma.check_through_tables(device, guest, engine, memory)
