"""Bisections with a real git: verdicts, what cannot be tested, interruptions, the result."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hil import cli
from hil.bisect import drive, step
from hil.bisect.record import Record, Settings, Step, Verdict
from hil.errors import InventoryError, LabError
from hil.lab.live import connect as connect_to
from hil.lab.load import parse
from hil.power.base import Power, PowerState
from hil.reporting.outcome import Outcome, Status
from hil.reporting.run import Run
from tests.bisect.conftest import Driver, make
from tests.inventories import HERE

Words = list[str]


@pytest.fixture
def said() -> Words:
    return []


def begun(driver: Driver, **more: object) -> Record:
    return drive.begin(driver.tree, driver.folder / "reports", driver.settings(**more))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends are tested without a run: what is installed says how it would end."""

    def run(place: step.Place) -> str:
        installed = (Path(place.settings.lab).parent / "installed").read_text().strip()
        return "bytes are wrong" if installed == "product" else ""

    monkeypatch.setattr(step, "_run", run)


# ---- the whole ----------------------------------------------------------------------------


def test_the_first_bad_commit_is_found_with_its_evidence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    driver = make(tmp_path, "fine", "fine", "broken", "fine", "product", "product", "product")
    options = [f"--tree={driver.tree}", "--lab=here.toml", "--no-reboot"]
    build = f"--build={driver.settings().build}"
    ends = [f"--good={driver.commits[0]}", "--bad=main"]
    assert cli.main(["bisect", "start", "test_driver.py", *options, *ends, build]) == 0
    out, err = capfd.readouterr()
    assert f"First bad commit: `{driver.commits[4][:12]}` change 4: product" in out
    assert "- author: A. Developer <developer@example.org>" in out
    assert "- fails there: driver: bytes are wrong" in out
    assert "BAD after" in err
    (folder,) = (tmp_path / "reports").iterdir()
    assert (folder / "bisect.md").read_text() == out
    record = Record(folder)
    known = {taken.commit: taken.verdict for taken in record.steps}
    assert known[driver.commits[3]] is Verdict.GOOD
    assert known[driver.commits[4]] is Verdict.BAD
    for taken in record.steps:
        for run in taken.runs:
            assert (folder / taken.folder / run / "outcomes.jsonl").is_file()
    # The tree is as it was before.
    assert driver.git("symbolic-ref", "--short", "HEAD") == "main"
    assert driver.git("status", "--porcelain") == ""
    with pytest.raises(InventoryError, match="not bisecting"):
        drive.current(driver.tree)


def test_where_nothing_between_can_be_tested_no_commit_is_blamed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    driver = make(tmp_path, "fine", "broken", "lab", "product")
    begun(driver)
    assert cli.main(["bisect", "resume", f"--tree={driver.tree}"]) == LabError.exit_code
    out = capfd.readouterr().out
    assert "one of these" in out
    assert all(commit[:12] in out for commit in driver.commits[1:])
    assert "the build command ended with status 1: broken" in out
    assert "the host is gone (fault: lab)" in out


