"""The matrix of faults and tests, from outcomes that a test makes up."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from hil.deadline import Deadline, poll
from hil.errors import LabError
from hil.prove import Proof, grouped, markdown, prove, short, table
from hil.prove import Suites as RealSuites
from hil.reporting.outcome import Outcome, Status
from hil.simulated.faults import Fault

LABS = {"intel": "lab-intel", "amd": "lab-amd"}
BOTH = Fault(3, "3-idle", "It reaches | all.", "r1")
FAILED = Status.FAILED
AMD = Fault(20, "20-stale", "It stays.", "r2", ("amd",))


def outcome(test: str, status: Status = Status.PASSED, reason: str = "") -> Outcome:
    """``d`` is the only test that names a bug, and it names 3."""
    name = f"suites/iommu/test_x.py::test_{test}"
    return Outcome(name, status, 1.0, "simulated", reason, bugs=("3",) if test == "d" else ())


class Suites:
    """Runs of the suites that end as told; all tests pass without a fault."""

    def __init__(self, **endings: Sequence[Outcome]) -> None:
        self.endings = endings
        self.runs: list[tuple[str, ...]] = []

    def __call__(self, lab: str, fault: str, bug: str) -> Sequence[Outcome]:
        self.runs.append((lab, fault, *([bug] if bug else [])))
        default = [outcome("a"), outcome("b"), outcome("c", Status.SKIPPED)]
        return self.endings.get(fault.replace("-", "_") or "none", default)


def test_a_fault_that_a_test_catches_is_proven() -> None:
    ending = [outcome("a", Status.FAILED), outcome("b", Status.BROKEN), outcome("c")]
    suites = Suites(**{"3_idle": ending})
    proof = prove([BOTH], LABS, suites)
    assert proof.holds
    (row,) = proof.rows
    assert [short(test) for test in row.caught] == ["iommu: a"]
    assert [short(test) for test in row.broken] == ["iommu: b"]
    assert set(suites.runs[:2]) == {("lab-intel", ""), ("lab-amd", "")}
    assert suites.runs[2:] == [("lab-intel", "3-idle")]


def test_a_fault_that_one_lab_does_not_show_is_tried_on_the_next() -> None:
    caught = [outcome("a", Status.FAILED)]

    class Amd(Suites):
        def __call__(self, lab: str, fault: str, bug: str) -> Sequence[Outcome]:
            found = super().__call__(lab, fault, bug)
            return caught if (lab, fault) == ("lab-amd", "3-idle") else found

    suites = Amd()
    proof = prove([BOTH], LABS, suites)
    assert proof.holds
    assert proof.rows[0].lab == "lab-amd"
    assert suites.runs[2:] == [("lab-intel", "3-idle"), ("lab-amd", "3-idle")]


class Named(Suites):
    """There is a test that names bug 3, and it sees it if ``sees``."""

    def __init__(self, *, sees: bool) -> None:
        super().__init__(none=[outcome("a"), outcome("d")])
        self.sees = sees

    def __call__(self, lab: str, fault: str, bug: str) -> Sequence[Outcome]:
        found = super().__call__(lab, fault, bug)
        if not fault:
            return found
        named = outcome("d", Status.FAILED if self.sees else Status.PASSED)
        return [named] if bug else [named, outcome("a", Status.FAILED)]


def test_the_tests_that_name_a_bug_come_first_and_may_be_enough() -> None:
    suites = Named(sees=True)
    (row,) = prove([BOTH], LABS, suites).rows
    assert suites.runs[2:] == [("lab-intel", "3-idle", "3")]
    assert [short(test) for test in row.caught] == ["iommu: d"]
    assert (row.ran, row.by_name) == (1, True)


def test_where_those_see_nothing_all_tests_run() -> None:
    suites = Named(sees=False)
    (row,) = prove([BOTH], LABS, suites).rows
    assert suites.runs[2:] == [
        ("lab-intel", "3-idle", "3"),
        ("lab-amd", "3-idle", "3"),
        ("lab-intel", "3-idle"),
    ]
    assert [short(test) for test in row.caught] == ["iommu: a"]
    assert (row.ran, row.by_name) == (2, False)


def test_all_tests_run_at_once_if_asked() -> None:
    suites = Named(sees=True)
    (row,) = prove([BOTH], LABS, suites, whole=True).rows
    assert suites.runs[2:] == [("lab-intel", "3-idle")]
    assert len(row.caught) == 2


def test_each_lab_that_is_needed_is_tried_without_a_fault() -> None:
    suites = Suites(**{"3_idle": [outcome("a", Status.FAILED)], "20_stale": []})
    proof = prove([BOTH, AMD], LABS, suites)
    assert set(suites.runs[:2]) == {("lab-intel", ""), ("lab-amd", "")}
    assert ("lab-amd", "20-stale") in suites.runs
    assert proof.missed == (proof.rows[1],)
    assert not proof.holds


def test_a_control_that_fails_catches_nothing() -> None:
    ending = [outcome("control_a", Status.FAILED), outcome("a")]
    suites = Suites(none=[outcome("control_a"), outcome("a")], **{"3_idle": ending})
    assert prove([BOTH], LABS, suites).missed


@pytest.mark.parametrize("status", [Status.PASSED, Status.SKIPPED, Status.BROKEN, Status.BLOCKED])
def test_only_the_product_s_blame_catches(status: Status) -> None:
    assert not prove([BOTH], LABS, Suites(**{"3_idle": [outcome("a", status)]})).holds


@pytest.mark.parametrize("status", [Status.FAILED, Status.BROKEN, Status.BLOCKED])
def test_what_fails_without_a_fault_proves_nothing(status: Status) -> None:
    without = [outcome("a", status, "why"), outcome("b")]
    caught = [outcome("a", Status.FAILED), outcome("b", Status.FAILED)]
    proof = prove([BOTH], LABS, Suites(none=without, **{"3_idle": caught}))
    assert not proof.holds
    assert [short(test) for test in proof.rows[0].caught] == ["iommu: b"]
    assert "why" in table(proof, 100, colour=False)


def test_suites_that_do_not_run_on_one_bug_cost_that_row_only() -> None:
    class Broken(Suites):
        def __call__(self, lab: str, fault: str, bug: str) -> Sequence[Outcome]:
            if fault == BOTH.name:
                raise LabError("no suites here")
            return [outcome("a", Status.FAILED)] if fault else super().__call__(lab, fault, bug)

    proof = prove([BOTH, AMD], LABS, Broken())
    assert proof.missed == (proof.rows[0],)
    assert "DID NOT RUN: no suites here" in table(proof, 100, colour=False)
    assert proof.rows[1].caught


def test_a_run_in_which_nothing_ran_proves_nothing() -> None:
    proof = prove([], LABS, Suites(none=[outcome("a", Status.SKIPPED)]))
    assert not proof.holds


def test_an_interruption_ends_what_runs() -> None:
    ended = threading.Event()

    def run(lab: str, fault: str, bug: str) -> Sequence[Outcome]:
        if lab == "lab-intel":
            raise KeyboardInterrupt
        assert ended.wait(60)
        return []

    with pytest.raises(KeyboardInterrupt):
        prove([BOTH], LABS, run, jobs=2, end=ended.set)
    assert ended.is_set()


@pytest.mark.timeout(300)
def test_suites_that_are_ended_end_soon_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    begun = tmp_path / "begun"
    program = f"import pathlib, time\ndef test_x():\n    pathlib.Path({str(begun)!r}).touch()\n"
    (tmp_path / "test_x.py").write_text(f"{program}    time.sleep(3600)\n")
    suites = RealSuites([str(tmp_path / "test_x.py")], ["-n0"])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(suites.run, "freebsd-15-intel", "", "")
        try:
            poll(lambda: begun.exists() or running.done(), Deadline(120, "the test to begin"))
        finally:
            suites.end()
        with pytest.raises(LabError, match="did not run on freebsd-15-intel"):
            running.result(120)
    with pytest.raises(CancelledError):
        suites.run("freebsd-15-intel", "", "")
    assert not list(tmp_path.glob("hil-*/*"))


@pytest.fixture
def proof() -> Proof:
    return prove([BOTH, AMD], LABS, Suites(**{"3_idle": [outcome("a", Status.FAILED)]}))


def test_the_matrix_is_shown(proof: Proof) -> None:
    text = table(proof, 100, colour=False)
    assert "3-idle" in text
    assert "iommu: a" in text
    assert "NOT CAUGHT" in text


def test_the_matrix_is_a_table_for_the_documentation(proof: Proof) -> None:
    lines = markdown(proof).splitlines()
    (row,) = [line for line in lines if line.startswith("| `3-idle`")]
    assert row == "| `3-idle` | It reaches \\| all. | r1 | `lab-intel` | `iommu: a` * |"
    (row,) = [line for line in lines if line.startswith("| `20-stale`")]
    assert row.endswith("| **nothing** * |")


def test_a_test_of_several_devices_is_shown_once() -> None:
    tests = [outcome(name).test for name in ("a[nic0]", "b", "a[nvme0]")]
    assert grouped(tests) == ["iommu: a [nic0 nvme0]", "iommu: b"]
    (row,) = prove(
        [BOTH], LABS, Suites(none=[outcome("a[nic0]")], **{"3_idle": [outcome("a[nic0]", FAILED)]})
    ).rows
    assert "iommu: a [nic0]" in table(Proof((row,), {}, {}), 100, colour=False)


def test_the_matrix_is_plain_values(proof: Proof) -> None:
    data = json.loads(json.dumps(proof.as_json()))
    assert data["holds"] is False
    assert [entry["name"] for entry in data["faults"]] == ["3-idle", "20-stale"]
    assert data["without"]["lab-amd"] == {"ran": 2, "failed": []}
