from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hil import events
from hil.console.console import LOGIN, PROMPT, Console
from hil.deadline import Deadline
from hil.errors import CommandError, DeadlineExceeded, GuestError, InventoryError, LabError
from hil.guests.freebsd import FreebsdGuest
from tests.console.streams import PtyStream, ScriptedStream

SHELLS = {
    "dash": ["dash", "-i"],
    "bash": ["bash", "--norc", "-i"],
    "busybox": ["busybox", "sh"],
    "csh": ["csh", "-f", "-i"],
}
PANIC = b"[    9.000000] Kernel panic - not syncing: Fatal exception\r\n"


def soon(seconds: float = 20.0, what: str = "a test's step") -> Deadline:
    return Deadline(seconds, what)


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[Console]:
    command = SHELLS[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]} here")
    console = Console("guest", PtyStream(command))
    yield console
    console.close()


# commands, on real shells


def test_output_and_status(shell: Console) -> None:
    result = shell.run("echo one; echo two >&2; (exit 3)", soon())
    assert (result.status, result.output, result.kernel) == (3, "one\ntwo\n", ())
    assert not result.truncated
    assert shell.run("true", soon()).check().out == b""
    with pytest.raises(CommandError, match="gone wrong"):
        shell.run("echo gone wrong; false", soon()).check()


def test_directory_and_variables_stay(shell: Console) -> None:
    shell.run("cd /tmp; HERE='a  b'", soon())
    assert shell.run('echo "$HERE"; pwd', soon()).output == "a  b\n/tmp\n"


def test_a_program_with_arguments(shell: Console) -> None:
    arguments = ["a  b", "'\"$(id)`id`\\", "*", "", "é ü"]
    result = shell.run(["printf", "%s\\n", *arguments], soon())
    assert result.output.splitlines() == arguments


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_any_arguments_arrive(shell: Console, words: list[str]) -> None:
    result = shell.run(["printf", "%s|", "x", *words], soon())
    assert result.output == "".join(f"{word}|" for word in ["x", *words])


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(min_size=1, max_size=300))
def test_any_output_comes_back(shell: Console, data: bytes) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in data)
    assert shell.run(f"printf '{octal}'", soon()).out == data


def test_a_command_longer_than_a_terminals_line(shell: Console) -> None:
    text = "".join(chr(33 + number % 90) for number in range(9000)).replace("'", "x")
    assert shell.run(f"printf %s '{text}'", soon()).output == text


def test_a_command_of_many_lines(shell: Console) -> None:
    script = "cat <<'END'\n" + "".join(f"line {n} $HOME\n" for n in range(200)) + "END\n"
    result = shell.run(script, soon())
    assert result.output == "".join(f"line {n} $HOME\n" for n in range(200))


def test_megabytes_of_rubbish(shell: Console, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    (tmp_path / "data").write_bytes(data)
    assert shell.run(["cat", str(tmp_path / "data")], soon()).out == data


def test_output_is_bounded(shell: Console, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 5_000_000)
    script = f"cat {tmp_path}/data; exit 5"
    result = shell.run(f"({script})", soon(), limit=1000)
    assert (result.status, result.out, result.truncated) == (5, b"x" * 1000, True)


def test_escapes_and_carriage_returns_are_left_alone(shell: Console) -> None:
    result = shell.run(r"printf '\033[2J\r\n a\rb\n\t\010'", soon())
    assert result.out == b"\x1b[2J\r\n a\rb\n\t\x08"


def test_what_the_shell_tells_of_itself_is_no_marker(shell: Console) -> None:
    assert shell.run("set; env; trap; set -x; echo a; set +x", soon()).status == 0
    assert shell.run("echo still here", soon()).output == "still here\n"


def test_an_end_of_the_shell_is_a_status(shell: Console) -> None:
    for command, status in (("echo last; exit 9", 9), ("set -e; echo last; false", 1)):
        result = shell.run(command, soon())
        assert (result.status, result.output) == (status, "last\n")
    assert shell.run("echo (", soon()).status != 0
    assert shell.run("echo again", soon()).output == "again\n"


def test_a_slow_command_is_interrupted_and_the_shell_lives_on(shell: Console) -> None:
    for command in ("echo started; sleep 60", "echo started; while :; do :; done"):
        with pytest.raises(DeadlineExceeded) as caught:
            shell.run(command, soon(0.4, "a slow command"))
        assert "started" in caught.value.seen
        assert caught.value.console
        assert shell.run("echo alive", soon()).output == "alive\n"


def test_released_it_is_the_log_in_shell_again(shell: Console) -> None:
    shell.run("true", soon())
    shell.release(soon())
    shell.send_line("echo ba''ck")
    shell.expect(rb"back\r\n", soon())
    assert shell.run("echo ready", soon()).output == "ready\n"


def test_commands_are_told_to_listeners(shell: Console) -> None:
    heard: list[events.CommandRun] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.CommandRun):
            heard.append(event)

    with events.subscribed(listen):
        shell.run("echo hi", soon())
    assert [(event.where, event.command, event.stdout) for event in heard] == [
        ("guest", "echo hi", "hi\n")
    ]


