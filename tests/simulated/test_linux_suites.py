"""The real suites with Linux guests on the simulated host: some tests by each loader, two bugs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.lab.load import load
from hil.prove import Suites, prove, short
from hil.reporting.outcome import Status
from hil.simulated.faults import fault_named

SUITES = Path(__file__).parents[2] / "suites"

pytestmark = pytest.mark.timeout(900)


def paths(*names: str) -> list[str]:
    return [str(SUITES / name) for name in names]


def test_two_bugs_are_caught_with_guests_that_grub_loads() -> None:
    suites = Suites(
        paths("dma/test_nic_echo.py", "reset/test_reset.py"),
        ["-n0", "-k", "nic0 and (echoes_of_every_size or does_not_reach_the_next_guest)"],
    )
    faults = [fault_named("1-no-translation"), fault_named("6-no-flr")]
    proof = prove(faults, {"intel": "freebsd-15-intel-linux"}, suites.run)
    assert proof.holds, proof.as_json()
    assert [[short(test) for test in row.caught] for row in proof.rows] == [
        ["dma: echoes_of_every_size_come_back_unchanged[nic0]"],
        ["reset: a_sentinel_register_does_not_reach_the_next_guest[nic0]"],
    ]


def test_the_suites_pass_with_guests_that_firmware_boots() -> None:
    wanted = (
        "assignment: a_device_that_a_guest_had_comes_back_working[nvme0]",
        "dma: patterns_of_every_size_and_alignment_arrive_exactly[edu0]",
        "interrupts: every_vector_delivers_each_message_once[nic1]",
        "reset: a_guest_killed_at_full_receive_rate_leaves_no_dma_behind[nic0]",
    )
    names = " or ".join(f"({short_of(test)})" for test in wanted)
    files = ("assignment", "dma", "interrupts", "reset")
    lab = "freebsd-15-amd-linux-uefi"
    outcomes = Suites(paths(*files), ["-n0", "-k", names]).run(lab, "", "")
    ended = {short(outcome.test): outcome.status for outcome in outcomes}
    assert ended == dict.fromkeys(wanted, Status.PASSED)


def short_of(test: str) -> str:
    """What pytest's ``-k`` takes for a test and its device."""
    name, _, device = test.partition(": ")[2].partition("[")
    return f"{name} and {device.removesuffix(']')}"


@pytest.mark.parametrize("loader", ["linux", "linux-uefi"])
def test_a_labs_name_says_what_its_guests_are(loader: str) -> None:
    lab = load(f"freebsd-15-amd-{loader}")
    assert lab.kind.value == "simulated"
    assert [(name, image.os) for name, image in lab.images.items()] == [(loader, "linux")]
