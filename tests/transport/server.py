"""A real SSH server on loopback, by asyncssh, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Coroutine
from typing import IO, Any, TypeVar

import asyncssh
from asyncssh.packet import UInt32

T = TypeVar("T")


class _Server(asyncssh.SSHServer):
    def __init__(self, owner: SshServer) -> None:
        self._owner = owner

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._owner.connections.append(conn)

    def session_requested(self) -> asyncssh.SSHServerProcess[bytes] | bool:
        if self._owner.running >= self._owner.most_sessions:
            return False
        self._owner.running += 1
        return asyncssh.SSHServerProcess(self._owner.serve, None, 3, False)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> bool:
        self._owner.forwarded += 1
        return True


class SshServer:
    """Runs each command with ``sh -c`` in a process group of its own.

    It does as OpenSSH does for root: it takes no signals, and leaves a command running
    whose channel was closed.

    ``commands`` counts the commands started; ``drop()`` cuts every connection.
    """

    def __init__(self) -> None:
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.commands: list[str] = []
        self.forwarded = 0
        self._children: list[int] = []
        self.port = 0
        self.shell = "sh"
        self.running = 0
        self.most_sessions = 10  # sshd's MaxSessions, by default
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def start(self, port: int = 0) -> SshServer:
        self._call(self._listen(port))
        return self

    def drop(self) -> None:
        """Cut all connections without a word."""

        async def cut() -> None:
            for connection in self.connections:
                connection.abort()
            self.connections.clear()

        self._call(cut())

    def stop_listening(self) -> None:
        async def end() -> None:
            if self._acceptor:
                self._acceptor.close()
                await self._acceptor.wait_closed()

        self._call(end())

    def close(self) -> None:
        self.stop_listening()
        self.drop()

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(end())
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self, port: int) -> None:
        public = asyncssh.import_authorized_keys(self.client_key.export_public_key().decode())
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            port,
            server_factory=lambda: _Server(self),
            server_host_keys=[self.host_key],
            authorized_client_keys=public,
            encoding=None,
        )
        self.port = self._acceptor.get_port()

    async def serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        try:
            await self._serve(process)
            await process.channel.wait_closed()
        finally:
            self.running -= 1

    async def _serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command or "true"
        self.commands.append(command)
        if command.endswith(" refuse-without-status"):
            process.channel.close()
            return
        child = subprocess.Popen(
            [self.shell, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        pidfd = os.pidfd_open(child.pid)
        gone = asyncio.Event()
        self._loop.add_reader(pidfd, gone.set)
        self._children.append(child.pid)

        async def feed() -> None:
            assert child.stdin
            transport, _ = await self._loop.connect_write_pipe(asyncio.BaseProtocol, child.stdin)
            with contextlib.suppress(OSError, asyncssh.Error):
                while data := await process.stdin.read(65536):
                    transport.write(data)
                    while (
                        transport.get_write_buffer_size() > 1 << 20 and not transport.is_closing()
                    ):
                        await asyncio.sleep(0.001)
            transport.close()

        async def carry(source: IO[bytes] | None, sink: Any) -> None:
            reader = asyncio.StreamReader()
            transport, _ = await self._loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), source
            )
            with contextlib.suppress(OSError, asyncssh.Error):
                while data := await reader.read(65536):
                    sink.write(data)
                    await sink.drain()
            transport.close()

        feeder = asyncio.ensure_future(feed())
        carriers = [
            asyncio.ensure_future(carry(child.stdout, process.stdout)),
            asyncio.ensure_future(carry(child.stderr, process.stderr)),
        ]
        await gone.wait()
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        status = child.wait()
        if status >= 0:
            # As OpenSSH does: the status goes out as the command ends, and the channel
            # stays open while anybody holds the command's output open.
            process.channel._send_request(b"exit-status", UInt32(status))
        await asyncio.wait(carriers)
        feeder.cancel()
        if status >= 0:
            process.channel.close()
        else:
            name = signal.Signals(-status).name.removeprefix("SIG")
            process.exit_with_signal(name)
