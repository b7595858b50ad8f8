"""Processes, descriptors and pipes of a simulated machine.

A process is a Python function that a shell or a server calls with a :class:`Process`: its
arguments, environment, open files and the :class:`System` it runs on.  What runs beside
something else has a thread; what a shell waits for runs in the shell's own.  A signal ends
a process where it next waits, reads, writes, or calls :meth:`Process.check`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias

from hil.simulated.errno import Errno, SimError
from hil.simulated.panic import HostPanic

if TYPE_CHECKING:
    from hil.simulated.files import Files

SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGKILL, SIGPIPE, SIGTERM = 1, 2, 3, 6, 9, 13, 15
#: FreeBSD's numbers (sys/sys/signal.h).
SIGNALS: Mapping[str, int] = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "EMT": 7, "FPE": 8,
    "KILL": 9, "BUS": 10, "SEGV": 11, "SYS": 12, "PIPE": 13, "ALRM": 14, "TERM": 15,
    "URG": 16, "STOP": 17, "TSTP": 18, "CONT": 19, "CHLD": 20, "TTIN": 21, "TTOU": 22,
    "IO": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "INFO": 29,
    "USR1": 30, "USR2": 31,
}  # fmt: skip
#: What strsignal(3) says of those that a shell tells of (lib/libc/gen/siglist.c).
SIGNAL_TEXTS: Mapping[int, str] = {
    1: "Hangup", 3: "Quit", 4: "Illegal instruction", 6: "Abort trap",
    8: "Floating point exception", 9: "Killed", 10: "Bus error", 11: "Segmentation fault",
    12: "Bad system call", 14: "Alarm clock", 15: "Terminated",
}  # fmt: skip
#: What does nothing unless it is caught.
_HARMLESS = frozenset({0, 16, 17, 18, 19, 20, 21, 22, 23, 28, 29})
#: Bytes that a pipe holds (PIPE_SIZE grows to this, sys/sys/pipe.h).
PIPE_SIZE = 65536

Command: TypeAlias = Callable[["Process"], int]


class Killed(BaseException):
    """Raised in a process's thread by the signal that ends it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Exit(BaseException):
    """Raised in a process's thread to end it with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Stream(Protocol):
    """What an open file reads from and writes to.

    Both calls may wait; they raise :class:`SimError` as system calls fail, and
    :class:`Killed` where a signal ends the process meanwhile.
    """

    def read(self, process: Process, limit: int) -> bytes:
        """Up to ``limit`` bytes, at least one; ``b""`` at the end."""
        ...

    def write(self, process: Process, data: bytes) -> None:
        """Write all of ``data``."""
        ...

    def close(self) -> None:
        """The last descriptor is closed."""
        ...


@dataclass
class OpenFile:
    """An open file description: what descriptors, also of several processes, share."""

    stream: Stream
    name: str = ""
    _references: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reference(self) -> OpenFile:
        with self._lock:
            self._references += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._references -= 1
            last = self._references == 0
        if last:
            self.stream.close()


class Process:
    """One process of a :class:`System`; made by :meth:`System.process`."""

    def __init__(
        self,
        system: System,
        pid: int,
        arguments: Sequence[str],
        *,
        parent: Process | None,
        environment: Mapping[str, str],
        directory: str,
        files: Mapping[int, OpenFile],
        tty: str = "-",
    ) -> None:
        self.system = system
        self.pid = pid
        self.parent = parent
        self.arguments = list(arguments)
        self.environment = dict(environment)
        self.directory = directory
        self.tty = tty
        #: What ps(1) shows instead of the arguments, if a program set it.
        self.title = ""
        self.files = {number: file.reference() for number, file in files.items()}
        self.started = time.time()
        self.children: dict[int, Process] = {}
        self.ignored: set[int] = set(parent.ignored) if parent else set()
        #: Called in the process's own thread for a signal that it catches.
        self.handlers: dict[int, Callable[[int], None]] = {}
        #: The exit status, once it has ended: 128 + number if by a signal.
        self.status: int | None = None
        #: The signal that ended it, or 0.
        self.killed_by = 0
        self.ended = threading.Condition()
        #: Called once as it ends, before its files are closed.
        self.on_end: Callable[[], None] = lambda: None
        #: Addresses and ports that it listens on, and what it does when somebody connects.
        self.listening: list[tuple[str, int]] = []
        self.connected: Callable[[int], None] = lambda _port: None
        self._pending: list[int] = []
        self._blocked: threading.Condition | None = None
        self._elsewhere = 0

    @property
    def name(self) -> str:
        """The command's name, for its messages."""
        return self.arguments[0].rsplit("/", 1)[-1]

    @property
    def command_name(self) -> str:
        """The name of the program it runs, as the kernel keeps it."""
        return self.name.removeprefix("-")[:19]

    # Input and output

    def out(self, data: str | bytes) -> None:
        """Write to standard output."""
        self.write(1, data)

    def err(self, data: str | bytes) -> None:
        """Write to standard error."""
        self.write(2, data)

    def complain(self, message: str) -> None:
        """Write ``NAME: message`` to standard error, as warn(3) does."""
        self.err(f"{self.name}: {message}\n")

    def write(self, descriptor: int, data: str | bytes) -> None:
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        if data:
            self.file(descriptor).stream.write(self, data)

    def read(self, limit: int = PIPE_SIZE, descriptor: int = 0) -> bytes:
        return self.file(descriptor).stream.read(self, limit)

    def read_all(self, descriptor: int = 0) -> bytes:
        """What comes up to the end."""
        pieces = []
        while piece := self.read(PIPE_SIZE, descriptor):
            pieces.append(piece)
        return b"".join(pieces)

    def lines(self, descriptor: int = 0) -> Iterator[bytes]:
        """Lines as they come, each with its newline; the last may be without."""
        rest = b""
        while piece := self.read(PIPE_SIZE, descriptor):
            *whole, rest = (rest + piece).splitlines(keepends=True)
            if rest.endswith(b"\n"):
                whole, rest = [*whole, rest], b""
            yield from whole
        if rest:
            yield rest

    def file(self, descriptor: int) -> OpenFile:
        try:
            return self.files[descriptor]
        except KeyError:
            raise SimError(Errno.EBADF) from None

    def install(self, descriptor: int, file: OpenFile) -> None:
        """Have ``descriptor`` stand for ``file``, as dup2(2)."""
        file.reference()
        self.close(descriptor)
        self.files[descriptor] = file

    def close(self, descriptor: int) -> None:
        file = self.files.pop(descriptor, None)
        if file is not None:
            file.release()

    def path(self, name: str) -> str:
        """``name`` as an absolute path."""
        return name if name.startswith("/") else f"{self.directory.rstrip('/')}/{name}"

    # Waiting and signals

    def check(self) -> None:
        """Act on signals that have come. Long work calls it now and then."""
        if self.status is not None:
            raise Killed(self.status - 128)
        if self.system.stands:
            self.system.stand()
        while self._pending:
            number = self._pending.pop(0)
            handler = self.handlers.get(number)
            if number == SIGKILL or (handler is None and number not in _HARMLESS):
                raise Killed(number)
            if handler is not None:
                handler(number)

    def wait_on(
        self,
        condition: threading.Condition,
        done: Callable[[], object],
        timeout: float | None = None,
    ) -> bool:
        """Wait until ``done()``, which holds where ``condition`` is notified.

        The caller holds ``condition``. False if ``timeout`` seconds passed first.
        """
        end = None if timeout is None else time.monotonic() + timeout
        self._blocked = condition
        try:
            while not done():
                self.check()
                if done():  # a handler of check() may have brought it about
                    break
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                condition.wait(left)
            return True
        finally:
            self._blocked = None

    def sleep(self, seconds: float) -> None:
        idle = threading.Condition()
        with idle:
            self.wait_on(idle, lambda: False, seconds)

    def signal(self, number: int) -> None:
        """Send a signal, from any thread."""
        if self.status is not None or (number in self.ignored and number != SIGKILL):
            return
        fatal = number == SIGKILL or (number not in self.handlers and number not in _HARMLESS)
        if fatal and self._elsewhere:
            # Its thread runs a child that it waits for: the child goes on, it does not.
            self.killed_by = number
            self.end(128 + number)
            return
        self._pending.append(number)
        blocked = self._blocked
        if blocked is not None:
            with blocked:
                blocked.notify_all()

    def end(self, status: int) -> None:
        """The process is no more: its files are closed, whoever waits for it hears it."""
        with self.ended:
            if self.status is not None:
                return
            self.status = status
        self.system.processes.pop(self.pid, None)
        self.on_end()
        for descriptor in list(self.files):
            with contextlib.suppress(SimError, Killed):
                self.close(descriptor)
        with self.ended:
            self.ended.notify_all()

    # Children

    def child(
        self, arguments: Sequence[str], files: Mapping[int, OpenFile] | None = None
    ) -> Process:
        """A child that has not begun to run."""
        child = self.system.process(
            arguments,
            parent=self,
            environment=self.environment,
            directory=self.directory,
            files=self.files if files is None else files,
            tty=self.tty,
        )
        self.children[child.pid] = child
        return child

    def run_here(self, child: Process, body: Command) -> int:
        """Run ``child`` in this process's thread, to its end."""
        self._elsewhere += 1
        try:
            status = execute(child, body)
        finally:
            self._elsewhere -= 1
        self.children.pop(child.pid, None)
        self.check()
        return status

    def run_beside(self, child: Process, body: Command) -> None:
        """Run ``child`` in a thread of its own."""
        threading.Thread(
            target=execute, args=(child, body), name=f"simulated-{child.name}", daemon=True
        ).start()

    def wait_for(self, child: Process, done: Callable[[], bool] = lambda: False) -> int | None:
        """The status of ``child`` once it has ended; ``None`` where ``done()`` came first."""
        with child.ended:
            self.wait_on(child.ended, lambda: child.status is not None or done())
        if child.status is not None:
            self.children.pop(child.pid, None)
        return child.status


