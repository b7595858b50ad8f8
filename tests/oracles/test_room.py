"""Room for a whole cluster, and what its guests pin, on hosts held in memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hil.bench import BenchDevice, GuestPool
from hil.deadline import Deadline
from hil.errors import InventoryError, LabError, ProductError
from hil.guests.os import SeenFunction
from hil.oracles import cluster, pinned, room
from hil.pci.address import Address
from hil.pci.vectors import VectorLimits
from hil.platforms.bar_windows import BHYVE
from hil.platforms.contract import GuestSpec
from hil.platforms.pinning import MIB, Pinning
from tests.fakes import DISK, NIC, FakePlatform, bench_device, config, function

GIB = 1 << 30
MSIX = (0x11, struct.pack("<HII", 2, 0, 0x2000))
#: Ids and class of a virtio-gpu, whose driver asks for three vectors.
_GPU = bytearray(config(0x1AF4, 0x1050, capabilities=[MSIX]).data)
_GPU[0x0B] = 0x03
GPU = type(config())(bytes(_GPU))


class Host(FakePlatform):
    """A host that says what memory and vectors it has."""

    memory: Pinning | None = Pinning(GIB, "MemAvailable", 512 * MIB, True, overhead=MIB)
    vectors: VectorLimits | None = VectorLimits("it says so", 200, 20, True)

    def pinning(self, deadline: Deadline) -> Pinning | None:
        deadline.check()
        return self.memory

    def vector_limits(self, deadline: Deadline) -> VectorLimits | None:
        deadline.check()
        return self.vectors

    def bar_windows(self, deadline: Deadline) -> Any:
        deadline.check()
        return BHYVE


@pytest.fixture
def host() -> Host:
    return Host(function(NIC, config=GPU), function(DISK, config=GPU))


@pytest.fixture
def cards(host: Host) -> tuple[BenchDevice, BenchDevice]:
    first, _ = bench_device("gpu0", NIC, host)
    second = BenchDevice("gpu1", "gpu", first.host, (DISK,))
    return first, second


def test_there_is_room(cards: tuple[BenchDevice, BenchDevice]) -> None:
    first, second = cards
    for groups in ([[first, second]], [[first], [second]]):
        room.check_bars(groups)
        room.check_memory(groups, GuestPool("linux"))
        room.check_vectors(groups)


def test_the_guest_without_room_is_named(cards: tuple[BenchDevice, BenchDevice]) -> None:
    groups = [[card] for card in cards]
    with pytest.raises(ProductError, match=r"no room for BAR0 of 0000:01:00\.0") as caught:
        room.check_bars(groups, extra=1 << 40)
    assert caught.value.host == "lab1"
    with pytest.raises(ProductError, match="no memory for gpu1") as caught:
        room.check_memory(groups, GuestPool("linux"), more=GIB)
    assert caught.value.host == "lab1"
    assert "gpu0, 256 MiB: fits" in caught.value.seen
    with pytest.raises(ProductError, match=r"vectors for 0000:02:00\.0\b") as caught:
        room.check_vectors(groups, taken=176)
    assert "it takes 3" in caught.value.seen


def test_a_host_that_tells_nothing(host: Host, cards: tuple[BenchDevice, BenchDevice]) -> None:
    host.memory = host.vectors = None
    with pytest.raises(LabError, match="does not tell how much memory"):
        room.check_memory([cards], GuestPool("linux"))
    with pytest.raises(LabError, match="does not tell how many interrupt vectors"):
        room.check_vectors([cards])
    with pytest.raises(LabError, match="does not tell how much memory is pinned"):
        pinned.now(cards[0].host)


# ---- forming a topology -------------------------------------------------------------------


def test_no_guest_is_made_where_not_all_have_memory(
    host: Host, cards: tuple[BenchDevice, BenchDevice]
) -> None:
    first, second = cards
    second.guest_memory = 4 * GIB
    with pytest.raises(
        InventoryError, match="lab1 has no memory for the guest with gpu1"
    ) as caught:
        GuestPool("linux").form([first], [second])
    assert host.log == []
    assert "gpu1, 4096 MiB: NO MEMORY, 3328 MiB too few" in caught.value.seen
    assert "all of them fit with 512 MiB each; as they are, only gpu0 together" in caught.value.hint


def test_what_a_guest_has_that_serves_again_counts_as_free(
    host: Host, cards: tuple[BenchDevice, BenchDevice]
) -> None:
    pool = GuestPool("linux")
    first, second = cards
    assert host.memory is not None
    pool.prepare(first)
    host.memory = replace(host.memory, free=256 * MIB)
    left = pool.memory_left(first.host, [[first], [second]])
    assert left is not None
    assert left.free == 512 * MIB
    room.check_memory([[first], [second]], pool)
    other = pool.memory_left(first.host, [[second]])
    assert other is not None
    assert other.free == 256 * MIB
    assert [guest.name for guest in pool.with_devices(first.host)] == ["gpu0-1"]
    pool.close()


# ---- what is pinned -----------------------------------------------------------------------


@dataclass
class QuietMachine:
    spec: GuestSpec


@dataclass(eq=False)
class QuietGuest:
    """A guest that only says what it has."""

    name: str = "g1"
    memory: int = 256 * MIB
    vectors: int = 3
    driver: str | None = "virtio-pci"
    machine: QuietMachine = field(init=False)

    def __post_init__(self) -> None:
        self.machine = QuietMachine(GuestSpec(self.name, "linux", memory=self.memory))

    def address_of(self, address: Address) -> Address:
        return address

    def seen(self, address: Address) -> SeenFunction:
        return SeenFunction(address, 0x1AF4, 0x1050, self.driver)

    def interrupts(self, _address: Address) -> dict[str, int]:
        return {f"{n} PCI-MSI {n}-edge virtio3": 1 for n in range(self.vectors)}


@pytest.mark.parametrize("now", [512, 513])
def test_pinned_is_what_the_guests_have(
    host: Host, cards: tuple[BenchDevice, BenchDevice], now: int
) -> None:
    guests: Any = [QuietGuest("a"), QuietGuest("b")]
    host.memory = Pinning(GIB, "", now * MIB, True, overhead=MIB)
    pinned.check_held(cards[0].host, guests)


@pytest.mark.parametrize("now", [511, 515])
def test_pinned_is_not_what_the_guests_have(
    host: Host, cards: tuple[BenchDevice, BenchDevice], now: int
) -> None:
    guests: Any = [QuietGuest("a"), QuietGuest("b")]
    host.memory = Pinning(GIB, "", now * MIB, True, overhead=MIB)
    with pytest.raises(ProductError, match=f"{now} MiB are pinned on lab1.* have 512 MiB"):
        pinned.check_held(cards[0].host, guests)


def test_other_programs_may_have_pinned_more(
    host: Host, cards: tuple[BenchDevice, BenchDevice]
) -> None:
    guests: Any = [QuietGuest("a")]
    host.memory = Pinning(GIB, "", 512 * MIB)
    pinned.check_held(cards[0].host, guests)
    host.memory = Pinning(GIB, "", None)
    with pytest.raises(LabError, match="shared, and does not tell which run's"):
        pinned.check_held(cards[0].host, guests)


def test_what_a_guest_has_not_given_back(
    host: Host, cards: tuple[BenchDevice, BenchDevice]
) -> None:
    guest: Any = QuietGuest("a")
    pinned.check_given_back(cards[0].host, guest, 768 * MIB)
    for before, returned in ((512, 0), (600, 88), (770, 258)):
        with pytest.raises(ProductError, match=f"has given back {returned} MiB"):
            pinned.check_given_back(cards[0].host, guest, before * MIB)


# ---- vectors of guests that run -------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "outside", "enough"), [(3, 3, True), (2, 3, False), (3, 2, False), (0, 0, False)]
)
def test_each_driver_gets_the_vectors_that_it_asks_for(
    host: Host,
    cards: tuple[BenchDevice, BenchDevice],
    inside: int,
    outside: int,
    enough: bool,
) -> None:
    shared = {"20 IR-IO-APIC 20-fasteoi vfio-intx(0000:01:00.0)": 0}
    mine = {f"{n} IR-PCI-MSI vfio-msix[{n}](0000:01:00.0)": 1 for n in range(outside)}
    others = {f"{n} IR-PCI-MSI vfio-msix[{n}](0000:07:00.0)": 1 for n in range(9)}
    host.counts = [{**shared, **mine, **others}]
    guest: Any = QuietGuest(vectors=inside)
    formed = {guest: cards[:1]}
    if enough:
        assert cluster.check_vectors(formed) == (
            "0000:01:00.0 in guest g1: 3 of 3, its driver asks for 3 or more; 3 on the host",
        )
        with pytest.raises(ProductError, match="asks for 4 or more"):
            cluster.check_vectors(formed, more=1)
    else:
        with pytest.raises(ProductError, match=r"0000:01:00\.0 have too few interrupt vectors"):
            cluster.check_vectors(formed)


def test_bhyve_s_stub_has_lines_of_its_own_name(
    host: Host, cards: tuple[BenchDevice, BenchDevice]
) -> None:
    host.counts = [{"irq29 ppt0": 1, "irq30 ppt0": 0, "irq31 ppt0": 0}]
    guest: Any = QuietGuest()
    (told,) = cluster.check_vectors({guest: cards[:1]})
    assert told.endswith("3 on the host")


def test_a_function_that_no_driver_has_asks_for_none(
    cards: tuple[BenchDevice, BenchDevice],
) -> None:
    guest: Any = QuietGuest(driver=None)
    assert cluster.check_vectors({guest: cards[:1]}) == (
        "0000:01:00.0 in guest g1: no driver has it",
    )
