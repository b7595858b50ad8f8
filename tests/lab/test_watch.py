"""The watch over a host that is a script, by a clock that the test turns."""

from __future__ import annotations

import queue

import pytest

from hil.deadline import Deadline, poll
from hil.errors import LabError
from hil.lab import watch
from hil.lab.watch import SILENCE, Watch
from tests.fakes import FakeTransport, soon


class Heart:
    """A stream whose beats come when the test says so."""

    def __init__(self) -> None:
        self._beats: queue.Queue[bytes] = queue.Queue()
        self._waiting: queue.Queue[None] = queue.Queue()

    def beat(self) -> None:
        """A beat; returns when the watch has heard it."""
        self._waiting.get(timeout=60)
        self._beats.put(b"\n")
        self._waiting.get(timeout=60)
        self._waiting.put(None)

    def read(self, limit: int = 65536) -> bytes:
        self._waiting.put(None)
        return self._beats.get()

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        self._beats.put(b"")


class Clock:
    """What the watch takes for the module ``time``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0

    def monotonic(self) -> float:
        self.asked += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


#: Looks at the heart every 25 ms of real time.
PACE = 0.1 / SILENCE


def test_a_host_that_lets_nobody_in_is_dead(clock: Clock) -> None:
    transport = FakeTransport()
    transport.streams = [Heart()]

    def reach(deadline: Deadline) -> FakeTransport:
        raise LabError("nobody answers")

    over = Watch("lab1", transport, reach, ["boot-id"], pace=PACE)
    try:
        assert over.death == ""
        clock.now = 100
        poll(lambda: transport.closed, soon())
        assert over.death == "no heartbeat for 100 s, and it lets nobody in"
    finally:
        over.close()


def test_a_beat_during_the_last_attempt_does_not_end_the_watch(clock: Clock) -> None:
    transport, heart = FakeTransport(), Heart()
    transport.streams = [heart]
    heard = 0

    def reach(deadline: Deadline) -> FakeTransport:
        nonlocal heard
        if not heard:
            heart.beat()
            heard = clock.asked
        raise LabError("nobody answers")

    over = Watch("lab1", transport, reach, ["boot-id"], pace=PACE)
    try:
        clock.now = 100
        poll(lambda: 0 < heard < clock.asked - 2, soon())  # it has looked again
        clock.now = 300
        poll(lambda: transport.closed, soon())
        assert over.death.startswith("no heartbeat for 200 s")
    finally:
        over.close()


def test_a_host_that_answers_has_its_heart_listened_to_anew(clock: Clock) -> None:
    transport, new = FakeTransport(), Heart()
    transport.streams = [Heart(), new]
    reached = FakeTransport()
    over = Watch("lab1", transport, lambda _: reached, ["boot-id"], pace=PACE)
    try:
        clock.now = 100
        poll(lambda: reached.closed, soon())
        new.beat()
        assert over.death == ""
        assert not transport.closed
    finally:
        over.close()
