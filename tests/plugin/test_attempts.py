"""A test whose emulated guest died by itself is repeated once, and both attempts show."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.plugin.conftest import FakeLabs, Ran, RunHil

#: ``dies(labs)`` in a test: its guest dies in the attempts that ``DIES`` has.
HEAD = """
import tests.plugin.conftest as fake
pytestmark = pytest.mark.danger(0)
TRIED = []
DIES = [1]
def dies(name="g1"):
    TRIED.append(name)
    if len(TRIED) in DIES:
        fake.NOW[-1].deaths.append(f"guest {name} restarted by itself")
        raise GuestError(f"guest {name} is gone from SSH")
"""
DEATH = "guest g1 restarted by itself"


@pytest.fixture(autouse=True)
def without_kvm(labs: FakeLabs) -> None:
    labs.software = True


def outcomes(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.run / "outcomes.jsonl").read_text().splitlines()]


def cases(ran: Ran) -> list[ET.Element]:
    return list(ET.parse(ran.run / "junit.xml").getroot().iter("testcase"))


def properties(case: ET.Element) -> dict[str | None, str | None]:
    return {p.get("name"): p.get("value") for p in case.iter("property")}


def test_a_test_whose_guest_died_passes_at_the_second_attempt(
    run_hil: RunHil, labs: FakeLabs
) -> None:
    ran = run_hil(HEAD + "def test_a(lab): dies()\ndef test_b(lab): pass\n", kind="emulated")
    assert ran.result.ret == pytest.ExitCode.OK, ran.text
    assert ran.statuses == {"test_a": "passed", "test_b": "passed"}
    first, second, other = outcomes(ran)
    assert first["test"] == second["test"]
    assert (first["status"], first["repeated"], first["attempt"]) == ("broken", True, 1)
    assert (second["status"], second["repeated"], second["attempt"]) == ("passed", False, 2)
    assert (first["reason"], first["fault"]) == ("guest g1 is gone from SSH", "guest")
    assert (first["earlier"], second["earlier"]) == ("", DEATH)
    assert (other["attempt"], other["earlier"]) == (1, "")
    assert ran.summary["repeated"] == [first]
    assert ran.summary["complete"]
    assert labs.asked == ["shared", "shared"], "the second attempt has a lab that was restored"


def test_it_is_told_on_the_terminal(run_hil: RunHil) -> None:
    ran = run_hil(HEAD + "def test_a(lab): dies()\ndef test_b(lab): pass\n", kind="emulated")
    ran.result.stdout.fnmatch_lines(
        [
            " /2 ↻ repeated*dma: a  guest g1 is gone from SSH",
            f"1/2 ✓ passed*dma: a  passed at the second attempt: {DEATH}",
            "2/2 ✓ passed*dma: b",
            "repeated (1): a guest died under software emulation",
            f" 1× {DEATH}",
            "    dma: a: passed at the second attempt",
            "2 passed (1 not at the first attempt)",
        ]
    )


def test_it_is_one_test_in_junit_xml(run_hil: RunHil) -> None:
    ran = run_hil(HEAD + "def test_a(lab): dies()\n", kind="emulated")
    (case,) = cases(ran)
    assert case.find("failure") is None
    assert case.find("error") is None
    found = properties(case)
    assert (found["status"], found["attempt"]) == ("passed", "2")
    assert found["note"] == f"passed at the second attempt: {DEATH}"
    suite = next(ET.parse(ran.run / "junit.xml").getroot().iter("testsuite"))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "0")


def test_allure_has_the_first_attempt_as_a_retry_of_the_second(run_hil: RunHil) -> None:
    ran = run_hil(HEAD + "def test_a(lab):\n    print('try')\n    dies()\n", kind="emulated")
    found = [
        json.loads(path.read_text()) for path in (ran.run / "allure-results").glob("*-result.json")
    ]
    first, second = sorted(found, key=lambda result: result["start"])
    assert first["historyId"] == second["historyId"]
    assert (first["status"], second["status"]) == ("broken", "passed")
    assert second["statusDetails"]["flaky"] is True
    assert second["statusDetails"]["message"] == f"passed at the second attempt: {DEATH}"
    tags = [label["value"] for label in second["labels"] if label["name"] == "tag"]
    assert "passed at the second attempt" in tags
    assert "why this test is repeated" in {a["name"] for a in first["attachments"]}
    assert "why this test is repeated" not in {a["name"] for a in second.get("attachments", [])}
    printed = [a["source"] for a in second["attachments"] if a["name"] == "stdout"]
    assert [(ran.run / "allure-results" / name).read_text() for name in printed] == ["try\n"]


def test_a_test_whose_guest_dies_twice_is_a_failure(run_hil: RunHil, labs: FakeLabs) -> None:
    ran = run_hil(
        HEAD.replace("[1]", "[1, 2]") + "def test_a(lab): dies()\ndef test_b(lab): pass\n",
        kind="emulated",
    )
    assert ran.result.ret == pytest.ExitCode.TESTS_FAILED
    assert ran.statuses == {"test_a": "broken", "test_b": "passed"}
    assert [line["attempt"] for line in outcomes(ran)] == [1, 2, 1]
    assert labs.asked == ["shared"] * 2, "it is repeated once"
    assert "    dma: a: broken at the second attempt too" in ran.text
    assert "1 passed, 1 broken" in ran.text
    case = cases(ran)[0]
    assert case.find("failure") is not None
    assert f"(the attempt before: {DEATH})" in str(properties(case)["note"])


def test_more_attempts_may_be_asked_for(run_hil: RunHil) -> None:
    ran = run_hil(
        HEAD.replace("[1]", "[1, 2]") + "def test_a(lab): dies()\n",
        "--hil-retries=2",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "passed"}
    assert outcomes(ran)[-1]["attempt"] == 3
    assert "passed at the third attempt" in ran.text


HOST = """
import tests.plugin.conftest as fake
pytestmark = pytest.mark.danger(0)
TRIED = []
def panics():
    TRIED.append(1)
    labs = fake.NOW[-1]
    labs.panics.clear()
    labs.dead.clear()
    if len(TRIED) == 1:
        labs.panics["alpha"] = "Kernel panic - not syncing: out of luck"
        labs.dead.add("alpha")
        raise {seen}
