"""One run on a host at a time, and everybody else is told who has it.

A lock is a kernel lock, flock(2), on a small file: it goes with its holder, however
that ends, so nothing stale can block.  The file's text says who holds it; it is
only for people, and means nothing while the kernel lock is free.

The files are not opened by :mod:`filelock`, which empties a file as it opens it: a
run that waits would wipe out the record of the one it waits for.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import getpass
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded, LabError
from hil.lab.models import Lab, LabKind


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock."""

    user: str
    pid: int
    run: str
    """Name of the run, as its report has it."""
    since: str
    """Local time, ISO 8601 with the zone."""
    machine: str
    """Host name of the machine that runs hil."""

    @classmethod
    def this_process(cls, run: str) -> Holder:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        since = dt.datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(user, os.getpid(), run, since, socket.gethostname())

    def __str__(self) -> str:
        return (
            f"{self.user} on {self.machine}, run {self.run or '(no name)'}, "
            f"process {self.pid}, since {self.since}"
        )


#: Called while a lock is waited for: its name, who holds it if known, seconds waited so far.
OnWait = Callable[[str, Holder | None, float], None]


@contextlib.contextmanager
def hold(lab: Lab, run: str, deadline: Deadline, on_wait: OnWait | None = None) -> Iterator[None]:
    """Hold every host of ``lab`` while the block runs.

    Emulated and simulated labs are private to a run and need no lock.

    Args:
        lab: the lab; it is its hosts that are locked, so two inventories that share a
            host exclude each other.
        run: the run's name, for those who wait.
        deadline: for the waiting; not for the block.
        on_wait: called when the wait begins and then about every 30 seconds.

    Raises:
        LabError: somebody still holds a host at the deadline, or the lock's file cannot
            be opened.
    """
    with hold_names(names(lab), run, deadline, on_wait):
        yield


def names(lab: Lab) -> tuple[str, ...]:
    """Names of the locks of ``lab``: one a host."""
    if lab.kind is not LabKind.PHYSICAL:
        return ()
    places = (
        "local" if host.transport == "local" else f"{host.address.lower()}:{host.port}"
        for host in lab.hosts.values()
    )
    return tuple(sorted(set(places)))


@contextlib.contextmanager
def hold_names(
    wanted: Sequence[str], run: str, deadline: Deadline, on_wait: OnWait | None = None
) -> Iterator[None]:
    """Hold the locks named ``wanted``; see :func:`hold`."""
    with contextlib.ExitStack() as stack:
        # Always in the same order, so that two runs cannot wait for each other.
        for name in sorted(set(wanted)):
            stack.enter_context(_hold_one(name, run, deadline, on_wait))
        yield


def holder(name: str) -> Holder | None:
    """Who holds the lock ``name`` now; ``None`` if nobody, or if its record cannot be read."""
    path = _path(name)
    if not path.exists():
        return None
    descriptor = _open(path)
    try:
        if _try_lock(descriptor):
            return None
        return _record(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _hold_one(name: str, run: str, deadline: Deadline, on_wait: OnWait | None) -> Iterator[None]:
    path = _path(name)
    descriptor = _open(path)
    try:
        if not _try_lock(descriptor):
            _wait(name, descriptor, deadline, on_wait)
        text = json.dumps(asdict(Holder.this_process(run))).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
        yield
    finally:
        # Closing frees the lock; the file stays, for taking it away would race.
        os.close(descriptor)


def _wait(name: str, descriptor: int, deadline: Deadline, on_wait: OnWait | None) -> None:
    told = -30.0

    def probe() -> bool:
        nonlocal told
        if _try_lock(descriptor):
            return True
        if on_wait and deadline.elapsed - told >= 30:
            told = deadline.elapsed
            on_wait(name, _record(descriptor), deadline.elapsed)
        return False

    try:
        poll(probe, deadline, interval=0.1)
    except DeadlineExceeded:
        who = _record(descriptor)
        raise LabError(
            f"the lab host {name} is taken: waited {deadline.elapsed:.0f} s for it",
            seen=f"held by {who}" if who else "held by a process that left no record",
            hint="wait longer with --wait SECONDS, or ask the holder to end that run",
        ) from None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _record(descriptor: int) -> Holder | None:
    # The holder may be writing it just now, or may have been killed before it could.
    try:
        fields = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(
            user=_printable(fields["user"]),
            pid=int(fields["pid"]),
            run=_printable(fields["run"]),
            since=_printable(fields["since"]),
            machine=_printable(fields["machine"]),
        )
    except (ValueError, TypeError, KeyError):
        return None


def _printable(text: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(text)[:100])


def _path(name: str) -> Path:
    safe = re.sub(r"[^a-z0-9.-]", "_", name)
    return _folder() / f"hil-{safe}.lock"


def _folder() -> Path:
    """Where all users of this machine meet: ``/run/lock``, or the temporary directory."""
    if given := os.environ.get("HIL_LOCK_DIR"):
        return Path(given)
    shared = Path("/run/lock")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            # Without O_CREAT: Linux refuses that for another user's file in a
            # directory that all can write (fs.protected_regular, proc(5)).
            return os.open(path, flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(descriptor, 0o666)  # whatever the umask, other users lock it too
                return descriptor
            return os.open(path, flags)
    except OSError as error:
        raise LabError(
            f"the lock {path} cannot be opened: {error.strerror}",
            hint="name a directory that all users of the lab can write in HIL_LOCK_DIR",
        ) from None