def test_a_nul_is_refused(shell: Console) -> None:
    with pytest.raises(InventoryError):
        shell.run("echo \0", soon())


# a shell played by a script: what a kernel does to the markers


class Played:
    """Answers as the shell's loop would; ``spoil`` gets each answer and may change it."""

    def __init__(self, output: bytes = b"out\n", status: int = 4) -> None:
        self.output, self.status = output, status
        self.nonce = b""
        self.stream = ScriptedStream(answer=self._answer)
        self.cuts: Iterable[tuple[str, int, bytes]] = ()
        self.spoiled = 0

    def _answer(self, data: bytes) -> list[bytes]:
        answers = []
        for line in data.splitlines():
            if start := re.search(rb'"%s%s.n" (\w+) (\w+);', line):
                self.nonce = start[1] + start[2]
                answers.append(self.nonce + b"\n")
            elif token := re.match(rb"(%\w+) (.*)", line):
                marker = self.nonce + token[1]
                if token[2] == b":":
                    answers += [marker + b":\n", marker + b"=0;\n"]
                else:
                    end = marker + f"={self.status};\n".encode()
                    answers.append(self._spoil(marker + b":\n", end))
        return answers

    def _spoil(self, before: bytes, after: bytes) -> bytes:
        parts = {"before": before, "output": self.output, "after": after}
        for part, position, noise in self.cuts:
            text = parts[part]
            if position < len(text):
                self.spoiled += 1
                parts[part] = text[:position] + noise + text[position:]
        return b"".join(parts.values())


LINUX = b"[    5.123456] igb 0000:01:00.0 enp1s0: igb: enp1s0 NIC Link is Up\r\n"


@pytest.mark.parametrize("part", ["before", "output", "after"])
@pytest.mark.parametrize("noise", [LINUX, LINUX * 3, b"[    5.123456][  T12] x\r\n"])
def test_a_kernel_line_anywhere_changes_nothing(part: str, noise: bytes) -> None:
    played = Played(b"first\nsecond\n", status=42)
    console = Console("guest", played.stream)
    for position in range(40):
        played.cuts = [(part, position, noise)]
        spoiled = played.spoiled
        result = console.run("x", soon(5))
        assert (result.status, result.out) == (42, b"first\nsecond\n"), position
        if played.spoiled > spoiled and (part, position) != ("before", 0):
            known = len(result.kernel)
            at_the_end = part == "after" and position >= len(played.nonce) + 13
            assert known == noise.count(b"\n") or at_the_end, position
    console.close()


def test_a_kernel_line_in_both_markers() -> None:
    played = Played(status=7)
    console = Console("guest", played.stream)
    played.cuts = [("before", 5, LINUX), ("output", 2, LINUX), ("after", 20, LINUX)]
    result = console.run("x", soon(5))
    assert (result.status, result.out, len(result.kernel)) == (7, b"out\n", 3)
    console.close()


def test_a_kernel_line_without_a_time_stamp_in_the_marker() -> None:
    played = Played(status=7)
    console = Console("guest", played.stream)
    for position in range(1, 26):
        played.cuts = [("after", position, b"igb0: link state changed to UP\r\n")]
        assert console.run("x", soon(5)).status == 7, position
    console.close()


