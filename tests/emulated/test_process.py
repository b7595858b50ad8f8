"""QEMU processes and their end, with a machine that has nothing in it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hil.deadline import Deadline, poll
from hil.emulated.process import QemuProcess, run_folder
from hil.errors import LabError

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)

OWNER = """
import sys
from hil.deadline import Deadline
from hil.emulated.process import QemuProcess, run_folder
from tests.emulated.test_process import command
process = QemuProcess(run_folder(), command, Deadline(60, "x"))
print(process.folder, flush=True)
sys.stdin.read()
"""


def command(console: str, monitor: str) -> list[str]:
    machine = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
    return [
        *machine, "-chardev", console, "-chardev", monitor, "-mon", "chardev=monitor,mode=control",
    ]  # fmt: skip


def limit() -> Deadline:
    return Deadline(60, "a test")


def holders(folder: Path) -> set[int]:
    """Processes that have files of ``folder`` open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(f"{folder}/"):
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def owned(base: Path) -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert folder.parent == base
    assert len(holders(folder)) == 2, "QEMU and its supervisor"
    return owner, folder


def test_closing_leaves_nothing(run_base: Path) -> None:
    process = QemuProcess(run_folder(), command, limit())
    assert process.alive()
    assert process.folder.stat().st_mode & 0o777 == 0o700
    process.close()
    process.close()
    assert not holders(process.folder)
    assert list(run_base.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_survives_its_owner(run_base: Path, number: int) -> None:
    owner, folder = owned(run_base)
    owner.send_signal(number)
    owner.wait(60)
    poll(lambda: not folder.exists() and not holders(folder), limit())


def test_qemu_does_not_survive_its_supervisor(run_base: Path) -> None:
    owner, folder = owned(run_base)
    with owner:
        (supervisor,) = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
        os.kill(int(supervisor), signal.SIGKILL)
        poll(lambda: not holders(folder), limit())
        assert folder.exists()
        another = run_folder()
        assert list(run_base.iterdir()) == [another], "the next lab cleans up"


def test_a_living_lab_is_left_alone(run_base: Path) -> None:
    process = QemuProcess(run_folder(), command, limit())
    try:
        other = run_folder()
        assert set(run_base.iterdir()) == {process.folder, other}
        assert process.alive()
    finally:
        process.close()


def test_what_qemu_said_when_it_did_not_start(run_base: Path) -> None:
    with pytest.raises(LabError, match="QEMU did not start") as error:
        QemuProcess(run_folder(), lambda c, m: [*command(c, m), "-device", "nonesuch"], limit())
    assert "nonesuch" in error.value.seen
    assert "-device" in error.value.command
    assert list(run_base.iterdir()) == []


def test_a_program_that_is_not_there(run_base: Path) -> None:
    with pytest.raises(LabError, match="QEMU did not start") as error:
        QemuProcess(run_folder(), lambda *_: ["/nowhere/qemu"], limit())
    assert error.value.seen == "/nowhere/qemu: No such file or directory"
    assert list(run_base.iterdir()) == []


def test_qemu_inherits_what_it_was_given_and_no_more() -> None:
    process = QemuProcess(run_folder(), command, limit())
    try:
        qemu = qemu_of(process)
        (supervisor,) = holders(process.folder) - {qemu}
        mine = {link.readlink() for link in Path(f"/proc/{qemu}/fd").iterdir()}
        lifeline = Path(f"/proc/{supervisor}/fd/{cmdline(supervisor).split(bytes(1))[6].decode()}")
        assert lifeline.readlink() not in mine
        assert process.folder / "lock" not in mine
        ignored = re.search(
            r"^SigIgn:\s*(\w+)$", Path(f"/proc/{qemu}/status").read_text(), re.MULTILINE
        )
        assert ignored is not None
        assert not int(ignored[1], 16) & 1 << signal.SIGXFSZ - 1
    finally:
        process.close()


def test_a_folder_that_others_could_write(run_base: Path) -> None:
    run_base.mkdir(mode=0o755)
    run_base.chmod(0o777)
    with pytest.raises(LabError, match="open to other users"):
        run_folder()


def test_an_end_of_its_own_is_told() -> None:
    process = QemuProcess(run_folder(), command, limit())
    try:
        process.monitor.execute("quit", limit())
        assert process.how_it_ended() == "with status 0, without a word"
    finally:
        process.close()


def test_a_signal_is_told_with_the_last_line() -> None:
    process = QemuProcess(run_folder(), command, limit())
    try:
        with (process.folder / "qemu.log").open("a") as log:
            log.write("first\nan assertion failed\n")
        os.kill(qemu_of(process), signal.SIGABRT)
        assert process.how_it_ended() == "by SIGABRT: an assertion failed"
    finally:
        process.close()


def qemu_of(process: QemuProcess) -> int:
    (found,) = (pid for pid in holders(process.folder) if cmdline(pid).startswith(b"qemu"))
    return found


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
