"""A guest's QEMU: its command line, and that nothing of it stays whatever ends the run."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hil.deadline import Deadline, poll
from hil.errors import LabError
from hil.guests.images import GuestImage
from hil.journal import LINUX, Journal
from hil.pci.address import Address
from hil.platforms.contract import CountsRestarts, GuestSpec, MachineState, Template
from hil.platforms.linux_guest import _KEEPER, QemuMachine
from hil.platforms.linux_undo import KINDS
from hil.transport.base import ByteStream
from hil.transport.keys import generate
from hil.transport.local import LocalTransport
from tests.fakes import DISK, NIC, FakeTransport, soon

IMAGE = GuestImage("linux", "linux", "/i/root", "/i/kernel", "/i/initrd", ("quiet",))


def machine(**changes: object) -> QemuMachine:
    fields: dict[str, object] = {"name": "g1", "image": "linux", "devices": (NIC, DISK)}
    spec = GuestSpec(**(fields | changes))  # type: ignore[arg-type]
    transport = FakeTransport()
    journal = Journal(transport, LINUX, KINDS)
    return QemuMachine("lab1", transport, spec, IMAGE, "/run/hil/", journal)


def options(command: list[str], name: str) -> list[str]:
    return [value for key, value in itertools.pairwise(command) if key == name]


def test_the_command_line_has_what_the_guest_was_given() -> None:
    made = machine(memory=512 << 20, cpus=2, arguments=("a=1", "b c"))
    command = made.command()
    assert command[0] == "qemu-system-x86_64"
    assert options(command, "-name") == ["guest=g1"]
    assert (options(command, "-m"), options(command, "-smp")) == (["512M"], ["2"])
    assert options(command, "-kernel") == ["/i/kernel"]
    (words,) = options(command, "-append")
    assert words.startswith("console=ttyS0 root=/dev/vda ")
    assert words.endswith(" quiet a=1 b c")
    # It stands still until start(): its console is read from before the first instruction.
    assert "-S" in command
    sockets = [option for option in options(command, "-chardev") if "path=" in option]
    assert [re.search("path=([^,]*)", s)[1] for s in sockets] == [  # type: ignore[index]
        "/run/hil/g1/console",
        "/run/hil/g1/monitor",
    ]


def test_each_device_stands_where_the_machine_says() -> None:
    made = machine()
    passed = [o for o in options(made.command(), "-device") if o.startswith("vfio-pci")]
    assert passed == [
        "vfio-pci,host=0000:01:00.0,addr=0x10,rombar=0",
        "vfio-pci,host=0000:02:00.0,addr=0x11,rombar=0",
    ]
    assert made.guest_addresses == {
        NIC: Address.parse("0000:00:10.0"),
        DISK: Address.parse("0000:00:11.0"),
    }
    slots = [
        m for o in options(made.command(), "-device") for m in re.findall("addr=(0x.+?)\\b", o)
    ]
    assert len(slots) == len(set(slots)) == 5


def test_an_option_rom_goes_to_the_function_that_is_given_one() -> None:
    made = machine(roms={DISK: "/roms/a,b.rom"})
    passed = [o for o in options(made.command(), "-device") if o.startswith("vfio-pci")]
    assert passed[0].endswith(",addr=0x10,rombar=0")
    assert passed[1].endswith(",addr=0x11,rombar=1,romfile=/roms/a,,b.rom")


def test_one_that_continues_another_waits_for_its_state_and_has_its_key() -> None:
    template = Template("linux", 256 << 20, 1, "/run/hil-templates/linux", generate())
    made = machine(template=template)
    assert options(made.command(), "-incoming") == ["defer"]
    assert "-incoming" not in machine().command()
    assert made._host_key == template.host_key != machine()._host_key
    assert "PRIVATE" not in repr(template)


def test_no_key_of_a_private_kind_is_on_the_command_line() -> None:
    assert "PRIVATE" not in " ".join(machine().command())


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a,b", "a b", "..", "x" * 50, "a\n"])
def test_a_name_that_would_be_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="is no name for a guest"):
        machine(name=name)


def test_a_machine_that_was_never_made_is_not_running_and_can_be_destroyed() -> None:
    made = machine()
    with pytest.raises(LabError, match="is not running"):
        made.start(soon())
    made.destroy(soon())
    made.destroy(soon())
    assert made.state(soon()) is MachineState.DESTROYED


# The keeper, really run.  The program in QEMU's place sleeps and ignores SIGTERM.
FAKE_QEMU = "trap '' TERM; echo I am QEMU; exec sleep 600"


def keeper(directory: Path, program: str = FAKE_QEMU) -> list[str]:
    return ["sh", "-c", _KEEPER, "hil", str(directory), "sh", "-c", program]


class Started:
    """The keeper at the far end of a stream."""

    def __init__(self, stream: ByteStream, directory: Path) -> None:
        self.stream = stream
        self.directory = directory
        self.text = ""
        self.read_until("I am QEMU")
        # QEMU and its keeper speak in either order.
        while not (match := re.search(r"^hil: pid (\d+)\n", self.text, re.MULTILINE)):
            self.read_more()
        self.pid = int(match[1])

    def read_until(self, words: str) -> None:
        while words not in self.text:
            self.read_more()

    def read_more(self) -> None:
        chunk = self.stream.read()
        assert chunk, self.text
        self.text += chunk.decode()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "guest"
    made.mkdir()
    (made / "monitor").write_text("")
    return made


@pytest.fixture
def started(directory: Path) -> Started:
    stream = LocalTransport().open_stream(keeper(directory), deadline=soon())
    return Started(stream, directory)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # dead; whoever inherited it has not looked yet


def check_nothing_stays(pid: int, directory: Path) -> None:
    poll(lambda: gone(pid) and not directory.exists(), soon(), interval=0.01)


def test_closing_the_stream_ends_qemu_and_removes_its_files(started: Started) -> None:
    started.stream.close()
    check_nothing_stays(started.pid, started.directory)


def test_the_end_of_qemu_is_told_with_its_status(started: Started) -> None:
    os.kill(started.pid, signal.SIGKILL)
    started.read_until("hil: status 137\n")
    assert not started.directory.exists()
    started.stream.close()


def test_the_status_is_qemu_s_own(directory: Path) -> None:
    program = "echo I am QEMU; echo no such device >&2; exit 3"
    stream = LocalTransport().open_stream(keeper(directory, program), deadline=soon())
    started = Started(stream, directory)
    started.read_until("hil: status 3\n")
    assert "no such device" in started.text
    assert started.stream.read() == b""


def test_bytes_on_the_lifeline_mean_nothing(started: Started) -> None:
    started.stream.write(b"quit\n\0\xff\n")
    assert not gone(started.pid)
    os.kill(started.pid, signal.SIGKILL)
    started.read_until("hil: status 137\n")


RUN = """
import sys
from hil.deadline import Deadline
from hil.transport.keys import generate
from hil.transport.local import LocalTransport
stream = LocalTransport().open_stream(sys.argv[1:], deadline=Deadline(20, "x"))
while data := stream.read():
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_run_ends_qemu(directory: Path, number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, *keeper(directory)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout
    text = ""
    for line in run.stdout:
        text += line
        # Two processes write these, in no certain order.
        if "I am QEMU\n" in text and "hil: pid " in text:
            break
    pid = int(text.split("hil: pid ")[1].split()[0])
    run.send_signal(number)
    run.wait()
    check_nothing_stays(pid, directory)
    run.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE])
