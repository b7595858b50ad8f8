"""Runs are read as they are: killed, damaged, foreign and mixed ones are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.compare import load
from hil.errors import InventoryError
from hil.reporting.plan import Plan, Planned
from tests.compare.runs import make


def test_a_run_has_several_names(tmp_path: Path) -> None:
    run = make(tmp_path, "20260101-000000-rack", {"test_a": "P"})
    (tmp_path / "latest").symlink_to(run.name)
    for words in (str(run.directory), run.name, "latest", f"{run.directory}/"):
        (found,) = load.side(words, tmp_path).runs
        assert (found.name, found.complete, found.lab) == (run.name, True, "rack")
        assert found.when.startswith("2001-09-0")


def test_a_folder_means_all_runs_in_it_each_once(tmp_path: Path) -> None:
    for name in "ab":
        make(tmp_path, name, {"test_a": "P"})
    (tmp_path / "latest").symlink_to("b")
    (tmp_path / "history").mkdir()
    found = load.side(str(tmp_path), tmp_path / "reports")
    assert [run.name for run in found.runs] == ["a", "b"]
    assert found.notes == ()


def test_a_run_named_twice_counts_once_and_that_is_told(tmp_path: Path) -> None:
    make(tmp_path, "a", {"test_a": "P"})
    found = load.side("a,a", tmp_path)
    assert len(found.runs) == 1
    assert found.notes == ("a is named twice and counts once",)


def test_a_foreign_folder_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InventoryError, match="photos is not the folder of a run"):
        load.side("photos", tmp_path)
    for words in ("absent", "", ","):
        with pytest.raises(InventoryError, match="there is no run"):
            load.side(words, tmp_path)


def test_a_killed_run_is_told_with_how_far_it_came(tmp_path: Path) -> None:
    run = make(tmp_path, "a", {"test_a": "P"}, finished=False, planned=3)
    with (run.directory / "outcomes.jsonl").open("a") as file:
        file.write('{"test": "suites/x')
    found = load.side("a", tmp_path)
    assert found.notes == (
        "a: a line of its outcomes.jsonl cannot be read",
        "a was cut short: 1 of 3 tests ended",
    )
    assert not found.complete


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\xff"])
def test_an_unreadable_state_is_told(tmp_path: Path, text: str) -> None:
    run = make(tmp_path, "a", {"test_a": "P"})
    (run.directory / "run.json").write_text(text, "latin-1")
    found = load.side("a", tmp_path)
    assert "a: its run.json cannot be read" in found.notes
    assert "a was cut short: 1 of an unknown number of tests ended" in found.notes


def test_runs_of_different_inventories_are_told(tmp_path: Path) -> None:
    make(tmp_path, "a", {"test_a": "P"}, inventory="11")
    make(tmp_path, "b", {"test_a": "P"}, inventory="22", kind="physical", lab="other")
    notes = load.side("a,b", tmp_path).notes
    assert "its runs are not alike: the lab differs: other, rack" in notes
    assert "its runs are not alike: what the inventory says differs" in notes
    assert "b says that its lab is physical, but has results of: emulated" in notes


def test_what_was_planned_is_known_where_it_was_noted(tmp_path: Path) -> None:
    run = make(tmp_path, "a", {"test_a": "P"})
    run.write_plan(Plan((Planned("hil/suites/dma/test_x.py::test_b@nic0", "dma"),)))
    assert load.read(run.directory).planned == frozenset(["suites/dma/test_x.py::test_b"])


def test_a_test_has_one_name_wherever_hil_is_installed() -> None:
    plain = "suites/dma/test_x.py::test_a[nic0]"
    for name in (plain, f"../hil/{plain}", f"{plain}@nic0 own"):
        assert load.key(name) == plain
    assert load.key("test_own.py::test_a[x@y]") == "test_own.py::test_a[x@y]"


@given(st.lists(st.text() | st.binary().map(lambda data: data.decode("latin-1"))))
def test_no_line_of_outcomes_is_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    run = make(tmp_path_factory.mktemp("runs"), "a", {})
    with (run.directory / "outcomes.jsonl").open("wb") as file:
        file.write("\n".join(lines).encode("utf-8", "surrogatepass"))
    found = load.read(run.directory)
    assert found.outcomes == {}


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "null",
        '{"test": 3, "status": "passed", "seconds": 1, "provenance": "x"}',
        '{"test": "a", "status": "passed", "seconds": "x", "provenance": "x"}',
        '{"test": "a", "status": "passed", "seconds": NaN, "provenance": "x"}',
        '{"test": "a", "status": "elated", "seconds": 1, "provenance": "x"}',
        '{"test": "a"}',
        "[" * 100_000,
    ],
)
def test_lines_that_are_no_outcomes_are_counted(tmp_path: Path, line: str) -> None:
    run = make(tmp_path, "a", {"test_a": "P"})
    with (run.directory / "outcomes.jsonl").open("a") as file:
        file.write(f"{line}\n")
    found = load.read(run.directory)
    assert len(found.outcomes) == 1
    assert found.damage == ("a line of its outcomes.jsonl cannot be read",)
    assert not found.complete
