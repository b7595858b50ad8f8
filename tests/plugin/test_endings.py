"""Whose fault a failure is, how it is shown, and what a dead host or lab stops."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from hil.errors import LabError
from tests.plugin.conftest import LAB, FakeLabs, RunHil

ENDINGS = """
pytestmark = pytest.mark.danger(0)
def test_product(): raise ProductError("wrong bytes", seen="00 01", hint="look at the log")
def test_guest(): raise GuestError("it panicked", console=["line 1", "Kernel panic"])
def test_lab(): raise CommandError(["ls", "a b"], 2, stderr="no such file")
def test_inventory(): raise InventoryError("no such device")
def test_assertion(): assert 1 == 2
def test_bug(): {}["key"]
def test_skip(): pytest.skip("not today")
@pytest.mark.xfail(strict=True)
def test_expected(): assert False
@pytest.mark.xfail(strict=True)
def test_unexpected(): pass
@pytest.fixture
def bad_set_up(): raise LabError("no power")
@pytest.fixture
def bad_teardown():
    yield
    raise ProductError("did not come back")
def test_set_up(bad_set_up): pass
def test_teardown(bad_teardown): pass
def test_chain():
    try:
        raise GuestError("the first")
    except GuestError as error:
        raise LabError("the second") from error
"""


def test_each_ending_is_told_by_whose_fault_it_was(run_hil: RunHil) -> None:
    ran = run_hil(ENDINGS)
    endings = {
        test["test"].rpartition("::")[2]: (test["status"], test["fault"])
        for test in ran.summary["tests"]
    }
    assert endings == {
        "test_product": ("failed", "product"),
        "test_guest": ("broken", "guest"),
        "test_lab": ("broken", "lab"),
        "test_inventory": ("broken", "inventory"),
        "test_assertion": ("failed", "product"),
        "test_bug": ("broken", "test"),
        "test_skip": ("skipped", ""),
        "test_expected": ("passed", ""),
        "test_unexpected": ("failed", "product"),
        "test_set_up": ("broken", "lab"),
        "test_teardown": ("failed", "product"),
        "test_chain": ("broken", "lab"),
    }
    assert ran.summary["complete"]


def test_an_error_of_hil_is_shown_as_text_and_not_as_a_traceback(run_hil: RunHil) -> None:
    ran = run_hil(ENDINGS, "-k", "product or guest or lab or chain")
    assert "raise ProductError" not in ran.text
    ran.result.stdout.fnmatch_lines(
        [
            "ProductError: wrong bytes",
            "  seen:    00 01",
            "  next:    look at the log",
            "  fault:   the product's (the hypervisor or the device)",
            "  at:      suites/dma/test_it.py:5: in test_product",
            "GuestError: it panicked",
            "  console: line 1",
            "           Kernel panic",
            "CommandError: ls ended with status 2",
            "  command: ls 'a b'",
            "LabError: the second",
            "  because: the first",
        ]
    )


EXPECTED = """
@pytest.mark.xfail(raises=ProductError, reason="known")
def test_expected_product(): raise ProductError("stale bytes")
"""


def test_no_source_is_parsed_to_show_an_error_of_hil(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object, **_more: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr("_pytest._code.code.getstatementrange_ast", parse)
    ran = run_hil(ENDINGS + EXPECTED, "-k", "product or lab or set_up or teardown or chain")
    assert "INTERNALERROR" not in ran.text
    assert len(ran.summary["tests"]) == 6
    assert ran.summary["complete"]


def test_another_error_keeps_its_traceback(run_hil: RunHil) -> None:
    ran = run_hil(ENDINGS, "-k", "bug")
    assert "KeyError: 'key'" in ran.text
    assert '{}["key"]' in ran.text


def test_secrets_and_escape_codes_do_not_reach_the_terminal(run_hil: RunHil) -> None:
    ran = run_hil(
        "@pytest.mark.danger(0)\ndef test_a():\n"
        "    raise LabError('x\\x1b[31mred', seen='password: hunter2')\n"
    )
    assert "hunter2" not in ran.text
    assert "\x1b" not in ran.text
    assert "hunter2" not in (ran.run / "summary.json").read_text()
    assert "hunter2" not in ran.run.joinpath("junit.xml").read_text()
    for path in (ran.run / "allure-results").iterdir():
        assert "hunter2" not in path.read_text()


def test_a_lab_that_does_not_come_up_blocks_the_rest(run_hil: RunHil, labs: FakeLabs) -> None:
    labs.fails_with = LabError("no answer from alpha")
    tests = "".join(f"@pytest.mark.danger(0)\ndef test_{n}(lab): pass\n" for n in range(5))
    ran = run_hil(tests + "@pytest.mark.danger(0)\ndef test_x(): pass\ndef test_y(): pass\n")
    assert labs.asked == ["shared"]
    assert ran.summary["counts"] == {
        "passed": 1,
        "failed": 0,
        "broken": 1,
        "skipped": 0,
        "blocked": 4,
    }
    assert ran.reason("test_4") == "the lab is not to be had: no answer from alpha"
    ran.result.assert_outcomes(errors=1, skipped=4, passed=2)
    assert ran.text.count("LabError: no answer from alpha") == 1
    tags = [label["value"] for label in ran.results()["4"]["labels"] if label["name"] == "tag"]
    assert "blocked" in tags


def test_a_dead_host_blocks_its_own_tests_only(run_hil: RunHil, labs: FakeLabs) -> None:
    labs.dead.add("alpha")
    ran = run_hil(
        """
