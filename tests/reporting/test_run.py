"""The folder of a run, summaries of runs whole and killed, and Allure's configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hil import cli
from hil.errors import Fault, HilError, InventoryError, LabError
from hil.reporting import html, junit
from hil.reporting.allure import CATEGORIES, Environment, bug_links, labels, severity
from hil.reporting.outcome import Outcome, Status
from hil.reporting.plan import Plan, Planned
from hil.reporting.run import Run
from hil.reporting.summary import Totals, render, write_summary
from hil.reporting.text import short


def outcome(name: str, status: Status = Status.PASSED, **more: object) -> Outcome:
    values = {"test": f"suites/dma/test_x.py::{name}", "status": status, "seconds": 1.0}
    return Outcome(**{**values, "provenance": "emulated", "area": "dma", **more})  # type: ignore[arg-type]


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    runs = {Run.create(tmp_path / "reports", "rack").directory for _ in range(5)}
    assert len(runs) == 5
    assert (tmp_path / "reports" / "latest").resolve() in runs


def test_a_name_of_a_lab_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "../../etc/x y")
    assert run.directory.parent == tmp_path.resolve()


def test_latest_never_replaces_what_a_person_put_there(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    Run.create(tmp_path, "rack")
    assert not (tmp_path / "latest").is_symlink()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="not the folder of a run"):
        html.generate(tmp_path)


def test_outcomes_survive_a_kill_in_the_midst_of_a_line(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rack")
    run.write_state({"tests": 3, "kind": "emulated"})
    run.add(outcome("test_a[nic0]", catalogue=("DM1",), devices=("nic0",)))
    run.add(outcome("test_b", Status.FAILED, reason="wrong", catalogue=("DM1", "DM3")))
    with (run.directory / "outcomes.jsonl").open("a") as file:
        file.write('{"test": "suites/x')
    summary = write_summary(run)
    assert summary["complete"] is False
    assert summary["planned"] == 3
    assert summary["counts"]["passed"] == 1
    assert summary["catalogue"] == {"DM1": "failed", "DM3": "failed"}
    assert summary["provenance"] == "emulated"
    assert "1 mistakes" not in json.dumps(summary)
    assert html.configuration(run)["name"].endswith("INCOMPLETE")
    assert html.variables(run)["incomplete"] == "2 of 3 tests ended: the run was cut short"


def test_a_report_of_a_killed_run_shows_what_ran_and_what_did_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIL_ALLURE", str(tmp_path / "missing"))
    run = Run.create(tmp_path, "rack")
    names = [outcome(f"test_{letter}").test for letter in "abc"]
    run.write_state({"tests": 3, "kind": "physical"})
    run.write_plan(Plan(tests=tuple(Planned(name, "dma") for name in names)))
    run.add(outcome("test_b"))
    # Without Allure there is no page, and that is said; the summary is there all the same.
    assert cli.main(["report", str(run.directory)]) == InventoryError.exit_code
    text = capsys.readouterr().out
    assert "1 passed; incomplete: the run was cut short" in text
    assert "did not run to the end (2)\n" in text
    assert names[0] in text
    summary = json.loads(run.summary.read_text())
    assert (summary["complete"], summary["not_run"]) == (False, [names[0], names[2]])
    assert html.variables(run)["did not run to the end"] == f"{names[0]}, {names[2]}"


def test_a_run_that_left_tests_out_is_not_complete(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rack")
    run.write_state({"tests": 2})
    run.add(outcome("test_a"))
    run.finish()
    assert not run.complete
    run.add(outcome("test_b"))
    assert run.complete


def test_an_unreadable_state_is_an_incomplete_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rack")
    (run.directory / "run.json").write_text("{")
    assert not run.complete
    assert html.configuration(run)["name"].endswith("INCOMPLETE")


def test_outcomes_are_read_as_they_were_written() -> None:
    written = outcome("test_a[nic0]", Status.BLOCKED, reason="“x”", bugs=("3", "PR 1"))
    assert Outcome.from_json(written.to_json()) == written


def test_titles_read_as_words() -> None:
    assert outcome("test_it_works[nic0]", catalogue=("AS1",)).title == "AS1 it works [nic0]"
    assert outcome("test_control_a_lie_is_seen").title == "control: a lie is seen"


def test_the_summary_groups_reasons_and_names_the_slowest() -> None:
    outcomes = [outcome(f"test_{n}", Status.SKIPPED, reason="no gpu") for n in range(9)]
    outcomes += [
        outcome("test_slow", seconds=12.5),
        outcome("test_bad", Status.BROKEN, reason="gone", fault="lab"),
    ]
    text = render(Totals.of(outcomes), lab="rack", kind="simulated", width=100)
    assert "9× no gpu" in text
    assert "… and 3 more" in text
    assert "slowest: slow 12.5 s" in text
    assert "1 passed, 1 broken, 9 skipped" in text
    assert "gone  [lab]" in text
    assert "nothing here was hardware" in text
    assert "\x1b" not in text


def test_markup_in_reasons_is_not_obeyed() -> None:
    text = render(
        Totals.of([outcome("t", Status.FAILED, reason="[red]x[/] :boom:")]),
        lab="l",
        kind="physical",
    )
    assert "[red]x[/] :boom:" in text


def test_every_fault_has_a_category() -> None:
    assert {fault.value for fault in Fault} <= set(CATEGORIES)


def test_labels_name_provenance_area_device_danger_and_fault() -> None:
    found = labels(
        outcome(
            "t",
            Status.BROKEN,
            fault="lab",
            danger=2,
            devices=("nic0",),
            catalogue=("RS2",),
            bugs=("3", "PR 222937"),
            area="iommu",
        )
    )
    for label in (
        ("provenance", "emulated"),
        ("feature", "IOMMU"),
        ("subSuite", "nic0"),
        ("tag", "danger 2"),
        ("tag", "RS2"),
        ("tag", "bug 3"),
        ("tag", "PR 222937"),
        ("fault", "lab"),
        ("severity", "blocker"),
    ):
        assert label in found


def test_severity_follows_area_and_danger() -> None:
    assert severity("dma", 0) == "critical"
    assert severity("reset", 2) == "blocker"
    assert severity("preflight", 0) == "minor"
    assert severity("lifecycle", 1) == "normal"


def test_only_references_that_are_known_become_links() -> None:
    assert bug_links(("3", "PR 222937", "D30827", "javascript:x")) == [
        ("PR 222937", "https://bugs.freebsd.org/bugzilla/show_bug.cgi?id=222937"),
        ("D30827", "https://reviews.freebsd.org/D30827"),
    ]


def test_the_environment_is_a_properties_file(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rack")
    Environment.write(run, {"a: system": "Debian = 12\nx"})
    Environment.write(run, {"b": "2"})
    assert (run.results / "environment.properties").read_text() == (
        "a\\:\\ system=Debian\\ \\=\\ 12\\ x\nb=2\n"
    )
    assert Environment.read(run) == {"a: system": "Debian = 12\nx", "b": "2"}


@pytest.mark.parametrize("given", ["missing", ""])
def test_a_missing_generator_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HIL_ALLURE", given)
    monkeypatch.setenv("HIL_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = Run.create(tmp_path / "r", "rack")
    with pytest.raises(HilError) as error:
        html.generate(run.directory)
    assert "npm install" in error.value.hint


def test_a_generator_that_fails_is_the_labs_error_and_shows_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "allure"
    fake.write_text("#!/bin/sh\necho 'node is too old' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("HIL_ALLURE", str(fake))
    run = Run.create(tmp_path / "r", "rack")
    with pytest.raises(LabError, match="status 3") as error:
        html.generate(run.directory)
    assert "node is too old" in error.value.seen
    assert not list(run.directory.glob("*.html*"))


def test_a_tag_ends_the_name_of_the_folder_and_cannot_lead_out_of_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rack", "jenkins-nightly/17")
    assert run.name.endswith("-rack-jenkins-nightly_17")
    assert run.directory.parent == tmp_path


# ---- attempts ----------------------------------------------------------------------------

DIED = "guest g1 restarted by itself"


def test_an_attempt_that_was_repeated_is_no_result(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "rack")
    run.write_state({"tests": 2})
    first = outcome("test_a", Status.BROKEN, reason="gone", fault="guest", repeated=True)
    run.add(first)
    run.add(outcome("test_b"))
    run.finish()
    assert not run.complete, "killed in the second attempt, the test has no end"
    assert [o.test for o in run.outcomes()] == [outcome("test_b").test]
    run.add(outcome("test_a", attempt=2, earlier=DIED))
    assert run.complete
    assert [o.status for o in run.outcomes()] == [Status.PASSED] * 2
    assert run.repeated() == (first,)
    summary = write_summary(run)
    assert summary["counts"]["broken"] == 0
    assert [test["reason"] for test in summary["repeated"]] == ["gone"]


def test_the_outcomes_of_a_run_are_parsed_once_for_all_that_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path, "rack")
    run.write_state({"tests": 3, "kind": "emulated"})
    run.add(outcome("test_a"))
    run.add(outcome("test_b"))
    parsed: list[str] = []
    real = Outcome.from_json

    def from_json(text: str) -> Outcome:
        parsed.append(text)
        return real(text)

    monkeypatch.setattr(Outcome, "from_json", from_json)
    write_summary(run)
    junit.write(run)
    html.configuration(run)
    render(Totals.of(run.outcomes()), lab="rack", kind="emulated", run=run)
    assert len(parsed) == 2
    run.add(outcome("test_c"))
    assert len(run.outcomes()) == 3, "and anew once there is more"
    assert run.complete is False
    assert len(parsed) == 5


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (outcome("t", reason="known"), "known"),
        (outcome("t", attempt=2, earlier=DIED), f"passed at the second attempt: {DIED}"),
        (outcome("t", attempt=4, earlier=DIED), f"passed at the fourth attempt: {DIED}"),
        (
            outcome("t", reason="fails as expected", attempt=2, earlier=DIED),
            f"fails as expected; passed at the second attempt: {DIED}",
        ),
        (
            outcome("t", Status.FAILED, reason="wrong", attempt=2, earlier=DIED),
            f"wrong (the attempt before: {DIED})",
        ),
        (
            outcome("t", Status.BROKEN, reason=DIED, attempt=2, earlier=DIED),
            f"{DIED} (the attempt before: the same)",
        ),
    ],
)
def test_an_outcome_tells_of_earlier_attempts(ended: Outcome, words: str) -> None:
    assert ended.words == words
    assert Outcome.from_json(ended.to_json()) == ended
    properties = dict(ended.properties)
    assert properties.get("note", words) == words
    assert ("attempt" in properties) == (ended.attempt > 1)


def test_a_pass_at_the_second_attempt_is_tagged() -> None:
    assert ("tag", "passed at the second attempt") in labels(outcome("t", attempt=2, earlier=DIED))
    assert ("tag", "passed at the second attempt") not in labels(outcome("t"))


def test_a_title_of_a_megabyte_is_cut_and_says_so() -> None:
    title = outcome("test_" + "x" * (1 << 20)).title
    assert len(title) < 400
    assert title.startswith("xxx")
    assert "1048276 characters left out" in title
    assert short("a" * 300) == "a" * 300


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report-dir", "a-file/reports"], "the report folder a-file/reports cannot be written"),
        (["--report-dir", "a-file/reports", "--labs", "2"], "cannot be written"),
        (["--retries", "1"], "on a lab that is simulated no test is repeated"),
        (["--retries", "1", "--labs", "2"], "on a lab that is simulated no test is repeated"),
    ],
)
def test_a_mistake_that_pytest_tells_ends_hil_run_with_5(
    tmp_path: Path, options: list[str], words: str
) -> None:
    (tmp_path / "a-file").touch()
    command = [sys.executable, "-m", "hil.cli", "run", "--lab", "freebsd-15-intel", *options]
    done = subprocess.run(
        [*command, "preflight"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == InventoryError.exit_code, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr
    assert not (tmp_path / "reports").exists()
