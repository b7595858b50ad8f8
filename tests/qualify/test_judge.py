"""Verdicts: what counts, what does not, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hil.qualify.evidence import Identity, gather, parse_identity
from hil.qualify.verdict import Cell, Finding, Judgement, Verdict
from hil.reporting.outcome import Status
from tests.qualify.runs import (
    DAY,
    ENVIRONMENT,
    NOW,
    POLICY,
    folder_of,
    id_of,
    outcome,
    run_of,
    verdict_of,
)

QUALIFIED, NOT_QUALIFIED, NOT_ENOUGH = Judgement


def findings(verdict: Verdict) -> list[Finding]:
    return [f for line in verdict.lines for cell in line.cells for f in cell.findings]


def cell(verdict: Verdict) -> Cell:
    (line,) = verdict.lines
    return line.cells[0]


def only(verdict: Verdict, judgement: Judgement, words: str) -> Finding:
    """The one finding there is."""
    found = [*findings(verdict), *verdict.findings]
    assert [f.judgement for f in found] == [judgement], found
    assert words in found[0].text
    assert verdict.judgement is judgement
    return found[0]


# ---- passing and failing -------------------------------------------------------------


def test_all_passed(tmp_path: Path) -> None:
    verdict = verdict_of(run_of(tmp_path, outcome("a"), outcome("b"), outcome("c", device="")))
    assert verdict.judgement is QUALIFIED
    assert findings(verdict) == []
    assert [(c.device, c.passed) for c in verdict.lines[0].cells] == [("nic0", 2), ("", 1)]
    assert verdict.provenance == ("physical",)
    assert verdict.runs[0].counted == verdict.runs[0].tests == 3
    assert verdict.systems == (
        "freebsd-bhyve: FreeBSD 15.0-RELEASE, kernel n280995, bhyve of FreeBSD 15.0-RELEASE",
    )


def test_one_failure_is_one_whatever_passed_besides(tmp_path: Path) -> None:
    first = run_of(tmp_path, outcome("a", Status.FAILED, reason="no FLR"), outcome("b"))
    second = run_of(tmp_path, outcome("a"), outcome("b"))
    finding = only(verdict_of(first, second), NOT_QUALIFIED, "failed: no FLR (1 of 2 times)")
    assert (finding.run, finding.test) == ("run0", "suites/reset/test_reset.py::test_a[nic0]")


def test_a_test_without_a_device_belongs_to_the_suite(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("a"), outcome("c", Status.FAILED, device="", reason="x"))
    only(verdict_of(run), NOT_QUALIFIED, "failed: x")


@pytest.mark.parametrize(
    ("fault", "judgement"),
    [
        ("guest", NOT_QUALIFIED),
        ("lab", NOT_ENOUGH),
        ("inventory", NOT_ENOUGH),
        ("test", NOT_ENOUGH),
    ],
)
def test_a_broken_test_counts_by_whose_fault_it_was(
    tmp_path: Path, fault: str, judgement: Judgement
) -> None:
    run = run_of(tmp_path, outcome("a", Status.BROKEN, reason="gone", fault=fault), outcome("b"))
    only(verdict_of(run), judgement, f"broken ({fault}): gone")


def test_what_could_not_judge_once_may_pass_later(tmp_path: Path) -> None:
    first = run_of(tmp_path, outcome("a", Status.BROKEN, fault="lab"))
    assert verdict_of(first, run_of(tmp_path, outcome("a"))).judgement is QUALIFIED


def test_a_pass_at_the_second_attempt_is_none(tmp_path: Path) -> None:
    text = POLICY + 'provenance = ["emulated"]\n'
    dead = "guest g1 restarted by itself"
    late = outcome("a", attempt=2, provenance="emulated", earlier=dead)
    first = outcome("a", Status.BROKEN, provenance="emulated", fault="guest", repeated=True)
    run = run_of(tmp_path, first, late, state={"tests": 1})
    finding = only(verdict_of(run, text=text), NOT_ENOUGH, "passed, which does not count: ")
    assert "at the second attempt only: guest g1 restarted by itself" in finding.text
    plain = run_of(tmp_path, outcome("a", provenance="emulated"))
    assert verdict_of(run, plain, text=text).judgement is QUALIFIED
    again = replace(late, status=Status.BROKEN, fault="guest", reason="gone")
    twice = run_of(tmp_path, first, again, state={"tests": 1})
    only(verdict_of(twice, text=text), NOT_QUALIFIED, "broken (guest): gone")


@pytest.mark.parametrize("status", [Status.SKIPPED, Status.BLOCKED])
def test_what_did_not_run_lacks(tmp_path: Path, status: Status) -> None:
    run = run_of(tmp_path, outcome("a", status, reason="no MSI"), outcome("b"))
    only(verdict_of(run), NOT_ENOUGH, f"{status}: no MSI")


def test_skips_may_be_allowed_but_not_all_of_them(tmp_path: Path) -> None:
    text = POLICY + "allow_skips = true\n"
    skipped = outcome("a", Status.SKIPPED, reason="no MSI")
    verdict = verdict_of(run_of(tmp_path, skipped, outcome("b")), text=text)
    assert verdict.judgement is QUALIFIED
    assert (cell(verdict).passed, cell(verdict).skipped) == (1, 1)
    only(verdict_of(run_of(tmp_path, skipped), text=text), NOT_ENOUGH, "every test was skipped")
    blocked = outcome("a", Status.BLOCKED, reason="dead")
    verdict = verdict_of(run_of(tmp_path, blocked, outcome("b")), text=text)
    only(verdict, NOT_ENOUGH, "blocked: dead")


# ---- how often ------------------------------------------------------------------------


def test_passes_are_counted_over_runs(tmp_path: Path) -> None:
    text = POLICY + "passes = 3\n"
    runs = [
        run_of(tmp_path, outcome("a"), state={"started": NOW - n}, environment=ENVIRONMENT)
        for n in range(2)
    ]
    # The same results to the byte would be copies.
    records = [
        run_of(tmp_path, outcome("a", reason=f"run {n}"), name=f"again{n}") for n in range(2)
    ]
    verdict = verdict_of(runs[0], records[0], text=text)
    only(verdict, NOT_ENOUGH, "passed 2 of 3 times")
    assert verdict_of(runs[0], *records, text=text).judgement is QUALIFIED


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    runs = run_of(tmp_path, outcome("a")), run_of(tmp_path, outcome("a"))
    verdict = verdict_of(*runs, text=POLICY + "passes = 2\n")
    only(verdict, NOT_ENOUGH, "passed 1 of 2 times")
    assert "a copy of run0" in verdict.runs[1].doubts[0]


def test_a_test_that_a_run_repeats_counts_each_time(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("a"), outcome("a"))
    assert verdict_of(run, text=POLICY + "passes = 2\n").judgement is QUALIFIED


@pytest.mark.parametrize(("cycles", "words"), [(5, "repeated 5 times"), (None, "an unknown")])
def test_too_few_cycles_do_not_count(tmp_path: Path, cycles: int | None, words: str) -> None:
    text = POLICY + "cycles = 100\n"
    run = run_of(tmp_path, outcome("a"), state={"cycles": cycles})
    only(verdict_of(run, text=text), NOT_ENOUGH, words)
    assert verdict_of(
        run_of(tmp_path, outcome("a"), state={"cycles": 100}), text=text
    ).judgement is (QUALIFIED)


# ---- whole suites ---------------------------------------------------------------------


def test_a_test_that_options_took_out_lacks(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("a"), left_out=[outcome("b"), outcome("x", device="nic1")])
    finding = only(verdict_of(run), NOT_ENOUGH, "not run: options took it out of this run")
    assert finding.test == "suites/reset/test_reset.py::test_b[nic0]"
    other = run_of(tmp_path, outcome("b"), narrowed=True)
    assert verdict_of(run, other).judgement is QUALIFIED


def test_single_tests_are_no_suite(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("a"), narrowed=True)
    only(verdict_of(run), NOT_ENOUGH, "no run of the whole suite")


def test_a_run_without_a_plan_is_no_suite(tmp_path: Path) -> None:
    directory = folder_of(tmp_path, [outcome("a")])
    (directory / "plan.json").unlink()
    (run,), _ = gather([directory])
    only(verdict_of(run), NOT_ENOUGH, "no run of the whole suite")


def test_a_pair_for_which_the_suite_has_no_test_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("a"), outcome("x", device="nic1", area="dma"))
    verdict = verdict_of(run, text=POLICY.replace('["nic0"]', '["nic0", "nic1"]'))
    only(verdict, NOT_ENOUGH, "the suite has no test for nic1, as the inventory describes it")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["reset"]', '["rset"]', "no run has the suite 'rset'; did you mean 'reset'?"),
        ('["nic0"]', '["nic9"]', "no run has the device 'nic9'; did you mean 'nic"),
        ('["nic0"]', '["nic0"]\nguests = ["bsd"]', "no run has the guest 'bsd'; there is: linux"),
        (
            '["nic0"]',
            '["nic0"]\nplatforms = ["linux-vfio"]',
            "no run has the platform linux-vfio; there is: freebsd-bhyve",
        ),
    ],
)
def test_what_no_run_has_is_told(tmp_path: Path, old: str, new: str, words: str) -> None:
    run = run_of(tmp_path, outcome("a"), outcome("x", device="nic1", area="dma"))
    verdict = verdict_of(run, text=POLICY.replace(old, new))
    assert words in cell(verdict).findings[0].text
    assert verdict.judgement is NOT_ENOUGH


def test_guests_and_platforms_are_places_of_their_own(tmp_path: Path) -> None:
    text = POLICY + 'guests = ["linux", "bsd"]\nplatforms = ["freebsd-bhyve"]\n'
    linux, bsd = outcome("a"), outcome("a", guest="bsd")
    verdict = verdict_of(run_of(tmp_path, linux), run_of(tmp_path, bsd), text=text)
    assert [(c.guest, c.passed) for c in verdict.lines[0].cells] == [("linux", 1), ("bsd", 1)]
    assert verdict.judgement is QUALIFIED


# ---- provenance, age, killed and damaged runs -----------------------------------------


@pytest.mark.parametrize("kind", ["emulated", "simulated"])
def test_other_provenance_never_satisfies(tmp_path: Path, kind: str) -> None:
    run = run_of(tmp_path, outcome("a", provenance=kind))
    finding = only(verdict_of(run), NOT_ENOUGH, f"no result counts: 1× {kind}, not physical")
    assert finding.test == ""
    assert verdict_of(run).provenance == ()
    text = POLICY.replace("max_age_days", f'provenance = ["{kind}"]\nmax_age_days')
    assert verdict_of(run, text=text).judgement is QUALIFIED


def test_a_failure_elsewhere_is_no_failure_here(tmp_path: Path) -> None:
    emulated = run_of(tmp_path, outcome("a", Status.FAILED, provenance="emulated"))
    assert verdict_of(emulated, run_of(tmp_path, outcome("a"))).judgement is QUALIFIED


def test_a_run_that_contradicts_itself_counts_for_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("a"), state={"kind": "emulated"})
    only(verdict_of(run), NOT_ENOUGH, "says that it is emulated")


@pytest.mark.parametrize(("days", "judgement"), [(13.9, QUALIFIED), (14.1, NOT_ENOUGH)])
def test_results_grow_old(tmp_path: Path, days: float, judgement: Judgement) -> None:
    run = run_of(tmp_path, outcome("a"), state={"started": NOW - days * DAY})
    verdict = verdict_of(run)
    assert verdict.judgement is judgement
    if judgement is NOT_ENOUGH:
        assert "14 days old, more than 14" in findings(verdict)[0].text


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"state": "running", "tests": 9}, "killed, or not yet ended: 1 of 9 tests ended"),
        ({"started": None}, "does not say when it started"),
        ({"started": NOW + DAY}, "started in the future"),
    ],
)
def test_what_is_doubtful_counts_for_nothing(
    tmp_path: Path, state: dict[str, object], words: str
) -> None:
    run = run_of(tmp_path, outcome("a"), state=state)
    only(verdict_of(run), NOT_ENOUGH, f"passed, which does not count: {words}")
    assert words in verdict_of(run).runs[0].doubts[0]


def test_a_failure_in_a_killed_run_is_a_failure(tmp_path: Path) -> None:
    killed = run_of(tmp_path, outcome("a", Status.FAILED, reason="x"), state={"state": "running"})
    only(verdict_of(killed, run_of(tmp_path, outcome("a"))), NOT_QUALIFIED, "failed: x (1 of 2")


def test_tests_that_a_killed_run_did_not_reach_lack(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("a"), missing=[outcome("b")], state={"state": "running"})
    assert {(f.test[-7:], f.text[:6]) for f in findings(verdict_of(run))} == {
        ("a[nic0]", "passed"),
        ("b[nic0]", "not ru"),
    }


def test_a_damaged_line_makes_a_run_doubtful(tmp_path: Path) -> None:
    directory = folder_of(tmp_path, [outcome("a")])
    file = directory / "outcomes.jsonl"
    file.write_text(file.read_text() + '{"test": "suites/reset\n')
    (run,), _ = gather([directory])
    only(verdict_of(run), NOT_ENOUGH, "damaged: a line of its outcomes.jsonl cannot be read")


def test_a_test_that_its_run_did_not_plan_is_unknown(tmp_path: Path) -> None:
    directory = folder_of(tmp_path, [outcome("a")])
    with (directory / "outcomes.jsonl").open("a") as file:
        file.write(outcome("planted").to_json() + "\n")
    (run,), _ = gather([directory])
    only(verdict_of(run), NOT_ENOUGH, "unknown test: its run did not plan it")


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    directory = folder_of(tmp_path, [outcome("a")])
    runs, notes = gather([directory, directory / ".." / directory.name])
    assert len(runs) == 1
    assert "named twice" in notes[0]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [folder_of(tmp_path / place, [outcome("a")], name="run") for place in ("x", "y")]
    runs, _ = gather(folders)
    assert [run.name for run in runs] == ["run", "run-2"]


# ---- inventories, cards, systems --------------------------------------------------------


def test_a_name_in_two_inventories_is_nobodys(tmp_path: Path) -> None:
    runs = (
        run_of(tmp_path, outcome("a")),
        run_of(tmp_path, outcome("a", reason="x"), state={"inventory": "b" * 64}),
    )
    only(verdict_of(*runs), NOT_ENOUGH, "results of nic0 are from 2 inventories (rack aaaaaaaa")
    assert "the inventory of the lab rack changed between runs" in verdict_of(*runs).notes
    text = POLICY + '[devices.nic0]\nid = "8086:10c9"\nserial = "52-54-00-ff-ff-68-69-02"\n'
    assert verdict_of(*runs, text=text).judgement is QUALIFIED


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ('id = "8086:1521"', "of another card: nic0 was 8086:10c9, not 8086:1521"),
        ('id = "8086:10c9"\nsubsystem = "8086:0001"', "nic0 was subsystem 1af4:1100, not subsys"),
        ('id = "8086:10c9"\nserial = "0000000000000001"', "nic0 was serial 525400ffff686902"),
    ],
)
def test_another_card_does_not_count(tmp_path: Path, card: str, words: str) -> None:
    run = run_of(tmp_path, outcome("a"))
    only(verdict_of(run, text=f"{POLICY}[devices.nic0]\n{card}\n"), NOT_ENOUGH, words)
    unknown = run_of(tmp_path, outcome("a"), environment={})
    verdict = verdict_of(unknown, text=f"{POLICY}[devices.nic0]\n{card}\n")
    only(verdict, NOT_ENOUGH, "of an unknown card")


def test_identities_as_runs_record_them() -> None:
    text = "8086:10c9 rev 01, subsystem 1af4:1100, at 0000:01:00.0 of host"
    assert parse_identity(text) == Identity("8086:10c9", "1af4:1100")
    assert parse_identity(ENVIRONMENT["device nic0"]) == Identity(
        "8086:10c9", "1af4:1100", "525400ffff686902"
    )
    for wrong in ("", "8086:10c9", text.replace("rev", "vers"), text + "\nmore"):
        assert parse_identity(wrong) is None


def test_one_release_is_qualified_not_two(tmp_path: Path) -> None:
    newer = {**ENVIRONMENT, "alpha: system": "FreeBSD 15.1-RELEASE, kernel n290000"}
    runs = (
        run_of(tmp_path, outcome("a")),
        run_of(tmp_path, outcome("a", reason="x"), environment=newer),
    )
    only(verdict_of(*runs), NOT_ENOUGH, "results on freebsd-bhyve are of 2 systems")
    text = POLICY + '[platforms.freebsd-bhyve]\nsystem = "15.1-RELEASE"\n'
    verdict = verdict_of(*runs, text=text)
    assert verdict.judgement is QUALIFIED
    assert [run.counted for run in verdict.runs] == [0, 1]
    verdict = verdict_of(runs[0], text=text)
    only(
        verdict, NOT_ENOUGH, "of another system: FreeBSD 15.0-RELEASE, kernel n280995; wanted: 15.1"
    )


# ---- waivers ------------------------------------------------------------------------------


def waiver(name: str = "known", expires: str = "2026-11-21", **more: str) -> str:
    values = {"test": id_of("a", ""), "reason": "it lies", "link": "https://example.org/1"}
    rows = [f'{key} = "{value}"' for key, value in {**values, **more}.items()]
    return "\n".join([f"\n[waivers.{name}]", *rows, f"expires = {expires}", ""])


FAILED = outcome("a", Status.FAILED, reason="no FLR")


def test_a_waiver_accepts_a_failure_up_to_its_last_day(tmp_path: Path) -> None:
    run = run_of(tmp_path, FAILED, outcome("b"))
    verdict = verdict_of(run, text=POLICY + waiver())
    finding = only(verdict, QUALIFIED, "accepted until 2026-11-21: failed: no FLR")
    assert finding.waiver == "known"
    assert (cell(verdict).passed, cell(verdict).accepted) == (1, 1)
    assert verdict.waivers[0].accepted == (finding.test,)
    assert verdict.waivers[0].note == ""


def test_an_expired_waiver_fails_with_its_date(tmp_path: Path) -> None:
    run = run_of(tmp_path, FAILED, outcome("b"))
    verdict = verdict_of(run, text=POLICY + waiver(expires="2026-11-20"))
    only(verdict, NOT_QUALIFIED, "failed: no FLR; the waiver known expired on 2026-11-20")
    assert verdict.waivers[0].expired
    assert verdict.waivers[0].note == "expired on 2026-11-20"


def test_a_renewed_waiver_counts_beside_the_expired_one(tmp_path: Path) -> None:
    text = POLICY + waiver("old", "2026-11-20") + waiver("new", "2027-01-01")
    assert verdict_of(run_of(tmp_path, FAILED), text=text).judgement is QUALIFIED


@pytest.mark.parametrize(
    ("more", "judgement"),
    [
        ({"device": "nic0"}, QUALIFIED),
        ({"device": "nic1"}, NOT_QUALIFIED),
        ({"test": id_of("a")}, QUALIFIED),
        ({"test": "/elsewhere/" + id_of("a")}, QUALIFIED),
        ({"test": id_of("a", "nic1")}, NOT_QUALIFIED),
        ({"test": id_of("aa", "")}, NOT_QUALIFIED),
    ],
)
def test_a_waiver_is_for_its_test_on_its_device(
    tmp_path: Path, more: dict[str, str], judgement: Judgement
) -> None:
    verdict = verdict_of(run_of(tmp_path, FAILED), text=POLICY + waiver(**more))
    assert verdict.judgement is judgement


@pytest.mark.parametrize(
    ("run", "more", "words"),
    [
        ([outcome("a")], {}, "no longer needed: what it is about passed"),
        ([outcome("b")], {}, "matches nothing: these runs have no such test; did you mean"),
        ([outcome("a", area="dma"), outcome("b")], {"test": id_of("a", "", "dma")},
         "matches nothing that was judged"),
    ],
)  # fmt: skip
def test_a_waiver_that_does_nothing_is_told(
    tmp_path: Path, run: list[object], more: dict[str, str], words: str
) -> None:
    verdict = verdict_of(run_of(tmp_path, *run), text=POLICY + waiver(**more))  # type: ignore[arg-type]
    assert words in verdict.waivers[0].note


def test_a_waiver_does_not_stand_in_for_a_test_that_never_ran(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcome("b"), left_out=[outcome("a")])
    only(verdict_of(run, text=POLICY + waiver()), NOT_ENOUGH, "not run")


# ---- notes --------------------------------------------------------------------------------


def test_results_that_nobody_asked_for_are_told(tmp_path: Path) -> None:
    verdict = verdict_of(run_of(tmp_path, outcome("a"), outcome("z", area="dma")))
    assert verdict.notes == ("results of suites that no requirement names: dma (1)",)


def test_no_run_at_all(tmp_path: Path) -> None:
    verdict = verdict_of()
    only(verdict, NOT_ENOUGH, "no run has the suite 'reset'")
    assert verdict.notes == ("no run was given",)
