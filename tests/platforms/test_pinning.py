"""Memory for guests with devices: who has none, and what layout fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.platforms.freebsd import FreebsdBhyve
from hil.platforms.linux import LinuxVfio
from hil.platforms.pinning import MIB, Pinning, plan
from hil.transport.local import LocalTransport
from tests.fakes import FakeTransport, soon
from tests.platforms.freebsd_host import FreebsdHost
from tests.recorded import recorded

GIB = 1 << 30
HOST = Pinning(8 * GIB, "MemAvailable", 0, besides=64 * MIB, overhead=4 * MIB, remedy="buy more")


def test_all_fit() -> None:
    planned = plan({"a": 4 * GIB, "b": 3 * GIB}, HOST)
    assert planned.fits
    assert not planned.advice()
    assert planned.describe().splitlines() == [
        "a, 4096 MiB: fits",
        "b, 3072 MiB: fits",
        "the host has 8192 MiB left (MemAvailable)",
    ]


def test_the_guest_that_has_none_is_named_with_how_much() -> None:
    planned = plan({"a": 4 * GIB, "b": 4 * GIB, "c": 2 * GIB}, HOST)
    assert dict(planned.missing) == {"b": 128 * MIB}
    assert "b, 4096 MiB: NO MEMORY, 128 MiB too few" in planned.describe()
    assert planned.advice() == (
        "all of them fit with 2666 MiB each; as they are, only a, c together; buy more"
    )


def test_a_limit_of_each_guest() -> None:
    limited = Pinning(8 * GIB, "MemAvailable", 0, per_guest=8 * MIB, overhead=4 * MIB)
    planned = plan({"a": 256 * MIB}, limited)
    assert dict(planned.missing) == {"a": 252 * MIB}
    assert "and 8 MiB for each guest (RLIMIT_MEMLOCK)" in planned.describe()
    assert planned.advice() == "not even one of them fits"


@given(
    st.lists(st.integers(64, 4096), min_size=1, max_size=6),
    st.integers(0, 16384),
    st.integers(0, 64),
)
def test_what_is_advised_fits(sizes: list[int], free: int, besides: int) -> None:
    host = Pinning(free * MIB, "b", 0, besides=besides * MIB)
    guests = {f"g{n}": size * MIB for n, size in enumerate(sizes)}
    planned = plan(guests, host)
    run = {name: size for name, size in guests.items() if name not in planned.missing}
    assert sum(run.values()) + len(run) * host.besides <= host.free or not run
    assert plan(run, host).fits
    if "each" in planned.advice():
        each = int(planned.advice().split(" fit with ")[1].split()[0]) * MIB
        assert plan(dict.fromkeys(guests, each), host).fits


# ---- what hosts say ----------------------------------------------------------------------


def test_this_machine_says_it(tmp_path: Path) -> None:
    host = LinuxVfio("here", LocalTransport("here"), directory=str(tmp_path))
    found = host.pinning(soon())
    assert found.pinned == 0
    assert found.free > 0
    limits = host.vector_limits(soon())
    assert limits.total > limits.used > 0


@pytest.mark.parametrize(
    ("capabilities", "limit", "per_guest"),
    [
        ("000001ffffffffff", "8192", None),
        ("00000000a80425fb", "8192", 8192 << 10),
        ("00000000a80425fb", "unlimited", None),
    ],
)
def test_a_host_whose_root_may_not_lock_memory(
    capabilities: str, limit: str, per_guest: int | None
) -> None:
    said = f"pinned 262144\navailable 1048576\nlimit {limit}\ncapabilities {capabilities}\n"
    host = LinuxVfio("there", FakeTransport(lambda _command, _stdin: (0, said, "")), python=False)
    found = host.pinning(soon())
    assert (found.pinned, found.free, found.per_guest) == (256 * MIB, GIB, per_guest)


WIRED = "vm.max_user_wired: 522240\nvm.stats.vm.v_user_wire_count: 65536\n"
MESSAGES = "machdep.num_msi_irqs: 2048\nmachdep.first_msi_irq: 24\nhw.ncpu: 2\n"


def test_a_freebsd_host() -> None:
    host = FreebsdHost()
    host.sysctls = WIRED
    found = host.platform().pinning(soon())
    assert found is not None
    assert (found.pinned, found.free) == (256 * MIB, (522240 - 65536) * 4096)
    assert not found.guests_only


def test_a_shared_freebsd_host_does_not_tell_whose_it_is() -> None:
    host = FreebsdHost()
    host.sysctls = WIRED
    platform = FreebsdBhyve("lab1", host, shared=True)
    found = platform.pinning(soon())
    assert found is not None
    assert found.pinned is None


def test_a_freebsd_host_without_such_a_bound() -> None:
    host = FreebsdHost()
    host.sysctls = "hw.ncpu: 2\n"
    assert host.platform().pinning(soon()) is None
    assert host.platform().vector_limits(soon()) is None


def test_a_freebsd_host_s_vectors() -> None:
    host = FreebsdHost()
    host.sysctls = MESSAGES
    host.texts["vmstat -ia"] = recorded("2-failures-then-guest/057").text
    found = host.platform().vector_limits(soon())
    assert found is not None
    assert (found.total, found.whole_table) == (2 * 191, True)
    assert "machdep.num_msi_irqs: 2048" in found.name
    # Lines of messages that have a name; those without are of handlers that are gone.
    named = re.findall(r"^irq(2[4-9]|[3-9]\d): \S", host.texts["vmstat -ia"], re.MULTILINE)
    assert found.used == len(named) > 0
