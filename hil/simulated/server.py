"""The simulated machines' sshd: a real SSH server on loopback, by asyncssh.

It behaves as OpenSSH does for root's commands: a command runs in root's shell, ``sh -c``;
its status goes out as it ends, its channel closes when nobody holds its output any more; a
closed channel sends no signal.  Connections to other addresses are forwarded where the
owner says.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import asyncssh
from asyncssh.packet import UInt32

from hil.simulated.console import Tty
from hil.simulated.process import (
    SIGNALS,
    OpenFile,
    Pipe,
    Process,
    System,
    broken_pipe,
    execute,
)
from hil.simulated.shell import PATH, Shell, sh

T = TypeVar("T")

#: Where a connection to (host, port) asked for by a client goes: an address, or nowhere.
Forward = Callable[[str, int], tuple[str, int] | None]

_SIGNAL_NAMES = {number: name for name, number in SIGNALS.items()}


class SshServer:
    """An SSH server for one system.

    Args:
        system: whose commands run.
        authorized: public keys that log in as root, as OpenSSH writes them.
        host_key: its own; a new one by default.
        forward: see :data:`Forward`.
    """

    def __init__(
        self,
        system: System,
        *,
        authorized: Sequence[str],
        host_key: asyncssh.SSHKey | None = None,
        forward: Forward = lambda _host, _port: None,
    ) -> None:
        self.system = system
        self.forward = forward
        self.key = host_key or asyncssh.generate_private_key("ssh-ed25519")
        self.port = 0
        self._authorized = asyncssh.import_authorized_keys("\n".join(authorized))
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._acceptor: asyncssh.SSHAcceptor | None = None
        system.on_panic.append(self.freeze)

    @property
    def host_key(self) -> str:
        """The public key that it shows: ``ssh-ed25519 AAAA…``."""
        return " ".join(self.key.export_public_key().decode().split()[:2])

    def start(self, port: int = 0) -> SshServer:
        """Listen on 127.0.0.1, on a free port by default: :attr:`port`."""
        _call(self._listen(port))
        return self

    def close(self) -> None:
        """Stop listening and cut every connection without a word, as a host that goes down."""
        if self.port:
            _call(self._end())

    def freeze(self) -> None:
        """Answer nothing any more, as a host at ``db>``: connections stay, and stay silent."""

        def stop() -> None:
            for connection in self._connections:
                transport = connection._transport  # noqa: SLF001 - no other way
                if transport is not None:
                    transport.pause_reading()
            for listening in self._acceptor.sockets if self._acceptor else ():
                asyncio.get_running_loop().remove_reader(listening.fileno())

        if _loop is not None:
            _loop.call_soon_threadsafe(stop)

    async def _listen(self, port: int) -> None:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            port,
            server_factory=lambda: _Connection(self, self._connections),
            server_host_keys=[self.key],
            authorized_client_keys=self._authorized,
            server_version="OpenSSH_9.3",
            encoding=None,
            line_editor=False,
            compression_algs=["none"],
        )
        self.port = self._acceptor.get_port()

    async def _end(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
        for connection in list(self._connections):
            connection.abort()


class _Connection(asyncssh.SSHServer):
    def __init__(self, owner: SshServer, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._owner = owner
        self._connections = connections
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connections.discard(self._connection)

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return _Session(self._owner.system, self._addresses())

    def _addresses(self) -> str:
        """``SSH_CONNECTION``: a client beside the host, on its network, as sshd would say it."""
        return "10.0.2.2 40522 10.0.2.15 22"

    def connection_requested(  # type: ignore[override]  # what forward_connection is for
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Coroutine[Any, Any, asyncssh.forward.SSHForwarder]:
        target = self._owner.forward(dest_host, dest_port)
        if target is None or self._connection is None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Connection refused")
        return self._connection.forward_connection(*target)


class _Session(asyncssh.SSHServerSession[bytes]):
    """One channel: a command, or a shell, of root's."""

    def __init__(self, system: System, addresses: str) -> None:
        self._system = system
        self._addresses = addresses
        self._loop = asyncio.get_running_loop()
        self._input = Pipe(size=1 << 20)
        self._feed = _Feed(self._input)
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._open_outputs = 2
        self._status: int | None = None
        self._tty: Tty | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        return True

    def pty_requested(self, *_: object) -> bool:
        # The outputs are made when the session starts, after this.
        self._tty = Tty(transmit=lambda data: self._out.send(data))  # noqa: PLW0108
        return True

    def session_started(self) -> None:
        assert self._channel is not None
        command = self._channel.get_command()
        self._out = ChannelOutput(self, self._channel, None)
        self._err = ChannelOutput(self, self._channel, asyncssh.EXTENDED_DATA_STDERR)
        arguments = ["sh", "-c", command] if command is not None else ["-sh"]
        process = self._system.process(
            arguments,
            environment={
                "HOME": "/root",
                "LOGNAME": "root",
                "MAIL": "/var/mail/root",
                "PATH": PATH,
                "SHELL": "/bin/sh",
                "SSH_CLIENT": " ".join(self._addresses.split()[i] for i in (0, 1, 3)),
                "SSH_CONNECTION": self._addresses,
                "USER": "root",
            },
            files=self._files(),
            tty="-" if self._tty is None else "0",
        )

        def body(process: Process) -> int:
            if command is not None:
                return sh(process)
            return Shell(process).interactive("# ")

        threading.Thread(
            target=self._run, args=(process, body), name="simulated-sshd", daemon=True
        ).start()

    def _files(self) -> dict[int, OpenFile]:
        if self._tty is None:
            return {0: self._input.reader, 1: OpenFile(self._out), 2: OpenFile(self._err)}
        self._open_outputs = 1
        terminal = OpenFile(_Terminal(self._tty, self._out), "/dev/pts/0")
        return dict.fromkeys(range(3), terminal)

    def _run(self, process: Process, body: Callable[[Process], int]) -> None:
        def tell() -> None:
            status = process.status if process.status is not None else 255
            with contextlib.suppress(RuntimeError):  # the loop ends with the program
                self._loop.call_soon_threadsafe(self._ended, status, process.killed_by)

        process.on_end = tell
        execute(process, body)

    def _ended(self, status: int, killed_by: int) -> None:
        self._status = status
        channel = self._channel
        if channel is None or channel.is_closing():
            return
        if killed_by:
            name = _SIGNAL_NAMES.get(killed_by, "KILL")
            channel.exit_with_signal(name)
            return
        # The status goes out as the command ends; the channel stays open for as long as
        # anybody holds the command's output open.
        channel._send_request(b"exit-status", UInt32(status))  # noqa: SLF001 - no other way
        self._close_if_over()

    def output_closed(self) -> None:
        """One of the two outputs is held by nobody any more (in the loop's thread)."""
        self._open_outputs -= 1
        self._close_if_over()

    def _close_if_over(self) -> None:
        channel = self._channel
        if self._open_outputs or channel is None or channel.is_closing():
            return
        if self._status is not None:
            channel.write_eof()
            channel.close()

    # What the client sends

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._tty is not None:
            self._tty.received(data)
        else:
            self._feed.add(data)

    def eof_received(self) -> bool:
        self._feed.end()
        if self._tty is not None:
            self._tty.hang_up()
        return True

    def signal_received(self, signal: str) -> None:
        return  # OpenSSH sends none to root's commands

    def pause_writing(self) -> None:
        self._out.writable.clear()
        self._err.writable.clear()

    def resume_writing(self) -> None:
        self._out.writable.set()
        self._err.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        self._feed.end()
        if self._tty is not None:
            self._tty.hang_up()
        for output in (getattr(self, "_out", None), getattr(self, "_err", None)):
            if output is not None:
                output.lost = True
                output.writable.set()


