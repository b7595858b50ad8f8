"""The DMA oracles on an engine that copies rightly, and on engines that do not."""

from __future__ import annotations

import itertools

import pytest

from hil.bench import BenchDevice
from hil.errors import GuestError, ProductError
from hil.guests.guest import Guest
from hil.oracles import dma
from hil.oracles.dma import Copy, HostCanary, check_copies, default_copies, edge_copies
from hil.platforms.contract import GuestSpec
from hil.probes.edu import EduEngine
from tests.fakes import NIC, FakeMachine, FakeOS, FakePlatform, bench_device, silent
from tests.oracles.engine import BASE, MEMORY, WHERE, EduAgent, engine

ALL = (*default_copies(), *edge_copies())


@pytest.fixture(autouse=True)
def known_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stray byte equals the one it falls on once in 256 times: not by chance here."""
    tags = itertools.count(0x5AC30F, 0x10F3B)
    monkeypatch.setattr("hil.oracles.dma.secrets.randbits", lambda bits: next(tags) % (1 << bits))


def test_an_engine_that_copies_rightly_passes() -> None:
    assert check_copies(engine(), MEMORY, ALL) == len(ALL)


@pytest.mark.parametrize("copy", ALL, ids=lambda c: f"{c.source:x}-{c.destination:x}-{c.length}")
@pytest.mark.parametrize(
    "fault",
    ["nothing", "old data", "one more", "one less", "eight on", "eight back", "a page on", "a bit"],
)
def test_a_wrong_engine_fails_every_single_copy(fault: str, copy: Copy) -> None:
    with pytest.raises(ProductError, match="DMA moved wrong bytes") as caught:
        check_copies(engine(fault), MEMORY, [copy])
    assert f"{copy.length} bytes from +{copy.source:#x}" in caught.value.seen


def test_the_bytes_of_the_copy_before_are_not_taken_for_new_ones() -> None:
    copy = Copy(0x10000, 0x80000, 64)
    check_copies(engine("new data once"), MEMORY, [copy])
    with pytest.raises(ProductError):
        check_copies(engine("new data once"), MEMORY, [copy, copy])


@pytest.mark.parametrize("spoil", [dma.flip_a_bit, dma.one_byte_more])
def test_each_control_fails(spoil: dma.Spoil) -> None:
    with pytest.raises(ProductError):
        check_copies(engine(), MEMORY, default_copies(), spoil=spoil)


def test_copies_cover_what_they_promise() -> None:
    assert {1, 4096} <= {copy.length for copy in default_copies()}
    assert {copy.source % 8 for copy in default_copies()} == set(range(8))
    assert any(c.destination % 4096 + c.length > 4096 for c in edge_copies())
    for copy in ALL:
        assert copy.length <= 4096
        assert copy.source + copy.length + dma.RED_ZONE <= copy.destination - dma.RED_ZONE


def guest_with(edu: EduEngine) -> Guest:
    machine = FakeMachine(GuestSpec("g1", "linux", devices=(NIC,)), silent())
    agent = edu.agent
    assert isinstance(agent, EduAgent)
    machine.memory = lambda at, length: bytes(agent.page[at - BASE : at - BASE + length])
    return Guest(machine, FakeOS())


def test_memory_seen_from_outside() -> None:
    edu = engine()
    dma.check_seen_from_outside(guest_with(edu), edu, MEMORY)
    with pytest.raises(ProductError, match="guest memory read from outside"):
        dma.check_seen_from_outside(guest_with(edu), edu, MEMORY, misplace=64)
    with pytest.raises(ProductError):
        dma.check_seen_from_outside(guest_with(engine()), engine("nothing"), MEMORY)


HOST = 0x4000_0000
"""Where the guest's huge page lies in the host."""


class Mirror:
    """Host memory: the tables, and the guest's page at HOST."""

    def __init__(self, platform: FakePlatform, agent: EduAgent) -> None:
        self._image = platform.image
        self._agent = agent

    def read(self, address: int, length: int) -> bytes:
        if address >= HOST:
            return bytes(self._agent.page[address - HOST : address - HOST + length])
        return self._image.read(address, length)


def through_tables(edu: EduEngine, mapped_to: int | None) -> tuple[BenchDevice, Guest]:
    device, platform = bench_device()
    table = platform.image.context(NIC.requester_id)
    if mapped_to is not None:
        platform.image.map(table, 48, BASE, mapped_to, level=2)
    agent = edu.agent
    assert isinstance(agent, EduAgent)
    memory = Mirror(platform, agent)
    platform.physical_memory = lambda deadline: memory  # type: ignore[method-assign]
    return device, guest_with(edu)


def test_memory_where_the_tables_lead() -> None:
    edu = engine()
    dma.check_through_tables(*through_tables(edu, HOST), edu, MEMORY)
    with pytest.raises(ProductError, match="which its tables do not map"):
        dma.check_through_tables(*through_tables(edu, None), edu, MEMORY)
    with pytest.raises(ProductError, match="host memory where the tables lead"):
        dma.check_through_tables(*through_tables(edu, HOST + (2 << 20)), edu, MEMORY)


def test_canary() -> None:
    device, platform = bench_device()
    canary = HostCanary(device.host)
    canary.check_intact()
    canary.spoil()
    with pytest.raises(ProductError, match="1 pages of the canary") as caught:
        canary.check_intact()
    assert caught.value.host == "lab1"
    canary.close()
    assert platform.canaries[0].closed


def test_an_engine_is_known_by_its_identification() -> None:
    with pytest.raises(GuestError, match="reads 0xffffffff"):
        EduEngine(EduAgent(identification=0xFFFF_FFFF), WHERE)
    edu = engine()
    assert edu.alive()
    edu.copy_in(BASE + 16, 8)
    assert edu.registers() == {"source": BASE + 16, "destination": 0x40000, "count": 8}
