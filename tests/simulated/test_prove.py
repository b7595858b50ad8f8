"""A short ``hil prove`` with the real suites: two bugs, two tests, one device."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.prove import Suites, prove, short
from hil.simulated.faults import fault_named

RESET = Path(__file__).parents[2] / "suites/reset/test_reset.py"

pytestmark = pytest.mark.timeout(600)


def test_two_bugs_are_caught_by_the_tests_that_name_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    allure = tmp_path / "allure"
    allure.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    allure.chmod(0o755)
    monkeypatch.setenv("HIL_ALLURE", str(allure))
    suites = Suites(
        [str(RESET)],
        ["-n0", "-k", "nic0 and (can_do_no_dma or does_not_reach_the_next_guest)"],
    )
    faults = [fault_named("3-host-domain-while-idle"), fault_named("6-no-flr")]
    proof = prove(faults, {"intel": "freebsd-15-intel"}, suites.run)
    assert proof.holds, proof.as_json()
    assert not (tmp_path / "asked").exists(), "nobody would see the pages"
    assert proof.ran == {"freebsd-15-intel": 2}
    assert [[short(test) for test in row.caught] for row in proof.rows] == [
        ["reset: a_device_that_nobody_owns_can_do_no_dma[nic0]"],
        ["reset: a_sentinel_register_does_not_reach_the_next_guest[nic0]"],
    ]
    assert all(row.by_name for row in proof.rows)
