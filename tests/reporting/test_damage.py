"""Folders of runs that a kill, a full disk or somebody else left as nobody would write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hil import cli
from hil.compare.load import read
from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run, write_whole
from hil.reporting.summary import write_summary

DEEP = "[" * 100_000
FILES = ("run.json", "plan.json", "outcomes.jsonl", "environment.json")
TEST = "suites/dma/test_dma.py::test_a"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "reports", "rack")
    run.write_state({"tests": 1, "kind": "physical"})
    run.add(Outcome(TEST, Status.PASSED, 1.0, "physical"))
    return run


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "text", [DEEP, "", "[1, null]", '{"tests": [1], "deselected": []}', "\x00\xff", "5", '"a"']
)
def test_what_a_file_says_cannot_end_a_command(run: Run, file: str, text: str) -> None:
    (run.directory / file).write_text(text, "latin-1")
    write_summary(run)
    assert read(run.directory).name == run.name
    command = ["compare", str(run.directory), str(run.directory), "--fail-on=none"]
    assert cli.main(command) == 0


@pytest.mark.parametrize("file", FILES[1:])
def test_a_folder_in_place_of_a_file_is_as_if_it_were_missing(run: Run, file: str) -> None:
    (run.directory / file).unlink(missing_ok=True)
    (run.directory / file).mkdir()
    write_summary(run)
    assert read(run.directory).name == run.name


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 10**400, True, "1"])
def test_a_result_that_took_no_number_of_seconds_is_none(run: Run, seconds: object) -> None:
    line = json.loads(Outcome(TEST, Status.PASSED, 1.0, "physical").to_json())
    with pytest.raises(TypeError):
        Outcome.from_json(json.dumps({**line, "seconds": seconds}))


@pytest.mark.parametrize(
    "wrong",
    [{"attempt": value} for value in (0, -1, 5, 1.0, True, "2", None, 10**400)]
    + [{"repeated": value} for value in (1, "yes", None)]
    + [{"earlier": value} for value in (1, None, ["x"])],
)
def test_an_attempt_that_cannot_be_is_none(run: Run, wrong: dict[str, object]) -> None:
    line = json.loads(Outcome(TEST, Status.PASSED, 1.0, "physical").to_json())
    with pytest.raises((TypeError, ValueError)):
        Outcome.from_json(json.dumps({**line, **wrong}))


@pytest.mark.parametrize(
    "started", [float("nan"), float("-inf"), 10**400, 1e300, -1, True, "now", None, []]
)
def test_a_start_that_is_no_time_is_an_unknown_one(run: Run, started: object) -> None:
    run.write_state({"started": started})
    assert run.started is None
    assert read(run.directory).when == "at an unknown time"


EVIL = "a\x1b[2J\ud800\u202eb\nc"


def test_no_word_of_a_file_is_obeyed_by_a_terminal(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.reporting.html.generate", lambda _: None)
    line = json.loads(Outcome(TEST, Status.FAILED, 1.0, "physical").to_json())
    names = ("test", "reason", "fault", "area", "provenance", "guest")
    with (run.directory / "outcomes.jsonl").open("a") as file:
        file.write(json.dumps({**line, **dict.fromkeys(names, EVIL), "devices": [EVIL]}) + "\n")
    planned = {"test": EVIL, "area": EVIL, "devices": [EVIL]}
    (run.directory / "plan.json").write_text(
        json.dumps({"tests": [planned], "deselected": [], "narrowed": False})
    )
    (run.directory / "environment.json").write_text(json.dumps({EVIL: EVIL}))
    run.write_state({"lab": EVIL, "kind": EVIL})
    policy = run.directory.parent / "policy.toml"
    policy.write_text(
        '[policy]\nname = "x"\nmax_age_days = 9\n[requirements.a]\ntitle = "a"\n'
        'suites = ["dma"]\ndevices = ["nic0"]\n'
    )
    folder, page = str(run.directory), run.directory.parent / "page.html"
    assert cli.main(["report", folder]) == 0
    assert cli.main(["compare", folder, folder, "--fail-on=none"]) == 0
    assert cli.main(["qualify", str(policy), folder, "--html", str(page)]) == 6
    shown = "".join(capsys.readouterr())
    assert not set("\x1b\ud800\u202e") & set(shown + page.read_text("utf-8"))
    assert json.loads(run.summary.read_text("utf-8"))["counts"]["failed"] == 1


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    write_whole(file, "old")

    def full(self: Path, text: str, *_: str) -> int:
        with self.open("w") as half:
            half.write(text[:1])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert file.read_text() == "old"
