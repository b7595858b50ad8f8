"""Questions to a lasting program, and what becomes of one that does not answer."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence

import pytest

from hil.deadline import Deadline
from hil.errors import DeadlineExceeded
from hil.transport.agent import Agent, AgentEndedError, AgentError


class Scripted:
    """A transport and stream in one, whose far end answers as it is told."""

    name = "host"

    def __init__(self, *answers: bytes | BaseException) -> None:
        self.asked: list[bytes] = []
        self._answers = list(answers)
        self._ready: queue.Queue[bytes] = queue.Queue()
        self._ready.put(b'{"ok": 1}\n')

    def open_stream(self, command: Sequence[str], *, deadline: Deadline) -> Scripted:
        return self

    def write(self, data: bytes) -> None:
        self.asked.append(data)
        if self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            self._ready.put(answer)

    def read(self, limit: int = 65536) -> bytes:
        return self._ready.get()

    def close(self) -> None:
        self._ready.put(b"")


def agent_of(far_end: Scripted) -> Agent:
    return Agent(far_end, "code", Deadline(10, "the start"))  # type: ignore[arg-type]


def test_answers_come_back_past_noise_and_errors_keep_it_going() -> None:
    agent = agent_of(Scripted(b'a warning\n{"ok": [1]}\n', b'{"error": "no"}\n', b'{"ok": 2}\n'))
    assert agent.ask("one", Deadline(10, "x")) == [1]
    with pytest.raises(AgentError, match="two failed on host"):
        agent.ask("two", Deadline(10, "x"))
    assert not agent.ended
    assert agent.ask("three", Deadline(10, "x")) == 2


def test_one_that_does_not_answer_is_ended_at_the_deadline() -> None:
    agent = agent_of(Scripted())
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="for an answer"):
        agent.ask("silence", Deadline(0.2, "an answer"))
    assert time.monotonic() - begin < 30, "it would hang for ever"
    assert agent.ended


def test_one_that_ended_says_what_it_last_said() -> None:
    agent = agent_of(Scripted(b"Traceback: boom\n", b""))
    agent._stream.write(b"")
    agent._stream.close()
    with pytest.raises(AgentEndedError, match="ended during it") as error:
        agent.ask("it", Deadline(10, "x"))
    assert "boom" in error.value.seen
    assert agent.ended
