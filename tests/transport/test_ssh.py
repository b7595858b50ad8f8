"""What can go wrong on the way to a host, told apart."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import asyncssh
import paramiko
import pytest
from paramiko.common import cMSG_CHANNEL_DATA
from paramiko.message import Message

from hil.deadline import poll
from hil.errors import DeadlineExceeded, InventoryError, LabError
from hil.transport.ssh import ChannelStream, ConnectError, SshTransport
from tests.transport.conftest import Connect, client_key, host_key_line, soon
from tests.transport.server import SshServer


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return cast("int", listener.getsockname()[1])


def test_refused(connect: Connect) -> None:
    with pytest.raises(ConnectError, match="refuses connections") as caught:
        connect(port=free_port(), deadline=soon(0.3))
    assert caught.value.reason == "refused"
    assert "sshd" in caught.value.hint


def test_connecting_is_tried_again_until_the_host_is_up(server: SshServer) -> None:
    port = free_port()
    later = SshServer()
    threading.Timer(0.4, later.start, args=(port,)).start()
    transport = SshTransport.connect(
        "lab1", "127.0.0.1", port=port, key=client_key(later), host_key="any", deadline=soon()
    )
    assert transport.run(["echo", "up"], deadline=soon()).stdout == "up\n"
    transport.close()
    later.close()


def test_a_silent_port_times_out(connect: Connect, silent: int) -> None:
    with pytest.raises(ConnectError) as caught:
        connect(port=silent, deadline=soon(0.5))
    assert caught.value.reason == "timeout"


def test_something_that_is_no_ssh_server(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ConnectError) as caught:
            connect(port=listener.getsockname()[1], deadline=soon(0.5))
        assert caught.value.reason == "protocol"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_name_that_nobody_has(server: SshServer) -> None:
    with pytest.raises(ConnectError) as caught:
        SshTransport.connect("lab1", "no-such.invalid", key=client_key(server), deadline=soon(1))
    assert caught.value.reason in ("name", "unreachable")


def test_a_wrong_key_is_told_at_once(connect: Connect, server: SshServer) -> None:
    with pytest.raises(ConnectError, match="does not let root in") as caught:
        connect(key=paramiko.RSAKey.generate(2048), deadline=soon(60))
    assert caught.value.reason == "authentication"
    assert len(server.connections) == 1


def test_a_key_file(connect: Connect, server: SshServer, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(server.client_key.export_private_key())
    bad.write_text("nonsense")
    assert connect(key=None, key_file=good).run(["true"], deadline=soon()).status == 0
    for key_file in (bad, tmp_path / "none"):
        with pytest.raises(InventoryError, match=key_file.name):
            connect(key=None, key_file=key_file)


def test_an_unknown_host_key_is_refused(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(ConnectError) as caught:
        connect(host_key=None, known_hosts=tmp_path / "known_hosts")
    assert caught.value.reason == "host-key-unknown"
    assert "SHA256:" in caught.value.seen


def test_known_hosts_decides(connect: Connect, server: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {host_key_line(server)}\n")
    assert connect(host_key=None, known_hosts=known).alive


def test_a_changed_host_key_shows_both_fingerprints(
    connect: Connect, server: SshServer, tmp_path: Path
) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    line = " ".join(other.export_public_key().decode().split()[:2])
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {line}\n")
    for options in ({"host_key": line}, {"host_key": None, "known_hosts": known}):
        with pytest.raises(ConnectError) as caught:
            connect(**options)
        assert caught.value.reason == "host-key-changed"
        assert server.host_key.get_fingerprint() in caught.value.seen
        assert other.get_fingerprint() in caught.value.seen


def test_a_fingerprint_as_host_key(connect: Connect, server: SshServer) -> None:
    assert connect(host_key=server.host_key.get_fingerprint()).alive
    with pytest.raises(ConnectError) as caught:
        connect(host_key="SHA256:" + "A" * 43)
    assert caught.value.reason == "host-key-changed"


def test_a_host_key_that_is_none(connect: Connect) -> None:
    with pytest.raises(InventoryError):
        connect(host_key="rubbish")


def test_the_server_dies_while_a_command_runs(connect: Connect, server: SshServer) -> None:
    transport = connect()
    threading.Timer(0.3, server.drop).start()
    with pytest.raises(LabError, match="may have run") as caught:
        transport.run(["sh", "-c", "echo before; sleep 30"], deadline=soon())
    assert "before" in caught.value.seen
    assert not isinstance(caught.value, DeadlineExceeded)
    assert len(server.commands) == 1
    assert not transport.alive


def test_a_connection_that_is_gone_runs_nothing(connect: Connect, server: SshServer) -> None:
    transport = connect()
    server.drop()
    poll(lambda: not transport.alive, soon(5, "the connection to break"))
    with pytest.raises(LabError, match="did not run"):
        transport.run(["true"], deadline=soon())
    assert server.commands == []
    transport.reconnect(soon())
    assert transport.run(["true"], deadline=soon()).status == 0


def test_a_stream_of_a_dead_server_ends(connect: Connect, server: SshServer) -> None:
    stream = connect().open_stream(["cat"], deadline=soon())
    server.drop()
    assert stream.read() == b""
    with pytest.raises(LabError):
        stream.write(b"x")


def test_a_channel_closed_without_a_status(connect: Connect) -> None:
    with pytest.raises(LabError, match="without an exit status"):
        connect().run(["refuse-without-status"], deadline=soon())


def test_a_log_in_shell_that_is_no_posix_shell_is_told_of(
    connect: Connect, server: SshServer
) -> None:
    if not shutil.which("csh"):
        pytest.skip("no csh here")
    server.shell = "csh"
    with pytest.raises(InventoryError, match="no POSIX shell"):
        connect().run(["true"], deadline=soon())


def test_a_streams_command_ends_with_it(connect: Connect, tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/pid; echo; sleep 60"
    stream = connect().open_stream(["sh", "-c", script], deadline=soon())
    assert stream.read() == b"\n"
    stream.close()
    process = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    poll(
        lambda: not process.exists() or " Z " in process.read_text(),
        soon(5, "the command to be gone"),
    )


def test_commands_that_end_before_their_input_do_not_break_the_connection(
    connect: Connect,
) -> None:
    transport = connect()
    with ThreadPoolExecutor(20) as pool:
        done = pool.map(
            lambda _: transport.run(["true"], deadline=soon(60), stdin=b"x" * 100_000), range(100)
        )
        assert [result.status for result in done] == [0] * 100
    assert transport.alive


def test_by_way_of_a_jump_host(connect: Connect, server: SshServer) -> None:
    jump = connect()
    behind = SshServer().start()
    guest = SshTransport.connect(
        "guest",
        "127.0.0.1",
        port=behind.port,
        key=client_key(behind),
        host_key="any",
        jump=jump,
        deadline=soon(),
    )
    assert guest.run(["echo", "deep"], deadline=soon()).stdout == "deep\n"
    assert (server.forwarded, len(behind.commands)) == (1, 1)
    with pytest.raises(ConnectError) as caught:
        SshTransport.connect(
            "guest",
            "127.0.0.1",
            port=free_port(),
            key=client_key(behind),
            host_key="any",
            jump=jump,
            deadline=soon(0.3),
        )
    assert caught.value.reason == "refused"
    jump.close()
    poll(lambda: not guest.alive, soon(5, "the connection through the jump host to break"))
    behind.close()


def test_what_a_thread_sends_to_a_channel_that_another_closed_breaks_nothing(
    connect: Connect,
) -> None:
    host = connect()
    for _ in range(3):  # the server uses channels' numbers again
        stream = host.open_stream(["cat"], deadline=soon())
        assert isinstance(stream, ChannelStream)
        channel = stream._channel
        stream.write(b"x")
        assert stream.read(1) == b"x"
        stream.close()
        assert host.run(["true"], deadline=soon()).status == 0
        # As where the thread had seen the channel open.
        message = Message()
        message.add_byte(cMSG_CHANNEL_DATA)
        message.add_int(channel.remote_chanid)
        message.add_string(b"late")
        cast("Any", channel.get_transport())._send_user_message(message)
        assert host.run(["echo", "on"], deadline=soon()).stdout == "on\n"


def test_closing_twice(connect: Connect) -> None:
    transport = connect()
    transport.close()
    transport.close()
    with pytest.raises(LabError, match="did not run"):
        transport.run(["true"], deadline=soon())
