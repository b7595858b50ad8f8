"""What happened, for whoever listens.

Drivers of hosts, guests and consoles *emit*; reports, progress displays and logs
*subscribe*.  Nothing below :mod:`hil.reporting` knows that a report exists.

Events are small frozen values.  A subscriber that raises is dropped with a note
on stderr: a broken report must not fail a test, nor hide what the test found.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; ``at`` is seconds since the epoch (``time.time()``)."""

    at: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True, slots=True)
class StepStarted(Event):
    """An operation a reader of the report cares about began."""

    id: int
    title: str


@dataclass(frozen=True, slots=True)
class StepFinished(Event):
    """The operation with the same ``id`` ended; ``error`` is empty if it went well."""

    id: int
    title: str
    seconds: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class CommandRun(Event):
    """A command ran to its end on ``where`` (a host or guest name)."""

    where: str
    command: str
    status: int
    seconds: float
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class ConsoleLine(Event):
    """One whole line that ``where``'s console printed, decoded leniently."""

    where: str
    text: str


@dataclass(frozen=True, slots=True)
class PhaseReached(Event):
    """A host, guest or device came to a phase (``boot``, ``assigned``, ``login`` …)."""

    subject: str
    phase: str


@dataclass(frozen=True, slots=True)
class Evidence(Event):
    """Something a report should keep: ``data`` of media type ``kind``."""

    name: str
    data: bytes
    kind: str = "text/plain"


Subscriber = Callable[[Event], None]

_lock = threading.RLock()
_subscribers: list[Subscriber] = []
_numbers = itertools.count(1)


def emit(event: Event) -> None:
    """Hand ``event`` to every subscriber, in the order they subscribed."""
    with _lock:
        subscribers = tuple(_subscribers)
    for subscriber in subscribers:
        try:
            subscriber(event)
        except Exception as error:  # noqa: BLE001 - whatever a listener raises
            _drop(subscriber, error)


def _drop(subscriber: Subscriber, error: Exception) -> None:
    with _lock, contextlib.suppress(ValueError):
        _subscribers.remove(subscriber)
    print(f"hil: a listener of events failed and was dropped: {error!r}", file=sys.stderr)


@contextlib.contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """While the block runs, ``subscriber`` hears every event of every thread."""
    with _lock:
        _subscribers.append(subscriber)
    try:
        yield
    finally:
        with _lock, contextlib.suppress(ValueError):
            _subscribers.remove(subscriber)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Emit the start and the end of an operation around the block."""
    number = next(_numbers)
    emit(StepStarted(number, title))
    begin = time.monotonic()
    error = ""
    try:
        yield
    except BaseException as exception:
        error = f"{type(exception).__name__}: {exception}".splitlines()[0]
        raise
    finally:
        emit(StepFinished(number, title, time.monotonic() - begin, error))