"""


@pytest.mark.parametrize("seen", ["LabError('broke')", "GuestError('gone')", "KeyError('bug')"])
def test_a_test_whose_host_died_is_not_repeated(run_hil: RunHil, labs: FakeLabs, seen: str) -> None:
    ran = run_hil(
        HOST.format(seen=seen) + "def test_a(lab): panics()\n",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "failed"}, ran.text
    (only,) = outcomes(ran)
    assert only["reason"] == "host alpha died: Kernel panic - not syncing: out of luck"
    assert (only["fault"], labs.asked) == ("product", ["shared"])


def test_a_guest_that_dies_in_a_fixture_counts_too(run_hil: RunHil) -> None:
    ran = run_hil(
        HEAD + "@pytest.fixture\ndef worker(lab): dies()\ndef test_a(worker): pass\n",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "passed"}


NOT_THE_EMULATORS = {
    "an oracle's failure": "fake.NOW[-1].deaths.append('dead'); raise ProductError('wrong bytes')",
    "a failed assertion": "fake.NOW[-1].deaths.append('dead'); assert False",
    "a wrong inventory": "fake.NOW[-1].deaths.append('dead'); raise InventoryError('no such')",
    "a deadline whose guest lives": "raise DeadlineExceeded('waited 5 s in vain')",
    "a guest's error that lives": "raise GuestError('it lists no functions')",
    "an error of the lab, which lives": "raise LabError('no such file')",
    "a bug": "raise KeyError('bug')",
    "a timeout": "pytest.fail('Timeout (>1.0s) from pytest-timeout.')",
}


@pytest.mark.parametrize("what", NOT_THE_EMULATORS)
def test_nothing_else_is_repeated(run_hil: RunHil, what: str) -> None:
    body = f"def test_a(lab):\n    {NOT_THE_EMULATORS[what]}\n"
    ran = run_hil(HEAD + body, kind="emulated")
    assert len(outcomes(ran)) == 1
    assert ran.statuses["test_a"] != "passed"
    assert "↻" not in ran.text


def test_an_oracle_that_judges_while_all_is_put_back_ends_it(run_hil: RunHil) -> None:
    ran = run_hil(
        HEAD + "@pytest.fixture\ndef last(lab):\n    yield\n    raise ProductError('lost bytes')\n"
        "def test_a(last): dies()\n",
        kind="emulated",
    )
    assert [line["status"] for line in outcomes(ran)] == ["broken"]


def test_a_death_of_an_earlier_test_counts_for_nothing(run_hil: RunHil) -> None:
    ran = run_hil(
        HEAD + "def test_a(lab): fake.NOW[-1].deaths.append('dead')\n"
        "def test_b(lab): raise GuestError('it lists no functions')\n",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "passed", "test_b": "broken"}


@pytest.mark.parametrize(
    ("kind", "software", "option"),
    [
        ("physical", True, ""),
        ("simulated", True, ""),
        ("emulated", False, ""),
        ("emulated", True, "--hil-retries=0"),
        ("physical", True, "--hil-retries=0"),
    ],
)
def test_nowhere_else_is_a_test_repeated(
    run_hil: RunHil, labs: FakeLabs, kind: str, software: bool, option: str
) -> None:
    labs.software = software
    ran = run_hil(HEAD + "def test_a(lab): dies()\n", *filter(None, [option]), kind=kind)
    assert [line["status"] for line in outcomes(ran)] == ["broken"]


@pytest.mark.parametrize("kind", ["physical", "simulated"])
@pytest.mark.parametrize("more", [(), ("-n2",)])
def test_it_cannot_be_asked_for_on_hardware(
    run_hil: RunHil, kind: str, more: tuple[str, ...]
) -> None:
    ran = run_hil(HEAD + "def test_a(lab): dies()\n", "--hil-retries=1", *more, kind=kind)
    assert ran.result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"on a lab that is {kind} no test is repeated" in ran.text
    assert "INTERNALERROR" not in ran.text
    assert not (ran.directory / "reports").exists()


def test_under_kvm_it_is_said_that_nothing_is_repeated(run_hil: RunHil, labs: FakeLabs) -> None:
    labs.software = False
    ran = run_hil(HEAD + "def test_a(lab): pass\n", "--hil-retries=1", kind="emulated")
    assert "no test was repeated: the lab ran under KVM" in ran.text
    ran = run_hil(HEAD + "def test_a(lab): pass\n", kind="emulated")
    assert "no test was repeated" not in ran.text


SCOPES = """
MADE = []
@pytest.fixture(scope="session")
def whole(): MADE.append("whole"); yield; MADE.append("end of whole")
@pytest.fixture(scope="module")
def module(whole): MADE.append("module"); yield; MADE.append("end of module")
@pytest.fixture
def own(lab, module, record_property):
    record_property("told", "once")
    MADE.append("own"); yield; MADE.append("end of own")