@pytest.fixture
def device(request, lab): return request.param
@pytest.mark.needs()
def test_a(device):
    if device != ("edu0",):
        raise LabError("the connection broke")
"""
    )
    assert ran.statuses == {
        "test_a[nic0]": "broken",
        "test_a[nic1]": "blocked",
        "test_a[nvme0]": "blocked",
        "test_a[edu0]": "passed",
    }
    assert ran.reason("test_a[nic1]") == (
        "host alpha has not answered since test_a[nic0]: alpha does not answer"
    )


def test_an_error_of_a_lab_that_lives_blocks_nothing(run_hil: RunHil, labs: FakeLabs) -> None:
    ran = run_hil(
        "@pytest.mark.danger(0)\ndef test_a(lab): raise LabError('a hiccup')\n"
        "@pytest.mark.danger(0)\ndef test_b(lab): pass\n"
    )
    assert ran.statuses == {"test_a": "broken", "test_b": "passed"}
    assert labs.settled == 1, "the lab is put back after a failure"


def test_an_emulated_host_that_died_is_replaced(run_hil: RunHil, labs: FakeLabs) -> None:
    labs.dead.add("alpha")
    tests = "".join(
        f"@pytest.mark.danger(0)\ndef test_{n}(lab): raise LabError('gone')\n" for n in range(6)
    )
    ran = run_hil(tests, kind="emulated")
    assert list(ran.statuses.values()) == ["broken"] * 4 + ["blocked"] * 2
    assert labs.asked == ["shared"] * 4


@pytest.mark.parametrize("seen", ["GuestError('gone')", "LabError('broke')", "KeyError('bug')"])
def test_a_host_that_panicked_is_the_product_s_failure_whatever_the_test_saw(
    run_hil: RunHil, labs: FakeLabs, seen: str
) -> None:
    labs.panics["alpha"] = "Kernel panic - not syncing: out of luck"
    labs.dead.add("alpha")
    ran = run_hil(
        f"@pytest.mark.danger(0)\ndef test_a(lab): raise {seen}\n"
        "@pytest.mark.danger(0)\ndef test_b(lab): pass\n",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "failed", "test_b": "passed"}
    words = "host alpha died: Kernel panic - not syncing: out of luck"
    assert ran.reason("test_a") == words
    assert labs.asked == ["shared"] * 2


def test_each_test_of_a_pristine_lab_gets_a_fresh_one(run_hil: RunHil, labs: FakeLabs) -> None:
    ran = run_hil(
        "pytestmark = pytest.mark.danger(0)\n"
        "def test_a(lab): pass\ndef test_b(lab): pass\n"
        "def test_c(pristine_lab): pass\ndef test_d(pristine_lab): pass\n"
        "def test_e(lab_without_iommu, lab): pass\n",
        kind="emulated",
    )
    assert set(ran.statuses.values()) == {"passed"}
    assert labs.asked == ["shared", "pristine", "pristine", "without-iommu"]
    assert labs.closed == 4


def test_a_physical_lab_cannot_be_restored_and_says_so(run_hil: RunHil) -> None:
    ran = run_hil("@pytest.mark.danger(0)\ndef test_a(pristine_lab): pass\n")
    assert ran.statuses == {"test_a": "skipped"}
    assert "a physical lab cannot be made so" in ran.reason("test_a")


def test_a_feature_that_only_the_live_host_lacks_is_a_skip(run_hil: RunHil) -> None:
    ran = run_hil("@pytest.mark.needs(features=['tables'])\ndef test_a(lab): pass\n")
    assert ran.reason("test_a") == "host 'alpha' cannot do this: it has no feature tables"


def test_a_lab_fixture_without_a_marker_says_what_is_missing(run_hil: RunHil) -> None:
    ran = run_hil("def test_a(lab): pass\n")
    ran.result.assert_outcomes(errors=1)
    assert "must have one of the markers" in ran.text


def test_a_device_without_needs_says_what_is_missing(run_hil: RunHil) -> None:
    ran = run_hil("def test_a(device): pass\n")
    ran.result.assert_outcomes(errors=1)
    assert "must" in ran.text


def test_results_of_an_emulated_lab_that_stands_are_no_hardwares(run_hil: RunHil) -> None:
    ran = run_hil(
        "@pytest.mark.danger(0)\ndef test_a(lab, pytestconfig):\n"
        "    from hil.fixtures.plugin import session_of\n"
        "    assert not session_of(pytestconfig).lab.kind.disposable\n",
        lab=LAB.replace("physical", "emulated"),
    )
    assert ran.statuses == {"test_a": "passed"}, ran.text
    (test,) = ran.summary["tests"]
    assert test["provenance"] == "emulated"
    assert json.loads((ran.run / "run.json").read_text())["kind"] == "emulated"
    assert "lab:    rack (emulated: the hardware was QEMU's)" in ran.text
    assert "physical" not in ran.text


def test_the_terminal_tells_what_passed_and_what_did_not_and_why(run_hil: RunHil) -> None:
    ran = run_hil(ENDINGS)
    assert "1 passed, 4 failed, 6 broken, 1 skipped" in ran.text
    assert "1× not today" in ran.text
    assert "lab:    rack (physical)" in ran.text
    assert f"report: {ran.run}" in ran.text
    assert "HIL_ALLURE" in ran.text, "why there is no HTML, and how to get it"


def test_progress_is_one_line_a_test_where_there_is_no_terminal(run_hil: RunHil) -> None:
    ran = run_hil("@pytest.mark.catalogue('AS1')\ndef test_it_comes_back(): pass\n")
    ran.result.stdout.fnmatch_lines(["1/1 ✓ passed*dma: AS1 it comes back"])


def test_junit_xml_has_provenance_and_fault(run_hil: RunHil) -> None:
    ran = run_hil(ENDINGS)
    root = ET.parse(ran.run / "junit.xml").getroot()
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert len(cases) == 12
    found = {p.get("name"): p.get("value") for p in cases["test_guest"].iter("property")}
    assert found["provenance"] == "physical"
    assert found["fault"] == "guest"


@pytest.mark.parametrize(
    "end", ["raise KeyboardInterrupt", "os.kill(os.getpid(), 15)", "os.kill(os.getpid(), 1)"]
)
def test_an_interrupted_run_is_told_as_incomplete(run_hil: RunHil, end: str) -> None:
    ran = run_hil(
        "import os\npytestmark = pytest.mark.danger(0)\ndef test_a(): pass\n"
        f"def test_b(): {end}\ndef test_c(): pass\n"
    )
    assert ran.result.ret == pytest.ExitCode.INTERRUPTED
    assert ran.statuses == {"test_a": "passed"}
    assert ran.summary["complete"] is False
    assert ran.summary["planned"] == 3
    assert json.loads((ran.run / "run.json").read_text())["state"] == "running"


@pytest.mark.parametrize(
    "at", ["logstart(): ", "logreport(report): report.when == 'setup' and ", "logfinish(): "]
)
def test_an_interruption_between_two_phases_ends_the_fixtures_and_tells_what_they_raised(
    run_hil: RunHil, pytester: pytest.Pytester, at: str
) -> None:
    pytester.makeconftest(f"def stop(): raise KeyboardInterrupt\ndef pytest_runtest_{at}stop()\n")
    ran = run_hil(
        "import pathlib\n"
        "@pytest.fixture\n"
        "def own():\n"
        "    pathlib.Path('begun').touch()\n"
        "    yield\n"
        "    pathlib.Path('ended').touch()\n"
        "    raise ValueError('no cable')\n"
        "@pytest.mark.danger(0)\n"
        "def test_it(own): pass\n"
    )
    assert ran.result.ret == pytest.ExitCode.INTERRUPTED
    assert Path("begun").exists() == Path("ended").exists() == ("logstart" not in at)
    assert "StashKey" not in ran.text
    told = "after the interruption of test_it: ValueError: no cable" in ran.text
    assert told == ("setup" in at), ran.text


@pytest.mark.parametrize("place", ["", "tryfirst=True", "wrapper=True"])
def test_what_another_plugin_raises_at_the_end_is_told_and_the_results_are_kept(
    run_hil: RunHil, pytester: pytest.Pytester, place: str
) -> None:
    pytester.makeconftest(
        f"import pytest\n@pytest.hookimpl({place})\ndef pytest_sessionfinish():\n"
        f"    {'yield' if 'wrapper' in place else ''}\n"
        "    raise RuntimeError('the last straw')\n"
    )
    ran = run_hil("@pytest.mark.danger(0)\ndef test_it(): pass\n")
    assert "RuntimeError: the last straw" in ran.text
    assert "AssertionError" not in ran.text
    assert ran.statuses == {"test_it": "passed"}


def test_a_distributed_run_gathers_all_outcomes(run_hil: RunHil, pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    ran = run_hil(ENDINGS, "-n2")
    assert len(ran.statuses) == 12
    assert ran.summary["counts"]["failed"] == 4
    assert len(ran.results()) == 12


FULL = """
import errno
import pathlib
import pytest
pytestmark = pytest.mark.danger(0)
def test_before(): pass
def test_in_which_the_disk_fills_up(monkeypatch_for_good): pass
def test_after(): raise AssertionError("nobody would hear of it")

@pytest.fixture
def monkeypatch_for_good():
    def write(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))
    pathlib.Path.write_bytes = write
"""


def test_a_disk_that_is_full_ends_the_run_in_words(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", Path.write_bytes)  # put back at the end
    ran = run_hil(FULL)
    assert "INTERNALERROR" not in ran.text
    ran.result.stdout.fnmatch_lines(["*results cannot be written to *: No space left on device*"])
    statuses = {test["test"].rpartition("::")[2]: test["status"] for test in ran.summary["tests"]}
    assert statuses["test_before"] == "passed"
    assert statuses["test_after"] == "blocked"
    assert ran.result.ret != 0
