from __future__ import annotations

import re
import threading
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hil import events
from hil.console.log import ConsoleLog
from hil.deadline import Deadline, poll
from hil.errors import LabError
from tests.console.streams import ScriptedStream

MIB = 1 << 20


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline(seconds, "a test's step")


def ended(log: ConsoleLog) -> ConsoleLog:
    poll(lambda: log.ended, soon(), interval=0.001)
    return log


def test_text_tail_and_lines() -> None:
    stream = ScriptedStream([b"one\r\ntwo\r\nth", b"ree\r\nfo\x1b[1mur"], ends=True)
    log = ended(ConsoleLog("g", stream))
    assert log.text() == "one\r\ntwo\r\nthree\r\nfo\x1b[1mur"
    assert log.tail(2) == ("three", "four")
    assert [line for _, line in log.lines()] == ["one", "two", "three", "four"]
    assert log.end == len(log.text())


def test_a_follower_begins_where_it_is_told() -> None:
    stream = ScriptedStream([b"early "])
    log = ConsoleLog("g", stream)
    poll(lambda: log.end == 6, soon(), interval=0.001)
    now, start = log.follow(), log.follow(0)
    assert now.read(0) is None
    stream.feed(b"late")
    assert now.read(5) == b"late"
    got = b""
    while len(got) < 10:
        got += start.read(5) or b""
    assert got == b"early late"
    stream.end()
    assert now.read(5) == b""
    log.close()


@settings(max_examples=50, deadline=None)
@given(chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=20))
def test_nothing_is_lost_or_changed(chunks: list[bytes]) -> None:
    log = ended(ConsoleLog("g", ScriptedStream(chunks, ends=True)))
    cursor, got = log.follow(0), b""
    while chunk := cursor.read(5):
        got += chunk
    assert got == b"".join(chunks)


def test_the_file_has_every_line_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "console.log"
    chunks = [b"a\r\nb", b"c\r\n", b"\r\n", b"\xff\xfe\n", b"rest"]
    log = ended(ConsoleLog("g", ScriptedStream(chunks, ends=True), path=path))
    log.close()
    lines = path.read_bytes().split(b"\n")
    assert all(re.match(rb"\[ {4}0\.\d{3}\] ", line[:12]) for line in lines)
    assert [line[12:] for line in lines] == [b"a\r", b"bc\r", b"\r", b"\xff\xfe", b"rest"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    block = b"".join(b"%07d\n" % number for number in range(8192))
    log = ended(ConsoleLog("g", ScriptedStream([block] * 320, ends=True), limit=MIB))
    assert len(log.text()) <= 3 * MIB
    cursor = log.follow(0)
    first = cursor.read(0) or b""
    assert cursor.lost > 0
    assert cursor.lost + len(first) == cursor.position


def test_with_a_file_a_slow_follower_loses_nothing(tmp_path: Path) -> None:
    blocks = [bytes([65 + number % 26]) * 65535 + b"\n" for number in range(160)]
    stream = ScriptedStream(blocks, ends=True)
    log = ended(ConsoleLog("g", stream, path=tmp_path / "log", limit=MIB))
    cursor, got = log.follow(0), bytearray()
    while chunk := cursor.read(0):
        got += chunk
    assert got == b"".join(blocks)
    assert cursor.lost == 0


def test_lines_are_told_to_listeners_whole_and_in_order() -> None:
    heard: list[events.ConsoleLine] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.ConsoleLine) and event.where == "told":
            heard.append(event)

    with events.subscribed(listen):
        log = ConsoleLog("told", ScriptedStream([b"one\r\nt", b"wo\r\nthree"], ends=True))
        log.close()
    assert [event.text for event in heard] == ["one", "two", "three"]


def test_a_listener_that_blocks_does_not_stop_the_reader() -> None:
    gate = threading.Event()

    def listen(event: events.Event) -> None:
        gate.wait(20)

    with events.subscribed(listen):
        log = ConsoleLog("g", ScriptedStream([b"line\n" * 10_000] * 40, ends=True))
        ended(log)
        assert log.end == 2_000_000
        gate.set()
        log.close()


def test_under_a_flood_listeners_hear_a_bounded_share() -> None:
    heard: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.ConsoleLine) and event.where == "flood":
            heard.append(event.text)

    with events.subscribed(listen):
        log = ConsoleLog("flood", ScriptedStream([b"x" * 63 + b"\n"] * 100_000, ends=True))
        log.close()
    assert len(heard) < 50_000
    assert any("not shown here" in line for line in heard)
    assert log.end == 6_400_000


def test_a_panic_is_seen_wherever_chunks_are_cut() -> None:
    text = b"boot\r\n[    1.234567] Kernel panic - not syncing: no root\r\nmore\r\n"
    for cut in range(1, len(text)):
        log = ended(ConsoleLog("g", ScriptedStream([text[:cut], text[cut:]], ends=True)))
        assert log.panic is not None, cut
        assert log.panic.line.endswith("no root")


def test_a_debuggers_prompt_needs_no_end_of_line() -> None:
    log = ended(ConsoleLog("g", ScriptedStream([b"stopped\r\n", b"db> "], ends=True)))
    assert log.panic is not None
    assert log.panic.kind == "debugger"


def test_a_stall_is_noted_and_not_fatal() -> None:
    line = b"[   60.000000] rcu: INFO: rcu_sched self-detected stall on CPU\r\n"
    log = ended(ConsoleLog("g", ScriptedStream([line], ends=True)))
    assert log.panic is None
    assert [notice.kind for notice in log.notices] == ["stall"]


def test_why_the_stream_ended() -> None:
    class Broken(ScriptedStream):
        def read(self, limit: int = 65536) -> bytes:
            raise LabError("the line was cut")

    log = ended(ConsoleLog("g", Broken()))
    assert "the line was cut" in log.failure


def test_a_never_ending_line_is_followed(tmp_path: Path) -> None:
    log = ended(ConsoleLog("g", ScriptedStream([b"panic: " * 9000] * 100, ends=True)))
    assert log.panic is None
    assert len(log.tail(3)) == 1
    assert log.end == 6_300_000


def test_who_wants_to_know_of_a_panic_is_told_once() -> None:
    told: list[str] = []
    stream = ScriptedStream()
    log = ConsoleLog("g", stream)
    log.when_panicked = lambda: told.append("panicked")
    for line in (
        b"hello\r\n",
        b"[    1.0] x\r\n",
        b"panic: one\r\npanic: two\r\n",
        b"panic: 3\r\n",
    ):
        stream.feed(line)
    stream.end()
    ended(log)
    assert told == ["panicked"]