def test_output_that_looks_like_the_kernels_is_kept() -> None:
    log = b"[    1.000000] Linux version 6.1\n[    1.000001] Command line: quiet\n"
    console = Console("guest", Played(log).stream)
    assert console.run("dmesg", soon(5)).out == log
    console.close()


def test_output_that_quotes_a_panic_is_no_panic() -> None:
    quoted = PANIC.replace(b"\r\n", b"\n") + b"panic: page fault\n"
    console = Console("guest", Played(quoted, 0).stream)
    assert console.run("cat /var/log/old", soon(5)).out == quoted
    console.close()


def test_without_stty_line_ends_are_put_right() -> None:
    class Cooked(Played):
        def _answer(self, data: bytes) -> list[bytes]:
            return [part.replace(b"\n", b"\r\n") for part in super()._answer(data)]

    console = Console("guest", Cooked(b"a\nb\n").stream)
    result = console.run("x", soon(5))
    assert (result.status, result.out) == (4, b"a\nb\n")
    console.close()


def test_a_panic_in_a_command_ends_it_at_once() -> None:
    played = Played()
    console = Console("guest", played.stream)
    console.run("x", soon(5))
    played.cuts = [("output", 1, PANIC + b"[    9.000001] CPU: 0 PID: 1\r\n")]
    played.cuts = [*played.cuts, ("after", 0, b"never")]
    begin = time.monotonic()
    with pytest.raises(GuestError, match="Fatal exception") as caught:
        console.run("x", soon(60))
    assert time.monotonic() - begin < 5
    assert any("CPU: 0 PID: 1" in line for line in caught.value.console)
    with pytest.raises(GuestError):
        console.run("x", soon(5))
    console.close()


# waits


def test_expect_gives_index_groups_and_what_came_before() -> None:
    stream = ScriptedStream([b"some te", b"xt then 42 apples\r\n"])
    console = Console("g", stream)
    met = console.expect([r"pears", rb"(\d+) apples"], soon())
    assert (met.index, met.before, met.match.group(1)) == (1, b"some text then ", b"42")
    with pytest.raises(DeadlineExceeded) as caught:
        console.expect("pears", soon(0.1, "pears"))
    assert caught.value.console == ("some text then 42 apples",)
    console.close()


def test_a_match_at_the_start_of_a_large_read_is_found() -> None:
    console = Console("g", ScriptedStream([b"x" * 50_000, b"NEEDLE" + b"y" * 65_530] * 2))
    assert console.expect("NEEDLE", soon()).before == b"x" * 50_000
    assert console.expect("NEEDLE", soon()).before == b"y" * 65_530 + b"x" * 50_000
    console.close()


def test_a_panic_ends_a_wait_at_once_with_the_last_lines() -> None:
    stream = ScriptedStream([b"booting\r\n"])
    console = Console("g", stream)
    threading.Timer(0.1, stream.feed, args=(PANIC, b"[    9.000001] Call Trace:\r\n")).start()
    begin = time.monotonic()
    with pytest.raises(GuestError, match="panic") as caught:
        console.expect("login:", soon(60))
    assert time.monotonic() - begin < 5
    assert caught.value.console[-1].endswith("Call Trace:")
    with pytest.raises(GuestError):
        console.expect("anything", soon())
    console.close()


def test_after_a_reboot_the_old_panic_is_past() -> None:
    stream = ScriptedStream([PANIC])
    console = Console("g", stream)
    with pytest.raises(GuestError):
        console.expect(LOGIN, soon())
    console.forget_panic()
    stream.feed(b"Debian GNU/Linux 12\r\nhost login: ")
    console.expect(LOGIN, soon())
    stream.feed(PANIC)
    with pytest.raises(GuestError):
        console.expect("never", soon())
    console.close()


def test_the_end_of_the_stream_ends_a_wait() -> None:
    console = Console("g", ScriptedStream([b"last words\r\n"], ends=True))
    with pytest.raises(LabError, match="console ended") as caught:
        console.expect("login:", soon(60))
    assert caught.value.console == ("last words",)
    console.close()


def test_a_flood_is_searched_to_its_end() -> None:
    line = b"x" * 78 + b"\r\n"
    chunk = line * 800
    blocks = (100 << 20) // len(chunk)
    script = (chunk if number < blocks else b"the end" for number in range(blocks + 1))
    console = Console("g", ScriptedStream(script))
    met = console.expect("the end", soon(60))
    assert met.before.endswith(line)
    assert len(met.before) <= 40 << 20
    console.close()


