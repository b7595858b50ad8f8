"""Histories of runs: what earlier runs came to is neither lost nor damaged, nor invented."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hil.errors import LabError
from hil.reporting import history, html
from hil.reporting.run import Run
from tests.reporting.allure_tool import ALLURE, needs_allure


def make(base: Path, name: str, *, lab: str = "rack", kind: str = "physical") -> Run:
    directory = base / name
    (directory / "allure-results").mkdir(parents=True)
    run = Run(directory)
    run.write_state({"lab": lab, "kind": kind, "started": 1000.5, "state": "finished"})
    return run


def point(status: str = "passed", **more: object) -> str:
    result = {"id": "1", "name": "n", "status": status, "labels": [{"name": "tag"}], **more}
    return json.dumps({"uuid": "u", "timestamp": 5, "testResults": {"a.b": result}})


def kept(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "h.jsonl").write_text(text)
    history.keep(run, tmp_path / "h.jsonl")


def gathered(run: Run, tmp_path: Path) -> list[dict[str, object]]:
    file = tmp_path / "g.jsonl"
    assert history.gather(run, file) == len(file.read_text().splitlines())
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_knows_of_the_runs_before_it_and_of_no_other(tmp_path: Path) -> None:
    base = tmp_path / "reports"
    runs = [make(base, f"2026010{day}-120000-rack") for day in (1, 2, 3)]
    other = make(base, "20260101-120000-desk", lab="desk", kind="emulated")
    for run in (*runs, other):
        kept(run, tmp_path, point())
    assert [p["name"] for p in gathered(runs[1], tmp_path)] == [runs[0].name]
    assert [p["name"] for p in gathered(runs[2], tmp_path)] == [runs[0].name, runs[1].name]
    assert gathered(other, tmp_path) == []


def test_what_is_kept_is_dated_by_the_run_and_slim(tmp_path: Path) -> None:
    run = make(tmp_path / "reports", "a")
    kept(run, tmp_path, f"{point()}\n{point('failed', message='x' * 999, trace='t' * 9999)}\n")
    (found,) = gathered(make(tmp_path / "reports", "b"), tmp_path)
    assert found["timestamp"] == 1000500
    results = found["testResults"]
    assert isinstance(results, dict)
    result = results["a.b"]
    assert (result["status"], result["historyId"]) == ("failed", "a.b")
    assert len(result["message"]) <= 200
    assert not {"trace", "labels"} & set(result)


def test_a_report_made_anew_adds_no_run(tmp_path: Path) -> None:
    run = make(tmp_path / "reports", "a")
    for status in ("failed", "passed"):
        kept(run, tmp_path, point(status))
    (found,) = gathered(make(tmp_path / "reports", "b"), tmp_path)
    assert '"passed"' in json.dumps(found)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"testResults": 3}', "\xff"])
def test_a_damaged_file_costs_its_own_run_only(tmp_path: Path, text: str) -> None:
    base = tmp_path / "reports"
    kept(make(base, "a"), tmp_path, point())
    bad = make(base, "b")
    (history.folder(bad) / "b.json").write_text(text, "latin-1")
    (history.folder(bad) / ".a.json.77").write_text("a kill left this")
    found = gathered(make(base, "c"), tmp_path)
    assert [p["name"] for p in found] == ["a"]


def test_a_run_s_own_folder_may_go(tmp_path: Path) -> None:
    base = tmp_path / "reports"
    run = make(base, "a")
    kept(run, tmp_path, point())
    (run.directory / "run.json").unlink()
    assert len(gathered(make(base, "b"), tmp_path)) == 1


def test_only_so_many_are_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 5)
    monkeypatch.setattr(history, "SHOWN", 3)
    base = tmp_path / "reports"
    for name in "abcdefgh":
        kept(make(base, name), tmp_path, point())
    last = make(base, "z")
    assert len(list(history.folder(last).iterdir())) == 5
    assert [p["name"] for p in gathered(last, tmp_path)] == ["f", "g", "h"]
    monkeypatch.setattr(history, "SIZE_LIMIT", 100)
    assert gathered(last, tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", '{"testResults": []}'])
def test_what_allure_did_not_write_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(LabError, match="no history"):
        kept(make(tmp_path / "reports", "a"), tmp_path, text)


@needs_allure
def test_allure_adds_to_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIL_ALLURE", ALLURE)
    for day, status in enumerate(("passed", "failed"), 1):
        run = make(tmp_path / "reports", f"2026010{day}-120000-rack")
        result = {"uuid": f"u{day}", "name": "t", "fullName": "x#t", "status": status}
        result |= {"historyId": "h", "testCaseId": "c", "start": day, "stop": day + 1}  # type: ignore[dict-item]
        (run.results / f"u{day}-result.json").write_text(json.dumps(result))
        html.generate(run.directory)
    found = gathered(make(tmp_path / "reports", "20260103-120000-rack"), tmp_path)
    statuses = [
        [result["status"] for result in point["testResults"].values()]  # type: ignore[attr-defined]
        for point in found
    ]
    assert statuses == [["passed"], ["failed"]]
