"""The in-guest driver, really run, as far as it goes without a device."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hil.bench import BenchDevice
from hil.console.console import Console
from hil.errors import GuestError, LabError, ProductError
from hil.guests.guest import Guest
from hil.oracles.interrupts import check_each_once
from hil.pci.address import Address
from hil.platforms.contract import GuestSpec
from hil.probes import interrupts
from hil.probes.agent import GuestAgent, GuestMemory
from hil.transport.base import Transport
from hil.transport.local import LocalTransport
from tests.console.streams import ScriptedStream
from tests.fakes import NIC, FakeMachine, FakeOS, FakeTransport, bench_device, config, function

NOWHERE = Address.parse("0000:ff:1f.7")


def guest_over(transport: Transport) -> Guest:
    stream = ScriptedStream([b"[    9.000000] e1000e: last words\r\n"])
    guest = Guest(
        FakeMachine(GuestSpec("g1", "linux", devices=(NIC,)), stream, transport), FakeOS()
    )
    guest._console = Console("g1", stream)
    return guest


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = guest_over(LocalTransport("g1"))
    yield made
    made.destroy()


@pytest.fixture
def agent(guest: Guest) -> Iterator[GuestAgent]:
    made = GuestAgent(guest)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("what", "arguments", "words"),
    [
        ("fly", {}, "KeyError: 'fly'"),
        ("read", {"address": str(NOWHERE)}, "TypeError"),
        ("read", {"address": str(NOWHERE), "bar": 0, "offset": 0, "width": 4}, "KeyError"),
        ("dump", {"memory": 3, "offset": 0, "length": 1}, "IndexError"),
        ("fill", {"memory": 0, "offset": 0, "data": "***"}, "Error"),
    ],
)
def test_what_cannot_be_done_is_the_guest_s_error_in_its_words(
    agent: GuestAgent, what: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(GuestError, match=f"{what} failed on g1") as caught:
        agent.ask(what, **arguments)
    assert words in caught.value.seen
    # It lives on.
    with pytest.raises(GuestError, match="KeyError"):
        agent.ask("close", address=str(NOWHERE))


def test_a_function_that_is_not_there_cannot_be_opened(agent: GuestAgent) -> None:
    with pytest.raises(GuestError, match="No such file"):
        agent.open(NOWHERE)


def test_the_console_s_last_lines_come_with_an_error(agent: GuestAgent) -> None:
    with pytest.raises(GuestError) as caught:
        agent.ask("fly")
    assert caught.value.console == ("[    9.000000] e1000e: last words",)


def test_a_driver_that_dies_is_the_guest_s_error(agent: GuestAgent) -> None:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    pids = [pid for pid, line in lines.items() if b"pagemap" in line]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(GuestError, match="ended"):
            agent.ask("close", address=str(NOWHERE))


def test_a_guest_without_python_is_told_so() -> None:
    transport = FakeTransport(name="g1")
    transport.streams.append(ScriptedStream([b"sh: python3: not found\n"], ends=True))
    with pytest.raises(GuestError, match="ended during start") as caught:
        GuestAgent(guest_over(transport))
    assert "python3: not found" in caught.value.seen
    assert "Python 3" in caught.value.hint


def test_an_offset_in_two_pages_leads_to_their_own_addresses() -> None:
    memory = GuestMemory(0, 4 << 20, (0x4000_0000, 0x1000_0000))
    assert memory.physical(5) == 0x4000_0005
    assert memory.physical((2 << 20) + 5) == 0x1000_0005


# ---- interrupts that a driver of the guest counts ------------------------------------


class Counting:
    """A NIC whose driver counts: each write of a cause adds to ``vectors``.

    Like QEMU's models, it repeats the message of a vector that is throttled.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        vectors: int,
        fault: str = "",
        *,
        causes: Sequence[int] = range(10),
        registers: tuple[int, int] = (0x1520, 0x1680),
    ) -> None:
        self.causes = causes
        self.cause, self.throttle = registers
        self.counts = {f"{24 + n} PCI-MSI eth0-{n}": 10 * n for n in range(vectors)}
        self.fault = fault
        self.closed = False
        self.throttles = {self.throttle + 4 * n: 648 for n in range(vectors)}
        monkeypatch.setattr(interrupts, "GuestAgent", lambda _guest: self)
        guest = guest_over(FakeTransport(lambda *_: (0, "eth0\n", "")))
        guest.interrupts = lambda address: dict(self.counts)  # type: ignore[method-assign]
        self.guest = guest

    def open(self, address: Address) -> None: ...

    def close(self) -> None:
        self.closed = True

    def ask(self, what: str, *, offset: int, value: int = 0, **_: object) -> int:
        if what == "read":
            return self.throttles[offset]
        assert what == "write"
        if offset in self.throttles:
            self.throttles[offset] = value
            return 1
        assert offset == self.cause
        number = self.causes.index(value.bit_length() - 1)
        if self.fault == "swapped":
            number ^= 1
        for index, name in enumerate(self.counts):
            if index == number and self.fault != "lost":
                again = self.fault == "twice" or self.throttles[self.throttle + 4 * index]
                self.counts[name] += 2 if again else 1
        return 1


def device_of(vendor: int, device: int, subsystem: tuple[int, int] = (0, 0)) -> BenchDevice:
    made, platform = bench_device()
    platform.known[NIC] = function(config=config(vendor, device, subsystem=subsystem))
    return made


@pytest.mark.parametrize("vectors", [1, 4, 10])
def test_each_message_of_a_driver_is_counted(monkeypatch: pytest.MonkeyPatch, vectors: int) -> None:
    fake = Counting(monkeypatch, vectors)
    counts = interrupts.triggered_each(fake.guest, device_of(0x8086, 0x10C9))
    assert check_each_once(counts) == vectors
    assert fake.closed
    assert set(fake.throttles.values()) == {648}


@pytest.mark.parametrize("fault", ["lost", "twice", "swapped"])
def test_a_wrong_count_is_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    fake = Counting(monkeypatch, 4, fault)
    with pytest.raises(ProductError):
        check_each_once(interrupts.triggered_each(fake.guest, device_of(0x8086, 0x10C9)))


@pytest.mark.parametrize(("subsystem", "came"), [(0x0000, 1), (0xA01F, 2)])
def test_only_the_model_that_repeats_messages_is_let_do_so(
    monkeypatch: pytest.MonkeyPatch, subsystem: int, came: int
) -> None:
    fake = Counting(monkeypatch, 3, "twice", causes=(20, 22, 24), registers=(0xC8, 0xE8))
    device = device_of(0x8086, 0x10D3, subsystem=(0x8086, subsystem))
    rows = interrupts.triggered_each(fake.guest, device)
    assert rows == ((came, 0, 0), (0, came, 0), (0, 0, came))


def test_a_message_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Counting(monkeypatch, 4)
    counts = interrupts.triggered_each(fake.guest, device_of(0x8086, 0x10C9), leave_out=2)
    with pytest.raises(ProductError, match="1 of 4 vectors"):
        check_each_once(counts)


def test_a_device_without_a_known_trigger_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Counting(monkeypatch, 1)
    with pytest.raises(LabError, match="no way is known"):
        interrupts.triggered_each(fake.guest, device_of(0x1AF4, 0x1050))