def execute(process: Process, body: Command) -> int:
    """Run ``body`` as ``process``; its exit status, which the process then has."""
    try:
        status = body(process)
    except Exit as end:
        status = end.status
    except Killed as end:
        process.killed_by = process.killed_by or end.number
        status = 128 + end.number
    except SimError as error:
        # What the command itself did not expect: as err(3) would tell.
        with contextlib.suppress(SimError, Killed):
            process.complain(error.text)
        status = 1
    except HostPanic:
        # The kernel is gone under it: it neither ends nor goes on until the machine is reset.
        with contextlib.suppress(Killed):
            process.system.panicked()
        status = 128 + SIGKILL
    except BaseException:
        process.end(255)
        raise
    process.end(status & 0xFF)
    return process.status if process.status is not None else status


class System:
    """A machine's userland: commands, files and processes.

    Args:
        name: its host name.
        commands: what can be run, by name.
        files: its file system.
        machine: the model below it, for commands that know it.
        version: of its FreeBSD, as ``uname -r`` prints it.
        build: what stands before the configuration's name in ``uname -v``.
        ident: its kernel configuration's name.
    """

    def __init__(
        self,
        name: str,
        commands: Mapping[str, Command],
        files: Files,
        machine: Any = None,
        *,
        version: str = "13.2-RELEASE",
        build: str = "",
        ident: str = "GENERIC",
    ) -> None:
        self.name = name
        self.version = version
        self.build = build
        self.ident = ident
        self.commands = dict(commands)
        self.files = files
        self.machine = machine
        #: Kernel variables that the model does not know, as sysctl(8) lists them.
        self.settings: Callable[[], Mapping[str, Any]] = dict
        self.set_sysctl: Callable[[str, str], None] = lambda _name, _value: None
        self.processes: dict[int, Process] = {}
        self.booted = time.time()
        #: Whether its kernel has panicked: nothing runs, nothing answers.
        self.stands = False
        #: Called when it does.
        self.on_panic: list[Callable[[], None]] = []
        self._power = threading.Condition()
        self._locks: dict[str, Process] = {}
        self._lock_news = threading.Condition()
        self._pids = itertools.count(700)

    @property
    def kernel(self) -> Any:
        """What the commands that speak of devices and settings ask: the machine's kernel."""
        return getattr(self.machine, "kernel", self.machine)

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number of its FreeBSD."""
        major, _, minor = self.version.partition("-")[0].partition(".")
        return int(major), int(minor or 0)

    def process(
        self,
        arguments: Sequence[str],
        *,
        parent: Process | None = None,
        environment: Mapping[str, str],
        directory: str = "/root",
        files: Mapping[int, OpenFile],
        tty: str = "-",
    ) -> Process:
        """A new process that has not begun to run."""
        process = Process(
            self,
            next(self._pids),
            arguments,
            parent=parent,
            environment=environment,
            directory=directory,
            files=files,
            tty=tty,
        )
        self.processes[process.pid] = process
        return process

    def lock(self, process: Process, path: str, seconds: float | None) -> bool:
        """Lock a file for as long as ``process`` lives, as flock(2) does.

        False if another has it still after ``seconds``; without them it is waited for.
        """
        tell = process.on_end

        def let_go() -> None:
            with self._lock_news:
                del self._locks[path]
                self._lock_news.notify_all()
            tell()

        with self._lock_news:
            if not process.wait_on(self._lock_news, lambda: path not in self._locks, seconds):
                return False
            self._locks[path] = process
        process.on_end = let_go
        return True

    def panicked(self) -> None:
        """The kernel stands at ``db>``. Does not return before the machine is reset."""
        if not self.stands:
            self.stands = True
            for tell in self.on_panic:
                tell()
        self.stand()

    def stand(self) -> NoReturn:
        """Stand still, as every thread of a machine whose kernel has panicked, until a reset."""
        with self._power:
            self._power.wait_for(lambda: not self.stands)
        raise Killed(SIGKILL)

    def kill_all(self) -> None:
        """End every process: the machine goes down."""
        with self._power:
            self.stands = False
            self._power.notify_all()
        for process in list(self.processes.values()):
            process.signal(SIGKILL)


class Pipe:
    """Bytes from writers to readers; :attr:`reader` and :attr:`writer` are its two ends."""

    def __init__(self, size: int = PIPE_SIZE) -> None:
        self.changed = threading.Condition()
        self.data = bytearray()
        self.size = size
        self.reading = self.writing = True
        self.reader = OpenFile(_ReadEnd(self))
        self.writer = OpenFile(_WriteEnd(self))


class _ReadEnd:
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def read(self, process: Process, limit: int) -> bytes:
        pipe = self._pipe
        with pipe.changed:
            process.wait_on(pipe.changed, lambda: pipe.data or not pipe.writing)
            piece = bytes(pipe.data[:limit])
            del pipe.data[:limit]
            pipe.changed.notify_all()
            return piece

    def write(self, process: Process, data: bytes) -> None:
        raise SimError(Errno.EBADF)

    def close(self) -> None:
        with self._pipe.changed:
            self._pipe.reading = False
            self._pipe.changed.notify_all()


class _WriteEnd:
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def read(self, process: Process, limit: int) -> bytes:
        raise SimError(Errno.EBADF)

    def write(self, process: Process, data: bytes) -> None:
        pipe = self._pipe
        rest = memoryview(data)
        with pipe.changed:
            while rest:
                process.wait_on(
                    pipe.changed, lambda: len(pipe.data) < pipe.size or not pipe.reading
                )
                if not pipe.reading:
                    broken_pipe(process)
                room = pipe.size - len(pipe.data)
                pipe.data += rest[:room]
                rest = rest[room:]
                pipe.changed.notify_all()

    def close(self) -> None:
        with self._pipe.changed:
            self._pipe.writing = False
            self._pipe.changed.notify_all()


def broken_pipe(process: Process) -> None:
    """Nobody reads what ``process`` writes: SIGPIPE, or EPIPE if it ignores that."""
    if SIGPIPE in process.ignored:
        raise SimError(Errno.EPIPE)
    handler = process.handlers.get(SIGPIPE)
    if handler is None:
        raise Killed(SIGPIPE)
    handler(SIGPIPE)
    raise SimError(Errno.EPIPE)