class _Feed:
    """Puts what a client sent into a command's standard input."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._writer = pipe.writer.reference()
        self._ended = False

    def add(self, data: bytes) -> None:
        # The client's window bounds what can come before it is read.
        with self._pipe.changed:
            if self._pipe.reading:
                self._pipe.data += data
                self._pipe.changed.notify_all()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._writer.release()


class ChannelOutput:
    """A command's standard output or error: a :class:`~hil.simulated.process.Stream`."""

    def __init__(
        self, session: _Session, channel: asyncssh.SSHServerChannel[bytes], kind: int | None
    ) -> None:
        self.writable = threading.Event()
        self.writable.set()
        self.lost = False
        self._session = session
        self._channel = channel
        self._kind = kind
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._queue = bytearray()

    def read(self, process: Process, limit: int) -> bytes:
        return b""

    def write(self, process: Process, data: bytes) -> None:
        while not self.writable.wait(0.2):
            process.check()
        process.check()
        if self.lost:
            broken_pipe(process)
        self.send(bytes(data))

    def send(self, data: bytes) -> None:
        """Send without waiting, from any thread."""
        # What is written while the loop is busy goes out together, as from a pipe to sshd.
        with self._lock:
            waiting = bool(self._queue)
            self._queue += data
        if not waiting:
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        with self._lock:
            data = bytes(self._queue)
            self._queue.clear()
        if not self.lost and not self._channel.is_closing():
            self._channel.write(data, self._kind)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._session.output_closed)


class _Terminal:
    """A session's terminal: its line discipline, and the end of its channel."""

    def __init__(self, tty: Tty, output: ChannelOutput) -> None:
        self.tty = tty
        self._output = output

    def read(self, process: Process, limit: int) -> bytes:
        return self.tty.read(process, limit)

    def write(self, process: Process, data: bytes) -> None:
        self.tty.write(process, data)

    def close(self) -> None:
        self._output.close()


# One event loop, in one thread, for all servers of a program.

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _call(work: Coroutine[Any, Any, T]) -> T:
    global _loop  # noqa: PLW0603 - one for the program
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(
                target=_loop.run_forever, name="simulated-ssh-loop", daemon=True
            ).start()
    return asyncio.run_coroutine_threadsafe(work, _loop).result(60)
