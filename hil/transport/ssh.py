"""Commands and byte streams on a host over SSH, by paramiko.

One connection a host, kept open; each command is a channel of its own on it.
The socket has TCP_NODELAY set: without it a command on an open connection waits
about 40 ms for the peer's delayed acknowledgement.  Only connecting is retried.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import paramiko
import tenacity
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_WINDOW_ADJUST,
    cMSG_CHANNEL_DATA,
    cMSG_CHANNEL_REQUEST,
)
from paramiko.message import Message

from hil.deadline import Deadline
from hil.errors import InventoryError, LabError
from hil.transport import drain
from hil.transport.base import OUTPUT_LIMIT, ByteStream, Result
from hil.transport.quoting import quote

# paramiko tells of broken connections on stderr unless someone listens; hil raises them.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_CHUNK = 65536
_KEEPALIVE = 15
#: Milliseconds after which data that the peer does not acknowledge ends the connection.
_USER_TIMEOUT = 30_000
#: Marks a command's processes, so that they can be found and killed: OpenSSH takes no
#: signals for a session of root (it needs privilege separation for that).
_TAG = "HIL_RUN"
#: Kills every process whose environment holds the tag; $1 is a pattern that does not
#: match itself.  By /proc on Linux (busybox too), else by ps (FreeBSD, illumos).
_KILLER = """
if [ -r /proc/self/environ ]; then
  for f in $(grep -ls "$1" /proc/[0-9]*/environ); do f=${f%/environ}; echo "${f#/proc/}"; done
else
  ps -axeww -o pid= -o command= | grep "$1" | while read -r p r; do echo "$p"; done
