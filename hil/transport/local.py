"""Commands on this very machine: for a lab whose host hil itself runs on."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from hil.deadline import Deadline
from hil.errors import CommandError, LabError
from hil.transport import drain
from hil.transport.base import OUTPUT_LIMIT, ByteStream, Result
from hil.transport.quoting import quote

_CHUNK = 65536
#: Seconds between looks at whether the command ended while something it left behind
#: (a daemon) holds its output open.
_GLANCE = 0.05


class LocalTransport:
    """This machine, behind the same contract as a host over SSH."""

    def __init__(self, name: str = "localhost") -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def run(
        self,
        command: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        limit: int = OUTPUT_LIMIT,
    ) -> Result:
        """Run ``command`` in a session of its own; all of it is killed at the deadline."""
        deadline.check()
        begin = time.monotonic()
        quote(command)  # the same refusals as over SSH
        try:
            process = _start(command, subprocess.PIPE)
        except OSError as failure:
            # What a shell says and returns: 127 not found, 126 not to be executed.
            status = 127 if isinstance(failure, FileNotFoundError) else 126
            message = f"{command[0]}: {failure.strerror}\n".encode()
            return self._ended(command, status, b"", message, begin)
        out, err = drain.Bounded(limit), drain.Bounded(limit)
        try:
            finished = _converse(process, stdin, out, err, deadline)
        except BaseException:
            _kill(process)
            raise
        finally:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if not finished:
            _kill(process)
            error = deadline.exceeded(
                drain.seen(bytes(out.data), bytes(err.data)),
                host=self._name,
                hint="the command was killed; give it more time if it is slow by nature",
            )
            error.command = tuple(command)
            raise error
        code = process.returncode
        status = code if code >= 0 else 128 - code
        cut = bool(out.lost or err.lost)
        return self._ended(command, status, bytes(out.data), bytes(err.data), begin, cut)

    def _ended(
        self,
        command: Sequence[str],
        status: int,
        out: bytes,
        err: bytes,
        begin: float,
        truncated: bool = False,
    ) -> Result:
        seconds = time.monotonic() - begin
        result = Result(tuple(command), status, out, err, seconds, self._name, truncated)
        drain.emit(result)
        return result

    def open_stream(self, command: Sequence[str], *, deadline: Deadline) -> ByteStream:
        deadline.check()
        quote(command)
        try:
            process = _start(command, subprocess.STDOUT)
        except OSError as error:
            raise CommandError(command, 127, host=self._name, stderr=str(error)) from error
        return ProcessStream(process, self._name)

    def put(self, data: bytes, path: str, *, deadline: Deadline, mode: int = 0o644) -> None:
        deadline.check()
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with open(temporary, "xb", opener=_private) as file:
                file.write(data)
            temporary.chmod(mode)
            temporary.replace(target)
        except OSError as error:
            raise CommandError(
                ["put", path], error.errno or 1, host=self._name, stderr=str(error)
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, path: str, *, deadline: Deadline, limit: int = OUTPUT_LIMIT) -> bytes:
        deadline.check()
        try:
            with Path(path).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise CommandError(
                ["get", path], error.errno or 1, host=self._name, stderr=str(error)
            ) from error
        if len(data) > limit:
            raise LabError(f"{path} is longer than {limit} bytes", host=self._name)
        return data

    def close(self) -> None:
        """Nothing to end here."""


def _start(command: Sequence[str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
        bufsize=0,
    )


def _converse(
    process: subprocess.Popen[bytes],
    stdin: bytes,
    out: drain.Bounded,
    err: drain.Bounded,
    deadline: Deadline,
) -> bool:
    """Feed and drain until the command ended; False if the deadline came first."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    rest = memoryview(stdin)
    ended = False
    with selectors.DefaultSelector() as selector:
        for pipe, sink in ((process.stdout, out), (process.stderr, err)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, sink)
        if rest:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            ready = selector.select(0 if ended else min(_GLANCE, deadline.remaining))
            if not ready:
                if ended:
                    return True
                if deadline.expired:
                    return False
                # Look again at the pipes after the end: the last words may have just come.
                ended = process.poll() is not None
                continue
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest[:_CHUNK]) :]
                    except BlockingIOError:
                        continue
                    except OSError:
                        rest = rest[:0]  # the command reads no more: its own affair
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                try:
                    chunk = os.read(key.fd, _CHUNK)
                except BlockingIOError:
                    continue
                if chunk:
                    key.data.add(chunk)
                else:
                    selector.unregister(key.fileobj)
            if deadline.expired:
                return False
    try:
        process.wait(deadline.remaining)
    except subprocess.TimeoutExpired:
        return False
    return True


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class ProcessStream:
    """A :class:`~hil.transport.base.ByteStream` to a process's input and output."""

    def __init__(self, process: subprocess.Popen[bytes], host: str) -> None:
        assert process.stdin
        assert process.stdout
        self._process = process
        self._host = host
        self._in = process.stdin
        self._out = process.stdout.fileno()
        self._woken, self._waker = socket.socketpair()
        self._closed = False

    def read(self, limit: int = _CHUNK) -> bytes:
        if self._closed:
            return b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            selector.select()
        if self._closed:
            return b""
        return os.read(self._out, limit)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._in.write(rest) or 0 :]
        except (OSError, ValueError) as error:
            raise LabError(
                "the far end of a stream is gone", seen=str(error), host=self._host
            ) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._waker.close()
        with contextlib.suppress(OSError):
            self._in.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            # Who tidies up on SIGTERM, as a lease does, gets the time that a busy machine takes.
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            _kill(self._process)
