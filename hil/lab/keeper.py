"""Keeps an emulated or simulated lab up between commands: ``hil lab up`` … ``hil lab down``.

The keeper is a process of its own that owns the lab's machine as a run would.  It holds
a kernel lock in the lab's folder for as long as it lives: so "is it up?" never depends on
a process number, and nothing stale can be taken for a lab.  What a killed keeper leaves
in the folder is taken over by the next one.

The folder is ``$XDG_RUNTIME_DIR/hil/labs/NAME`` (or ``/tmp/hil-UID/labs/NAME``), open to
its user only::

    lock           held by the keeper
    state.json     what :class:`State` says
    console.sock   the console and the power switch: see :func:`open_console`
    keeper.log     what the keeper itself complains of
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NoReturn, Protocol

from hil import transient
from hil.console.console import Console
from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded, HilError, InventoryError, LabError
from hil.power.base import Power, PowerState
from hil.power.emulated import EmulatedPower

#: First byte of a connection to the keeper: the console's log so far and no more, a conversation,
#: what the console prints from now on, or what is to be done with the power.
DUMP, TALK, FOLLOW, POWER = b"d", b"t", b"f", b"p"

#: Seconds for which a lock may be held by somebody who only asks.
_GLANCE = 1.0

Progress = Callable[[str], None]


class Machine(Protocol):
    """What the keeper needs of :class:`hil.emulated.machine.EmulatedLab`."""

    @property
    def console(self) -> Console: ...
    @property
    def ssh_port(self) -> int: ...
    @property
    def key_file(self) -> Path: ...
    @property
    def host_key(self) -> str: ...
    def has_power(self, deadline: Deadline) -> bool: ...
    def power_off(self, deadline: Deadline) -> None: ...
    def power_cycle(self, deadline: Deadline) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class State:
    """A lab that is up."""

    name: str
    pid: int
    """The keeper's process."""
    since: float
    """Seconds since the epoch."""
    ssh_port: int
    """On 127.0.0.1."""
    key_file: str
    host_key: str
    """As in a ``.pub`` file."""


def folder(name: str) -> Path:
    """The folder of the lab ``name``, of this user."""
    return transient.runtime() / "labs" / name


def names() -> tuple[str, ...]:
    """Names of the labs that are up."""
    labs = folder("x").parent
    return tuple(sorted(p.name for p in labs.glob("*") if find(p.name) is not None))