fi | while read -r p; do kill -"$2" "$p"; done
"""
_KILL_SECONDS = 5.0
#: Seconds of silence after the exit status, before it is asked whether more output can come.
_SETTLE = 0.3

Reason = Literal[
    "refused",
    "unreachable",
    "timeout",
    "name",
    "authentication",
    "host-key-changed",
    "host-key-unknown",
    "protocol",
]

_HINTS: dict[Reason, str] = {
    "refused": "is sshd running on the host, and is the port right?",
    "unreachable": "is the host powered on, and is there a route to it? try ping",
    "timeout": "is the host powered on, and does a firewall drop the port?",
    "name": "check the host's address in the inventory, or DNS",
    "authentication": "check the user and key in the inventory, and authorized_keys on the host",
    "host-key-changed": "if the host was reinstalled, remove its line from known_hosts and "
    "verify the new key; if not, somebody may be in between",
    "host-key-unknown": "verify the fingerprint, then add the key to known_hosts or the inventory",
    "protocol": "is that port an SSH server's?",
}

#: Reasons that time may cure: a host that is booting refuses, or does not answer.
_TRANSIENT: frozenset[Reason] = frozenset({"refused", "unreachable", "timeout", "protocol"})


class ConnectError(LabError):
    """No SSH connection was made; ``reason`` says why in one word."""

    def __init__(self, reason: Reason, message: str, *, host: str, seen: str = "") -> None:
        super().__init__(message, seen=seen, host=host, hint=_HINTS[reason])
        self.reason: Reason = reason


@dataclass(frozen=True)
class _Target:
    """Where and how to connect, and whom to expect there."""

    name: str
    host: str
    port: int
    user: str
    key: paramiko.PKey
    host_key: str | paramiko.PKey | None
    known_hosts: Path
    jump: SshTransport | None
    key_exchange: str

    @property
    def place(self) -> str:
        by = f" by way of {self.jump.name}" if self.jump else ""
        return f"{self.host} port {self.port}{by}"


class SshTransport:
    """A host over one SSH connection.  Safe to use from several threads."""

    def __init__(self, target: _Target, connection: paramiko.Transport) -> None:
        self._target = target
        self._connection = connection

    @classmethod
    def connect(
        cls,
        name: str,
        host: str,
        *,
        deadline: Deadline,
        port: int = 22,
        user: str = "root",
        key: paramiko.PKey | None = None,
        key_file: str | Path | None = None,
        host_key: str | paramiko.PKey | None = None,
        known_hosts: str | Path | None = None,
        jump: SshTransport | None = None,
        key_exchange: str = "",
    ) -> SshTransport:
        """Connect, trying again until the deadline while the host may still be booting.

        Args:
            name: the host's name in the inventory.
            host: name or address, as seen from the jump host if there is one.
            deadline: for all tries together.
            port: TCP port of the server.
            user: to log in as.
            key: private key; else ``key_file``.
            key_file: private key file in any of OpenSSH's formats, without passphrase.
            host_key: the key to expect there: ``"ssh-ed25519 AAAA…"``, ``"SHA256:…"`` or a
                key object; ``"any"`` accepts whatever comes (for a server that was just made
                and is reached by nobody else).  Without it ``known_hosts`` decides, strictly.
            known_hosts: file as in sshd(8); by default ``~/.ssh/known_hosts``.
            jump: a connection through which to reach the host (direct-tcpip).
            key_exchange: the method to prefer (RFC 4253, section 7.1); by default paramiko's.

        Raises:
            ConnectError: with the reason; a wrong key is told at once, not retried.
            InventoryError: the key file cannot be used.
        """
        if key is None:
            if key_file is None:
                raise InventoryError(f"host {name} has no SSH key", hint="name a key file for it")
            key = _load_key(Path(key_file).expanduser())
        target = _Target(
            name=name,
            host=host,
            port=port,
            user=user,
            key=key,
            host_key=host_key,
            known_hosts=Path(known_hosts or "~/.ssh/known_hosts").expanduser(),
            jump=jump,
            key_exchange=key_exchange,
        )
        return cls(target, _connect(target, deadline))

    def reconnect(self, deadline: Deadline) -> None:
        """Connect anew, as at first: after the host rebooted.  Runs no command again."""
        self._connection.close()
        self._connection = _connect(self._target, deadline)

    @property
    def name(self) -> str:
        return self._target.name

    @property
    def alive(self) -> bool:
        """Whether the connection was whole when last heard of."""
        return self._connection.is_active()

    def run(
        self,
        command: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        limit: int = OUTPUT_LIMIT,
    ) -> Result:
        text = quote(command)
        tag = secrets.token_hex(8)
        begin = time.monotonic()
        channel = self._session(command, deadline)
        out, err = drain.Bounded(limit), drain.Bounded(limit)
        try:
            _execute(channel, f"{_TAG}={tag} {text}")
            _feed(channel, stdin)
            status = self._collect(channel, out, err, command, deadline)
        except BaseException:
            if not channel.closed:
                channel.close()
                self._kill(tag, "KILL")
            raise
        finally:
            channel.close()
        if status != 0 and err.data.startswith(f"{_TAG}={tag}: Command not found".encode()):
            raise InventoryError(
                f"the log-in shell of {self._target.user} on {self.name} is no POSIX shell",
                seen=bytes(err.data).decode("utf-8", "replace"),
                host=self.name,
                hint="hil cannot work through csh: give the user /bin/sh (chsh, pw usermod -s)",
            )
        result = Result(
            command=tuple(command),
            status=status,
            out=bytes(out.data),
            err=bytes(err.data),
            seconds=time.monotonic() - begin,
            host=self.name,
            truncated=bool(out.lost or err.lost),
        )
        drain.emit(result)
        return result

    def open_stream(self, command: Sequence[str], *, deadline: Deadline) -> ByteStream:
        channel = self._session(command, deadline)
        channel.set_combine_stderr(True)
        tag = secrets.token_hex(8)
        _execute(channel, f"{_TAG}={tag} {quote(command)}")
        return ChannelStream(channel, self.name, lambda: self._kill(tag, "TERM"))

    def put(self, data: bytes, path: str, *, deadline: Deadline, mode: int = 0o644) -> None:
        # The length is checked before the rename: a connection that broke half-way
        # looks like the end of the input to cat.
        script = (
            'set -e; umask 077; t="$1.$2"; trap \'rm -f -- "$t"\' EXIT; '
            'if [ -d "$1" ]; then echo "$1: Is a directory" >&2; exit 1; fi; '
            'cat >"$t"; n=$(wc -c <"$t"); '
            'if [ "$n" -ne "$3" ]; then echo "got $n bytes of $3" >&2; exit 1; fi; '
            'chmod "$4" "$t"; mv -f -- "$t" "$1"'
        )
        arguments = [path, secrets.token_hex(4), str(len(data)), f"{mode:o}"]
        self.run(["sh", "-c", script, "put", *arguments], deadline=deadline, stdin=data).check()

    def get(self, path: str, *, deadline: Deadline, limit: int = OUTPUT_LIMIT) -> bytes:
        result = self.run(["cat", "--", path], deadline=deadline, limit=limit).check()
        if result.truncated:
            raise LabError(f"{path} is longer than {limit} bytes", host=self.name)
        return result.out

    def open_tcp(self, host: str, port: int, deadline: Deadline) -> paramiko.Channel:
        """A connection from this host to another (direct-tcpip).

        Raises:
            paramiko.ChannelException: the far end refused it.
        """
        return self._connection.open_channel(
            "direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=_seconds(deadline)
        )

    def close(self) -> None:
        self._connection.close()

    def _kill(self, tag: str, signal_name: str) -> None:
        """Kill what runs under ``tag``; as well as can be, for the connection may be gone."""
        deadline = Deadline(_KILL_SECONDS, "a command to be killed")
        pattern = f"{_TAG}=[{tag[0]}]{tag[1:]}"
        command = ["sh", "-c", _KILLER, "kill", pattern, signal_name]
        with contextlib.suppress(LabError, OSError, EOFError):
            channel = self._session(command, deadline)
            try:
                _execute(channel, quote(command))
                channel.status_event.wait(deadline.remaining)
            finally:
                channel.close()

    def _session(self, command: Sequence[str], deadline: Deadline) -> paramiko.Channel:
        """A new channel.  Nothing has run yet, so a refusal for want of room may be tried again."""

        def attempt() -> paramiko.Channel:
            deadline.check()
            return self._connection.open_channel("session", timeout=_seconds(deadline))

        def refused(error: BaseException) -> bool:
            # paramiko keeps one error a connection: of several threads refused at once, some
            # get a ChannelException, the others an SSHException that says nothing.
            return isinstance(error, paramiko.SSHException) and self.alive

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(refused),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=0.5),
            stop=_stop_at(deadline),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except (paramiko.SSHException, EOFError, OSError) as error:
            if self.alive:
                raise deadline.exceeded(
                    str(error),
                    host=self.name,
                    hint="does the server give no more sessions (sshd's MaxSessions)?",
                ) from error
            raise LabError(
                f"the SSH connection to {self.name} is gone; the command did not run",
                seen=str(error),
                host=self.name,
                command=command,
                hint="did the host reboot or crash? look at its console",
            ) from error

    def _collect(
        self,
        channel: paramiko.Channel,
        out: drain.Bounded,
        err: drain.Bounded,
        command: Sequence[str],
        deadline: Deadline,
    ) -> int:
        """Drain both outputs until the command ended; its exit status."""
        # One event for both: it is cleared only by our own reads, and after those both
        # buffers are looked at again before waiting.
        news = threading.Event()
        channel.in_buffer.set_event(news)
        channel.in_stderr_buffer.set_event(news)
        if channel.recv_ready() or channel.recv_stderr_ready() or channel.eof_received:
            news.set()
        quiet_since = time.monotonic()
        settled = False
        while True:
            # Asked before the buffers are: what comes after the question is for the next turn.
            over, closed = channel.eof_received or channel.closed, channel.closed
            status_known = channel.status_event.is_set() and channel.exit_status >= 0
            busy = False
            if channel.recv_ready():
                out.add(channel.recv(_CHUNK))
                busy = True
            if channel.recv_stderr_ready():
                err.add(channel.recv_stderr(_CHUNK))
                busy = True
            now = time.monotonic()
            if busy:
                quiet_since, settled = now, False
                if not deadline.expired:
                    continue
            if not busy and closed and not channel.eof_received and not self.alive:
                raise self._broken(out, err, command)  # some of its output may be missing
            if not busy and status_known and (over or settled):
                return channel.exit_status
            if not busy and status_known and now - quiet_since >= _SETTLE:
                # A process that the command left behind holds its output open.
                settled, quiet_since = self._barrier(deadline), now
                continue
            if not busy and closed and not status_known:
                raise self._broken(out, err, command)
            if deadline.expired:
                error = deadline.exceeded(
                    drain.seen(bytes(out.data), bytes(err.data)),
                    host=self.name,
                    hint="the command was killed; give it more time if it is slow by nature",
                )
                error.command = tuple(command)
                raise error
            if over:
                channel.status_event.wait(min(deadline.remaining, 0.1))
            else:
                news.wait(min(deadline.remaining, 0.1))

    def _barrier(self, deadline: Deadline) -> bool:
        """Have the server run another command, to its end.

        A server looks at all commands' outputs in turn: what an ended one had written
        is on its way before a later one is done.
        """
        with contextlib.suppress(LabError):
            channel = self._session(["true"], deadline)
            try:
                _execute(channel, "true")
                channel.status_event.wait(_seconds(deadline))
                return channel.exit_status == 0
            finally:
                channel.close()
        return False

    def _broken(self, out: drain.Bounded, err: drain.Bounded, command: Sequence[str]) -> LabError:
        seen = drain.seen(bytes(out.data), bytes(err.data))
        if self.alive:
            return LabError(
                f"{self.name} closed the command's channel without an exit status",
                seen=seen,
                host=self.name,
                command=command,
                hint="the server may refuse commands (ForceCommand, a restricted shell, no room)",
            )
        return LabError(
            f"the SSH connection to {self.name} broke; the command may have run",
            seen=seen,
            host=self.name,
            command=command,
            hint="did the host reboot or crash? look at its console before running it again",
        )


class ChannelStream:
    """A :class:`~hil.transport.base.ByteStream` over an SSH channel."""

    def __init__(self, channel: paramiko.Channel, host: str, end: Callable[[], None]) -> None:
        self._channel = channel
        self._host = host
        self._end = end

    def read(self, limit: int = _CHUNK) -> bytes:
        return self._channel.recv(limit)

    def write(self, data: bytes) -> None:
        try:
            _send(self._channel, data)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise LabError(
                "the far end of a stream is gone", seen=str(error), host=self._host
            ) from error

    def close(self) -> None:
        running = not (self._channel.closed or self._channel.status_event.is_set())
        self._channel.close()
        if running:
            self._end()


class _Connection(paramiko.Transport):
    """A transport that also understands ``exit-signal`` (RFC 4254, section 6.10).

    It sends nothing for a channel after its CLOSE.  paramiko does, where one thread sends while
    another closes or hears of the end, and a server then ends the whole connection (OpenSSH:
    "packet referred to nonexistent channel").
    """

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self._gone: set[int] = set()
        """Channels whose CLOSE was sent, by the server's number; it uses numbers again."""

    def _send_message(self, data: Message) -> None:
        # What concerns channels comes here one at a time, under paramiko's clear_to_send_lock.
        raw = data.asbytes()
        if MSG_CHANNEL_WINDOW_ADJUST <= raw[0] <= MSG_CHANNEL_FAILURE:
            number = int.from_bytes(raw[1:5], "big")
            if number in self._gone:
                return
            if raw[0] == MSG_CHANNEL_CLOSE:
                self._gone.add(number)
        super()._send_message(data)  # type: ignore[misc]  # there is, in no stub

    def _parse_channel_open_success(self, message: Message) -> None:
        start = message.packet.tell()
        message.get_int()
        self._gone.discard(message.get_int())
        message.packet.seek(start)
        super()._parse_channel_open_success(message)  # type: ignore[misc]


