"""A guest that prints on its console without end: a simulated one, over real SSH."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hil.deadline import Deadline, poll
from hil.errors import HilError
from hil.guests.guest import Guest, GuestState
from hil.lab.assemble import bench_of
from hil.lab.live import open_lab
from hil.lab.load import load


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    deadline = Deadline(600, "the lab")
    with open_lab(load("freebsd-15-intel"), deadline) as live:
        bench = bench_of(live, deadline)
        yield bench.guests.fresh(host=bench.host)
        bench.guests.close()


def flood(guest: Guest, line: str) -> None:
    """Have a process of the guest print ``line`` (as printf(1) takes it) over and over."""
    start = guest.console.log.end
    script = f"while :; do printf '{line}%.0s' {'x ' * 40}; done >/dev/ttyu0"
    guest.run(["daemon", "-f", "-p", "/tmp/flood.pid", "sh", "-c", script]).check()
    poll(lambda: guest.console.log.end > start + 200_000, guest.limit(300, "the flood"))


def dry(guest: Guest) -> None:
    guest.run(["sh", "-c", "kill -9 $(cat /tmp/flood.pid)"]).check()


@pytest.mark.parametrize("line", ["it never ends\\n", "no end of line ", "\\033[2J\\000\\377"])
def test_a_guest_that_floods_its_console_can_be_worked_with(guest: Guest, line: str) -> None:
    flood(guest, line)
    assert guest.run(["echo", "here"]).check().stdout == "here\n"
    # A command on that console gets through or is told to have been drowned; it ends.
    with contextlib.suppress(HilError):
        result = guest.console.run("echo through", guest.limit(60, "a command in the flood"))
        assert result.out == b"through\n"
    assert guest.console.log.tail(5)
    dry(guest)
    result = guest.console.run("echo dry", guest.limit(120, "a command after the flood"))
    assert result.out == b"dry\n"


def test_a_guest_that_floods_its_console_can_be_destroyed(guest: Guest) -> None:
    flood(guest, "it never ends\\n")
    guest.destroy()
    assert guest.state is GuestState.DESTROYED
    end = guest.console.log.end
    assert guest.console.log.tail(1)
    assert guest.console.log.end == end