class TestIt:
    def test_a(self, own):
        print("an attempt")
        assert not hasattr(self, "used")
        self.used = True
        dies()
    def test_b(self, own):
        print("\\n".join(["made:", *MADE]))
        raise LabError("to show it")
"""


def test_nothing_of_the_first_attempt_is_left_to_the_second(run_hil: RunHil) -> None:
    ran = run_hil(HEAD + SCOPES, kind="emulated")
    assert ran.statuses == {"test_a": "passed", "test_b": "broken"}, ran.text
    one = ["whole", "module", "own"]
    ends = ["end of own", "end of module", "end of whole"]
    ran.result.stdout.fnmatch_lines(
        ["made:", *one, *ends, *one, "end of own", "own"], consecutive=True
    )
    case = cases(ran)[0]
    assert [p.get("name") for p in case.iter("property")].count("told") == 1


def test_a_fixture_that_fails_to_end_between_two_attempts_is_told(run_hil: RunHil) -> None:
    ran = run_hil(
        HEAD + "@pytest.fixture(scope='module')\ndef module():\n    yield\n"
        "    if len(TRIED) == 1: raise ValueError('it sticks')\n"
        "def test_a(lab, module): dies()\ndef test_b(lab, module): pass\n",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "passed", "test_b": "passed"}
    assert "before test_a was repeated: ValueError: it sticks" in ran.text


def test_an_interruption_of_the_second_attempt_leaves_the_test_without_an_end(
    run_hil: RunHil, labs: FakeLabs
) -> None:
    ran = run_hil(
        HEAD + "@pytest.fixture\ndef own(lab):\n    yield\n    print('torn down', len(TRIED))\n"
        "def test_a(own):\n    dies()\n    raise KeyboardInterrupt\ndef test_b(lab): pass\n",
        "-s",
        kind="emulated",
    )
    assert ran.result.ret == pytest.ExitCode.INTERRUPTED
    assert [(line["attempt"], line["repeated"]) for line in outcomes(ran)] == [(1, True)]
    assert ran.statuses == {}
    assert ran.summary["complete"] is False
    assert "torn down 1" in ran.text
    assert "torn down 2" in ran.text
    assert "did not run to the end (2)" in ran.text
    assert cases(ran) == [], "and it does not look like one that passed"
    assert labs.closed == 1, "the second lab; the first was given up"


def test_the_first_interrupt_while_the_lab_is_given_up_ends_the_run(
    run_hil: RunHil, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_hil(
        HEAD + "import os\n@pytest.fixture\ndef own(lab):\n    yield\n"
        "    os.kill(os.getpid(), 2)\n"
        "def test_a(own): dies()\ndef test_b(lab): pass\n",
        kind="emulated",
    )
    assert ran.result.ret == pytest.ExitCode.INTERRUPTED
    assert [line["repeated"] for line in outcomes(ran)] == [True]


def test_after_the_run_s_deadline_nothing_is_repeated(run_hil: RunHil) -> None:
    ran = run_hil(
        HEAD + "def test_a(lab, request):\n"
        "    from hil.deadline import Deadline\n"
        "    request.config.pluginmanager.get_plugin('hil-session').deadline = Deadline(0, 'it')\n"
        "    dies()\n",
        "--hil-deadline=500",
        kind="emulated",
    )
    assert [(line["status"], line["repeated"]) for line in outcomes(ran)] == [("broken", False)]


def test_a_repeated_test_is_no_failure_for_dash_x(run_hil: RunHil) -> None:
    ran = run_hil(HEAD + "def test_a(lab): dies()\ndef test_b(lab): pass\n", "-x", kind="emulated")
    assert ran.statuses == {"test_a": "passed", "test_b": "passed"}


def test_each_attempt_has_the_whole_of_a_test_s_time(run_hil: RunHil) -> None:
    ran = run_hil(
        HEAD + "def test_a(lab):\n"
        "    bound = lab.hosts['alpha'].bound\n"
        "    assert bound.remaining > 50\n"
        "    dies()\n",
        "--hil-test-deadline=100",
        kind="emulated",
    )
    assert ran.statuses == {"test_a": "passed"}, ran.text


DISTRIBUTED = """
import pathlib
import pytest
import tests.plugin.conftest as fake
pytestmark = pytest.mark.danger(0)
fake.NOW[-1].software = True
@pytest.fixture(scope="session", autouse=True)
def no_lab():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hil.fixtures.pool.LabPool._bring_up", fake.bring_up)
        yield
@pytest.mark.parametrize("n", range(4))
def test_it(lab, n, request):
    seen = pathlib.Path(request.config.rootpath, f"seen-{n}")
    if n % 2 and not seen.exists():
        seen.touch()
        fake.NOW[-1].deaths.append("guest g1 restarted by itself")
        raise GuestError("gone")
"""


def test_attempts_of_a_distributed_run_all_reach_the_report(run_hil: RunHil) -> None:
    pytest.importorskip("xdist")
    ran = run_hil(DISTRIBUTED, "-n2", kind="emulated")
    assert ran.result.ret == pytest.ExitCode.OK, ran.text
    assert list(ran.statuses.values()) == ["passed"] * 4
    assert sorted(line["attempt"] for line in outcomes(ran)) == [1, 1, 1, 1, 2, 2]
    assert len(list((ran.run / "allure-results").glob("*-result.json"))) == 6
    assert len(cases(ran)) == 4
    assert "repeated (2): a guest died under software emulation" in ran.text