def _handle_request(channel: paramiko.Channel, message: Message) -> None:
    start = message.packet.tell()
    if message.get_text() != "exit-signal":
        message.packet.seek(start)
        _paramiko_handler(channel, message)
        return
    message.get_boolean()
    name = message.get_text()
    number = getattr(signal, f"SIG{name.split('@')[0]}", None)
    channel.exit_status = 128 + int(number) if number else 255
    channel.status_event.set()


_table = "_channel_handler_table"
_paramiko_handler: Callable[[paramiko.Channel, Message], None] = getattr(
    paramiko.Transport, _table
)[MSG_CHANNEL_REQUEST]
setattr(
    _Connection,
    _table,
    {**getattr(paramiko.Transport, _table), MSG_CHANNEL_REQUEST: _handle_request},
)


def _execute(channel: paramiko.Channel, text: str) -> None:
    """Ask for ``text`` to be run (RFC 4254, section 6.5), without waiting for the answer.

    On a refusal paramiko closes the channel.  Its own way costs a round trip, and waits
    without end for a host that is gone.
    """
    connection: Any = channel.get_transport()
    message = Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("exec")
    message.add_boolean(True)
    message.add_string(text.encode("utf-8", "surrogateescape"))
    connection._send_user_message(message)  # noqa: SLF001


