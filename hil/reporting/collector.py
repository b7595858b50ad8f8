"""Gathers what happened during a test, within bounds, from :mod:`hil.events`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hil.events import (
    CommandRun,
    ConsoleLine,
    Event,
    Evidence,
    PhaseReached,
    StepFinished,
    StepStarted,
)
from hil.reporting.text import KeyBlocks, clean, cut_middle, one_line, redact

#: Characters of the merged log that are kept, half of them from its end.
LOG_LIMIT = 256 * 1024
#: Characters of a command's output that the merged log keeps.
OUTPUT_LIMIT = 8 * 1024
#: Characters at the beginning of an output that tell whether it is text.
SAMPLE = 2048
#: Characters of a command that it keeps; longer ones are scripts of ours.
COMMAND_LIMIT = 400
#: Longest line of a console that the merged log keeps, in characters.
LINE_LIMIT = 2000
#: Bytes of one evidence; a longer text is cut in its middle, other data is left out.
EVIDENCE_LIMIT = 2 * 1024 * 1024
#: Pieces of evidence, and steps, that one test keeps.
EVIDENCE_COUNT, STEP_COUNT = 50, 500


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the merged log; ``at`` is seconds since the epoch."""

    at: float
    source: str
    text: str


@dataclass(slots=True)
class Step:
    """An operation and those within it; ``seconds`` is ``None`` if it never ended."""

    title: str
    at: float
    seconds: float | None = None
    error: str = ""
    steps: list[Step] = field(default_factory=list)


class Tape:
    """Lines up to a number of characters: the first half as they came, then the newest."""

    def __init__(self, limit: int = LOG_LIMIT) -> None:
        self._half = limit // 2
        self._head: list[Line] = []
        self._tail: deque[Line] = deque()
        self._head_size = self._tail_size = 0
        self.left_out = 0
        """Lines that were dropped between the two."""

    def add(self, line: Line) -> None:
        size = len(line.text) + 1
        if not self._tail and self._head_size + size <= self._half:
            self._head.append(line)
            self._head_size += size
            return
        self._tail.append(line)
        self._tail_size += size
        while self._tail_size > self._half and len(self._tail) > 1:
            self._tail_size -= len(self._tail.popleft().text) + 1
            self.left_out += 1

    def render(self, start: float) -> str:
        """The log as text: seconds since ``start``, source and text in columns, by time."""

        def rows(lines: list[Line]) -> Iterator[str]:
            for line in sorted(lines, key=lambda line: line.at):
                yield f"{line.at - start:+9.3f}  {line.source:<{width}}  {line.text}"

        kept = [*self._head, *self._tail]
        width = max((len(line.source) for line in kept), default=0)
        if not self.left_out:
            return "\n".join(rows(kept))
        cut = f"           … {self.left_out} lines left out here: the log is over its limit …"
        return "\n".join([*rows(self._head), cut, *rows(list(self._tail))])


@dataclass(slots=True)
class Record:
    """All that was gathered during one test."""

    start: float = field(default_factory=time.time)
    tape: Tape = field(default_factory=Tape)
    steps: list[Step] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    phases: list[PhaseReached] = field(default_factory=list)
    evidence_left_out: list[str] = field(default_factory=list)
    """What was left out: ``name (bytes)``."""
    steps_left_out: int = 0

    def log(self) -> str:
        """The merged log, or nothing."""
        return self.tape.render(self.start)


