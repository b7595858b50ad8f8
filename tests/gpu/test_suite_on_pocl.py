"""The suite of compute memory itself, on PoCL in place of a card in a guest."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hil import events
from hil.errors import GuestError, ProductError
from hil.guests.guest import Guest
from hil.oracles import gpu_memory
from hil.platforms.contract import GuestSpec
from hil.probes.compute import Compute, Moved, in_guest
from hil.transport.local import LocalTransport
from suites.gpu import test_compute as suite
from tests.console.streams import ScriptedStream
from tests.fakes import NIC, FakeMachine, FakeOS, config, function
from tests.opencl import opened, pocl

pytestmark = pytest.mark.xdist_group("opencl")

#: A PCI Express capability: a link of 16 GT/s x16, now at 2.5 GT/s.
PCIE = (0x10, bytes(10) + struct.pack("<IHH", 0x104, 0, 0x101))
DEVICE: Any = SimpleNamespace(
    name="gpu0", address=NIC, look=lambda: function(config=config(capabilities=[PCIE]))
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pocl(tmp_path_factory.mktemp("pocl")):
        yield


@pytest.fixture
def compute(environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compute]:
    # Of the 1 GiB that PoCL says it has: 20 MiB.
    monkeypatch.setattr(gpu_memory, "MOST", 0.02)
    monkeypatch.setattr(suite, "SOME", 20 << 20)
    with opened() as card:
        yield card


@pytest.mark.parametrize(
    "test",
    [
        suite.test_what_a_kernel_made_is_what_the_host_sees,
        suite.test_what_the_host_made_is_what_a_kernel_sees,
        suite.test_control_a_bit_that_flipped_is_seen,
        suite.test_control_two_pages_that_were_swapped_are_seen,
        suite.test_control_queues_that_take_each_others_memory_are_seen,
        suite.test_control_planted_remains_are_found,
    ],
    ids=lambda test: str(test.__name__),
)
def test_it_holds_on_pocl(compute: Compute, test: Callable[[Compute], None]) -> None:
    test(compute)


@pytest.mark.parametrize("pinned", [False, True])
def test_the_bandwidth_stands_beside_the_link_s_limit(compute: Compute, pinned: bool) -> None:
    heard: list[events.Event] = []
    with events.subscribed(heard.append):
        suite.test_what_the_host_sends_comes_back(DEVICE, compute, pinned)
    (evidence,) = [event for event in heard if isinstance(event, events.Evidence)]
    assert evidence.name == "gpu0: bandwidth beside the link's limit"
    lines = evidence.data.decode().splitlines()
    how = "pinned" if pinned else "pageable"
    assert [line.split(":")[0] for line in lines] == [
        f"host to device, {how}",
        f"device to host, {how}",
        "link now",
        "best link of the card",
    ]
    assert "GB/s (20 MiB in" in lines[0]
    assert lines[2:] == [
        "link now: 2.5 GT/s x16, at most 4.0 GB/s",
        "best link of the card: 16 GT/s x16, at most 31.5 GB/s",
    ]


def test_a_rate_of_no_time_is_none() -> None:
    assert Moved(1, 0.0, 1).rate == 0.0


class Guests:
    """Guests whose card is PoCL's: the memory of each is new."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.kill = lambda: self.ended.append("killed")
        self.destroy = lambda: self.ended.append("destroyed")

    def fresh(self, *_: object, **__: object) -> Guests:
        return self


def test_the_remains_of_a_killed_guest_are_looked_for(
    compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests: Any = Guests()
    monkeypatch.setattr(suite, "in_guest", lambda _guest, _device: opened())
    suite.test_a_killed_guest_leaves_nothing_in_the_cards_memory(DEVICE, compute, guests, guests)
    assert guests.ended == ["killed", "destroyed"]
    # A card that keeps its content would hand the first guest's memory to the second.
    monkeypatch.setattr(suite, "in_guest", lambda _guest, _device: KeptMemory(compute))
    with pytest.raises(ProductError, match="data leak"):
        suite.test_a_killed_guest_leaves_nothing_in_the_cards_memory(
            DEVICE, compute, guests, guests
        )


class KeptMemory(contextlib.nullcontext[Any]):
    """The same process again, which still holds what it had."""

    def __init__(self, card: Compute) -> None:
        kept = SimpleNamespace(
            device=card.device, hold=lambda size, touch: size // 64 * 64, search=card.search
        )
        super().__init__(kept)


def test_a_guest_whose_opencl_lacks_the_card_is_an_error(environment: None) -> None:
    stream = ScriptedStream([b""])
    machine = FakeMachine(GuestSpec("g1", "linux", devices=(NIC,)), stream, LocalTransport("g1"))
    guest = Guest(machine, FakeOS())
    with pytest.raises(GuestError, match="OpenCL in the guest has no device at") as caught:
        in_guest(guest, DEVICE)
    assert "no address: " in caught.value.seen, "PoCL's device is listed, and is not taken for it"
    guest.destroy()