def _feed(channel: paramiko.Channel, stdin: bytes) -> None:
    """Give the command its input; in a thread where the peer's window is too small for it."""

    def send() -> None:
        # A command that ended, or closed its input, needs no more of it.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            _send(channel, stdin)
            _send_eof(channel)

    if len(stdin) <= channel.out_window_size:
        send()
    else:
        threading.Thread(target=send, name="hil-ssh-stdin", daemon=True).start()


# paramiko's own sendall and shutdown_write send after they let go of the channel's lock.
# If the peer closes the channel just then, the message comes after our own CLOSE, for
# which servers end the whole connection (RFC 4254, section 5.3, allows no such message).
# Here the lock is held until the message is out.


def _send(channel: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        with channel.lock:
            size = channel._wait_for_send_window(len(rest))  # noqa: SLF001
            if size == 0:
                raise OSError(errno.EPIPE, "the far end closed the channel")
            message = Message()
            message.add_byte(cMSG_CHANNEL_DATA)
            message.add_int(channel.remote_chanid)
            message.add_string(bytes(rest[:size]))
            channel.get_transport()._send_user_message(message)  # noqa: SLF001
        rest = rest[size:]


def _send_eof(channel: Any) -> None:
    with channel.lock:
        if not channel.closed and not channel.eof_sent:
            message = channel._send_eof()  # noqa: SLF001
            channel.get_transport()._send_user_message(message)  # noqa: SLF001


def _load_key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except OSError as error:
        raise InventoryError(
            f"SSH key {path} cannot be read: {error.strerror}", hint="check the key's path"
        ) from error
    except (paramiko.SSHException, ValueError, TypeError) as error:
        raise InventoryError(
            f"SSH key {path} cannot be used",
            seen=str(error),
            hint="it must be a private key without passphrase",
        ) from error


def _stop_at(deadline: Deadline) -> Callable[[tenacity.RetryCallState], bool]:
    def stop(state: tenacity.RetryCallState) -> bool:
        return deadline.remaining <= state.upcoming_sleep

    return stop


def _connect(target: _Target, deadline: Deadline) -> paramiko.Transport:
    def may_pass(error: BaseException) -> bool:
        return isinstance(error, ConnectError) and error.reason in _TRANSIENT

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        wait=tenacity.wait_exponential(multiplier=0.05, max=1.0),
        stop=_stop_at(deadline),
        reraise=True,
    )
    for attempt in retrying:
        with attempt:
            # A port forward (QEMU's, a load balancer's) takes connections before the host
            # behind it can answer: give up on a silent one soon, and longer each time.
            patience = 2.0 ** min(attempt.retry_state.attempt_number - 1, 6)
            return _attempt(target, deadline, patience)
    raise AssertionError("tenacity ends by returning or raising")


