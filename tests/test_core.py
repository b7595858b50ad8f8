"""Errors, deadlines and events."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil import events
from hil.deadline import Deadline, poll
from hil.errors import (
    CommandError,
    DeadlineExceeded,
    Fault,
    GuestError,
    HilError,
    InventoryError,
    LabError,
    ProductError,
)


@pytest.mark.parametrize(
    ("kind", "fault", "code"),
    [
        (ProductError, Fault.PRODUCT, 1),
        (GuestError, Fault.GUEST, 3),
        (LabError, Fault.LAB, 4),
        (InventoryError, Fault.INVENTORY, 5),
        (DeadlineExceeded, Fault.LAB, 4),
    ],
)
def test_each_error_says_whose_fault_it_was(kind: type[HilError], fault: Fault, code: int) -> None:
    assert (kind("x").fault, kind("x").exit_code) == (fault, code)


def test_an_error_explains_itself() -> None:
    error = LabError(
        "no answer",
        seen="one\ntwo",
        hint="look at the cable",
        host="lab1",
        command=["echo", "a b"],
        console=[f"line {n}" for n in range(50)],
    )
    lines = str(error).splitlines()
    assert lines[:5] == [
        "no answer",
        "  host:    lab1",
        "  command: echo 'a b'",
        "  seen:    one",
        "           two",
    ]
    assert "line 19" not in str(error)
    assert lines[5].endswith("line 20")
    assert lines[-1] == "  next:    look at the cable"


@given(st.text(max_size=20_000))
def test_what_was_seen_is_bounded(text: str) -> None:
    limit = LabError.SEEN_LIMIT
    shown = LabError("x", seen=text).explain()
    # Each line of it may be indented by 11 characters.
    assert len(shown) <= 12 * (limit + 100)
    if len(text.strip()) > limit:
        assert f"{len(text.strip()) - limit} characters left out" in shown


def test_a_command_that_failed_keeps_both_its_outputs() -> None:
    error = CommandError(["ls", "/x"], 2, host="h", stdout="out\n", stderr="No such file\n")
    assert error.message == "ls ended with status 2"
    assert error.seen == "No such file\nout"
    assert (error.status, error.host, error.command) == (2, "h", ("ls", "/x"))


def test_a_part_of_an_operation_never_ends_after_the_whole() -> None:
    whole = Deadline(5, "the whole")
    assert whole.within(1, "a part").remaining <= 1
    assert whole.within(100, "a part").remaining <= 5
    assert Deadline(float("inf"), "ever").within(2, "a part").remaining <= 2


def test_an_expired_deadline_says_what_was_waited_for() -> None:
    gone = Deadline(0, "the bus")
    assert gone.expired
    assert gone.remaining == 0
    with pytest.raises(DeadlineExceeded, match="for the bus, in vain") as caught:
        gone.check("half a ticket")
    assert caught.value.seen == "half a ticket"
    Deadline(60, "x").check()


def test_poll_returns_the_first_answer_and_gives_zero_for_one() -> None:
    answers = iter([None, False, 0, 1])
    assert poll(lambda: next(answers), Deadline(60, "x"), interval=0.001) == 0


def test_poll_tries_once_even_without_time_and_tells_what_it_saw() -> None:
    tries: list[int] = []
    assert poll(lambda: "here", Deadline(0, "x")) == "here"
    with pytest.raises(DeadlineExceeded) as caught:
        poll(lambda: tries.append(1), Deadline(0, "x"), last_seen=lambda: "nothing yet")
    assert tries == [1]
    assert caught.value.seen == "nothing yet"


def test_events_come_in_order_and_only_while_subscribed() -> None:
    heard: list[events.Event] = []
    with events.subscribed(heard.append):
        with events.step("outer"), pytest.raises(ValueError, match="bad"), events.step("inner"):
            raise ValueError("bad\nvery")
        events.emit(events.PhaseReached("guest", "boot"))
    events.emit(events.PhaseReached("guest", "late"))
    kinds = [type(event).__name__ for event in heard]
    assert kinds == ["StepStarted", "StepStarted", "StepFinished", "StepFinished", "PhaseReached"]
    _, inner, ended, outer, _ = heard
    assert isinstance(inner, events.StepStarted)
    assert isinstance(ended, events.StepFinished)
    assert isinstance(outer, events.StepFinished)
    assert (ended.id, ended.error, outer.error) == (inner.id, "ValueError: bad", "")


def test_a_listener_that_fails_is_dropped_and_the_others_hear(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[events.Event] = []

    def broken(_event: events.Event) -> None:
        raise RuntimeError("no disk")

    with events.subscribed(broken), events.subscribed(heard.append):
        events.emit(events.PhaseReached("a", "1"))
        events.emit(events.PhaseReached("a", "2"))
    assert len(heard) == 2
    assert capsys.readouterr().err.count("no disk") == 1


def test_steps_of_many_threads_have_numbers_of_their_own() -> None:
    heard: list[events.Event] = []

    def work() -> None:
        for _ in range(50):
            with events.step("x"):
                pass

    with events.subscribed(heard.append):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    started = [event.id for event in heard if isinstance(event, events.StepStarted)]
    assert len(started) == len(set(started)) == 200
