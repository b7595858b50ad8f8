"""``hil run --like``: what a run was made with is noted, and what cannot be repeated is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hil
from hil import cli, repeat
from hil.errors import InventoryError
from hil.lab.load import load
from hil.reporting.run import Run
from tests.inventories import HERE

SUITES = Path(hil.__file__).parents[1] / "suites"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in repeat.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here.toml").write_text(HERE)
    return tmp_path / "here.toml"


def noted(tmp_path: Path, *arguments: str, lab: str = "here.toml") -> Run:
    run = Run.create(tmp_path / "reports", "here")
    repeat.note(run, arguments, Path.cwd(), load(lab))
    return run


def calm(repetition: repeat.Repetition) -> list[str]:
    """Its notes, but for what this checkout's own state adds."""
    return [note for note in repetition.notes if "hil had changes" not in note]


def test_the_arguments_come_back_with_the_paths_of_then(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.parent / "test_own.py").touch()
    words = ["--hil-lab=here.toml", "--hil-report=r", "--hil-wait", "5"]
    words += ["--hil-no-html", "--hil-danger=1"]
    run = noted(lab.parent, *words, "-k", "a or b", f"{SUITES}/dma", "test_own.py::test_a[x/y]")
    (lab.parent / "elsewhere").mkdir()
    monkeypatch.chdir(lab.parent / "elsewhere")
    again = repeat.like(run)
    assert again.arguments == (
        f"--hil-lab={lab}",
        "--hil-danger=1",
        "-k",
        "a or b",
        f"{SUITES}/dma",
        f"{lab.parent}/test_own.py::test_a[x/y]",
    )
    assert calm(again) == []


def test_suites_of_another_checkout_are_those_of_this(lab: Path) -> None:
    run = noted(lab.parent)
    how = {**run.state["how"], "suites": "/old/suites", "arguments": ["/old/suites/dma", "/old/x"]}
    run.write_state({"how": how})
    assert repeat.like(run).arguments == (str(SUITES / "dma"), "/old/x")


@pytest.mark.parametrize("name", ["emulated", "freebsd-15-intel", "emulated:a/b.qcow2"])
def test_names_of_labs_stay_names(lab: Path, name: str) -> None:
    run = noted(lab.parent, f"--hil-lab={name}")
    assert repeat.like(run).arguments == (f"--hil-lab={name}",)


def test_a_changed_inventory_is_told_with_what_changed(lab: Path) -> None:
    run = noted(lab.parent, "--hil-lab=here.toml")
    lab.write_text(HERE.replace('"here"', '"there"'))
    assert calm(repeat.like(run)) == [
        f"{lab} has changed since; it is used as it is now",
        '  -name = "here"',
        '  +name = "there"',
    ]


def test_an_inventory_that_is_gone_is_an_error_unless_another_is_named(lab: Path) -> None:
    run = noted(lab.parent, "--hil-lab=here.toml")
    lab.unlink()
    with pytest.raises(InventoryError, match="is gone") as caught:
        repeat.like(run)
    assert str(run.directory / "inventory.toml") in caught.value.hint
    assert repeat.like(run, "emulated").arguments[-1] == "--hil-lab=emulated"


def test_the_copy_of_the_inventory_holds_no_secret(lab: Path) -> None:
    lab.write_text(HERE + 'key_file = "k" # password: hunter2secret\n')
    run = noted(lab.parent, "--token=verysecretword")
    text = "".join(p.read_text() for p in run.directory.iterdir() if p.is_file())
    assert "hunter2secret" not in text
    assert "verysecretword" not in text
    assert "its arguments had what looks like a secret, which was not noted" in calm(
        repeat.like(run)
    )


def test_other_versions_and_settings_are_told(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = noted(lab.parent)
    how = run.state["how"]
    versions = {**how["versions"], "hil": "0.0.9, commit 123 with changes", "python": "3.99"}
    run.write_state({"how": {**how, "versions": versions}})
    monkeypatch.setenv("HIL_QEMU", "/opt/qemu")
    notes = "\n".join(repeat.like(run).notes)
    assert "hil was 0.0.9, commit 123 with changes, and is 0" in notes
    assert "python was 3.99, and is 3." in notes
    assert "HIL_QEMU was not set, and is /opt/qemu" in notes
    assert "its hil had changes that are in no commit" in notes


def test_an_image_that_is_gone_is_told(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hil.reporting.allure import Environment

    monkeypatch.setenv("HIL_CACHE", str(lab.parent / "cache"))
    (lab.parent / "cache" / "images" / "host-1").mkdir(parents=True)
    run = noted(lab.parent, lab="emulated")
    run.write_state({"kind": "emulated"})
    Environment.write(run, {repeat.IMAGES: "images/host-1, bundles/2"})
    told = [note for note in repeat.like(run).notes if "image" in note]
    assert told == ["the image bundles/2 is gone; another is made of the packages of today"]


@pytest.mark.parametrize("how", [None, 3, [], {}, {"arguments": "x"}])
def test_a_run_that_noted_nothing_cannot_be_repeated(lab: Path, how: object) -> None:
    run = Run.create(lab.parent / "reports", "here")
    run.write_state({"how": how})
    with pytest.raises(InventoryError, match="did not note how it was made"):
        repeat.like(run)


# ---- hil run --like ---------------------------------------------------------------------


def test_options_given_now_come_after_those_of_then(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def main(arguments: list[str], plugins: object) -> pytest.ExitCode:
        seen.append(list(arguments))
        return pytest.ExitCode.OK

    monkeypatch.setattr("pytest.main", main)
    run = noted(lab.parent, "--hil-lab=here.toml", "--hil-danger=1", "--hil-cycles=9")
    assert cli.main(["run", "--like", run.name, "--cycles", "4", "--", "-x"]) == 0
    assert cli.main(["run", "--like", "latest", "--lab", "emulated", "--labs", "2"]) == 0
    then = [f"--hil-lab={lab}", "--hil-danger=1", "--hil-cycles=9"]
    now = ["--hil-report=reports", "--hil-wait=600.0"]
    assert seen[0][:3] == then
    assert seen[0][3:] == [*now, "--hil-cycles=4", "-x"]
    assert seen[1] == [*then, "--hil-lab=emulated", *now, "-n", "2", "--dist", "loadgroup"]
    assert f"running again what {run.name} ran" in capsys.readouterr().err


def test_like_takes_no_suites(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noted(lab.parent)
    assert cli.main(["run", "dma", "--like", "latest"]) == 5
    assert "takes no suites" in capsys.readouterr().err
    assert cli.main(["run", "--like", "nothing"]) == 5


def test_a_run_is_done_again_from_another_folder(lab: Path) -> None:
    (lab.parent / "test_own.py").write_text(
        "import pytest\n@pytest.mark.danger(0)\ndef test_it(): pass\ndef test_no(): pass\n"
    )
    (lab.parent / "elsewhere").mkdir()

    def hil_run(folder: Path, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "hil.cli", "run", *words],
            cwd=folder,
            env={**os.environ, "HIL_ALLURE": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    hil_run(lab.parent, "--lab=here.toml", "test_own.py", "--", "-k", "test_it")
    first = lab.parent / "reports" / "latest"
    hil_run(lab.parent / "elsewhere", "--like", str(first.resolve()))
    second = Run.open(lab.parent / "elsewhere" / "reports" / "latest")
    assert [o.test for o in second.outcomes()] == [o.test for o in Run.open(first).outcomes()]
    assert second.state["lab"] == "here"
    assert second.state["inventory"] == Run.open(first).state["inventory"]
