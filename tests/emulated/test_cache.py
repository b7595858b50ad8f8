from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.emulated import cache
from hil.errors import DeadlineExceeded, LabError


def limit(seconds: float = 20) -> Deadline:
    return Deadline(seconds, "a test")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HIL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/hil"),
        ({"HOME": "/c"}, "/c/.cache/hil"),
    ],
)
def test_place(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HIL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.directory() == Path(expected)


def test_made_once_and_found_again(cache_folder: Path) -> None:
    made = cache.entry("kind/one", lambda p: p.joinpath("file").touch(), deadline=limit())

    def never(_: Path) -> None:
        raise AssertionError

    assert cache.entry("kind/one", never, deadline=limit()) == made == cache_folder / "kind/one"
    assert (made / "file").exists()


def test_a_failed_build_leaves_nothing(cache_folder: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").touch()
        raise LabError("the mirror went away")

    with pytest.raises(LabError, match="the mirror went away"):
        cache.entry("kind/one", fail, deadline=limit())
    assert names(cache_folder / "kind") == set()
    assert cache.entry("kind/one", lambda _: None, deadline=limit()).is_dir()


def test_what_a_killed_builder_left_is_not_used_and_goes(cache_folder: Path) -> None:
    script = """
import os, signal, sys
from hil.deadline import Deadline
from hil.emulated import cache
def build(place):
    (place / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
cache.entry("kind/one", build, deadline=Deadline(20, "x"))
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == -9
    assert [name for name in names(cache_folder / "kind") if name.startswith(".build-one-")]
    made = cache.entry("kind/one", lambda p: p.joinpath("whole").touch(), deadline=limit())
    assert names(cache_folder / "kind") == {"one"}
    assert names(made) == {"whole"}


def test_one_of_many_builds_and_the_others_wait(cache_folder: Path) -> None:
    began, go_on = threading.Event(), threading.Event()
    waits: list[str] = []
    builds: list[int] = []

    def slow(_: Path) -> None:
        builds.append(1)
        began.set()
        assert go_on.wait(20)

    def told(text: str) -> None:
        waits.append(text)
        go_on.set()

    def get(progress: cache.Progress = lambda _: None) -> None:
        cache.entry("kind/one", slow, deadline=limit(), progress=progress)

    first = threading.Thread(target=get)
    first.start()
    assert began.wait(20)
    get(told)
    first.join(20)
    assert builds == [1]
    assert waits == ["waiting for another process, which is making one"]
    assert names(cache_folder / "kind") == {"one"}


def test_waiting_ends_with_the_deadline(cache_folder: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(_: Path) -> None:
        began.set()
        go_on.wait(20)

    other = threading.Thread(
        target=cache.entry, args=("kind/one", slow), kwargs={"deadline": limit()}
    )
    other.start()
    try:
        assert began.wait(20)
        with pytest.raises(DeadlineExceeded, match=r"another process still holds"):
            cache.entry("kind/one", lambda _: None, deadline=limit(0.05))
    finally:
        go_on.set()
        other.join(20)


def test_a_full_disk_is_told_before_it_is_filled(cache_folder: Path) -> None:
    def never(_: Path) -> None:
        raise AssertionError

    with pytest.raises(LabError, match=r"GiB of free disk, 1048576\.0 GiB are needed") as error:
        cache.entry("kind/one", never, deadline=limit(), space=1 << 50)
    assert "HIL_CACHE" in error.value.hint


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIL_CACHE", str(tmp_path / "file"))
    with pytest.raises(LabError, match="cannot be made") as error:
        cache.entry("kind/one", lambda _: None, deadline=limit())
    assert "HIL_CACHE" in error.value.hint


def test_entries_that_nobody_uses_go(cache_folder: Path) -> None:
    def make(name: str) -> Path:
        return cache.entry(f"kind/{name}", lambda _: None, deadline=limit())

    old, used = make("old"), make("used")
    for path in (old, used):
        os.utime(path, (1, 1))
    make("used")
    make("new")
    assert names(cache_folder / "kind") == {"used", "new"}
