"""What changed, of which kind; how it is told; and the status by policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hil import cli
from hil.compare import render
from hil.compare.changes import POLICY, Comparison, Kind, compare, violations
from hil.compare.load import side
from hil.reporting.plan import Plan, Planned
from tests.compare.runs import make, outcome

Tests = Mapping[str, str | tuple[str, float] | tuple[str, float, str]]


def compared(tmp_path: Path, before: Tests, after: Tests, **state: object) -> Comparison:
    make(tmp_path, "a", before)
    make(tmp_path, "b", after, **state)  # type: ignore[arg-type]
    return compare(side("a", tmp_path), side("b", tmp_path))


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("P", "P", None),
        ("P", "F", Kind.NEWLY_FAILING),
        ("S", "F", Kind.NEWLY_FAILING),
        ("b", "F", Kind.NEWLY_FAILING),
        ("", "F", Kind.NEWLY_FAILING),
        ("F", "F", Kind.STILL_FAILING),
        ("b", "b", Kind.STILL_FAILING),
        ("F", "b", Kind.CHANGED_FAULT),
        ("P", "b", Kind.NEWLY_BROKEN),
        ("", "b", Kind.NEWLY_BROKEN),
        ("P", "", Kind.MISSING),
        ("P", "S", Kind.NEWLY_SKIPPED),
        ("F", "X", Kind.NEWLY_SKIPPED),
        ("S", "X", Kind.SKIP_REASON),
        ("S", "S", None),
        ("F", "P", Kind.NEWLY_PASSING),
        ("b", "P", Kind.NEWLY_PASSING),
        ("S", "P", Kind.NEWLY_RUNNING),
        ("X", "P", Kind.NEWLY_RUNNING),
        ("", "P", Kind.NEW),
        ("", "S", Kind.NEW),
    ],
)
def test_each_kind_of_change(tmp_path: Path, before: str, after: str, kind: Kind | None) -> None:
    sides = [{"test_t": s, "test_u": "P"} if s else {"test_u": "P"} for s in (before, after)]
    found = compared(tmp_path, *sides)
    assert [change.kind for change in found.changes] == ([kind] if kind else [])
    assert found.same == (1 if kind else 2)


def test_skips_for_another_reason_are_told_with_both(tmp_path: Path) -> None:
    found = compared(tmp_path, {"test_t": ("S", 0, "no vf")}, {"test_t": ("S", 0, "no nic")})
    (change,) = found.of(Kind.SKIP_REASON)
    assert change.before.words == "skipped: no vf"
    assert "skipped: no vf → skipped: no nic" in render.terminal(found, ())


def test_what_a_killed_run_did_not_reach_is_not_missing(tmp_path: Path) -> None:
    before = {"test_t": "P", "test_u": "P", "test_gone": "P"}
    make(tmp_path, "a", before)
    run = make(tmp_path, "b", {"test_u": "P"}, finished=False, planned=3)
    found = compare(side("a", tmp_path), side("b", tmp_path))
    assert len(found.of(Kind.NOT_REACHED)) == 2
    # It noted what it was to run: so what is not among that is missing.
    names = [f"suites/dma/test_x.py::{name}" for name in ("test_t", "test_u")]
    run.write_plan(Plan(tuple(Planned(name, "dma") for name in names)))
    found = compare(side("a", tmp_path), side("b", tmp_path))
    assert [c.title for c in found.of(Kind.NOT_REACHED)] == ["t"]
    assert [c.title for c in found.of(Kind.MISSING)] == ["gone"]
    assert violations(found, ("incomplete",)) == ("incomplete (1)",)
    back = compare(side("b", tmp_path), side("a", tmp_path))
    assert [c.title for c in back.of(Kind.NEWLY_RUNNING)] == ["t"]
    assert violations(back, ("incomplete",)) == ()


def test_several_runs_are_one_side_and_one_failure_is_enough(tmp_path: Path) -> None:
    for name in ("a1", "a2"):
        make(tmp_path, name, {"test_t": "P", "test_u": "P"})
    make(tmp_path, "b1", {"test_t": ("F", 1, "first"), "test_u": "P"})
    make(tmp_path, "b2", {"test_t": "P", "test_u": "P"})
    found = compare(side("a1,a2", tmp_path), side("b1,b2", tmp_path))
    (change,) = found.changes
    assert change.kind is Kind.FLAKY
    assert change.after.words == "failed, passed 1 of 2"
    assert (change.after.reason, change.after.evidence) == ("first", "b1")


def test_a_test_may_be_repeated_within_a_run(tmp_path: Path) -> None:
    make(tmp_path, "a", {"test_t": "P"})
    run = make(tmp_path, "b", {"test_t": "P"}, planned=2)
    run.add(outcome("test_t", "F"))
    (change,) = compare(side("a", tmp_path), side("b", tmp_path)).changes
    assert change.after.words == "failed, passed 1 of 2"


def test_a_pass_at_the_second_attempt_is_a_change_but_no_failure(tmp_path: Path) -> None:
    late = {"attempt": 2, "earlier": "guest g1 restarted by itself"}
    make(tmp_path, "a", {"test_t": "P"})
    run = make(tmp_path, "b", {}, planned=1)
    first = replace(outcome("test_t", "b"), repeated=True, reason="gone")
    run.add(first)
    run.add(replace(outcome("test_t", "P"), **late))  # type: ignore[arg-type]
    found = compare(side("a", tmp_path), side("b", tmp_path))
    (change,) = found.changes
    assert change.kind is Kind.REPEATED
    told = "passed → passed, not at the first attempt: guest g1 restarted by itself"
    assert told in " ".join(render.terminal(found, ()).split())
    assert violations(found, ("newly-failing", "flaky", "incomplete")) == ()
    assert violations(found, ("repeated",)) == ("repeated (1)",)
    assert found.after.complete, "the attempt that was repeated is none of its tests"
    again = compare(side("b", tmp_path), side("b", tmp_path))
    assert again.changes == ()
    make(tmp_path, "c", {"test_t": "P"})
    both = compare(side("a", tmp_path), side("b,c", tmp_path))
    assert both.changes[0].after.words == "passed 2 of 2, 1 of these not at the first attempt"
    assert render.as_json(both, ())["changes"][0]["after"]["late"] == 1


def test_what_a_second_attempt_took_is_not_compared(tmp_path: Path) -> None:
    for number in range(4):
        make(tmp_path, f"a{number}", {"test_t": ("P", 1.0), "test_u": ("P", 1.0)})
        run = make(tmp_path, f"b{number}", {"test_u": ("P", 1.0)}, planned=2)
        run.add(replace(outcome("test_t", "P", 9.0), attempt=2, earlier="it died"))
    found = compare(side("a0,a1,a2,a3", tmp_path), side("b0,b1,b2,b3", tmp_path))
    assert found.unjudged == 1
    assert found.slower == ()


def test_kernel_firmware_and_devices_that_differ_are_told(tmp_path: Path) -> None:
    old = {"host: system": "Debian, kernel 6.1", "host: firmware": "1.2", "same": "x"}
    new = {"host: system": "Debian, kernel 6.2", "same": "x", "device nic0": "8086:10c9"}
    make(tmp_path, "a", {"test_t": "P"}, environment=old)
    make(tmp_path, "b", {"test_t": "P"}, environment=new, hil="9.9")
    found = compare(side("a", tmp_path), side("b", tmp_path))
    told = {d.what: (d.before, d.after) for d in found.differences}
    assert told.pop("hil")[1] == "9.9"
    assert told == {
        "host: system": ("Debian, kernel 6.1", "Debian, kernel 6.2"),
        "host: firmware": ("1.2", ""),
        "device nic0": ("", "8086:10c9"),
    }
    assert "Debian, kernel 6.1\n    → Debian, kernel 6.2" in render.terminal(found, ())


def test_inventories_that_differ_are_told_with_how_to_see_it(tmp_path: Path) -> None:
    make(tmp_path, "a", {"test_t": "P"}, inventory="1" * 64)
    make(tmp_path, "b", {"test_t": "P"}, inventory="2" * 64)
    (note,) = compare(side("a", tmp_path), side("b", tmp_path)).notes
    assert (
        note
        == f"the inventories differ: diff {tmp_path}/a/inventory.toml {tmp_path}/b/inventory.toml"
    )
    assert compare(side("a", tmp_path), side("a", tmp_path)).notes == ("on both sides: a",)


def test_an_environment_that_was_not_noted_is_no_difference(tmp_path: Path) -> None:
    make(tmp_path, "a", {"test_t": "P"}, environment={"host: system": "x"})
    make(tmp_path, "b", {"test_t": "P"})
    assert compare(side("a", tmp_path), side("b", tmp_path)).differences == ()


def test_labs_of_other_kinds_say_what_that_is_worth_and_nothing_of_speed(tmp_path: Path) -> None:
    found = compared(tmp_path, {"test_t": "P"}, {"test_t": "P"}, kind="physical")
    assert any(
        "results of different worth: emulated before, physical after" in n for n in found.notes
    )
    assert "labs of different kinds" in found.speed.silence
    found = compared(tmp_path / "2", {"test_t": "P"}, {"test_t": "P"}, lab="other")
    assert any("different labs" in note for note in found.notes)


def test_the_same_run_on_both_sides_and_strangers_are_told(tmp_path: Path) -> None:
    make(tmp_path, "a", {"test_t": "P"})
    make(tmp_path, "b", {"test_u": "P"})
    assert "on both sides: a" in compare(side("a", tmp_path), side("a,b", tmp_path)).notes
    assert "no test is on both sides" in compare(side("a", tmp_path), side("b", tmp_path)).notes


def slow(tmp_path: Path) -> Comparison:
    for number in range(8):
        factor = 3.0 if number > 3 else 1.0
        tests: Tests = {
            "test_slow": ("P", factor * (2 + number / 50)),
            "test_steady": ("P", 5 + number % 3 / 50),
            "test_broke_once": ("b" if number == 2 else "P", 1.0),
        }
        make(tmp_path, f"r{number}", tests)
    return compare(side("r0,r1,r2,r3", tmp_path), side("r4,r5,r6,r7", tmp_path))


def test_slower_tests_are_told_with_seconds_and_p(tmp_path: Path) -> None:
    found = slow(tmp_path)
    assert [speed.title for speed in found.slower] == ["slow"]
    assert (found.faster, found.unjudged) == ((), 1)
    text = render.terminal(found, ("slower",), width=100)
    assert "dma: slow\n    2.03 s → 6.33 s (×3.12, p = 0.029)" in text
    assert "1 more did not pass in every run" in " ".join(text.split())
    assert text.endswith("fails by --fail-on: slower (1)\n")


def test_markup_is_obeyed_nowhere(tmp_path: Path) -> None:
    evil = "[red]x[/] | <b>y</b> `z` **w** \n# h"
    found = compared(tmp_path, {"test_t[a|b]": "P"}, {"test_t[a|b]": ("F", 1.0, evil)})
    assert "[red]x[/] | <b>y</b>" in render.terminal(found, (), width=120)
    assert "\x1b" not in render.terminal(found, ())
    row = next(line for line in render.markdown(found, ()).splitlines() if "red" in line)
    assert r"\[red\]x\[/\] \| \<b\>y\</b\> \`z\` \*\*w\*\* \# h" in row
    assert row.count("|") - row.count(r"\|") == 6


def test_a_long_list_says_how_much_it_leaves_out(tmp_path: Path) -> None:
    names = [f"test_{n}" for n in range(render.LISTED + 5)]
    found = compared(tmp_path, dict.fromkeys(names, "P"), dict.fromkeys(names, "F"))
    assert "… and 5 more" in render.terminal(found, ())
    assert "… and 5 more" in render.markdown(found, ())
    assert len(render.as_json(found, ())["changes"]) == len(names)


def test_json_is_json_and_has_all_that_is_told(tmp_path: Path) -> None:
    found = render.as_json(slow(tmp_path), ("slower",))
    assert json.loads(json.dumps(found)) == found
    assert (found["format"], found["violations"]) == (1, ["slower (1)"])
    assert found["speed"]["slower"][0]["p"] == pytest.approx(2 / 70)


# ---- hil compare ------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "reports", "a", {"test_t": "P", "test_u": "P"})
    make(tmp_path / "reports", "b", {"test_t": "F", "test_u": "P"})
    make(tmp_path / "reports", "c", {"test_t": "P"})
    return tmp_path / "reports"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a", "a"], 0),
        (["a", "b"], 1),
        (["b", "a"], 0),
        (["a", "c"], 0),
        (["a", "c", "--fail-on", "missing"], 1),
        (["a", "b", "--fail-on", "missing"], 0),
        (["a", "b", "--fail-on", "none"], 0),
        (["a", "b", "--fail-on", "mising"], 5),
        (["a", "nothing"], 5),
        (["a", "b", "--json", "--markdown"], 5),
    ],
)
def test_the_status_is_the_policy_s(reports: Path, words: list[str], code: int) -> None:
    assert cli.main(["compare", *words]) == code


def test_a_mistake_in_the_policy_names_the_nearest(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "a", "b", "--fail-on", "mising"]) == 5
    err = capsys.readouterr().err
    assert "did you mean 'missing'?" in err
    assert all(word in " ".join(err.split()) for word in POLICY)


def test_the_three_forms(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["compare", "a", "b"])
    assert "newly failing (1)\n  dma: t\n    passed → failed" in capsys.readouterr().out
    cli.main(["compare", "a", "b", "--markdown"])
    assert "| dma | t | passed | failed |" in capsys.readouterr().out
    cli.main(["compare", "a", "b", "--json"])
    assert json.loads(capsys.readouterr().out)["changes"][0]["kind"] == "newly-failing"
