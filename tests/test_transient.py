"""What a killed process leaves, and who removes it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hil import transient
from hil.errors import LabError

ROOT = Path(__file__).parents[1]

#: Makes a folder, with a file in it, and stays there.
HOLDER = """
import sys
from hil import transient
with transient.folder() as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""

#: Starts a program that inherits our standard output, and stays.
STARTER = """
import subprocess, sys
from hil import transient
subprocess.Popen(transient.tied([sys.executable, "-c", "print('up', flush=True); input()"]))
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / f"hil-{os.getuid()}"


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def test_a_folder_is_private_and_gone_after_its_block(place: Path) -> None:
    with transient.folder() as folder:
        assert folder.parent == place
        assert folder.stat().st_mode & 0o777 == 0o700
        assert place.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_call(place: Path) -> None:
    with started(HOLDER) as holder:
        left = Path(line(holder))
        with transient.folder():
            assert (left / "file").exists(), "its owner lives"
        holder.kill()
    assert (left / "file").exists()
    with transient.folder() as mine:
        assert list(place.iterdir()) == [mine]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="takes setpriv of util-linux")
def test_what_is_tied_ends_with_who_started_it(number: int) -> None:
    with started(STARTER) as starter:
        assert line(starter) == "up"
        starter.send_signal(number)
        starter.wait(60)
        assert starter.stdout is not None
        assert starter.stdout.read() == b"", "ends only when nobody holds it any more"


def test_a_folder_without_a_lock_is_spared_while_it_is_young(place: Path) -> None:
    place.mkdir(mode=0o700)
    young, old = (transient.make(place, "tmp-") for _ in range(2))
    long_ago = young.stat().st_mtime - 2 * 3600
    os.utime(old, (long_ago, long_ago))
    transient.make(place, "tmp-")
    assert young.exists()
    assert not old.exists()


def test_what_has_another_name_is_nobody_s_to_remove(tmp_path: Path) -> None:
    other = tmp_path / "tmp"
    other.mkdir()
    (other / transient.LOCK).touch()
    with transient.folder(tmp_path, "tmp-") as folder:
        assert set(tmp_path.iterdir()) == {other, folder}
    assert list(tmp_path.iterdir()) == [other]


def test_a_lock_has_its_name_only_when_it_is_held(tmp_path: Path) -> None:
    descriptor = transient.hold(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [transient.LOCK]
    os.close(descriptor)


def test_what_runs_is_in_the_folder_for_that(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert transient.runtime() == place
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    assert transient.runtime() == place / "hil"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "none"))
    with pytest.raises(LabError, match=r"none/hil cannot be made: No such file") as error:
        transient.runtime()
    assert "XDG_RUNTIME_DIR" in error.value.hint


def test_a_place_that_others_can_write_to_is_not_used(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(LabError, match="open to other users"):
        transient.temporary()
