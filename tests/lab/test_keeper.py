from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil import cli
from hil.deadline import Deadline, poll
from hil.errors import InventoryError, LabError
from hil.lab import keeper
from hil.lab.load import parse
from hil.lab.models import LabKind
from hil.lab.power import power_of
from hil.power.base import PowerState

#: A keeper of a machine whose console echoes what is typed.
KEEPER = r"""
import os, sys
from pathlib import Path
from hil.console.console import Console
from hil.errors import LabError
from hil.lab.keeper import keep

class Echo:
    def __init__(self):
        self.end, self.start = os.pipe()
        self.write(b"lab login: ")
    def read(self, limit=65536):
        return os.read(self.end, limit)
    def write(self, data):
        if b"die" in data:
            os.close(self.start)
        else:
            os.write(self.start, data)
    def close(self):
        pass

class Machine:
    ssh_port, key_file, host_key = 2222, Path("/run/key"), "ssh-ed25519 AAAA"
    def __init__(self, progress):
        progress("booting")
        if how == "fails":
            raise LabError("it does not boot", seen="panic", hint="look")
        if how == "crashes":
            os.abort()
        if how == "hangs":
            import threading
            threading.Event().wait()
        self.console = Console("host", Echo())
    def close(self):
        Path(mark).write_text("closed")

name, mark, how = sys.argv[1:]
sys.exit(keep(name, Machine))
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Longer than the address of a socket may be.
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    for name in keeper.names():
        keeper.stop(name, soon())


Up = Callable[..., keeper.State]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def up(mark: Path) -> Up:
    def start(name: str = "one", how: str = "", heard: list[str] | None = None) -> keeper.State:
        command = [sys.executable, "-c", KEEPER, name, str(mark), how]
        told = [] if heard is None else heard
        return keeper.start(name, soon(), told.append, command)

    return start


def soon() -> Deadline:
    return Deadline(60, "the lab")


def gone(pid: int) -> None:
    def dead() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    poll(dead, soon())


def test_a_lab_outlives_its_start_and_ends_with_stop(up: Up, mark: Path) -> None:
    heard: list[str] = []
    state = up(heard=heard)
    assert heard == ["booting"]
    assert (state.name, state.ssh_port, state.host_key) == ("one", 2222, "ssh-ed25519 AAAA")
    assert keeper.find("one") == state
    assert keeper.names() == ("one",)
    assert keeper.stop("one", soon())
    assert mark.read_text() == "closed"
    assert keeper.find("one") is None
    assert not keeper.folder("one").exists()
    gone(state.pid)
    assert not keeper.stop("one", soon())


def test_two_labs_do_not_meet(up: Up) -> None:
    up("one")
    up("two")
    assert keeper.names() == ("one", "two")
    keeper.stop("one", soon())
    assert keeper.names() == ("two",)


def test_who_asks_whether_a_lab_is_up_keeps_none_from_coming_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asking = iter([True, True])
    flock = fcntl.flock

    def busy(descriptor: int, operation: int) -> None:
        if next(asking, False):
            raise BlockingIOError
        flock(descriptor, operation)

    def fails(_: object) -> keeper.Machine:
        raise LabError("it does not boot")

    monkeypatch.setattr(fcntl, "flock", busy)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    keeper.folder("one").mkdir(parents=True)
    try:
        keeper.keep("one", fails)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "it does not boot" in capsys.readouterr().out


def test_the_same_lab_is_not_brought_up_twice(up: Up) -> None:
    state = up()
    with pytest.raises(LabError, match="is up already"):
        up()
    assert keeper.find("one") == state


def test_what_stopped_the_lab_from_coming_up_is_told(up: Up) -> None:
    with pytest.raises(LabError, match="it does not boot") as caught:
        up(how="fails")
    assert (caught.value.seen, caught.value.hint) == ("panic", "look")
    assert keeper.find("one") is None
    up()


def test_a_keeper_that_crashes_is_told(up: Up) -> None:
    with pytest.raises(LabError, match="its keeper ended"):
        up(how="crashes")
    assert keeper.find("one") is None


def test_an_interrupted_start_leaves_nothing(up: Up, mark: Path) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    command = [sys.executable, "-c", KEEPER, "one", str(mark), "hangs"]
    with pytest.raises(KeyboardInterrupt):
        keeper.start("one", soon(), interrupt, command)
    assert not keeper._held(keeper.folder("one"))


def test_a_lab_that_hangs_is_ended_at_the_deadline(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = threading.Timer
    monkeypatch.setattr(threading, "Timer", lambda seconds, act: timer(0.5, act))
    command = [sys.executable, "-c", KEEPER, "one", str(mark), "hangs"]
    with pytest.raises(LabError, match="its keeper ended"):
        keeper.start("one", soon(), lambda _: None, command)


def test_what_a_killed_keeper_leaves_blocks_nothing(up: Up) -> None:
    state = up()
    os.kill(state.pid, signal.SIGKILL)
    poll(lambda: keeper.find("one") is None, soon())
    assert (keeper.folder("one") / "state.json").exists()
    assert keeper.names() == ()
    assert up().pid != state.pid


def test_a_machine_that_ends_by_itself_ends_its_lab(up: Up, mark: Path) -> None:
    state = up()
    with keeper.open_console("one", keeper.TALK) as connection:
        connection.sendall(b"die\n")
    gone(state.pid)
    assert mark.read_text() == "closed"
    assert keeper.find("one") is None


def test_the_console_can_be_printed_and_talked_to(up: Up) -> None:
    up()
    with keeper.open_console("one", keeper.TALK) as connection:
        connection.settimeout(30)
        assert connection.recv(100) == b"lab login: "
        connection.sendall(b"root\n")
        assert connection.recv(100) == b"root\n"
    out = io.BytesIO()
    keeper.dump("one", out)
    assert out.getvalue() == b"lab login: root\n"


def test_the_console_at_a_terminal(up: Up) -> None:
    up()
    master, slave = pty.openpty()
    code = "import sys; from hil.cli import main; sys.exit(main(['lab','console','--name','one']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=subprocess.DEVNULL
    ) as process:
        os.close(slave)
        seen = b""
        while b"login:" not in seen:
            seen += os.read(master, 1000)
        os.write(master, b"hello\r\x1d")
        assert process.wait(30) == 0
    os.close(master)
    poll(lambda: "hello" in printed("one"), soon())


def printed(name: str) -> str:
    out = io.BytesIO()
    keeper.dump(name, out)
    return out.getvalue().decode()


def test_no_lab_is_up() -> None:
    for act in (keeper.get, lambda name: keeper.open_console(name, keeper.DUMP)):
        with pytest.raises(InventoryError, match="no lab 'one' is up; up are: none"):
            act("one")


def test_a_folder_open_to_others_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    base = tmp_path / f"hil-{os.getuid()}"
    base.mkdir()
    base.chmod(0o777)
    with pytest.raises(LabError, match="open to other users"):
        keeper.folder("one")
    base.chmod(0o700)
    assert keeper.folder("one") == base / "labs/one"


def test_ssh_knows_the_key_of_the_host(up: Up) -> None:
    command = keeper.ssh_command(up(), ["uname", "-a"])
    assert command[-3:] == ["root@127.0.0.1", "uname", "-a"]
    assert "StrictHostKeyChecking=yes" in command
    known = (keeper.folder("one") / "known_hosts").read_text()
    assert known == "[127.0.0.1]:2222 ssh-ed25519 AAAA\n"


def test_the_commands(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lab", "status"]) == 1
    assert cli.main(["lab", "ssh"]) == 5
    state = up("one")
    assert cli.main(["lab", "status"]) == 0
    assert f"one: up, SSH on 127.0.0.1:2222, process {state.pid}" in capsys.readouterr().out
    assert cli.main(["lab", "down", "--name", "one"]) == 0
    assert cli.main(["lab", "down", "--name", "one"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "the lab one is down",
        "the lab one was not up",
    ]
    assert cli.main(["lab", "down", "--name", "../one"]) == 5
    assert cli.main(["lab", "ssh", "nohost"]) == 5


def test_a_kept_host_is_switched_off_and_on_as_a_physical_one_is() -> None:
    name = "freebsd-15-intel"
    keeper.start("switched", Deadline(120, "the lab"), lambda _: None, lab=[name])
    lab = parse(
        """
