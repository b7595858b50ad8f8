"""QEMU's monitor, spoken with a program that answers as QEMU does."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hil.deadline import poll
from hil.errors import DeadlineExceeded, LabError
from hil.qmp import Monitor
from tests.fakes import soon

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}, "capabilities": []}}
Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


class Qemu:
    """Answers each command by ``answer``; ``None`` says nothing at all."""

    def __init__(self, answer: Answer) -> None:
        self.near, self._far = socket.socketpair()
        self._answer = answer
        self.asked: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def tell(self, message: dict[str, Any]) -> None:
        self._far.sendall(json.dumps(message).encode() + b"\r\n")

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        self.tell(GREETING)
        for request in self._requests():
            self.asked.append(request)
            if request["execute"] == "qmp_capabilities":
                answer: dict[str, Any] | None = {"return": {}}
            else:
                answer = self._answer(request)
            if answer is not None:
                self.tell(answer | {"id": request.get("id")})

    def _requests(self) -> Iterator[dict[str, Any]]:
        """JSON objects one after the other; no line's end need stand between them."""
        text = ""
        while data := self._far.recv(65536):
            text += data.decode()
            while text.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                yield request

    def close(self) -> None:
        self._far.close()
        self._thread.join(5)


@pytest.fixture
def start() -> Iterator[Callable[[Answer], tuple[Qemu, Monitor]]]:
    running: list[tuple[Qemu, Monitor]] = []

    def start(answer: Answer) -> tuple[Qemu, Monitor]:
        qemu = Qemu(answer)
        running.append((qemu, Monitor(qemu.near, "g1", soon())))
        return running[-1]

    yield start
    for qemu, monitor in running:
        qemu.hang_up()
        monitor.close()
        monitor.close()
        qemu.close()


Start = Callable[[Answer], tuple[Qemu, Monitor]]


def test_a_command_is_asked_and_answered(start: Start) -> None:
    qemu, monitor = start(lambda _: {"return": {"status": "running"}})
    assert monitor.execute("query-status", soon()) == {"status": "running"}
    monitor.execute("blockdev-add", soon(), node_name="x", read_only=True)
    assert qemu.asked[-1]["arguments"] == {"node-name": "x", "read-only": True}


def test_a_human_command_gives_its_text(start: Start) -> None:
    qemu, monitor = start(lambda _: {"return": "VLAN 0\r\n"})
    assert monitor.human("info usernet", soon()) == "VLAN 0\r\n"
    assert qemu.asked[-1]["arguments"] == {"command-line": "info usernet"}


def test_a_refusal_is_told_in_qemu_s_words(start: Start) -> None:
    error = {"class": "GenericError", "desc": "vfio 0000:01:00.0: group 14 is not viable"}
    _, monitor = start(lambda _: {"error": error})
    with pytest.raises(LabError, match="QEMU refused device_add for g1") as caught:
        monitor.execute("device_add", soon())
    assert "group 14 is not viable" in caught.value.seen


def test_silence_ends_at_the_deadline(start: Start) -> None:
    _, monitor = start(lambda _: None)
    with pytest.raises(DeadlineExceeded):
        monitor.execute("query-status", soon(0.05))


def test_a_late_answer_is_not_taken_for_the_next_one_s(start: Start) -> None:
    late: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any] | None:
        if request["execute"] == "slow":
            late.append({"return": "old", "id": request["id"]})
            return None
        return {"return": "new"}

    qemu, monitor = start(answer)
    with pytest.raises(DeadlineExceeded):
        monitor.execute("slow", soon(0.05))
    qemu.tell(late[0])
    assert monitor.execute("quick", soon()) == "new"


def test_a_qemu_that_ends_is_said_at_once(start: Start) -> None:
    started: list[Qemu] = []

    def answer(_: dict[str, Any]) -> None:
        started[0].hang_up()

    qemu, monitor = start(answer)
    started.append(qemu)
    with pytest.raises(LabError, match="monitor of g1 is gone"):
        monitor.execute("quit", soon())
    with pytest.raises(LabError):
        monitor.execute("query-status", soon())


def test_events_are_told_once(start: Start) -> None:
    qemu, monitor = start(lambda _: {"return": {}})
    stamp = {"seconds": 1, "microseconds": 0}
    qemu.tell({"event": "RESET", "timestamp": stamp, "data": {}})
    qemu.tell({"event": "SHUTDOWN", "timestamp": stamp, "data": {}})
    heard: list[str] = []

    def both() -> bool:
        heard.extend(monitor.events())
        return len(heard) == 2

    poll(both, soon(), interval=0.001)
    assert heard == ["RESET", "SHUTDOWN"]
    assert monitor.events() == []


def test_what_is_no_monitor_is_said() -> None:
    near, far = socket.socketpair()
    far.sendall(b"login: \r\n")
    with pytest.raises(LabError):
        Monitor(near, "g1", soon())
    far.close()


def test_a_monitor_that_does_not_greet_is_waited_for_no_longer_than_said() -> None:
    near, far = socket.socketpair()
    with pytest.raises(DeadlineExceeded, match="a test's step"):
        Monitor(near, "g1", soon(0.05))
    far.close()


def test_no_socket_at_all_is_said() -> None:
    with pytest.raises(LabError):
        Monitor("/nonexistent/monitor", "g1", soon())


def test_many_threads_may_ask(start: Start) -> None:
    _, monitor = start(lambda request: {"return": request["arguments"]["n"]})
    answers: dict[int, int] = {}

    def ask(n: int) -> None:
        answers[n] = monitor.execute("echo", soon(), n=n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: n for n in range(20)}
