"""The simulated host behind SSH, by the transport that hil uses for real hosts."""

from __future__ import annotations

from collections.abc import Iterator

import paramiko
import pytest

from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded
from hil.simulated.host import SimulatedHost
from hil.transport.ssh import SshTransport


def soon(what: str = "a command") -> Deadline:
    return Deadline(60, what)


def connect(host: SimulatedHost) -> SshTransport:
    key = host.key.load()
    return SshTransport.connect(
        "simulated", "127.0.0.1", port=host.port, key=key, host_key=host.host_key, deadline=soon()
    )


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost("recorded-13.2-amd").start()
    yield host
    host.close()


@pytest.fixture
def ssh(host: SimulatedHost) -> Iterator[SshTransport]:
    transport = connect(host)
    yield transport
    transport.close()


def test_commands_their_outputs_and_statuses(ssh: SshTransport) -> None:
    assert ssh.run(["uname", "-sr"], deadline=soon()).out == b"FreeBSD 13.2-RELEASE\n"
    failed = ssh.run(["sh", "-c", "echo out; echo err >&2; exit 3"], deadline=soon())
    assert (failed.status, failed.out, failed.err) == (3, b"out\n", b"err\n")
    assert ssh.run(["sh", "-c", "kill -9 $$"], deadline=soon()).status == 137
    assert ssh.run(["echo", "a b", "$HOME", "'"], deadline=soon()).out == b"a b $HOME '\n"


def test_much_goes_through_in_both_directions(ssh: SshTransport) -> None:
    data = bytes(range(256)) * 12_000
    assert ssh.run(["cat"], stdin=data, deadline=soon()).out == data


def test_files_are_put_and_got(ssh: SshTransport) -> None:
    ssh.put(b"text\n", "/root/file", mode=0o600, deadline=soon())
    assert ssh.get("/root/file", deadline=soon()) == b"text\n"
    assert ssh.run(["ls", "-l", "/root/file"], deadline=soon()).stdout.startswith("-rw-------")


def test_a_stream_talks_both_ways_and_its_end_kills(host: SimulatedHost, ssh: SshTransport) -> None:
    script = "while read -r line; do echo got $line; done"
    stream = ssh.open_stream(["sh", "-c", script], deadline=soon())
    stream.write(b"a\n")
    assert stream.read() == b"got a\n"
    stream.close()
    poll(lambda: not host.system.processes, soon("no process to be left"))


def test_a_command_that_takes_too_long_is_killed(host: SimulatedHost, ssh: SshTransport) -> None:
    with pytest.raises(DeadlineExceeded):
        ssh.run(["sleep", "1000"], deadline=Deadline(0.3, "a sleep"))
    poll(lambda: not host.system.processes, soon("no process to be left"))


def test_a_process_left_behind_holds_no_command_up(ssh: SshTransport) -> None:
    result = ssh.run(["sh", "-c", "sleep 1000 & echo $!"], deadline=soon())
    assert ssh.run(["kill", result.stdout.strip()], deadline=soon()).status == 0


def test_what_the_environment_says_of_the_connection(ssh: SshTransport) -> None:
    result = ssh.run(["sh", "-c", 'echo "$SSH_CONNECTION"'], deadline=soon())
    assert result.stdout == "10.0.2.2 40522 10.0.2.15 22\n"


def test_a_host_whose_kernel_panics_says_nothing_more(
    host: SimulatedHost, ssh: SshTransport
) -> None:
    with pytest.raises(DeadlineExceeded):
        ssh.run(["sysctl", "debug.kdb.panic=1"], deadline=Deadline(0.5, "a panic"))
    assert host.machine.panic
    # As after a push on the reset button: it is there again, with none of its processes.
    host.reboot()
    again = connect(host)
    assert again.run(["uname"], deadline=soon()).out == b"FreeBSD\n"
    again.close()


def test_a_reboot_ends_every_process_and_keeps_files(
    host: SimulatedHost, ssh: SshTransport
) -> None:
    ssh.put(b"kept", "/root/file", deadline=soon())
    stream = ssh.open_stream(["sleep", "1000"], deadline=soon())
    host.reboot()
    assert stream.read() == b""
    again = connect(host)
    assert again.get("/root/file", deadline=soon()) == b"kept"
    again.close()


def test_two_hosts_at_once_are_two(host: SimulatedHost) -> None:
    other = SimulatedHost("freebsd-15-intel").start()
    transport = connect(other)
    assert transport.run(["uname", "-r"], deadline=soon()).out == b"15.0-RELEASE\n"
    assert "vmm" in transport.run(["kldstat"], deadline=soon()).stdout
    transport.close()
    other.close()


def test_a_terminal_echoes_and_its_interrupt_reaches_the_command(host: SimulatedHost) -> None:
    transport = paramiko.Transport(("127.0.0.1", host.port))
    transport.start_client(timeout=60)
    key = host.key.load()
    transport.auth_publickey("root", key)
    channel = transport.open_session(timeout=60)
    channel.get_pty()
    channel.invoke_shell()
    channel.settimeout(60)
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            piece = channel.recv(65536)
            assert piece, seen
            seen += piece
        seen = seen.partition(wanted)[2]

    until(b"# ")
    channel.sendall(b"echo a$((1+1))\r")
    until(b"echo a$((1+1))\r\na2\r\n# ")
    channel.sendall(b"cat\rline\r")
    until(b"cat\r\nline\r\nline\r\n")
    channel.sendall(b"\x03")
    until(b"^C")
    until(b"# ")
    channel.sendall(b"exit 3\r")
    assert channel.recv_exit_status() == 3
    transport.close()
