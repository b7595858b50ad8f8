"""A run has a deadline, and so has each test; what must be put back has limits of its own."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import FakeLabs, RunHil

TESTS = """
from hil.deadline import poll
pytestmark = pytest.mark.danger(0)
@pytest.fixture
def thing(lab):
    yield
    # Back to the host, whatever time the test had.
    assert lab.hosts["alpha"].limit(600, "the return").remaining > 500
    print("returned")
def test_a(lab, thing):
    poll(lambda: False, lab.hosts["alpha"].limit(600, "the moon"), last_seen=lambda: "stars")
def test_b(lab): pass
"""


def test_after_the_run_s_deadline_no_test_is_tried_and_the_run_has_not_passed(
    run_hil: RunHil, labs: FakeLabs
) -> None:
    ran = run_hil(TESTS, "--hil-deadline=0.001")
    assert ran.statuses == {"test_a": "blocked", "test_b": "blocked"}
    assert ran.reason("test_b") == "the run's deadline of 0.001 s has passed"
    assert labs.asked == []
    assert ran.result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_test_s_deadline_ends_what_it_waits_for_and_says_what_that_was(run_hil: RunHil) -> None:
    ran = run_hil(TESTS, "--hil-test-deadline=0.2", "-rA")
    assert ran.statuses == {"test_a": "broken", "test_b": "passed"}, ran.text
    reason = ran.reason("test_a")
    assert reason.startswith("the test's deadline of 0.2 s has passed: waited 0.2 s for the moon")
    (test,) = (t for t in ran.summary["tests"] if t["test"].endswith("test_a"))
    assert test["fault"] == "test"
    assert "returned" in ran.text


def test_the_run_s_deadline_ends_the_test_at_work(run_hil: RunHil) -> None:
    ran = run_hil(TESTS, "--hil-deadline=3", "-k", "test_a")
    assert ran.reason("test_a").startswith("the run's deadline of 3 s has passed: waited"), ran.text


def test_a_wait_that_knows_no_deadline_is_ended_all_the_same(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.fixtures.session.BACKSTOP", 0.1)
    ran = run_hil(
        "import threading\npytestmark = pytest.mark.danger(0)\n"
        "def test_a(lab): threading.Event().wait(600)\ndef test_b(lab): pass\n",
        "--hil-test-deadline=0.1",
    )
    assert ran.statuses == {"test_a": "broken", "test_b": "passed"}, ran.text
    assert "Timeout" in ran.reason("test_a")
