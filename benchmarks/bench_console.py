"""A console: commands beside a hand-written loop and labgrid; reading beside a bare loop.

    python benchmarks/bench_console.py [PORT]

The commands run in a shell behind a stream socket, as a guest's serial console is: by
default one shell a contender, each on a pseudo terminal, relayed by a process of its own.
PORT is the TCP port on loopback of a guest's console instead (of QEMU:
``-serial tcp:127.0.0.1:PORT,server=on,wait=off,nodelay=on``), logged in, with the prompt ``# ``;
the contenders then use it one after the other.  labgrid is measured if it is
installed (pip install labgrid): its ShellDriver on its SerialDriver, as its users run it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect.fdpexpect
from _report import alternate, ratio, show, verdict

from hil.console.console import Console
from hil.deadline import Deadline
from hil.transport.local import LocalTransport

COMMANDS = 20
ROUNDS = 15
MIB = 1 << 20

_RELAY = """
import os, pty, select, socket, sys
listener = socket.create_server(('127.0.0.1', 0))
print(listener.getsockname()[1], flush=True)
peer, _ = listener.accept()
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
pid, fd = pty.fork()
if pid == 0:
    os.environ['PS1'] = '# '
    os.execvp('dash', ['dash', '-i'])
while True:
    for ready in select.select([fd, peer], [], [])[0]:
        data = os.read(fd, 65536) if ready == fd else peer.recv(65536)
        if not data:
            sys.exit()
        if ready == fd:
            peer.sendall(data)
        else:
            os.write(fd, data)
"""


class SocketStream:
    """A byte stream over a connected socket."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def read(self, limit: int = 65536) -> bytes:
        try:
            return self._link.recv(limit)
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        self._link.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()


class ByHand:
    """What one would write for the purpose: type, then read until the marker."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def run(self, command: str) -> tuple[int, bytes]:
        token = secrets.token_hex(4)
        self._link.sendall(f"{command}; echo {token[:4]}''{token[4:]} $?\n".encode())
        end = re.compile(token.encode() + rb" (\d+)\r\n")
        data = b""
        while not (match := end.search(data)):
            chunk = self._link.recv(65536)
            if not chunk:
                raise EOFError
            data += chunk
        return int(match[1]), data[: match.start()]


@contextlib.contextmanager
def relay() -> Iterator[int]:
    """A shell behind a TCP port."""
    with subprocess.Popen([sys.executable, "-c", _RELAY], stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def dial(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def labgrid(port: int) -> Any:
    target: Any = importlib.import_module("labgrid").Target("bench")
    drivers = importlib.import_module("labgrid.driver")
    resource = importlib.import_module("labgrid.resource").NetworkSerialPort
    resource(target, None, host="127.0.0.1", port=port, protocol="raw")
    drivers.SerialDriver(target, None)
    shell = drivers.ShellDriver(
        target, None, prompt="# ", login_prompt="login: ", username="root", await_login_timeout=1
    )
    target.activate(shell)
    return shell


def deadline() -> Deadline:
    return Deadline(600, "the benchmark")


def times(run: Callable[[str], object], command: str) -> Callable[[], None]:
    def call() -> None:
        for _ in range(COMMANDS):
            run(command)

    return call


def commands_on_a_pty() -> None:
    with contextlib.ExitStack() as stack:

        def port() -> int:
            return stack.enter_context(relay())

        console = Console("bench", SocketStream(dial(port())))
        stack.callback(console.close)
        runners: dict[str, Callable[[str], object]] = {
            "hand-written loop": ByHand(dial(port())).run,
            "hil": lambda command: console.run(command, deadline()).check(),
        }
        if importlib.util.find_spec("labgrid"):
            runners["labgrid ShellDriver"] = labgrid(port()).run
        else:
            print("labgrid is left out: it is not installed")
        for command in ("/bin/true", ":", "seq 1 300"):
            contenders = {name: times(run, command) for name, run in runners.items()}
            report(f"{command}  (a shell on a pty)", alternate(contenders, ROUNDS))


def commands_on(port: int) -> None:
    """The same on a guest's console, one contender after the other: it has but one."""
    for command in (":", "ls /"):
        seconds: dict[str, list[float]] = {}
        with dial(port) as link:
            seconds |= alternate({"hand-written loop": times(ByHand(link).run, command)}, ROUNDS)
        console = Console("guest", SocketStream(dial(port)))
        runner = times(functools.partial(console.run, deadline=deadline()), command)
        seconds |= alternate({"hil": runner}, ROUNDS)
        console.release(deadline())
        console.close()
        if importlib.util.find_spec("labgrid"):
            shell = labgrid(port)
            seconds |= alternate({"labgrid ShellDriver": times(shell.run, command)}, ROUNDS)
            shell.target.deactivate_all_drivers()
        report(f"{command}  (the guest given)", seconds)


def report(title: str, seconds: dict[str, list[float]]) -> None:
    show(title, seconds, COMMANDS)
    speed = ratio(seconds, "hand-written loop", "hil")
    verdict("speed, the hand-written loop being 1", speed, ">= 0.9", speed >= 0.9)
    if "labgrid ShellDriver" in seconds:
        factor = ratio(seconds, "labgrid ShellDriver", "hil")
        verdict("times as long: labgrid", factor, ">= 5", factor >= 5)


def reading() -> None:
    """Bytes from a pipe through the log, its file, its panic search and expect."""
    line = b"[    1.234567] a line of a console as long as they usually are, or so\r\n"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def source(size: int) -> Path:
            path = folder / f"{size}"
            if not path.exists():
                path.write_bytes(line * (size // len(line)) + b"the end")
            return path

        def stream(size: int) -> Any:
            return LocalTransport().open_stream(["cat", str(source(size))], deadline=deadline())

        def hil(size: int) -> None:
            console = Console("bench", stream(size), log_path=folder / "log")
            console.expect("the end", deadline())
            console.close()

        def bare(size: int) -> None:
            pipe = stream(size)
            while pipe.read():
                pass
            pipe.close()

        def pexpect_as_it_comes(size: int) -> None:
            with source(size).open("rb") as file:
                pexpect.fdpexpect.fdspawn(file).expect(b"the end", timeout=600)

        sizes = {"10 MiB": 10 * MIB, "100 MiB": 100 * MIB}
        contenders: dict[str, Callable[[], object]] = {}
        for label, size in sizes.items():
            contenders[f"bare read loop, {label}"] = functools.partial(bare, size)
            contenders[f"hil with its log file, {label}"] = functools.partial(hil, size)
        contenders["pexpect as it comes, 1 MiB"] = lambda: pexpect_as_it_comes(MIB)
        seconds = alternate(contenders, 3)
        show("Reading", seconds)
        hundred = statistics.median(seconds["hil with its log file, 100 MiB"])
        verdict("MiB/s", 100 / hundred, ">= 50", 100 / hundred >= 50)
        growth = ratio(seconds, "hil with its log file, 100 MiB", "hil with its log file, 10 MiB")
        verdict("100 MiB in times of 10 MiB", growth, "<= 12", growth <= 12)


def main() -> None:
    if len(sys.argv) > 1:
        commands_on(int(sys.argv[1]))
    else:
        commands_on_a_pty()
    reading()


if __name__ == "__main__":
    main()
