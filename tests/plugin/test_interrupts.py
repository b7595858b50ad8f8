"""Ctrl-C, once, twice and three times, on a real ``hil run`` of a host that must be put back."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hil.deadline import Deadline, poll
from hil.lab.recover import recover
from hil.platforms.freebsd import FreebsdBhyve
from hil.simulated.host import SimulatedHost
from hil.transport.ssh import SshTransport
from tests.fakes import soon
from tests.plugin.rack import LAB

SUITE = """
import pathlib
import threading
import time
import pytest

@pytest.fixture
def slow(lab):
    yield
    pathlib.Path("tearing-down").touch()
    for _ in range(600):
        if pathlib.Path("go-on").exists():
            break
        time.sleep(0.1)
    pathlib.Path("torn-down").touch()

@pytest.mark.needs(device="nic")
def test_a(device, slow):
    device.reserve()
    pathlib.Path("begun").touch()
    if not pathlib.Path("quick").exists():
        threading.Event().wait(600)

@pytest.mark.needs(device="nic")
def test_b(device):
    pathlib.Path("another").touch()
"""


class Controller:
    """A ``hil run`` in a process of its own, at a terminal, in the folder ``place``."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.output = b""
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "hil.cli", "run", "--lab", "rack.toml", "test_suite.py"]
        self.process = subprocess.Popen(
            [*command, "--", "-p", "no:cacheprovider"],
            cwd=place,
            env={**os.environ, "HIL_ALLURE": "/nonexistent", "TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self.output += data

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", "replace")

    def until(self, name: str) -> None:
        """Wait for a file that a test makes."""
        path = self.place / name
        poll(lambda: path.exists() or self.process.poll() is not None, soon(120))
        assert path.exists(), self.text

    def says(self, words: str) -> None:
        poll(lambda: words in self.text, soon(120), last_seen=lambda: self.text)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        status = self.process.wait(120)
        self._reader.join(60)
        return status


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    found = SimulatedHost("freebsd-15-intel").start()
    yield found
    found.close()


@pytest.fixture
def start(host: SimulatedHost, tmp_path: Path) -> Iterator[Callable[[], Controller]]:
    started: list[Controller] = []
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_text(host.key.private)
    (tmp_path / "test_suite.py").write_text(SUITE)
    words = LAB.format(port=host.port, key=key, host_key=host.host_key, console="[]")
    (tmp_path / "rack.toml").write_text(words)

    def run() -> Controller:
        started.append(Controller(tmp_path))
        return started[-1]

    yield run
    for controller in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(controller.process.pid, signal.SIGKILL)
        controller.process.wait()


def platform(host: SimulatedHost) -> FreebsdBhyve:
    transport = SshTransport.connect(
        "alpha",
        "127.0.0.1",
        port=host.port,
        key=host.key.load(),
        host_key=host.host_key,
        deadline=soon(60),
    )
    return FreebsdBhyve("alpha", transport)


def reserved(host: SimulatedHost) -> list[str]:
    functions = platform(host).functions(Deadline(60, "the functions"))
    return [str(function.address) for function in functions if function.reserved]


def test_the_first_ends_the_test_and_puts_the_lab_back_the_second_tells_what_would_be_left(
    start: Callable[[], Controller], host: SimulatedHost, tmp_path: Path
) -> None:
    run = start()
    run.until("begun")
    assert reserved(host) == ["0000:05:00.0"]
    run.interrupt()
    run.says("hil: Ctrl-C: the test at work ends here, and the lab is put back")
    run.until("tearing-down")
    run.interrupt()
    run.says("hil: still putting the lab back; ended now, it would leave:")
    run.says("alpha: pci0:5:0:0 was taken from its driver (em) for ppt")
    run.says("alpha: this stands in /var/db/hil/journal/")
    run.says("to put it back: hil recover --lab rack.toml")
    run.says("hil: once more ends it now")
    (tmp_path / "go-on").touch()
    assert run.end() == 130, run.text
    assert (tmp_path / "torn-down").exists(), "the second one skips no teardown"
    assert reserved(host) == []
    assert not (tmp_path / "another").exists()
    assert "Traceback" not in run.text


def test_the_third_ends_it_and_what_is_left_can_be_put_back(
    start: Callable[[], Controller], host: SimulatedHost, tmp_path: Path
) -> None:
    run = start()
    run.until("begun")
    run.interrupt()
    run.until("tearing-down")
    run.interrupt()
    run.says("once more ends it now")
    run.interrupt()
    assert run.end() == 130, run.text
    assert "hil: Ctrl-C: ended now; what is left stands in the journal" in run.text
    assert not (tmp_path / "torn-down").exists()
    assert reserved(host) == ["0000:05:00.0"]
    assert "could not be undone; they stand in /var/db/hil/journal/" in run.text
    assert run.text.count("to put it back: hil recover --lab rack.toml") == 2
    assert "did not run to the end (2)" in run.text
    assert "incomplete: the run was cut short" in run.text
    again = platform(host)
    poll(lambda: recover(again, soon(60)).undone, soon(60))
    assert reserved(host) == []
    assert "Traceback" not in run.text


def test_one_that_comes_while_something_is_put_back_waits_for_that_and_loses_no_result(
    start: Callable[[], Controller], host: SimulatedHost, tmp_path: Path
) -> None:
    (tmp_path / "quick").touch()
    run = start()
    run.until("tearing-down")
    run.interrupt(signal.SIGTERM)
    run.says("hil: SIGTERM: what is being put back is put back first, then the run ends")
    (tmp_path / "go-on").touch()
    assert run.end() == 130, run.text
    assert (tmp_path / "torn-down").exists()
    assert not (tmp_path / "another").exists()
    assert reserved(host) == []
    outcomes = (tmp_path / "reports" / "latest" / "outcomes.jsonl").read_text().splitlines()
    assert len(outcomes) == 1
    assert '"passed"' in outcomes[0]
