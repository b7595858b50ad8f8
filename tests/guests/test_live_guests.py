"""Guests that misbehave, in the emulated lab: what becomes of those who deal with them?"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hil.bench import Bench
from hil.deadline import Deadline
from hil.errors import GuestError
from hil.guests.guest import Guest
from hil.guests.os import guest_os
from hil.lab.assemble import bench_of
from hil.lab.live import open_lab
from hil.lab.load import load
from hil.platforms.contract import GuestSpec

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("lab")]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    deadline = Deadline(900, "the lab")
    with open_lab(load("emulated"), deadline) as live:
        made = bench_of(live, deadline)
        yield made
        made.guests.close()


@pytest.fixture
def guest(bench: Bench) -> Iterator[Guest]:
    made = bench.guests.fresh(host=bench.host)
    yield made
    made.destroy()


def test_a_guest_whose_boot_fails_is_told_with_its_last_lines(bench: Bench) -> None:
    spec = GuestSpec("stuck", bench.guests.image, arguments=("root=/dev/nowhere",))
    machine = bench.host.platform.create_guest(spec, bench.host.limit(60, "the guest"))
    guest = Guest(machine, guest_os("linux"), pace=bench.host.pace)
    try:
        with pytest.raises(GuestError, match="came up to a rescue shell only") as caught:
            guest.boot()
    finally:
        guest.destroy()
    assert any("no root disk /dev/nowhere" in line for line in caught.value.console)
    assert "stuck" not in bench.host.platform.guests(bench.host.limit(20, "the guests"))


@pytest.mark.parametrize("noise", ["0000:00:00.0 what is this\\n", "%9999d\\n"])
def test_a_guest_that_answers_garbage_is_blamed_with_what_it_said(guest: Guest, noise: str) -> None:
    # Its shell's readlink and read serve the list of functions.
    script = (
        f"cd /run && printf '#!/bin/sh\\nprintf \"{noise}\"\\n' >liar && chmod 755 liar &&"
        " mount --bind liar $(command -v readlink)"
    )
    guest.run(["sh", "-c", script]).check()
    with pytest.raises(GuestError, match="in no known form") as caught:
        guest.functions()
    assert len(caught.value.seen) <= 300
    assert re.fullmatch(r"[^\x00-\x08]*", caught.value.explain()), "fit to be shown"