def test_an_interrupted_bisection_goes_on_where_it_was(tmp_path: Path) -> None:
    driver = make(tmp_path, "fine", "fine", "product", "product")
    # The third build (after the two ends) waits until it is interrupted.
    wait = "[ $(ls -d ../reports/bisect-*/*-*/ | wc -l) != 3 ] || { touch ../waits; sleep 600; }"
    build = f"{wait}; {driver.settings().build}"
    options = ["--lab=here.toml", "--no-reboot", f"--build={build}"]
    ends = [f"--good={driver.commits[0]}", "--bad=main", f"--tree={driver.tree}"]
    with subprocess.Popen(
        [sys.executable, "-m", "hil.cli", "bisect", "start", "test_driver.py", *options, *ends],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = ""
        for line in process.stderr:
            told += line
            if told.count(": building") == 3:
                break
        process.send_signal(signal.SIGTERM)
        told += process.stderr.read()
        assert process.wait(60) == 130, told
    assert "interrupted; hil bisect resume goes on" in told
    record = drive.current(driver.tree)
    assert len(record.steps) == 2
    said: Words = []
    result = drive.go_on(driver.tree, record, said.append)
    assert result.first is not None
    assert result.first.name == driver.commits[2]
    assert sum("as tested before" in line for line in said) == 2


@pytest.mark.usefixtures("quick")
def test_a_test_that_fails_at_both_ends_is_told(tmp_path: Path, said: Words) -> None:
    driver = make(tmp_path, "product", "fine", "product")
    with pytest.raises(InventoryError, match="was said to be good, and is bad"):
        drive.go_on(driver.tree, begun(driver), said.append)


@pytest.mark.usefixtures("quick")
def test_an_end_that_cannot_be_tested_can_be_mended(tmp_path: Path, said: Words) -> None:
    driver = make(tmp_path, "fine", "product")
    record = begun(driver, build=f"test -e {tmp_path}/mended && cp driver {tmp_path}/installed")
    with pytest.raises(LabError, match=r"the bad end .* cannot be tested: the build command"):
        drive.go_on(driver.tree, record, said.append)
    (tmp_path / "mended").touch()
    found = drive.go_on(driver.tree, record, said.append)
    assert found.first is not None
    assert found.first.subject == "change 1: product"


# ---- beginning ------------------------------------------------------------------------------


def test_a_tree_with_changes_is_refused_and_shown(tmp_path: Path) -> None:
    driver = make(tmp_path, "fine", "product")
    (driver.tree / "driver").write_text("mine")
    with pytest.raises(InventoryError, match="in no commit") as caught:
        begun(driver)
    assert "driver" in caught.value.seen


def test_a_tree_is_bisected_once_at_a_time(tmp_path: Path) -> None:
    driver = make(tmp_path, "fine", "fine", "product")
    begun(driver)
    with pytest.raises(InventoryError, match="already") as caught:
        begun(driver)
    assert "hil bisect resume" in caught.value.hint
    drive.stop(driver.tree)
    assert driver.git("symbolic-ref", "--short", "HEAD") == "main"
    driver.git("bisect", "start", "HEAD", driver.commits[0])
    with pytest.raises(InventoryError, match="already") as caught:
        begun(driver)
    assert caught.value.hint == "git bisect reset"


def test_what_is_no_tree_or_no_commit_is_told(tmp_path: Path) -> None:
    driver = make(tmp_path, "fine")
    with pytest.raises(InventoryError, match="no commit 'v9'"):
        drive.resolve(driver.tree, "v9")
    (tmp_path / "plain").mkdir()
    for ask in (drive.current, lambda tree: drive.resolve(tree, "HEAD")):
        with pytest.raises(InventoryError, match="not a git working tree"):
            ask(tmp_path / "plain")


def test_two_processes_do_not_test_at_once(tmp_path: Path, said: Words) -> None:
    driver = make(tmp_path, "fine", "product")
    record = begun(driver)
    with drive._alone(record), pytest.raises(LabError, match="another process is at work"):
        drive.step(driver.tree, said.append)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lab=here.toml"], "nothing can switch the power of alpha"),
        (["--lab=here.toml", "--host=beta"], "has no host 'beta'"),
        (["--lab=here.toml", "--no-reboot", "--bad-faults=mine"], "'mine' is nobody's fault"),
        (["--lab=gone.toml"], "gone.toml"),
    ],
)
def test_mistakes_are_told_before_anything_is_built(
    tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = make(tmp_path, "fine", "product")
    ends = [f"--good={driver.commits[0]}", "--bad=main", f"--tree={driver.tree}", "--build=false"]
    assert cli.main(["bisect", "start", "test_driver.py", *ends, *words]) == 5
    assert told in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("bad", ["{", 1])
def test_a_damaged_record_is_told(tmp_path: Path, bad: object) -> None:
    record = begun(make(tmp_path, "fine", "product"))
    file = record.folder / "bisect.json"
    whole = json.loads(file.read_text())
    file.write_text("{" if bad == "{" else json.dumps({**whole, "bad": bad}))
    with pytest.raises(InventoryError, match="gone or damaged"):
        _ = record.settings


def test_a_bisection_whose_folder_is_gone_can_be_stopped(tmp_path: Path) -> None:
    driver = make(tmp_path, "fine", "product")
    shutil.rmtree(begun(driver).folder)
    assert cli.main(["bisect", "resume", f"--tree={driver.tree}"]) == 5
    assert cli.main(["bisect", "stop", f"--tree={driver.tree}"]) == 0
    assert cli.main(["bisect", "resume", f"--tree={driver.tree}"]) == 5


# ---- one step -------------------------------------------------------------------------------


def result(folder: Path, *outcomes: tuple[Status, str]) -> Run:
    run = Run.create(folder, "here")
    run.write_state({"tests": len(outcomes)})
    for number, (status, fault) in enumerate(outcomes):
        run.add(Outcome(f"t{number}", status, 1, "physical", "why", fault))
    run.finish()
    return run


GOOD, BAD, SKIPPED = (Status.PASSED, ""), (Status.FAILED, "product"), (Status.SKIPPED, "")


def test_only_the_products_fault_makes_a_commit_bad(tmp_path: Path) -> None:
    assert step.judge(result(tmp_path, GOOD, SKIPPED), ("product",)) == ""
    assert step.judge(result(tmp_path, GOOD, BAD), ("product",)) == "t1: why"
    assert step.judge(result(tmp_path, (Status.BROKEN, "lab"), BAD), ("product",)) == "t1: why"
    for fault in ("guest", "lab", "inventory", "test"):
        run = result(tmp_path, GOOD, (Status.BROKEN, fault))
        with pytest.raises(step.Disturbed, match=f"fault: {fault}"):
            step.judge(run, ("product",))
        assert step.judge(run, ("product", fault)) == "t1: why"


@pytest.mark.parametrize("outcomes", [[], [SKIPPED], [(Status.BLOCKED, "")]])
def test_without_a_passed_test_nothing_is_good(
    tmp_path: Path, outcomes: list[tuple[Status, str]]
) -> None:
    with pytest.raises(step.Untestable, match="no test ran"):
        step.judge(result(tmp_path, *outcomes), ("product",))


def test_a_run_that_was_cut_short_is_not_good(tmp_path: Path) -> None:
    run = result(tmp_path, GOOD)
    run.write_state({"state": "running"})
    with pytest.raises(step.Disturbed, match="cut short"):
        step.judge(run, ("product",))


def test_a_test_that_fails_at_times_is_tried_several_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Words
) -> None:
    driver = make(tmp_path, "fine", "product")
    record = begun(driver, times=5)
    answers = iter(["", "", "it failed"])
    monkeypatch.setattr(step, "_run", lambda place: next(answers))
    taken = step.take(record, driver.commits[0], said.append)
    assert (taken.verdict, taken.reason) == (Verdict.BAD, "it failed")
    assert record.steps == (taken,)


