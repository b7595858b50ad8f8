"""What every transport promises, asked of each kind alike."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hil import events
from hil.deadline import poll
from hil.errors import CommandError, DeadlineExceeded, InventoryError, LabError
from hil.transport.base import Transport
from hil.transport.sockets import socket_pair_for
from tests.transport.conftest import soon

BOTH = (
    "import sys\n"
    "for i in range(200):\n"
    "    sys.stdout.write('o' * 20000); sys.stderr.write('e' * 20000)\n"
)


def test_status_output_and_arguments(transport: Transport) -> None:
    script = 'printf %s "$1"; echo bad >&2; exit 7'
    result = transport.run(["sh", "-c", script, "sh", "a  'b\"$c\n"], deadline=soon())
    assert (result.status, result.stdout, result.stderr) == (7, "a  'b\"$c\n", "bad\n")
    assert result.host == "lab1"
    assert not result.truncated


def test_check_tells_what_was_seen(transport: Transport) -> None:
    with pytest.raises(CommandError, match="No such file") as caught:
        transport.run(["cat", "/no/such"], deadline=soon()).check(hint="try another")
    assert caught.value.host == "lab1"
    assert caught.value.hint == "try another"


def test_a_program_that_is_not_there_is_status_127(transport: Transport) -> None:
    result = transport.run(["no-such-program-at-all"], deadline=soon())
    assert result.status == 127
    assert "no-such-program-at-all" in result.stderr


def test_a_signal_is_128_and_its_number(transport: Transport) -> None:
    assert transport.run(["sh", "-c", "kill -9 $$"], deadline=soon()).status == 128 + 9
    assert transport.run(["sh", "-c", "kill -15 $$"], deadline=soon()).status == 128 + 15


def test_both_outputs_are_drained_together(transport: Transport) -> None:
    result = transport.run([sys.executable, "-c", BOTH], deadline=soon())
    assert result.out == b"o" * 4_000_000
    assert result.err == b"e" * 4_000_000


def test_output_is_bounded_and_the_command_still_ends(transport: Transport) -> None:
    result = transport.run([sys.executable, "-c", BOTH], deadline=soon(), limit=1000)
    assert result.status == 0
    assert (len(result.out), len(result.err), result.truncated) == (1000, 1000, True)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=3000))
def test_any_bytes_pass_through(transport: Transport, data: bytes) -> None:
    assert transport.run(["cat"], deadline=soon(), stdin=data).out == data


def test_large_input_and_output_do_not_wait_for_each_other(transport: Transport) -> None:
    data = os.urandom(1 << 20) * 8
    result = transport.run(["cat"], deadline=soon(), stdin=data)
    assert hashlib.sha256(result.out).digest() == hashlib.sha256(data).digest()


def test_a_command_that_reads_no_input_ends_all_the_same(transport: Transport) -> None:
    assert transport.run(["true"], deadline=soon(), stdin=b"x" * (8 << 20)).status == 0


def test_the_deadline_ends_the_command_and_keeps_what_it_printed(
    transport: Transport, tmp_path: Path
) -> None:
    script = f"echo $$ >{tmp_path}/pid; echo started; sleep 60; echo never"
    with pytest.raises(DeadlineExceeded) as caught:
        transport.run(["sh", "-c", script], deadline=soon(0.5, "a slow command"))
    assert "started" in caught.value.seen
    assert "a slow command" in caught.value.message
    pid = int((tmp_path / "pid").read_text())
    poll(lambda: not _runs(pid), soon(5, "the command to be gone"))


def test_a_deadline_that_has_passed_starts_nothing(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        transport.run(["touch", str(tmp_path / "ran")], deadline=soon(0))
    assert not (tmp_path / "ran").exists()


def test_a_daemon_left_behind_does_not_hold_the_command(transport: Transport) -> None:
    result = transport.run(["sh", "-c", "echo up; sleep 5 & exit 3"], deadline=soon(4))
    assert (result.status, result.out) == (3, b"up\n")


def test_fifty_threads_at_once(transport: Transport) -> None:
    def one(number: int) -> tuple[str, int]:
        script = f"echo {number}; exit {number % 7}"
        result = transport.run(["sh", "-c", script], deadline=soon())
        return result.stdout, result.status

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(50))) == [(f"{n}\n", n % 7) for n in range(50)]


def test_each_command_is_told_to_listeners(transport: Transport) -> None:
    heard: list[events.Event] = []
    with events.subscribed(heard.append):
        transport.run(["echo", "a b"], deadline=soon())
    (event,) = heard
    assert isinstance(event, events.CommandRun)
    assert (event.where, event.command, event.stdout) == ("lab1", "echo 'a b'", "a b\n")


def test_a_stream_carries_both_ways_and_ends(transport: Transport) -> None:
    stream = transport.open_stream(["cat"], deadline=soon())
    data = bytes(range(256)) * 1000
    threading.Thread(target=stream.write, args=(data,)).start()
    got = b""
    while len(got) < len(data):
        got += stream.read()
    assert got == data
    stream.close()
    stream.close()
    assert stream.read() == b""
    with pytest.raises(LabError):
        stream.write(b"x" * 100_000)


def test_a_stream_ends_with_its_command_and_merges_stderr(transport: Transport) -> None:
    stream = transport.open_stream(["sh", "-c", "echo a; echo b >&2"], deadline=soon())
    got = b""
    while chunk := stream.read():
        got += chunk
    assert sorted(got.split()) == [b"a", b"b"]
    stream.close()


def test_close_wakes_a_reader(transport: Transport) -> None:
    stream = transport.open_stream(["sleep", "60"], deadline=soon())
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(stream.read()))
    reader.start()
    stream.close()
    reader.join(5)
    assert got == [b""]


def test_a_socket_in_front_of_a_stream(transport: Transport) -> None:
    with socket_pair_for(transport.open_stream(["cat"], deadline=soon())) as near:
        near.settimeout(10)
        near.sendall(b"hello")
        assert near.recv(100) == b"hello"


def test_the_end_of_a_stream_is_the_end_of_its_socket(transport: Transport) -> None:
    with socket_pair_for(transport.open_stream(["echo", "x"], deadline=soon())) as near:
        near.settimeout(10)
        assert near.recv(100) == b"x\n"
        assert near.recv(100) == b""


def test_put_and_get(transport: Transport, tmp_path: Path) -> None:
    path = str(tmp_path / "a file'$x")
    data = os.urandom(300_000)
    transport.put(data, path, deadline=soon(), mode=0o750)
    assert transport.get(path, deadline=soon()) == data
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o750
    transport.put(b"", path, deadline=soon())
    assert Path(path).read_bytes() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["a file'$x"]


def test_put_leaves_nothing_behind_when_it_fails(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    with pytest.raises(CommandError):
        transport.put(b"x", str(tmp_path / "dir"), deadline=soon())
    with pytest.raises(CommandError):
        transport.put(b"x", str(tmp_path / "none" / "file"), deadline=soon())
    assert [entry.name for entry in tmp_path.iterdir()] == ["dir"]
    assert not list((tmp_path / "dir").iterdir())


def test_get_refuses_what_is_longer_than_the_limit(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 101)
    with pytest.raises(LabError, match="longer than 100"):
        transport.get(str(tmp_path / "f"), deadline=soon(), limit=100)
    with pytest.raises(CommandError, match="No such file"):
        transport.get(str(tmp_path / "g"), deadline=soon())


def test_a_string_is_no_command(transport: Transport) -> None:
    with pytest.raises(InventoryError):
        transport.run("ls -l", deadline=soon())


def _runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
