"""Several cards: all at once, DMA at one another, and what the next guest finds."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hil.bench import BenchDevice
from hil.errors import LabError, ProductError
from hil.guests.guest import Guest
from hil.iommu.faults import parse_fault_log
from hil.oracles import cluster, peer_to_peer, remnant
from hil.oracles.pattern import tagged
from hil.oracles.peer_to_peer import Outcome
from hil.pci.address import Address
from hil.platforms.contract import Bar
from hil.probes import device_memory
from hil.probes.device_memory import PAGE, DeviceMemory, Trace
from hil.probes.remote import in_guest
from tests.fakes import FakePlatform, bench_device, function

# ---- all at once -----------------------------------------------------------------------


class QuietGuest:
    """A guest that only says how long one may wait."""

    name = "g1"

    def limit(self, seconds: float, what: str) -> Any:
        from hil.deadline import Deadline

        return Deadline(seconds, what)


def held(*names: str) -> dict[Guest, tuple[BenchDevice, ...]]:
    guest: Any = QuietGuest()
    return {guest: tuple(bench_device(name)[0] for name in names)}


Work = Callable[[Guest, BenchDevice, Callable[[], None]], None]


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> Callable[[Work], None]:
    """Puts another work in the place of drawing and copying."""
    return lambda work: monkeypatch.setattr(cluster, "_work_of", lambda _: work)


def test_all_begin_when_all_are_ready(working: Callable[[Work], None]) -> None:
    ready: list[str] = []
    seen: list[int] = []

    def work(guest: Guest, device: BenchDevice, together: Callable[[], None]) -> None:
        ready.append(device.name)
        together()
        seen.append(len(ready))

    working(work)
    cluster.check_all_at_once(held("a", "b", "c"))
    assert seen == [3, 3, 3]


def test_a_card_that_was_left_out_is_seen(working: Callable[[Work], None]) -> None:
    working(lambda guest, device, together: together())
    formed = held("a", "b", "c")
    (cards,) = formed.values()
    with pytest.raises(ProductError, match="1 of 3 cards did nothing") as caught:
        cluster.check_all_at_once(formed, left_out=cards[1])
    assert caught.value.seen == str(cards[1])


def test_the_card_that_failed_is_told_and_not_those_that_waited(
    working: Callable[[Work], None],
) -> None:
    def work(guest: Guest, device: BenchDevice, together: Callable[[], None]) -> None:
        if device.name == "b":
            raise ProductError("wrong pixels")
        together()

    working(work)
    with pytest.raises(ProductError, match="wrong pixels"):
        cluster.check_all_at_once(held("a", "b", "c"))


def test_a_card_for_which_no_work_is_known(working: Callable[[Work], None]) -> None:
    with pytest.raises(LabError, match="nothing is known that a"):
        cluster.check_all_at_once(held("a"))


# ---- memory in a BAR -------------------------------------------------------------------

TAG = 0x5A1234
AT = Address.parse("0000:00:10.0")
BASE = 0xE000_0000
SIZE = 8 * PAGE


class FakeCard(in_guest.Device):
    """A function with a BAR of memory, as the in-guest driver has it."""

    def __init__(self) -> None:
        self.bars = {0: mmap.mmap(-1, SIZE)}


class FakeAgent:
    """The in-guest driver's own functions, without a guest."""

    def ask(self, what: str, *, seconds: float = 20, **arguments: object) -> Any:
        return getattr(in_guest, f"do_{what}")(**arguments)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> DeviceMemory:
    monkeypatch.setitem(in_guest.devices, str(AT), FakeCard())
    agent: Any = FakeAgent()
    return DeviceMemory(agent, AT, 0, BASE, 2 * PAGE, SIZE - 2 * PAGE)


def test_a_pattern_is_found_where_it_was_written(memory: DeviceMemory) -> None:
    assert memory.search(TAG) == ()
    memory.mark(TAG)
    assert memory.search(TAG) == (Trace(2 * PAGE, 2 * PAGE, SIZE - 2 * PAGE),)
    assert memory.search(TAG + 1) == ()
    whole = tagged(TAG, 2 * PAGE, SIZE - 2 * PAGE)
    assert memory.get(2 * PAGE, SIZE - 2 * PAGE) == whole
    assert memory.get(0, 2 * PAGE) == bytes(2 * PAGE)


def test_what_is_left_of_a_pattern_is_told_in_pieces(memory: DeviceMemory) -> None:
    memory.mark(TAG)
    memory.put(3 * PAGE, bytes(SIZE - 3 * PAGE))
    memory.put(5 * PAGE, tagged(TAG, 0x9000, 16))
    assert memory.search(TAG) == (
        Trace(2 * PAGE, 2 * PAGE, PAGE),
        Trace(5 * PAGE, 0x9000, 16),
    )
    device, _ = bench_device("vram0")
    with pytest.raises(ProductError, match="a data leak") as caught:
        remnant.check_nothing_left(memory, device, TAG)
    assert "0x1010 of the 0x6000 bytes searched" in caught.value.seen
    assert "0x10 bytes at 0x5000, written at 0x9000" in caught.value.seen


def test_nothing_left_is_no_finding(memory: DeviceMemory) -> None:
    device, _ = bench_device("vram0")
    memory.mark(TAG + 1)
    remnant.check_nothing_left(memory, device, TAG)


