"""JUnit XML of runs that were killed, and of two that run at once."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.reporting import junit
from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run
from tests.plugin.conftest import RunHil, labs, run_hil

__all__ = ["labs", "run_hil"]

SUITE = """
pytestmark = pytest.mark.danger(0)
def test_good(): pass
def test_wrong(): raise ProductError("wrong <b>&")
def test_lab(): raise LabError("gone")
class TestGroup:
    @pytest.mark.parametrize("n", [1, 2])
    def test_skip(self, n): pytest.skip("not today")
"""


def cases(path: Path) -> dict[tuple[str, str], str]:
    """(class, name) → what became of it."""
    return {
        (case.get("classname", ""), case.get("name", "")): next(
            (kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "ok"
        )
        for case in ET.parse(path).iter("testcase")
    }


def test_a_run_that_was_killed_gets_the_same_tests_and_one_that_says_so(run_hil: RunHil) -> None:
    ran = run_hil(SUITE)
    run = Run.open(ran.run)
    by_pytest = cases(run.junit)
    run.junit.unlink()
    junit.write(run)
    # pytest calls whatever fails in the test itself a failure, whoever's fault it is.
    ours = {key: "failure" if kind == "error" else kind for key, kind in cases(run.junit).items()}
    assert ours == by_pytest
    # As a kill in the midst of it leaves it.
    state = json.loads((run.directory / "run.json").read_text())
    (run.directory / "run.json").write_text(json.dumps({**state, "state": "running", "tests": 9}))
    junit.write(run)
    assert cases(run.junit)["hil", "the run came to its end"] == "error"
    assert "5 of 9 tests ended" in run.junit.read_text()
    suite = ET.parse(run.junit).getroot()[0]
    counts = {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "6", "failures": "1", "errors": "2", "skipped": "2"}


@given(st.text(max_size=40), st.text(max_size=40), st.sampled_from(Status))
def test_any_text_gives_well_formed_xml(
    tmp_path_factory: pytest.TempPathFactory, name: str, reason: str, status: Status
) -> None:
    run = Run.create(tmp_path_factory.mktemp("r"), "rack")
    clean = name.encode("utf-8", "replace").decode(), reason.encode("utf-8", "replace").decode()
    run.add(Outcome(f"a/b.py::{clean[0]}", status, 1.0, "emulated", reason=clean[1]))
    junit.write(run)
    assert len(cases(run.junit)) == 2


def test_runs_that_start_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from hil.reporting.run import Run\n"
        "for _ in range(20): print(Run.create(Path(sys.argv[1]), 'rack').name)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    names = [name for process in running for name in process.communicate(timeout=1800)[0].split()]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(names) == 60
    assert Counter(names).most_common(1)[0][1] == 1
    assert (tmp_path / "latest").resolve().name in names
    assert {path.name for path in tmp_path.iterdir()} == {*names, "latest"}


def test_a_test_that_was_repeated_is_one_with_a_note(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rack")
    died = Outcome("a/b.py::t", Status.BROKEN, 1.0, "emulated", "gone", "guest", repeated=True)
    run.add(died)
    run.add(Outcome("a/b.py::t", Status.PASSED, 1.0, "emulated", attempt=2, earlier="it died"))
    junit.write(run)
    assert cases(run.junit) == {("hil", "the run came to its end"): "error", ("a.b", "t"): "ok"}
    found = {p.get("name"): p.get("value") for p in ET.parse(run.junit).iter("property")}
    assert (found["attempt"], found["note"]) == ("2", "passed at the second attempt: it died")


def test_a_test_that_was_interrupted_is_taken_out_of_pytests_file(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(
        '<testsuites><testsuite><testcase time="0.1"/>'
        '<testcase classname="a" name="b" time="0.1"/></testsuite></testsuites>'
    )
    junit.finish(path)
    assert cases(path) == {("a", "b"): "ok"}