def find(name: str) -> State | None:
    """The lab ``name`` if it is up (not while it is still coming up)."""
    place = folder(name)
    if not _held(place):
        return None
    try:
        return State(**json.loads((place / "state.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def get(name: str) -> State:
    """The lab ``name``; raises InventoryError if it is not up."""
    state = find(name)
    if state is None:
        raise InventoryError(
            f"no lab {name!r} is up; up are: {', '.join(names()) or 'none'}",
            hint="start it with: hil lab up",
        )
    return state


def start(
    name: str,
    deadline: Deadline,
    progress: Progress,
    command: Sequence[str] | None = None,
    lab: Sequence[str] = (),
) -> State:
    """Bring up a lab that outlives this process.

    Args:
        name: of the lab; several may be up.
        deadline: for coming up; then all is undone.
        progress: told what is being done.
        command: what to run as the keeper; for tests.
        lab: what it is: a simulated host's name and its faults, or ``emulated:IMAGE`` with an
            absolute path (see :func:`hil.lab.load.load`); empty: the emulated lab.

    Raises:
        LabError: it is up already, or did not come up.
    """
    place = folder(name)
    place.mkdir(parents=True, exist_ok=True)
    if command is None:
        command = [sys.executable, "-m", "hil.lab.keeper", name, str(deadline.remaining)]
        command += lab
    with (place / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    assert keeper.stdout is not None
    # A keeper that hangs is ended at the deadline; its end wakes the reading below.
    alarm = threading.Timer(deadline.remaining + 10, keeper.kill)
    alarm.start()
    try:
        for line in keeper.stdout:
            kind, text = json.loads(line)
            if kind == "up":
                return get(name)
            if kind == "error":
                raise LabError(text["message"], seen=text["seen"], hint=text["hint"])
            progress(text)
        seen = (place / "keeper.log").read_text(errors="replace")[-2000:]
        raise LabError(f"the lab {name!r} did not come up: its keeper ended", seen=seen)
    except BaseException:
        keeper.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(30)
        keeper.kill()
        keeper.wait()
        raise
    finally:
        alarm.cancel()
        keeper.stdout.close()


def stop(name: str, deadline: Deadline) -> bool:
    """Take the lab ``name`` down; return whether it was up.

    Raises:
        DeadlineExceeded: the keeper did not end, not even when it was killed.
    """
    place = folder(name)
    if not _held(place):
        shutil.rmtree(place, ignore_errors=True)
        return False
    state = find(name)
    if state is None:
        raise LabError(f"the lab {name!r} is still coming up", hint="interrupt that hil lab up")
    gone = f"the end of the lab {name} (process {state.pid})"
    # The lock is held, so the keeper lives, so the number is its own.
    os.kill(state.pid, signal.SIGTERM)
    try:
        poll(lambda: not _held(place), deadline.within(30, gone), interval=0.02)
    except DeadlineExceeded:
        os.kill(state.pid, signal.SIGKILL)
        poll(lambda: not _held(place), deadline.within(10, gone), interval=0.02)
    shutil.rmtree(place, ignore_errors=True)
    return True


def _held(place: Path) -> bool:
    try:
        descriptor = os.open(place / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _take(descriptor)
    finally:
        os.close(descriptor)


def _take(lock: int) -> bool:
    """Lock a file, if nobody else has."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ---- the keeper's own process ------------------------------------------------------------


def keep(name: str, bring_up: Callable[[Progress], Machine]) -> int:
    """Bring a machine up and own it until SIGTERM, or until the machine ends by itself.

    Tells the starter on standard output, one JSON list a line: ``["progress", TEXT]``,
    then ``["up", ""]`` or ``["error", {…}]``.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    place = folder(name)
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Who asks whether the lab is up holds it too, for a moment.
        poll(lambda: _take(lock), Deadline(_GLANCE, "the lab's lock"), interval=0.01)
    except DeadlineExceeded:
        _tell("error", _words(LabError(f"the lab {name!r} is up already", hint="hil lab status")))
        return 4
    (place / "state.json").unlink(missing_ok=True)
    try:
        with contextlib.closing(bring_up(lambda text: _tell("progress", text))) as machine:
            state = State(
                name=name,
                pid=os.getpid(),
                since=time.time(),
                ssh_port=machine.ssh_port,
                key_file=str(machine.key_file),
                host_key=machine.host_key,
            )
            with contextlib.closing(_Doorman(place / "console.sock", machine)):
                new = place / "state.new"
                new.write_text(json.dumps(asdict(state)))
                new.replace(place / "state.json")
                _tell("up", "")
                _let_go_of_starter()
                cursor = machine.console.log.follow(machine.console.log.end)
                while cursor.read(60) != b"":
                    pass
                print("the machine ended by itself", file=sys.stderr, flush=True)
    except HilError as error:
        _tell("error", _words(error))
        return error.exit_code
    except (KeyboardInterrupt, BrokenPipeError):
        # Told to end; or the starter is gone, and nobody knows of the lab.
        return 0
    finally:
        (place / "state.json").unlink(missing_ok=True)
        (place / "console.sock").unlink(missing_ok=True)
    return 0


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: the end is not to be cut short
    raise KeyboardInterrupt


def _tell(kind: str, text: str | dict[str, str]) -> None:
    print(json.dumps([kind, text]), flush=True)


def _words(error: HilError) -> dict[str, str]:
    return {"message": error.message, "seen": error.seen, "hint": error.hint}


def _let_go_of_starter() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class _Doorman:
    """Lets others at the power switch, and the console, of which the log is the one reader."""

    def __init__(self, path: Path, machine: Machine) -> None:
        self._machine = machine
        self._console = machine.console
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # The path may be longer than a socket's address can be; its folder's number is not.
        with _short(path) as short:
            self._socket.bind(short)
        self._socket.listen()
        threading.Thread(target=self._accept, daemon=True, name="console-door").start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(guest,), daemon=True).start()

    def _serve(self, guest: socket.socket) -> None:
        with guest, contextlib.suppress(OSError, HilError):
            log = self._console.log
            match guest.recv(1):
                case wish if wish == POWER:
                    guest.sendall(self._switch(guest.makefile("r").readline()))
                    return
                case wish if wish == FOLLOW:
                    threading.Thread(target=self._show, args=(guest, log.end), daemon=True).start()
                    while guest.recv(4096):
                        pass
                    return
                case wish if wish != TALK:
                    guest.sendall(log.text().encode())
                    return
            # A little of what was there, so that a prompt is seen.
            start = max(0, log.end - 2000)
            threading.Thread(target=self._show, args=(guest, start), daemon=True).start()
            # What was typed counts even if the guest left right after: so only the end of
            # its bytes ends this, not that nobody wants the log any more.
            while data := guest.recv(4096):
                self._console.send(data)

    def _switch(self, wish: str) -> bytes:
        """One JSON list: ``["done", STATE]`` or ``["error", {…}]``."""
        action, _, seconds = wish.partition(" ")
        power = EmulatedPower("the host", self._machine)
        deadline = Deadline(float(seconds), f"power {action}")
        try:
            if action in ("on", "off", "cycle"):
                getattr(power, action)(deadline)
            answer: list[object] = ["done", power.state(deadline).value]
        except HilError as error:
            answer = ["error", _words(error)]
        return json.dumps(answer).encode()

    def _show(self, guest: socket.socket, start: int) -> None:
        cursor = self._console.log.follow(start)
        with contextlib.suppress(OSError):
            while (data := cursor.read(1)) != b"":
                if data:
                    guest.sendall(data)
            guest.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def open_console(name: str, mode: bytes) -> socket.socket:
    """A connection to the keeper of the lab ``name``, for :data:`DUMP`, :data:`TALK` and others."""
    get(name)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(folder(name) / "console.sock") as short:
            connection.connect(short)
        connection.sendall(mode)
    except OSError as error:
        connection.close()
        raise LabError(f"the console of the lab {name!r} cannot be opened: {error}") from None
    return connection


def dump(name: str, out: IO[bytes]) -> None:
    """Write the log of the console so far to ``out``."""
    with open_console(name, DUMP) as connection:
        while data := connection.recv(65536):
            out.write(data)
    out.flush()


def follow(name: str, out: IO[bytes], until: IO[bytes] | None = None) -> None:
    """Write to ``out`` what the console prints from now on, until the lab ends, or ``until`` does.

    ``until``: a pipe; its end says that whoever reads ``out`` is gone.
    """
    import select

    with open_console(name, FOLLOW) as connection:
        sources: list[socket.socket | IO[bytes]] = [connection, *([until] if until else ())]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if until in ready and not os.read(until.fileno(), 4096):
                return
            if connection in ready:
                if not (data := connection.recv(65536)):
                    return
                out.write(data)
                out.flush()


def switch(name: str, action: str, deadline: Deadline) -> str:
    """Have the host of the lab ``name`` switched ``on``, ``off``, or off and on (``cycle``).

    Returns:
        Its state then, as of :class:`hil.power.base.PowerState`; for ``state`` nothing is done.

    Raises:
        InventoryError: no such lab is up.
        LabError: it was not to be done.
    """
    with open_console(name, POWER) as connection:
        connection.settimeout(min(deadline.remaining + 1, threading.TIMEOUT_MAX))
        try:
            connection.sendall(f"{action} {min(deadline.remaining, 3600):.1f}\n".encode())
            kind, told = json.loads(connection.makefile("rb").readline())
        except (OSError, ValueError) as error:
            raise LabError(f"the keeper of the lab {name!r} gave no answer: {error}") from None
    if kind == "error":
        raise LabError(told["message"], seen=told["seen"], hint=told["hint"])
    return str(told)


def talk(name: str) -> None:
    """Connect this terminal with the console until Ctrl-] or the console's end."""
    import select
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    with open_console(name, TALK) as connection:
        try:
            tty.setraw(terminal)
            while True:
                ready, _, _ = select.select([terminal, connection], [], [])
                if connection in ready:
                    data = connection.recv(65536)
                    if not data:
                        return
                    _write_all(data)
                if terminal in ready:
                    typed = os.read(terminal, 4096)
                    head, escape, _ = typed.partition(b"\x1d")
                    connection.sendall(head)
                    if escape or not typed:
                        return
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def ssh_command(state: State, words: Sequence[str]) -> list[str]:
    """What to run to log in at the lab's host."""
    known = folder(state.name) / "known_hosts"
    known.write_text(f"[127.0.0.1]:{state.ssh_port} {state.host_key}\n")
    options = {
        "UserKnownHostsFile": str(known),
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    command = ["ssh", "-F", "none", "-i", state.key_file, "-p", str(state.ssh_port)]
    for key, value in options.items():
        command += ["-o", f"{key}={value}"]
    return [*command, "root@127.0.0.1", *words]


class KeptPower(Power):
    """The power of what :func:`start` keeps up; see :class:`hil.power.base.Power`."""

    def __init__(self, host: str, name: str) -> None:
        super().__init__(host)
        self._name = name

    def state(self, deadline: Deadline) -> PowerState:
        """As its keeper says."""
        return PowerState(switch(self._name, "state", deadline))

    def on(self, deadline: Deadline) -> None:
        """Boot it, if it is off; returns when it is up."""
        switch(self._name, "on", deadline)

    def off(self, deadline: Deadline) -> None:
        """At once."""
        switch(self._name, "off", deadline)

    def cycle(self, deadline: Deadline) -> None:
        """At once: it has no power supply to run empty."""
        switch(self._name, "cycle", deadline)


class SimulatedMachine:
    """A simulated host as the keeper keeps it: a :class:`Machine`."""

    def __init__(self, place: Path, name: str, faults: Sequence[str]) -> None:
        from hil.simulated.host import SimulatedHost

        self._host = SimulatedHost(name, faults).start()
        self._has_power = True
        self.console = Console(name, self._host.console)
        self.ssh_port = self._host.port
        self.host_key = self._host.host_key
        self.key_file = place / "key"
        self.key_file.unlink(missing_ok=True)
        self.key_file.touch(0o600)
        self.key_file.write_text(self._host.key.private)

    def has_power(self, deadline: Deadline) -> bool:
        deadline.check()
        return self._has_power

    def power_off(self, deadline: Deadline) -> None:
        deadline.check()
        self._has_power = False
        self._host.power_off()

    def power_cycle(self, deadline: Deadline) -> None:
        deadline.check()
        self.console.forget_panic()
        self._host.reboot()
        self._has_power = True

    def close(self) -> None:
        """The host is a part of this process: nothing of it stays."""
        self._host.close()
        self.console.close()
        self.key_file.unlink(missing_ok=True)


def _main(name: str, seconds: str, lab: str = "emulated", *faults: str) -> int:
    if not lab.startswith("emulated"):
        return keep(name, lambda _: SimulatedMachine(folder(name), lab, faults))
    from hil.lab.live import machine_of
    from hil.lab.load import load

    deadline = Deadline(float(seconds), f"the lab {name}")
    return keep(name, lambda progress: machine_of(load(lab), deadline, progress=progress))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