@pytest.mark.parametrize(("errors", "verdict"), [(1, Verdict.GOOD), (2, Verdict.SKIP)])
def test_what_could_not_judge_is_built_and_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Words, errors: int, verdict: Verdict
) -> None:
    driver = make(tmp_path, "fine", "product")
    record = begun(driver, build="echo built")
    left = [step.Disturbed("the host is gone")] * errors

    def run(place: step.Place) -> str:
        if left:
            raise left.pop()
        return ""

    monkeypatch.setattr(step, "_run", run)
    taken = step.take(record, driver.commits[0], said.append)
    assert taken.verdict is verdict
    assert any("once more: the host is gone" in line for line in said)
    assert (record.folder / taken.folder / "build.log").read_text() == "built\n" * 2


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_a_build_that_takes_too_long_is_ended_and_not_bad(
    tmp_path: Path, said: Words, handler: Any
) -> None:
    signal.signal(signal.SIGINT, handler)  # put back by a fixture
    driver = make(tmp_path, "fine", "product")
    build = "sleep 600 & echo $! > ../child; wait"
    record = begun(driver, build=build, build_limit=1.0)
    taken = step.take(record, driver.commits[0], said.append)
    assert taken.verdict is Verdict.SKIP
    assert "the build command took more than" in taken.reason
    child = int((tmp_path / "child").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_the_build_knows_the_commit_and_the_host(tmp_path: Path, said: Words) -> None:
    driver = make(tmp_path, "fine", "product")
    record = begun(driver, build='echo "$HIL_COMMIT $HIL_HOST $HIL_USER" >&2; pwd; exit 3')
    taken = step.take(record, driver.commits[0], said.append)
    log = (record.folder / taken.folder / "build.log").read_text()
    assert log == f"{driver.commits[0]} alpha root\n{driver.tree}\n"
    assert taken.reason == f"the build command ended with status 3: {driver.tree}"


def test_a_host_that_runs_something_else_is_not_tested(tmp_path: Path, said: Words) -> None:
    driver = make(tmp_path, "fine", "product")
    record = begun(driver, build="true", check="echo runs the old kernel; false")
    taken = step.take(record, driver.commits[0], said.append)
    assert taken.verdict is Verdict.SKIP
    assert taken.reason == "the check command ended with status 1: runs the old kernel"


def test_a_compilers_first_error_is_told_and_not_makes_last_words(
    tmp_path: Path, said: Words
) -> None:
    driver = make(tmp_path, "fine", "product")
    words = "a.c:3:5: error: x undeclared\na.c:9:1: error: more\nmake: Leaving directory\n"
    record = begun(driver, build=f"printf {shlex.quote(words)} >&2; exit 2")
    taken = step.take(record, driver.commits[0], said.append)
    assert taken.reason == "the build command ended with status 2: a.c:3:5: error: x undeclared"


def test_an_error_of_the_try_before_is_not_told_again(tmp_path: Path, said: Words) -> None:
    driver = make(tmp_path, "lab", "product")
    driver.git("checkout", "-q", driver.commits[0])
    # It builds in spite of its words; the test cannot judge; the second time it does not build.
    once = f"{tmp_path}/once"
    build = f"if [ -e {once} ]; then echo gone; exit 1; fi; touch {once}; echo error: ignored"
    record = begun(driver, build=f"{build}; {driver.settings().build}")
    taken = step.take(record, driver.commits[0], said.append)
    assert any("the host is gone (fault: lab)" in line for line in said)
    assert taken.reason == "the build command ended with status 1: gone"


def test_a_run_that_could_not_begin_is_not_tested(tmp_path: Path, said: Words) -> None:
    driver = make(tmp_path, "fine", "product")
    record = begun(driver, pytest=("--no-such-option",))
    taken = step.take(record, driver.commits[0], said.append)
    assert taken.verdict is Verdict.SKIP
    assert "ended with status 2 before any test" in taken.reason


class FakePower(Power):
    """Its host answers after so many cycles."""

    def __init__(self, answers_after: int = 1, error: LabError | None = None) -> None:
        super().__init__("alpha")
        self.cycles, self.answers_after, self.error = 0, answers_after, error

    def state(self, deadline: object) -> PowerState:
        return PowerState.UNKNOWN

    def on(self, deadline: object) -> None:
        raise NotImplementedError

    off = on

    def cycle(self, deadline: object) -> None:
        if self.error is not None:
            raise self.error
        self.cycles += 1


@pytest.fixture
def rebooted(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakePower], None]:
    def reboot(power: FakePower) -> None:
        def connect(lab: object, host: str, deadline: object) -> object:
            if power.cycles < power.answers_after:
                raise LabError("no route to host")
            return connect_to(lab, host, deadline)  # type: ignore[arg-type]

        monkeypatch.setattr(step, "power_of", lambda lab, host: power)
        monkeypatch.setattr(step, "connect", connect)
        step._reboot(parse(HERE, Path("here.toml")), "alpha", 1.0)

    return reboot


