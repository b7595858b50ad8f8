"""A host of a *physical* lab dies under a test: it is brought back, and the run goes on.

The host is simulated, behind a real SSH server; what switches it off and on is a fake.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hil.console.console import Console
from hil.deadline import Deadline
from hil.lab import live, power, revive, watch
from hil.power.base import Power, PowerState
from hil.power.none import NoPower
from hil.simulated.host import SimulatedHost
from tests.plugin.conftest import Ran, RunHil

LAB = """
[lab]
name = "rack"
kind = "physical"
[hosts.alpha]
platform = "freebsd-bhyve"
address = "127.0.0.1"
port = {port}
key_file = "{key}"
host_key = "{host_key}"
danger = 3
console = {console}
[devices.nic1]
kind = "nic"
host = "alpha"
match = {{ id = "8086:10d3" }}
capabilities = ["msi", "msix", "pm"]
"""

#: A test whose host dies in it, between two that are well.
TESTS = """
from tests.plugin.test_hosts_that_die import RACK
pytestmark = pytest.mark.danger(0)
def test_a(lab): pass
def test_b(lab):
    lab.device("nic1").reserve()
    RACK.end()
    host = lab.host
    host.platform.transport.run(["sleep", "600"], deadline=host.limit(600, "the end"))
def test_c(lab):
    device = lab.device("nic1")
    assert not device.look().reserved
    device.reserve()
    device.give_back()
"""


@dataclass
class Rack:
    """The host under test, for the tests that pytest runs in this process."""

    host: SimulatedHost | None = None
    end: Callable[[], None] = lambda: None
    switched: int = 0
    seen: list[str] = field(default_factory=list)


RACK = Rack()


class Switch(Power):
    """What a power switch does, for the host of :data:`RACK`."""

    def state(self, deadline: Deadline) -> PowerState:
        return PowerState.UNKNOWN

    def on(self, deadline: Deadline) -> None:
        assert RACK.host is not None
        RACK.host.reboot()

    def off(self, deadline: Deadline) -> None:
        RACK.switched += 1

    def cycle(self, deadline: Deadline) -> None:
        self.off(deadline)
        self.on(deadline)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedHost]:
    found = SimulatedHost("freebsd-15-intel").start()
    RACK.host, RACK.switched = found, 0
    monkeypatch.setattr(power, "power_of", lambda _lab, name: Switch(name))
    monkeypatch.setattr(live, "_console", lambda _lab, name, _end: Console(name, found.console))
    yield found
    found.close()
    RACK.host = None


@pytest.fixture
def run(
    host: SimulatedHost, run_hil: RunHil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Run a module on the host; the fake that brings labs up is taken away again."""
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(host.private_key)

    def start(module: str, *arguments: str, console: bool = True) -> Ran:
        words = LAB.format(
            port=host.port, key=key, host_key=host.host_key,
            console='["console"]' if console else "[]",
        )  # fmt: skip
        return run_hil(module, *arguments, lab=words)

    monkeypatch.setattr("hil.fixtures.labs.LabPool._bring_up", REAL_BRING_UP)
    return start


# Before a fixture puts a fake in its place.
REAL_BRING_UP = importlib.import_module("hil.fixtures.labs").LabPool._bring_up


def panic() -> None:
    host = RACK.host
    assert host is not None
    host.machine.panicked("page fault")
    host.system.stands = True
    for tell in host.system.on_panic:
        tell()


def hang() -> None:
    """No word on the console, and connections that stay and stay silent."""
    host = RACK.host
    assert host is not None
    host.system.stands = True
    host.server.freeze()


def restart() -> None:
    assert RACK.host is not None
    RACK.host.reboot()


def cut_off() -> None:
    """Every connection is cut, while the host goes on."""
    host = RACK.host
    assert host is not None
    port = host.port
    host.server.close()
    host.server.start(port)


def test_a_host_that_panics_is_switched_off_and_on_and_the_run_goes_on(
    run: Callable[..., Ran],
) -> None:
    RACK.end = panic
    ran = run(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}, ran.text
    assert ran.reason("test_b") == "host alpha died: panic: page fault"
    assert RACK.switched == 1
    assert "db_trace_self_wrapper" in "".join(
        path.read_text("utf-8", "replace") for path in (ran.run / "allure-results").iterdir()
    )


def test_a_host_that_hangs_is_noticed_by_its_heart_and_brought_back(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENCE", 3.0)
    monkeypatch.setattr(watch, "BEAT", 0.2)
    RACK.end = hang
    ran = run(TESTS, console=False)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}, ran.text
    assert ran.reason("test_b").startswith("host alpha died: no heartbeat for ")
    assert RACK.switched == 1


def test_a_host_that_restarts_by_itself_has_failed_and_needs_no_switch(
    run: Callable[..., Ran],
) -> None:
    RACK.end = restart
    ran = run(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}, ran.text
    assert ran.reason("test_b") == "host alpha restarted by itself"
    assert RACK.switched == 0


def test_a_network_that_was_cut_is_the_lab_s_fault_and_the_run_goes_on(
    run: Callable[..., Ran],
) -> None:
    RACK.end = cut_off
    ran = run(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "broken", "test_c": "passed"}, ran.text
    assert RACK.switched == 0


def test_where_nothing_switches_a_host_its_tests_are_blocked_with_what_a_person_must_do(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "power_of", lambda _lab, name: NoPower(name))
    monkeypatch.setattr(revive, "BY_ITSELF", 0.5)
    RACK.end = panic
    ran = run(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "blocked"}, ran.text
    assert ran.reason("test_c").startswith("host alpha has not answered since test_b: ")
    assert "press its reset button" in ran.reason("test_c")


def test_a_switch_that_is_the_wrong_one_is_noticed(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Switch):
        def on(self, deadline: Deadline) -> None:
            pass

    monkeypatch.setattr(power, "power_of", lambda _lab, name: Wrong(name))
    monkeypatch.setattr(revive, "BOOT", 0.5)
    RACK.end = panic
    ran = run(TESTS)
    assert "is it the right switch?" in ran.reason("test_c")


def test_a_host_that_dies_again_and_again_is_given_up(run: Callable[..., Ran]) -> None:
    RACK.end = panic
    dying = "\n".join(f"def test_{n}(lab):\n    RACK.end()\n    lab.host.facts()" for n in range(5))
    head = TESTS.partition("def test_a")[0]
    ran = run(head + dying)
    assert list(ran.statuses.values()) == ["failed"] * 4 + ["blocked"], ran.text
    assert RACK.switched == 3
