"""A device that does not come back clean after a test that went wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.plugin.conftest import FakeLabs, Ran, RunHil
from tests.plugin.rack import RACK, rack_host, run_on_rack

__all__ = ["rack_host", "run_on_rack"]

#: The first test of nic1 goes wrong, and leaves it with a BAR elsewhere where it should.
TESTS = """
from tests.plugin.rack import RACK
def wrong(device):
    device.reserve()
    if RACK.spoils:
        RACK.host.machine.function_named("nic1").place_bar(0, 0xC0F0_0000)
    raise AssertionError("the guest died")
@pytest.mark.needs(device="nic")
def test_a(device): wrong(device)
@pytest.mark.needs(device="nic")
def test_b(device): assert not device.look().reserved
@pytest.mark.needs(device="nic")
def test_c(device): pass
@pytest.mark.danger(0)
def test_d(lab): pass
"""


def test_a_device_that_comes_back_clean_is_given_to_the_next_test(
    run_on_rack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RACK, "spoils", False)
    ran = run_on_rack(TESTS)
    assert ran.statuses == {
        "test_a[nic1]": "failed", "test_b[nic1]": "passed", "test_c[nic1]": "passed",
        "test_d": "passed",
    }, ran.text  # fmt: skip
    assert ran.summary["quarantine"] == {}


def test_one_that_does_not_is_in_quarantine_and_the_rest_of_its_tests_are_blocked(
    run_on_rack: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RACK, "spoils", True)
    ran = run_on_rack(TESTS)
    assert ran.statuses == {
        "test_a[nic1]": "failed", "test_b[nic1]": "blocked", "test_c[nic1]": "blocked",
        "test_d": "passed",
    }, ran.text  # fmt: skip
    assert ran.reason("test_b[nic1]").startswith("nic1 is in quarantine since test_a[nic1]: ")
    assert "BAR 0 is 0xc0f00000+0x20000, not 0xc8000000+0x20000" in ran.reason("test_b[nic1]")
    assert list(ran.summary["quarantine"]) == ["nic1"]
    told = [line for line in ran.text.splitlines() if line.startswith("nic1 is in quarantine")]
    assert len(told) == 1

    # The next run is told, looks at it anew, and uses it: it is as it finds it.
    monkeypatch.setattr(RACK, "spoils", False)
    ran = run_on_rack(TESTS, "-k", "test_b")
    assert ran.statuses == {"test_b[nic1]": "passed"}, ran.text
    assert "nic1 was in quarantine in the run before (" in ran.text
    ran = run_on_rack(TESTS, "-k", "test_b")
    assert "in quarantine" not in ran.text


def test_a_lab_that_can_be_made_anew_is_made_anew_instead(
    run_hil: RunHil, labs: FakeLabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.oracles.clean.unclean", lambda *_: {"nic0": "it has no driver"})
    ran = run_hil(
        "@pytest.mark.danger(0)\ndef test_a(lab): assert False\n"
        "@pytest.mark.danger(0)\ndef test_b(lab): pass\n",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "failed", "test_b": "passed"}
    assert labs.asked == ["shared"] * 2
    assert ran.summary["quarantine"] == {}


def test_of_a_host_that_is_dead_no_device_is_blamed(
    run_hil: RunHil, labs: FakeLabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.oracles.clean.unclean", lambda *_: {"nic0": "it does not answer"})
    labs.dead.add("alpha")
    ran = run_hil(
        "@pytest.mark.danger(0)\ndef test_a(lab): assert False\n"
        "@pytest.mark.danger(0)\ndef test_b(lab): pass\n"
    )
    assert ran.statuses == {"test_a": "failed", "test_b": "blocked"}
    assert ran.reason("test_b").startswith("host alpha has not answered since test_a")
    assert ran.summary["quarantine"] == {}