def test_the_keeper_outlives_what_a_closing_connection_sends(
    started: Started, number: signal.Signals
) -> None:
    shell = int(Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shell, number)
    started.stream.close()
    check_nothing_stays(started.pid, started.directory)


def test_restarts_are_counted_by_qemus_events(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = machine()
    assert isinstance(guest, CountsRestarts)
    assert guest.restarts() == 0, "it has no monitor yet"
    heard = iter([["RESUME", "RESET"], [], ["RESET", "STOP", "RESET"]])

    class Heard:
        def events(self) -> list[str]:
            return next(heard)

    monkeypatch.setattr(guest, "_monitor", Heard())
    assert [guest.restarts() for _ in range(3)] == [1, 1, 3]


def test_texts_are_searched_in_one_copy_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    class Saves:
        def execute(self, command: str, deadline: Deadline, **arguments: Any) -> None:
            asked.append((command, arguments["val"], arguments["size"]))
            Path(arguments["filename"]).write_bytes(b"..a b\n\0\n..(c)(c)text\na b")

    guest = machine()
    monkeypatch.setattr(guest, "_monitor", Saves())
    monkeypatch.setattr(guest, "_transport", LocalTransport("host"))
    monkeypatch.setattr(guest, "_directory", str(tmp_path))
    wanted = ["a b", "none", "(c)", "text"]
    found = guest.search_physical(wanted, Deadline(60, "the search"))
    assert found == [(2, 21), (), (10, 13), (16,)]
    assert asked == [("pmemsave", 0, guest.spec.memory)]
    assert not any(tmp_path.iterdir())