class Collector:
    """A subscriber that keeps one :class:`Record` for the test that runs now.

    What happens while no test runs is passed over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._record: Record | None = None
        self._open: dict[int, Step] = {}
        self._stacks: dict[int, list[int]] = {}
        self._keys: defaultdict[str, KeyBlocks] = defaultdict(KeyBlocks)
        self._count = 0

    @contextlib.contextmanager
    def recording(self) -> Iterator[Record]:
        """A fresh record, which fills while the block runs."""
        record = Record()
        with self._lock:
            self._record, self._count = record, 0
            self._open.clear()
            self._stacks.clear()
        try:
            yield record
        finally:
            with self._lock:
                self._record = None

    @property
    def current_step(self) -> str:
        """Title of the innermost operation now under way, for progress; may be empty."""
        with self._lock:
            return next(reversed(self._open.values())).title if self._open else ""

    def __call__(self, event: Event) -> None:
        with self._lock:
            record = self._record
            if record is None:
                return
            match event:
                case StepStarted():
                    self._begin(record, event)
                case StepFinished():
                    self._end(event)
                case CommandRun():
                    _add_command(record.tape, event)
                case ConsoleLine():
                    text = self._keys[event.where].redact(clean(event.text))
                    text = cut_middle(text, LINE_LIMIT).replace("\n", " ")
                    record.tape.add(Line(event.at, event.where, f"| {text}"))
                case PhaseReached():
                    subject, phase = one_line(event.subject), one_line(event.phase)
                    record.phases.append(PhaseReached(subject, phase, at=event.at))
                    record.tape.add(Line(event.at, subject, f"= {phase}"))
                case Evidence():
                    _add_evidence(record, event)
                case _:
                    pass

    def _begin(self, record: Record, event: StepStarted) -> None:
        self._count += 1
        if self._count > STEP_COUNT:
            record.steps_left_out += 1
            return
        step = Step(one_line(event.title), event.at)
        # Steps nest within a thread; one of another thread stands beside.
        stack = self._stacks.setdefault(threading.get_ident(), [])
        parent = self._open.get(stack[-1]) if stack else None
        (parent.steps if parent else record.steps).append(step)
        stack.append(event.id)
        self._open[event.id] = step

    def _end(self, event: StepFinished) -> None:
        step = self._open.pop(event.id, None)
        if step is None:
            return
        step.seconds, step.error = event.seconds, one_line(event.error, 1000)
        stack = self._stacks.get(threading.get_ident(), [])
        if event.id in stack:
            del stack[stack.index(event.id) :]


def _add_command(tape: Tape, event: CommandRun) -> None:
    # Its time is that of its end; the command itself is shown where it began.
    text = cut_middle(redact(clean(event.command)), COMMAND_LIMIT)
    first, *rest = text.splitlines() or [""]
    began = event.at - event.seconds
    tape.add(Line(began, event.where, f"$ {first}"))
    for line in rest:
        tape.add(Line(began, event.where, f"> {line}"))
    for mark, output in (("  ", event.stdout), ("! ", event.stderr)):
        for line in _as_text(output).splitlines():
            tape.add(Line(event.at, event.where, mark + line))
    if event.status:
        tape.add(Line(event.at, event.where, f"= status {event.status}"))


def _as_text(output: str) -> str:
    # Its beginning is judged first: to clean 64 KiB of a memory's contents takes milliseconds.
    if _is_text(beginning := clean(output[:SAMPLE])):
        text = beginning if len(output) <= SAMPLE else clean(output)
        if _is_text(text):
            return cut_middle(redact(text), OUTPUT_LIMIT)
    return f"({len(output)} characters that are not text)"


def _is_text(cleaned: str) -> bool:
    return cleaned.count("\N{REPLACEMENT CHARACTER}") <= 8 + len(cleaned) // 20


def _add_evidence(record: Record, event: Evidence) -> None:
    name, size = one_line(event.name, 120), len(event.data)
    if len(record.evidence) >= EVIDENCE_COUNT:
        record.evidence_left_out.append(f"{name} ({size} bytes)")
        return
    if event.kind.startswith("text/") or event.kind == "application/json":
        text = redact(clean(event.data.decode("utf-8", "replace")))
        data = cut_middle(text, EVIDENCE_LIMIT).encode()
        event = replace(event, data=data)
    elif size > EVIDENCE_LIMIT:
        words = f"{size} bytes of {event.kind}: over the limit, left out"
        event = replace(event, data=words.encode(), kind="text/plain")
    record.evidence.append(replace(event, name=name))
