"""What is gathered during a test, and its bounds."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from hil import events
from hil.events import CommandRun, ConsoleLine, Event, Evidence, PhaseReached
from hil.reporting import collector as module
from hil.reporting.collector import Collector, Line, Record, Tape


def gather(*what: Event) -> Record:
    collector = Collector()
    with collector.recording() as record:
        for event in what:
            collector(event)
    return record


def test_the_log_is_merged_by_time_with_its_sources() -> None:
    start = 1000.0
    record = gather(
        ConsoleLine("guest", "login:", at=start + 3),
        CommandRun("host", "lspci -n", 1, 0.5, "one\ntwo\n", "bad\n", at=start + 2),
        PhaseReached("guest", "ready", at=start + 4),
    )
    assert record.tape.render(start).splitlines() == [
        "   +1.500  host   $ lspci -n",
        "   +2.000  host     one",
        "   +2.000  host     two",
        "   +2.000  host   ! bad",
        "   +2.000  host   = status 1",
        "   +3.000  guest  | login:",
        "   +4.000  guest  = ready",
    ]


def test_a_flood_keeps_head_and_tail_and_says_how_much_is_missing() -> None:
    record = gather(*(ConsoleLine("guest", f"line {n}") for n in range(200_000)))
    log = record.log()
    assert len(log) < 3 * module.LOG_LIMIT
    assert "| line 0\n" in log
    assert log.endswith("| line 199999")
    assert f"{record.tape.left_out} lines left out here" in log
    kept = sum("| line" in line for line in log.splitlines())
    assert kept + record.tape.left_out == 200_000


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(20, 400))
def test_a_tape_never_holds_more_than_its_limit_and_one_line(sizes: list[int], limit: int) -> None:
    tape = Tape(limit)
    for number, size in enumerate(sizes):
        tape.add(Line(number, "s", "x" * size))
    rows = tape.render(0).splitlines()
    held = sum(len(row) - 14 for row in rows if "lines left out" not in row)
    assert held <= limit + 61
    assert len([r for r in rows if "lines left out" not in r]) + tape.left_out == len(sizes)


def test_a_long_line_and_a_long_output_are_cut() -> None:
    record = gather(
        ConsoleLine("g", "x" * 1_000_000),
        CommandRun("h", "cat big", 0, 0, "y" * 1_000_000, ""),
    )
    assert len(record.log()) < 20_000
    assert record.log().count("characters left out") == 2


def test_output_that_is_not_text_is_told_but_not_shown() -> None:
    raw = bytes(range(256)).decode("utf-8", "replace")
    record = gather(CommandRun("h", "cat x", 0, 0, raw, ""), CommandRun("h", "a", 0, 0, "ö", ""))
    assert record.log().splitlines()[1].endswith("(256 characters that are not text)")
    assert record.log().endswith("ö")


def test_secrets_and_control_characters_never_reach_a_record() -> None:
    record = gather(
        ConsoleLine("g", "\x1b[1mpassword: hunter2"),
        CommandRun("h", "login --password=hunter2", 0, 0, "token=hunter2", "secret: hunter2"),
        Evidence("e", b"password=hunter2 \xff\x00", "text/plain"),
    )
    whole = record.log() + record.evidence[0].data.decode()
    assert "hunter2" not in whole
    assert "\x1b" not in whole
    assert "\x00" not in whole


def test_evidence_is_bounded_in_size_and_number() -> None:
    limit = module.EVIDENCE_LIMIT
    record = gather(
        Evidence("text", b"a" * (limit + 100)),
        Evidence("picture", b"b" * (limit + 100), "image/png"),
        Evidence("small", b"\x89PNG", "image/png"),
        *(Evidence(str(n), b"") for n in range(100)),
    )
    assert len(record.evidence[0].data) < limit + 100
    assert b"characters left out" in record.evidence[0].data
    assert record.evidence[1].kind == "text/plain"
    assert b"left out" in record.evidence[1].data
    assert record.evidence[2].data == b"\x89PNG"
    assert len(record.evidence) == module.EVIDENCE_COUNT
    assert len(record.evidence_left_out) == 103 - module.EVIDENCE_COUNT
    assert record.evidence_left_out[-1] == "99 (0 bytes)"


def test_steps_nest_within_a_thread_and_errors_are_kept() -> None:
    collector = Collector()
    with events.subscribed(collector), collector.recording() as record:

        def other() -> None:
            with events.step("beside"):
                pass

        try:
            with events.step("outer"):
                with events.step("inner"):
                    assert collector.current_step == "inner"
                    thread = threading.Thread(target=other)
                    thread.start()
                    thread.join()
                raise ValueError("it broke")
        except ValueError:
            pass
        with events.step("after"):
            pass
    titles = [(s.title, [i.title for i in s.steps], s.error) for s in record.steps]
    assert titles == [
        ("outer", ["inner"], "ValueError: it broke"),
        ("beside", [], ""),
        ("after", [], ""),
    ]
    assert collector.current_step == ""


def test_a_step_that_never_ended_says_so_and_the_next_test_is_clean() -> None:
    collector = Collector()
    with collector.recording() as first:
        collector(events.StepStarted(1, "hangs"))
    with collector.recording() as second:
        collector(events.StepStarted(2, "fine"))
        collector(events.StepFinished(1, "hangs", 5))
        collector(events.StepFinished(2, "fine", 1))
    assert first.steps[0].seconds is None
    assert [step.title for step in second.steps] == ["fine"]


def test_what_happens_between_tests_is_passed_over() -> None:
    collector = Collector()
    collector(ConsoleLine("g", "early"))
    with collector.recording() as record:
        pass
    collector(ConsoleLine("g", "late"))
    assert record.log() == ""