def test_a_flood_without_end_meets_its_deadline() -> None:
    class Flood(ScriptedStream):
        def read(self, limit: int = 65536) -> bytes:
            return b"" if self._closed else b"y" * 65536

    console = Console("g", Flood())
    with pytest.raises(DeadlineExceeded):
        console.expect("login:", soon(0.5))
    console.close()


# log-in


GETTY = r"""
stty -echo
tries=0
while :; do
  printf '\r\nDebian GNU/Linux 12 host ttyS0\r\n\r\nhost login: '
  IFS= read -r user || exit
  [ "$user" ] || continue
  printf 'Password: '
  IFS= read -r word
  printf '\r\n'
  if [ "$user/$word" = root/secret ]; then
    printf 'Last login: Mon Jan  1 00:00:00 UTC 2024 on ttyS0\r\n'
    stty echo
    PS1='root@host:~# ' exec dash -i
  fi
  printf 'Login incorrect\r\n'
done
"""


@pytest.fixture
def getty() -> Iterator[Console]:
    console = Console("guest", PtyStream(["dash", "-c", GETTY]))
    yield console
    console.close()


def test_log_in_by_prompts(getty: Console) -> None:
    getty.expect(LOGIN, soon())
    getty.login("root", "secret", soon())
    assert getty.run("echo $((6 * 7))", soon()).output == "42\n"


def test_log_in_with_a_wrong_password(getty: Console) -> None:
    with pytest.raises(InventoryError, match="does not let root log in"):
        getty.login("root", "wrong", soon())


def test_log_in_without_the_password_it_asks_for(getty: Console) -> None:
    with pytest.raises(InventoryError, match="asks root for a password"):
        getty.login("root", None, soon())


def test_a_console_that_is_logged_in_already() -> None:
    console = Console("guest", PtyStream(["dash", "-i"]))
    console.login("root", None, soon())
    assert console.run("echo in", soon()).output == "in\n"
    console.close()


BOOTING = r"""
stty -echo
printf 'em0: flags=8843<UP,BROADCAST>'
IFS= read -r _; IFS= read -r _
printf ' metric 0 mtu 1500\r\n\r\nhost login: '
IFS= read -r user
[ "$user" = root ] || exit
stty echo
PS1='root@host:~# ' exec dash -i
"""


def test_half_a_line_of_a_boot_log_is_no_prompt() -> None:
    console = Console("guest", PtyStream(["dash", "-c", BOOTING]))
    console.login("root", None, soon())
    assert console.run("echo in", soon()).output == "in\n"
    console.close()


def test_a_kernel_line_does_not_hide_a_prompt() -> None:
    console = Console("guest", ScriptedStream([b"BusyBox v1.35\r\n# \x1b[6n" + LINUX * 2]))
    assert console.expect(PROMPT, soon()).index == 0
    console.close()


@pytest.mark.parametrize(
    "last",
    [
        b"Enter full pathname of shell or RETURN for /bin/sh: ",
        b"Enter full pathname of shell or RETURN for /bin/sh: \r\n# ",
        b"Enter root password, or ^D to go multi-user\r\nPassword:",
        b"  ?               List valid disk boot devices\r\n\r\nmountroot> ",
    ],
)
def test_a_rescue_shell_is_no_log_in(last: bytes) -> None:
    boot = b"THE FOLLOWING FILE SYSTEM HAD AN UNEXPECTED INCONSISTENCY:\r\n"
    console = Console("guest", ScriptedStream([boot + last]))
    with pytest.raises(GuestError, match="did not come up") as caught:
        console.login("root", None, soon(), rescue=FreebsdGuest.rescue)
    assert "UNEXPECTED" in "".join(caught.value.console)
    console.close()


def test_a_shell_that_is_none_is_told_of() -> None:
    console = Console("guest", ScriptedStream([b"host login: "]))
    with pytest.raises(DeadlineExceeded) as caught:
        console.run("true", soon(0.3))
    assert caught.value.hint
    assert "host login:" in caught.value.console[-1]
    console.close()