[lab]
name = "rack"
kind = "simulated"
[hosts.alpha]
platform = "freebsd-bhyve"
address = "127.0.0.1"
power = { driver = "kept", address = "switched" }
""",
        Path("rack.toml"),
    )
    assert not lab.kind.disposable, "it stands, and a run puts back what it does to it"
    assert lab.provenance is LabKind.SIMULATED
    power = power_of(lab, "alpha")
    assert power.state(soon()) is PowerState.ON
    power.off(soon())
    assert power.state(soon()) is PowerState.OFF
    power.on(soon())
    power.cycle(soon())
    assert power.state(soon()) is PowerState.ON
    keeper.stop("switched", soon())
    with pytest.raises(InventoryError, match="no lab 'switched' is up"):
        power.state(soon())


def test_who_follows_the_console_ends_with_its_reader() -> None:
    keeper.start("followed", Deadline(120, "the lab"), lambda _: None, lab=["freebsd-15-intel"])
    command = [sys.executable, "-m", "hil.cli", "lab", "console", "--follow", "--name", "followed"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as follower:
        assert follower.stdin is not None
        assert follower.stdout is not None
        # It shows what comes from now on: until it does, the host is started anew.
        seen = b""
        while b"login:" not in seen:
            keeper.switch("followed", "cycle", soon())
            ready, _, _ = select.select([follower.stdout], [], [], 5)
            seen += os.read(follower.stdout.fileno(), 65536) if ready else b""
        follower.stdin.close()
        assert follower.wait(60) == 0