def test_a_host_is_switched_off_and_on_and_waited_for(
    rebooted: Callable[[FakePower], None],
) -> None:
    power = FakePower()
    rebooted(power)
    assert power.cycles == 1


def test_a_host_that_does_not_come_back_gets_a_second_chance_and_no_verdict(
    rebooted: Callable[[FakePower], None],
) -> None:
    power = FakePower(answers_after=2)
    with pytest.raises(step.Untestable, match="alpha did not come back"):
        rebooted(power)
    assert power.cycles == 2


def test_a_switch_that_refuses_is_no_verdict(rebooted: Callable[[FakePower], None]) -> None:
    with pytest.raises(step.Untestable, match="it refused"):
        rebooted(FakePower(error=LabError("it refused")))


# ---- the record -----------------------------------------------------------------------------


def test_steps_survive_a_kill_in_the_midst_of_a_line(tmp_path: Path) -> None:
    settings = Settings("/t", ("a",), "b", "make", "emulated", ("dma",))
    record = Record.create(tmp_path, "x", settings)
    assert record.settings == settings
    taken = Step("a" * 40, Verdict.GOOD, "passed", 1.5, "01-a", ("r",))
    record.add(taken)
    record.add(Step("b" * 40, Verdict.SKIP, "no", 1.5, "02-b"))
    with (record.folder / "steps.jsonl").open("a") as file:
        file.write('{"commit": "c')
    assert len(record.steps) == 2
    assert record.known("a" * 40) == taken
    assert record.known("b" * 40) is None