def _seconds(deadline: Deadline) -> float:
    """What is left, as sockets take it: neither zero nor infinite."""
    return min(max(deadline.remaining, 0.05), 1e6)


def _attempt(target: _Target, deadline: Deadline, patience: float) -> paramiko.Transport:
    """One try, each step of it bounded by the deadline; ``patience`` in seconds."""
    name, place = target.name, target.place
    expected = _expected_keys(target)
    link = _link(target, deadline)
    connection = _Connection(link)
    try:
        connection.daemon = True
        connection.banner_timeout = min(_seconds(deadline), patience)
        connection.auth_timeout = _seconds(deadline)
        options = connection.get_security_options()
        options.kex = sorted(options.kex, key=lambda method: method != target.key_exchange)
        if expected:
            # Ask for a key of a kind that we know, as ssh(1) does.
            known = {kind for key in expected for kind in _algorithms(key)}
            options.key_types = sorted(options.key_types, key=lambda kind: kind not in known)
        try:
            connection.start_client(timeout=_seconds(deadline))
            shown = connection.get_remote_server_key()
        except (paramiko.SSHException, EOFError, OSError) as error:
            if deadline.expired:
                raise ConnectError(
                    "timeout",
                    f"{name} ({place}) does not answer as SSH",
                    host=name,
                    seen=str(error),
                ) from error
            raise ConnectError(
                "protocol",
                f"{name} ({place}) broke off the SSH handshake",
                host=name,
                seen=str(error) or type(error).__name__,
            ) from error
        _check_host_key(target, shown, expected)
        try:
            connection.auth_publickey(target.user, target.key)
        except paramiko.AuthenticationException as error:
            raise ConnectError(
                "authentication",
                f"{name} ({place}) does not let {target.user} in with key {target.key.fingerprint}",
                host=name,
                seen=str(error),
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise ConnectError(
                "timeout" if deadline.expired else "protocol",
                f"{name} ({place}) broke off during log-in",
                host=name,
                seen=str(error) or type(error).__name__,
            ) from error
        connection.set_keepalive(_KEEPALIVE)
    except BaseException:
        connection.close()
        raise
    return connection


def _link(target: _Target, deadline: Deadline) -> socket.socket | paramiko.Channel:
    """The way to the server: a TCP connection, or one made by the jump host."""
    name, place = target.name, target.place
    if target.jump is not None:
        try:
            return target.jump.open_tcp(target.host, target.port, deadline)
        except paramiko.ChannelException as error:
            raise ConnectError(
                "refused", f"{name} ({place}) is not to be reached", host=name, seen=str(error)
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            if not target.jump.alive:
                raise LabError(
                    f"the SSH connection to {target.jump.name}, the way to {name}, is gone",
                    seen=str(error),
                    host=target.jump.name,
                ) from error
            raise ConnectError(
                "timeout", f"{name} ({place}) does not answer", host=name, seen=str(error)
            ) from error
    try:
        link = socket.create_connection((target.host, target.port), timeout=_seconds(deadline))
    except TimeoutError as error:
        raise ConnectError("timeout", f"{name} ({place}) does not answer", host=name) from error
    except ConnectionRefusedError as error:
        raise ConnectError("refused", f"{name} ({place}) refuses connections", host=name) from error
    except socket.gaierror as error:
        passing = error.errno == socket.EAI_AGAIN
        raise ConnectError(
            "unreachable" if passing else "name",
            f"the address of {name}, {target.host}, is not to be found",
            host=name,
            seen=str(error),
        ) from error
    except OSError as error:
        raise ConnectError(
            "unreachable",
            f"{name} ({place}) cannot be reached: {errno.errorcode.get(error.errno or 0, '?')}",
            host=name,
            seen=str(error),
        ) from error
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)
    return link


def _expected_keys(target: _Target) -> tuple[paramiko.PKey, ...]:
    """The keys that the server may show; empty where only a fingerprint, or any, is asked for."""
    wanted = target.host_key
    if isinstance(wanted, paramiko.PKey):
        return (wanted,)
    if wanted is None:
        hosts = paramiko.HostKeys()
        try:
            if target.known_hosts.exists():
                hosts.load(str(target.known_hosts))
        except (OSError, paramiko.SSHException) as error:
            raise InventoryError(f"{target.known_hosts} cannot be read", seen=str(error)) from error
        found: Mapping[str, paramiko.PKey] = hosts.lookup(_known_as(target)) or {}
        return tuple(found.values())
    if wanted == "any" or wanted.startswith("SHA256:"):
        return ()
    entry = paramiko.hostkeys.HostKeyEntry.from_line(f"host {wanted}")
    if entry is None or entry.key is None:
        raise InventoryError(
            f"the host key given for {target.name} is not one",
            seen=wanted[:200],
            hint="write it as in known_hosts without the name: ssh-ed25519 AAAA…",
        )
    return (entry.key,)


def _known_as(target: _Target) -> str:
    return target.host if target.port == 22 else f"[{target.host}]:{target.port}"


def _algorithms(key: paramiko.PKey) -> tuple[str, ...]:
    kind = key.get_name()
    return ("rsa-sha2-512", "rsa-sha2-256", kind) if kind == "ssh-rsa" else (kind,)


def _check_host_key(
    target: _Target, shown: paramiko.PKey, expected: tuple[paramiko.PKey, ...]
) -> None:
    wanted = target.host_key
    if wanted == "any":
        return
    if isinstance(wanted, str) and wanted.startswith("SHA256:"):
        prints = [wanted]
        if shown.fingerprint.rstrip("=") == wanted.rstrip("="):
            return
    else:
        if any(key == shown for key in expected):
            return
        prints = [f"{key.fingerprint} ({key.get_name()})" for key in expected]
    seen = f"shown:    {shown.fingerprint} ({shown.get_name()})"
    if not prints:
        raise ConnectError(
            "host-key-unknown",
            f"nothing is known of the host key of {target.name} ({target.place})",
            host=target.name,
            seen=f"{seen}\nlooked for {_known_as(target)} in {target.known_hosts}",
        )
    raise ConnectError(
        "host-key-changed",
        f"{target.name} ({target.place}) shows another host key than expected",
        host=target.name,
        seen="\n".join([seen, *(f"expected: {text}" for text in prints)]),
    )
