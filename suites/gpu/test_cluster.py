"""Several cards: in one guest, in a guest each, on several hosts; all of them at work at once."""

from __future__ import annotations

import pytest

from hil.bench import Bench, BenchDevice, GuestPool
from hil.errors import ProductError
from hil.oracles import cluster, crosstalk, iommu, peer_to_peer, pinned, room
from hil.oracles.crosstalk import Pair

Topology = tuple[tuple[BenchDevice, ...], ...]


@pytest.mark.catalogue("PF6", "PF9", bugs=[16])
@pytest.mark.danger(0)
@pytest.mark.needs(device=["gpu", "edu"], count=2)
def test_there_is_room_for_a_whole_cluster(topology: Topology, lab: Bench) -> None:
    room.check_bars(topology)
    room.check_memory(topology, lab.guests)
    room.check_vectors(topology)


@pytest.mark.catalogue("PF6", "PF9", bugs=[16])
@pytest.mark.danger(0)
@pytest.mark.needs(device=["gpu", "edu"], count=2, shape=["apart", "by-host"])
def test_control_what_a_cluster_has_no_room_for_is_told(topology: Topology, lab: Bench) -> None:
    with pytest.raises(ProductError, match="a guest has no room for BAR0"):
        room.check_bars(topology, extra=1 << 55)
    with pytest.raises(ProductError, match="the host has no memory for"):
        room.check_memory(topology, lab.guests, more=1 << 50)
    with pytest.raises(ProductError, match="there are too few interrupt vectors for"):
        room.check_vectors(topology, taken=1 << 20)


@pytest.mark.catalogue("GP1", "LC8", bugs=[16])
@pytest.mark.danger(2)
@pytest.mark.needs(device=["gpu", "edu"], count=2, guest="linux")
def test_all_cards_of_a_cluster_work_at_once(topology: Topology, lab: Bench) -> None:
    formed = lab.guests.form(*topology)
    cluster.check_complete(formed)
    cluster.check_all_at_once(formed)


@pytest.mark.catalogue("GP1")
@pytest.mark.danger(1)
@pytest.mark.needs(device=["gpu", "edu"], cluster="edu", shape="together", guest="linux")
def test_control_a_card_that_is_left_out_is_seen(topology: Topology, guests: GuestPool) -> None:
    (cards,) = topology
    formed = {guests.shared(*cards): cards}
    with pytest.raises(ProductError, match="did nothing"):
        cluster.check_all_at_once(formed, left_out=cards[-1])


@pytest.mark.catalogue("GP1")
@pytest.mark.danger(1)
@pytest.mark.needs(device=["gpu", "edu"], cluster="gpu", shape="together", guest="linux")
def test_control_a_vector_that_a_driver_did_not_get_is_seen(
    topology: Topology, guests: GuestPool
) -> None:
    (cards,) = topology
    with pytest.raises(ProductError, match="too few interrupt vectors"):
        cluster.check_vectors({guests.shared(*cards): cards}, more=1)


@pytest.mark.catalogue("IO6")
@pytest.mark.danger(2)
@pytest.mark.needs(
    device=["gpu", "edu"], cluster=["edu", "vram"], shape="together", features=["faults"]
)
def test_dma_at_another_cards_memory_is_correct_or_refused(
    topology: Topology, guests: GuestPool
) -> None:
    (cards,) = topology
    engine, memory = peer_to_peer.engine_and_memory(cards)
    peer_to_peer.check_transfers(guests.shared(*cards), engine, memory)


@pytest.mark.catalogue("IO6")
@pytest.mark.danger(2)
@pytest.mark.needs(
    device=["gpu", "edu"], cluster=["edu", "vram"], shape="together", features=["faults"]
)
def test_control_dma_that_lands_elsewhere_is_seen(topology: Topology, guests: GuestPool) -> None:
    (cards,) = topology
    engine, memory = peer_to_peer.engine_and_memory(cards)
    with pytest.raises(ProductError, match="silently wrong"):
        peer_to_peer.check_transfers(guests.shared(*cards), engine, memory, misplace=64)


@pytest.mark.catalogue("DM6", "IO7")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu", count=2, features=["guest-memory"], guest="linux")
def test_two_guests_with_an_engine_each_never_see_each_others_bytes(
    devices: tuple[BenchDevice, BenchDevice], guests: GuestPool
) -> None:
    first, second = (guests.shared(device) for device in devices)
    iommu.check_distinct(devices)
    crosstalk.check_engines_separate(Pair((first, second), devices))


@pytest.mark.catalogue("DM6")
@pytest.mark.danger(1)
@pytest.mark.needs(device="edu", count=2, features=["guest-memory"], guest="linux")
def test_control_an_engines_leaked_tag_is_seen(
    devices: tuple[BenchDevice, BenchDevice], guests: GuestPool
) -> None:
    first, second = (guests.shared(device) for device in devices)
    with pytest.raises(ProductError, match="bytes of the other guest"):
        crosstalk.check_engines_separate(Pair((first, second), devices), leak=True)


@pytest.mark.catalogue("LC7")
@pytest.mark.danger(1)
@pytest.mark.needs(
    device=["gpu", "edu"], count=2, shape=["apart", "by-host"], features=["pinned-memory"]
)
def test_control_a_guest_that_keeps_its_memory_is_seen(
    topology: Topology, guests: GuestPool
) -> None:
    for guest, cards in guests.form(*topology).items():
        host = cards[0].host
        with pytest.raises(ProductError, match="has given back 0 MiB"):
            pinned.check_given_back(host, guest, pinned.now(host))


@pytest.mark.catalogue("LC7", "LC8")
@pytest.mark.danger(1)
@pytest.mark.needs(device=["gpu", "edu"], count=2, features=["pinned-memory"])
def test_guests_of_a_cluster_pin_their_memory_and_give_it_back(
    topology: Topology, guests: GuestPool
) -> None:
    formed = guests.form(*topology)
    for host in {cards[0].host for cards in formed.values()}:
        pinned.check_held(host, guests.with_devices(host))
    for guest, cards in formed.items():
        host = cards[0].host
        before = pinned.now(host)
        guest.destroy()
        pinned.check_given_back(host, guest, before)
