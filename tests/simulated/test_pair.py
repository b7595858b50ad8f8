"""The suite of clusters on two simulated hosts: guests on both, and a bug of one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.errors import InventoryError
from hil.lab.live import open_lab
from hil.lab.load import load
from hil.prove import Suites, short
from hil.reporting.outcome import Outcome, Status

SUITE = Path(__file__).parents[2] / "suites/gpu/test_cluster.py"
BOTH = (
    "gpu: all_cards_of_a_cluster_work_at_once[both-by-host]",
    "gpu: all_cards_of_a_cluster_work_at_once[both-apart]",
)

pytestmark = pytest.mark.timeout(900)


def run(fault: str, *arguments: str) -> dict[str, Outcome]:
    outcomes = Suites([str(SUITE)], ["-n0", *arguments]).run("simulated-pair", fault, "")
    return {short(outcome.test): outcome for outcome in outcomes}


def test_guests_on_two_hosts_work_at_once() -> None:
    ended = run("")
    passed = {name for name, outcome in ended.items() if outcome.status is Status.PASSED}
    left = {name: outcome for name, outcome in ended.items() if name not in passed}
    # What is not there: a card with memory of its own, a GPU.
    assert all("has no cluster of " in outcome.reason for outcome in left.values()), left
    assert {*BOTH} <= passed
    assert ended[BOTH[0]].hosts == ("alpha", "beta")
    assert ended[BOTH[0]].devices == ("edu0", "edu1", "edu2")


def test_a_bug_of_one_host_fails_the_tests_over_both_and_names_it() -> None:
    ended = run("beta:1-no-translation", "-k", "all_cards_of_a_cluster_work_at_once")
    alone = "gpu: all_cards_of_a_cluster_work_at_once[desk-together]"
    assert ended.pop(alone).status is Status.PASSED
    assert ended.keys() == {*BOTH}
    for outcome in ended.values():
        assert outcome.status is Status.FAILED
        assert outcome.fault == "product"
        assert outcome.reason.startswith("edu2 (0000:04:00.0) on beta: DMA moved wrong bytes")


def test_a_bug_of_a_host_that_is_not_there() -> None:
    with (
        pytest.raises(InventoryError, match="no host 'gamma'"),
        open_lab(load("simulated-pair"), Deadline(60, "no lab"), faults=["gamma:6-no-flr"]),
    ):
        pass