@pytest.mark.parametrize(
    ("bar", "memory"),
    [
        (Bar(0, BASE, 1 << 20, memory=True, prefetchable=True), True),
        (Bar(0, BASE, 1 << 19, memory=True, prefetchable=True), False),
        (Bar(0, BASE, 1 << 20, memory=True), False),
    ],
)
def test_which_bars_are_memory(bar: Bar, memory: bool) -> None:
    assert device_memory.is_memory(bar) is memory


# ---- DMA at another card's memory --------------------------------------------------------

FAULT = (
    "DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0xe0002000 "
    "[fault reason 0x05] PTE Write access is not set"
)


@dataclass
class FakeRam:
    """A guest's memory for DMA."""

    content: bytearray = field(default_factory=lambda: bytearray(4 * PAGE))

    def physical(self, offset: int) -> int:
        return 0x10_0000 + offset


class FakeRamAgent:
    def __init__(self, ram: FakeRam) -> None:
        self.ram = ram

    def fill(self, memory: FakeRam, offset: int, data: bytes) -> None:
        memory.content[offset : offset + len(data)] = data

    def dump(self, memory: FakeRam, offset: int, length: int) -> bytes:
        return bytes(memory.content[offset : offset + length])


class FakeEngine:
    """Copies between the guest's memory and the card's, as far as ``way`` says.

    ``correct``; ``faults``: refused, with a fault; ``lost``: refused without a word; ``one-way``:
    writes pass, reads fault.
    """

    def __init__(self, ram: FakeRam, card: DeviceMemory, platform: FakePlatform, way: str) -> None:
        self.agent = FakeRamAgent(ram)
        self.ram, self.card, self.platform, self.way = ram, card, platform, way
        self.buffer = bytes(PAGE)

    def copy_in(self, physical: int, length: int) -> None:
        if physical < BASE:
            self.buffer = self.agent.dump(self.ram, physical - 0x10_0000, length)
        elif self.way == "correct":
            self.buffer = self.card.get(physical - BASE, length)
        else:
            self.buffer = b"\xff" * length
            self._fault()

    def copy_out(self, physical: int, length: int) -> None:
        if physical < BASE:
            self.agent.fill(self.ram, physical - 0x10_0000, self.buffer[:length])
        elif self.way in ("correct", "one-way"):
            self.card.put(physical - BASE, self.buffer[:length])
        else:
            self._fault()

    def _fault(self) -> None:
        if self.way != "lost":
            self.platform.fault_log += list(parse_fault_log(FAULT))


@dataclass
class Bed:
    check: Callable[..., Outcome]
    platform: FakePlatform


@pytest.fixture
def bed(memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Bed]:
    import contextlib

    def make(way: str) -> Bed:
        engine, platform = bench_device("edu0")
        target, _ = bench_device("vram0", platform=platform)
        ram = FakeRam()

        @contextlib.contextmanager
        def there(*_: object) -> Iterator[DeviceMemory]:
            yield memory

        @contextlib.contextmanager
        def engine_of(*_: object) -> Iterator[tuple[FakeEngine, FakeRam]]:
            yield FakeEngine(ram, memory, platform, way), ram

        monkeypatch.setattr(peer_to_peer, "device_memory", there)
        monkeypatch.setattr(peer_to_peer, "edu_engine", engine_of)
        guest: Any = QuietGuest()

        def check(**options: int) -> Outcome:
            return peer_to_peer.check_transfers(guest, engine, target, **options)

        return Bed(check, platform)

    return make


def test_dma_that_arrives_where_it_may(bed: Callable[[str], Bed]) -> None:
    made = bed("correct")
    made.platform.peer_to_peer = True
    assert made.check() is Outcome.CORRECT


@pytest.mark.parametrize("promise", [True, False])
def test_dma_that_is_refused_with_a_fault(bed: Callable[[str], Bed], promise: bool) -> None:
    made = bed("faults")
    made.platform.peer_to_peer = promise
    assert made.check() is Outcome.REFUSED


def test_dma_that_arrives_where_it_is_not_mapped(bed: Callable[[str], Bed]) -> None:
    with pytest.raises(ProductError, match="which fake does not map for it"):
        bed("correct").check()


@pytest.mark.parametrize("misplace", [-64, 64, PAGE])
def test_dma_that_lands_elsewhere_is_seen(bed: Callable[[str], Bed], misplace: int) -> None:
    made = bed("correct")
    made.platform.peer_to_peer = True
    with pytest.raises(ProductError, match="silently wrong"):
        made.check(misplace=misplace)


def test_dma_that_is_lost_without_a_word_is_seen(bed: Callable[[str], Bed]) -> None:
    with pytest.raises(ProductError, match="silently wrong"):
        bed("lost").check()


def test_dma_that_passes_one_way_only_is_seen(bed: Callable[[str], Bed]) -> None:
    with pytest.raises(ProductError, match="one way only"):
        bed("one-way").check()


def test_an_old_fault_excuses_nothing(bed: Callable[[str], Bed]) -> None:
    made = bed("lost")
    made.platform.fault_log += list(parse_fault_log(FAULT))
    with pytest.raises(ProductError, match="silently wrong"):
        made.check()


def test_engine_and_memory_among_a_guests_cards() -> None:
    engine, platform = bench_device("edu0")
    engine.kind = "edu"
    other = Address.parse("0000:09:00.0")
    vram = Bar(0, BASE, 4 << 20, memory=True, prefetchable=True)
    platform.known[other] = replace(function(other), bars=(vram,))
    card, _ = bench_device("vram0", other, platform)
    assert peer_to_peer.engine_and_memory([card, engine]) == (engine, card)
    with pytest.raises(LabError, match="no DMA engine"):
        peer_to_peer.engine_and_memory([card])
