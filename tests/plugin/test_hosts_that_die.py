"""A host of a *physical* lab dies under a test: it is brought back, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hil.deadline import Deadline
from hil.lab import live, power, revive, watch
from hil.power.none import NoPower
from tests.plugin.conftest import Ran
from tests.plugin.rack import RACK, Switch, rack_host, run_on_rack

__all__ = ["rack_host", "run_on_rack"]

#: A test whose host dies in it, between two that are well.
TESTS = """
from tests.plugin.rack import RACK
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
    run_on_rack: Callable[..., Ran],
) -> None:
    RACK.end = panic
    ran = run_on_rack(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}, ran.text
    assert ran.reason("test_b") == "host alpha died: panic: page fault"
    assert RACK.switched == 1
    assert "db_trace_self_wrapper" in "".join(
        path.read_text("utf-8", "replace") for path in (ran.run / "allure-results").iterdir()
    )


def test_a_host_that_hangs_is_noticed_by_its_heart_and_brought_back(
    run_on_rack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENCE", 3.0)
    monkeypatch.setattr(watch, "BEAT", 0.2)
    RACK.end = hang
    ran = run_on_rack(TESTS, console=False)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}, ran.text
    assert ran.reason("test_b").startswith("host alpha died: no heartbeat for ")
    assert RACK.switched == 1


def test_a_host_that_restarts_by_itself_has_failed_and_needs_no_switch(
    run_on_rack: Callable[..., Ran],
) -> None:
    RACK.end = restart
    ran = run_on_rack(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}, ran.text
    assert ran.reason("test_b") == "host alpha restarted by itself"
    assert RACK.switched == 0


def test_a_network_that_was_cut_is_the_lab_s_fault_and_the_run_goes_on(
    run_on_rack: Callable[..., Ran],
) -> None:
    RACK.end = cut_off
    ran = run_on_rack(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "broken", "test_c": "passed"}, ran.text
    assert RACK.switched == 0


def test_where_nothing_switches_a_host_its_tests_are_blocked_with_what_a_person_must_do(
    run_on_rack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "power_of", lambda _lab, name: NoPower(name))
    monkeypatch.setattr(revive, "BY_ITSELF", 0.5)
    RACK.end = panic
    ran = run_on_rack(TESTS)
    assert ran.statuses == {"test_a": "passed", "test_b": "failed", "test_c": "blocked"}, ran.text
    assert ran.reason("test_c").startswith("host alpha has not answered since test_b: ")
    assert "press its reset button" in ran.reason("test_c")


def test_a_switch_that_is_the_wrong_one_is_noticed(
    run_on_rack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Switch):
        def on(self, deadline: Deadline) -> None:
            pass

    monkeypatch.setattr(power, "power_of", lambda _lab, name: Wrong(name))
    monkeypatch.setattr(revive, "BOOT", 0.5)
    RACK.end = panic
    ran = run_on_rack(TESTS)
    assert "is it the right switch?" in ran.reason("test_c")


def test_a_host_that_dies_again_and_again_is_given_up(run_on_rack: Callable[..., Ran]) -> None:
    RACK.end = panic
    dying = "\n".join(f"def test_{n}(lab):\n    RACK.end()\n    lab.host.facts()" for n in range(5))
    head = TESTS.partition("def test_a")[0]
    ran = run_on_rack(head + dying)
    assert list(ran.statuses.values()) == ["failed"] * 4 + ["blocked"], ran.text
    assert RACK.switched == 3


def test_a_host_that_dies_while_it_is_made_ready_is_brought_back_too(
    run_on_rack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = live._hold
    deaths = iter([panic])

    def hold(*given: Any) -> Any:
        next(deaths, lambda: None)()
        return real(*given)

    monkeypatch.setattr(live, "_hold", hold)
    ran = run_on_rack(TESTS, "-k", "test_a or test_c")
    assert ran.statuses == {"test_a": "passed", "test_c": "passed"}, ran.text
    assert RACK.switched == 1
    (told,) = [line for line in ran.text.splitlines() if "died while it was made" in line]
    assert told.startswith("alpha died while it was made ready: ")
    assert "panic: page fault" in told
