from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.deadline import Deadline
from hil.errors import LabError
from hil.lab.load import load, parse
from hil.lab.lock import Holder, hold, hold_names, holder, names


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HIL_LOCK_DIR", str(tmp_path))
    return tmp_path


HOLD = """
import sys
from hil.deadline import Deadline
from hil.lab.lock import hold_names
with hold_names(["x"], "nightly-7", Deadline(10, "the lock")):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def soon() -> Deadline:
    return Deadline(0.05, "the lock")


def test_a_second_run_is_told_who_holds_it_and_for_how_long(
    other_process: subprocess.Popen[str],
) -> None:
    with (
        pytest.raises(LabError, match="x is taken: waited") as caught,
        hold_names(["x"], "", soon()),
    ):
        pass
    assert "nightly-7" in caught.value.seen
    assert str(other_process.pid) in caught.value.seen
    assert "--wait" in caught.value.hint


def test_the_waiting_run_hears_whom_it_waits_for_and_gets_the_lock(
    other_process: subprocess.Popen[str],
) -> None:
    heard: list[tuple[str, Holder | None]] = []

    def on_wait(name: str, who: Holder | None, waited: float) -> None:
        assert waited >= 0
        heard.append((name, who))
        other_process.kill()

    with hold_names(["x"], "second", Deadline(20, "the lock"), on_wait):
        mine = json.loads(next(Path(os.environ["HIL_LOCK_DIR"]).glob("*x.lock")).read_text())
    assert mine["run"] == "second"
    assert [(name, who.run if who else "") for name, who in heard] == [("x", "nightly-7")]


def test_a_killed_holder_never_blocks(other_process: subprocess.Popen[str]) -> None:
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert holder("x") is None
    with hold_names(["x"], "next", soon()):
        pass


def test_waiting_and_asking_leave_the_record_as_it_was(
    other_process: subprocess.Popen[str],
) -> None:
    with pytest.raises(LabError), hold_names(["x"], "", soon()):
        pass
    for _ in range(2):
        who = holder("x")
        assert who is not None
        assert who.pid == other_process.pid


def test_the_lock_is_free_after_the_block_even_if_it_raised() -> None:
    with pytest.raises(ZeroDivisionError), hold_names(["x"], "", soon()):
        raise ZeroDivisionError
    assert holder("x") is None
    assert holder("never-used") is None


def test_what_was_taken_is_let_go_if_a_later_lock_is_not_to_be_had(
    other_process: subprocess.Popen[str],
) -> None:
    with pytest.raises(LabError), hold_names(["x", "a"], "", soon()):
        pass
    with hold_names(["a"], "", soon()):
        pass


def test_two_runs_that_want_the_same_hosts_never_wait_for_each_other() -> None:
    done = []

    def run(wanted: list[str]) -> None:
        for _ in range(20):
            with hold_names(wanted, "", Deadline(20, "the locks")):
                pass
        done.append(wanted)

    threads = [threading.Thread(target=run, args=(w,)) for w in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"user": 1}', b"\xff" * 9000])
def test_a_record_that_cannot_be_read_blocks_nothing(folder: Path, record: bytes) -> None:
    path = folder / "hil-x.lock"
    path.write_bytes(record)
    with hold_names(["x"], "", soon()):
        path.write_bytes(record)
        with pytest.raises(LabError) as caught, hold_names(["x"], "", soon()):
            pass
    assert "left no record" in caught.value.seen


def test_a_record_is_text_of_others_and_shown_without_control_characters(folder: Path) -> None:
    with hold_names(["x"], "a\x1b[31m" + "b" * 500, soon()):
        who = holder("x")
    assert who is not None
    assert who.run.startswith("a?[31mb")
    assert len(who.run) == 100


def test_other_users_can_lock_the_file_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with hold_names(["x"], "", soon()):
            pass
    finally:
        os.umask(before)
    assert (folder / "hil-x.lock").stat().st_mode & 0o777 == 0o666


def test_a_link_in_place_of_the_lock_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (folder / "hil-x.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(LabError, match="cannot be opened"), hold_names(["x"], "", soon()):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_folder_that_does_not_exist_is_an_error_with_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HIL_LOCK_DIR", "/nonexistent")
    with pytest.raises(LabError) as caught, hold_names(["x"], "", soon()):
        pass
    assert "HIL_LOCK_DIR" in caught.value.hint


def test_hosts_are_locked_so_two_inventories_of_one_host_exclude_each_other() -> None:
    text = """
    [lab]
    name = "{name}"
    kind = "physical"
    [hosts.{name}]
    platform = "linux-vfio"
    address = "{address}"
    """
    one = parse(text.format(name="one", address="Host.example.org"), Path("1.toml"))
    two = parse(text.format(name="two", address="host.example.org"), Path("2.toml"))
    assert names(one) == ("host.example.org:22",)
    with hold(one, "", soon()), pytest.raises(LabError), hold(two, "", soon()):
        pass


def test_an_emulated_lab_needs_no_lock() -> None:
    lab = load("emulated")
    with hold(lab, "", soon()), hold(lab, "", soon()):
        pass
