"""A QEMU process that cannot outlive its owner, with its console and monitor as sockets.

Neither has a path: both are descriptors that QEMU inherits, so nobody else can connect,
names never clash, and no length limit of socket paths applies.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from hil import transient
from hil.deadline import Deadline
from hil.errors import LabError
from hil.qmp import Monitor

_PREFIX = "lab-"
_END_LIMIT = 10.0
#: Seconds in which its supervisor has noticed that QEMU ended.
_END_TOLD = 5.0


def run_folder(base: Path | None = None) -> Path:
    """A new private folder, gone when its lab is; removes those of dead labs.

    By default in :func:`hil.transient.runtime`, which may be memory; ``base`` is for labs with
    disks.  The supervisor holds its lock.
    """
    if base is None:
        base = transient.runtime()
    try:
        base.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return transient.make(transient.private(base), _PREFIX)
    except OSError as error:
        raise LabError(f"no folder for the lab in {base}: {error.strerror}") from None


class SocketStream:
    """A :class:`~hil.transport.base.ByteStream` over a connected socket."""

    def __init__(self, end: socket.socket, name: str) -> None:
        self._socket = end
        self._name = name

    def read(self, limit: int = 65536) -> bytes:
        """As :meth:`hil.transport.base.ByteStream.read`."""
        try:
            return self._socket.recv(limit)
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """As :meth:`hil.transport.base.ByteStream.write`."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise LabError(f"the {self._name} is gone", seen=str(error)) from None

    def close(self) -> None:
        """As :meth:`hil.transport.base.ByteStream.close`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class QemuProcess:
    """A running QEMU.

    Args:
        folder: see :func:`run_folder`; removed at the end.
        command: makes the argument list, given the chardev options of console and monitor.
        deadline: for the monitor to answer.

    Raises:
        LabError: QEMU ended at once, with what it said.
    """

    def __init__(
        self,
        folder: Path,
        command: Callable[[str, str], Sequence[str]],
        deadline: Deadline,
    ) -> None:
        self.folder = folder
        self._closing = threading.Lock()
        self._read_end, self._lifeline = os.pipe()
        console, console_far = socket.socketpair()
        monitor, monitor_far = socket.socketpair()
        self.console = SocketStream(console, "console")
        kept = (console_far.fileno(), monitor_far.fileno())
        self.command = tuple(
            command(f"socket,id=console,fd={kept[0]}", f"socket,id=monitor,fd={kept[1]}")
        )
        supervisor = [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervisor.py"))]
        supervisor += [str(os.getpid()), str(folder), str(self._read_end)]
        supervisor += [",".join(map(str, kept)), "--", *self.command]
        try:
            self._process = subprocess.Popen(
                supervisor,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=(*kept, self._read_end),
                start_new_session=True,  # the terminal's Ctrl-C is for us alone
            )
        except BaseException:
            os.close(self._lifeline)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            console_far.close()
            monitor_far.close()
            os.close(self._read_end)
        try:
            self.monitor = Monitor(monitor, "the lab host", deadline)
        except LabError as error:
            self.close()
            raise LabError(
                "QEMU did not start", seen=self._last_words or error.seen, command=self.command
            ) from error
        except BaseException:
            self.close()
            raise

    def alive(self) -> bool:
        """Whether QEMU is still there."""
        try:
            self.monitor.execute("query-status", Deadline(10, "QEMU's monitor"))
        except LabError:
            return False
        return True

    def errors(self) -> str:
        """What QEMU wrote to its standard error, bounded."""
        try:
            text = (self.folder / "qemu.log").read_bytes()[-8000:].decode("utf-8", "replace")
        except OSError:
            return self._last_words
        # What TCG leaves out of a processor model says nothing about a failure.
        return "\n".join(
            line for line in text.splitlines() if "TCG doesn't support requested" not in line
        )

    _last_words = ""

    def how_it_ended(self) -> str:
        """How QEMU ended by itself, and its last line; its supervisor tells within a second."""
        told = b""
        limit = Deadline(_END_TOLD, "the end of QEMU to be told")
        output = self._process.stdout
        while output is not None and b"ended " not in told and not limit.expired:
            if select.select([output], [], [], 0.1)[0]:
                part = os.read(output.fileno(), 4096)
                told += part
                if not part:
                    break
        match = re.search(rb"ended (-?\d+)", told)
        if match is None:
            words = "nobody knows how"
        elif (status := int(match[1])) < 0:
            words = f"by {signal.Signals(-status).name}"
        else:
            words = f"with status {status}"
        lines = self.errors().splitlines()
        return f"{words}: {lines[-1]}" if lines else f"{words}, without a word"

    def close(self) -> None:
        """Kill QEMU and remove its folder.  Safe to call twice."""
        with self._closing:
            if self._lifeline < 0:
                return
            self._last_words = self.errors()
            os.close(self._lifeline)
            self._lifeline = -1
        if hasattr(self, "monitor"):
            self.monitor.close()
        self.console.close()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel then kills QEMU
            self._process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._process.stdout is not None:
            self._process.stdout.close()
