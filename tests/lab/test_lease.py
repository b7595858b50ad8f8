"""Leases: one holder at a time, ended by the kernel when the holder is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.deadline import Deadline, poll
from hil.errors import LabError
from hil.journal import FREEBSD, Dialect, Journal, read, run_lock
from hil.lab.lease import Holder, Lease, Leases, cards, look, parse
from hil.pci.address import Address
from hil.platforms.contract import Function
from hil.transport.base import ByteStream, Transport
from hil.transport.local import LocalTransport
from tests.fakes import config, function, soon
from tests.lab import places
from tests.lab.places import benchmark
from tests.transport.server import SshServer

ME = Holder("ann", 7, "nightly-7", "2026-01-02T03:04:05+00:00", "desk")
HERE = LocalTransport("lab1")
BENCH = benchmark("bench_lease")

HOLD = """
import sys
from pathlib import Path
from hil.deadline import Deadline, poll
from hil.lab.lease import Holder, Leases
from hil.transport.local import LocalTransport
from tests.lab import places
folder, run, lapse, *names = sys.argv[1:]
leases = Leases.take(LocalTransport(), places.dialect(Path(folder)), names,
    Holder.this_process("other"), Deadline(60, "the leases"), run=run, lapse=float(lapse))
print("held", flush=True)
poll(lambda: leases.lost, Deadline(600, "the loss of the leases"))
print("lost", flush=True)
"""


def take(
    transport: Transport, dialect: Dialect, names: Sequence[str], seconds: float = 20, run: str = ""
) -> Leases:
    return Leases.take(transport, dialect, names, ME, soon(seconds), run=run)


@contextlib.contextmanager
def holding(folder: Path, lapse: float = 60) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the card b, as the run R."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), "R", str(lapse), "b"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with holding(tmp_path) as process:
        yield process


def held(dialect: Dialect) -> list[str]:
    return [lease.name for lease in look(HERE, dialect, soon())]


def test_what_is_held_can_be_looked_up_until_it_is_let_go(
    transport: Transport, dialect: Dialect
) -> None:
    assert look(transport, dialect, soon()) == ()
    leases = take(transport, dialect, ["b", "a"], run="R")
    assert look(transport, dialect, soon()) == tuple(Lease(n, ME) for n in ("a", "b", "run.R"))
    assert leases.names == {"a", "b"}
    leases.check()
    leases.close()
    poll(lambda: not held(dialect), soon(60), interval=0.01)
    # It goes a moment after its lock.
    poll(lambda: not Path(run_lock(dialect, "R")).exists(), soon(60), interval=0.01)
    leases.close()


def test_who_waits_is_told_for_whom_and_gets_it_at_once_when_it_is_free(
    transport: Transport, dialect: Dialect, other: subprocess.Popen[str]
) -> None:
    heard: list[tuple[str, Holder | None]] = []

    def on_wait(name: str, who: Holder | None, waited: float) -> None:
        assert waited >= 0
        heard.append((name, who))
        other.kill()

    leases = Leases.take(transport, dialect, ["a", "b"], ME, soon(60), on_wait=on_wait)
    assert [(name, who.run, who.pid) for name, who in heard if who] == [("b", "other", other.pid)]
    leases.close()


def test_waiting_has_a_limit_and_leaves_nothing_taken(
    transport: Transport, dialect: Dialect, other: subprocess.Popen[str]
) -> None:
    with pytest.raises(LabError, match="b of lab1: waited for the lease") as caught:
        take(transport, dialect, ["a", "b", "c"], 0.5)
    assert f"process {other.pid}" in caught.value.seen
    assert "--wait" in caught.value.hint
    # What was taken on the way is free again, at the latest when the wait's round is over.
    take(transport, dialect, ["a", "c"], 60).close()
    other.kill()
    take(transport, dialect, ["b"], 60).close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lease_ends_with_its_holder_however_that_ends(
    dialect: Dialect, other: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert held(dialect) == ["b", "run.R"]
    other.send_signal(number)
    other.wait()
    poll(lambda: not held(dialect), soon(60), interval=0.01)


def test_a_holder_that_stands_still_loses_its_leases_and_learns_it(
    tmp_path: Path, dialect: Dialect
) -> None:
    with holding(tmp_path, lapse=2) as process:
        process.send_signal(signal.SIGSTOP)
        poll(lambda: not held(dialect), soon(60), interval=0.05)
        assert not Path(run_lock(dialect, "R")).exists()
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        assert process.stdout.readline() == "lost\n"


class Silence:
    """A stream whose far end says nothing, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._closed = threading.Event()

    def read(self, limit: int = 65536) -> bytes:
        self._closed.wait()
        return b""

    def write(self, data: bytes) -> None:
        self.heard.append(data)

    def close(self) -> None:
        self._closed.set()


def test_the_host_hears_a_word_again_and_again_until_the_end() -> None:
    stream = Silence()
    leases = Leases(stream, "lab1", ["a"])
    leases._keep(0.001)
    poll(lambda: len(stream.heard) > 3, soon(60), interval=0.001)
    assert set(stream.heard) == {b"\n"}
    leases.close()
    poll(lambda: leases.lost, soon(60), interval=0.001)


def test_a_connection_that_breaks_ends_the_leases_on_both_sides(
    connect: Callable[..., Transport], server: SshServer, dialect: Dialect
) -> None:
    leases = take(connect(), dialect, ["a"])
    server.drop()
    poll(lambda: leases.lost, soon(60), interval=0.01)
    poll(lambda: not held(dialect), soon(60), interval=0.01)
    with pytest.raises(LabError, match="lost its leases on lab1"):
        leases.check()


def test_a_host_that_cannot_lock_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text("a file where the directory should be")
    with pytest.raises(LabError, match="no leases can be taken on lab1") as caught:
        take(HERE, places.dialect(tmp_path), ["a"])
    assert "leases" in caught.value.seen
    assert "flock(1)" in caught.value.hint


#: lockf(1) and fsync(1) of FreeBSD, on a Linux; they refuse what the real ones do not take.
LOCKF = r"""#!/bin/sh
[ "$1 $2 $3" = "-k -s -t" ] && [ "$4" -ge 0 ] && [ $# -ge 6 ] || exit 64
shift 3
exec flock -E 75 -w "$@"
"""
FSYNC = """#!/bin/sh
[ $# -ge 1 ] || exit 64
exec sync "$@"
"""


def test_freebsd_s_own_tools_serve_as_well(
    tmp_path: Path, dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in (("lockf", LOCKF), ("fsync", FSYNC)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    dialect = replace(FREEBSD, leases=dialect.leases, journal=dialect.journal)
    journal = Journal(HERE, dialect, places.KINDS)
    leases = take(HERE, dialect, ["a"], run=journal.run)
    journal.lease = run_lock(dialect, journal.run)
    with pytest.raises(LabError, match="a of lab1: waited"):
        take(HERE, dialect, ["a"], 0.3)
    journal.change(*places.change(tmp_path / "made"), deadline=soon())
    assert [entry.made for entry in read(HERE, dialect, soon()).entries] == [True]
    journal.close(soon())
    assert not (tmp_path / "made").exists()
    leases.close()
    take(HERE, dialect, ["a"], 60).close()


def test_two_that_want_the_same_never_wait_for_each_other(dialect: Dialect) -> None:
    done = []

    def run(wanted: list[str]) -> None:
        for _ in range(10):
            take(HERE, dialect, wanted, 60).close()
        done.append(wanted)

    threads = [threading.Thread(target=run, args=(w,)) for w in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(done) == 2


def test_no_lease_is_granted_twice_and_none_is_lost(tmp_path: Path) -> None:
    section = BENCH.contend(tmp_path, processes=3, times=15)
    assert (section.count, section.meetings) == (45, 0)


def test_two_at_a_time_would_have_been_seen(tmp_path: Path) -> None:
    section = BENCH.Section(tmp_path)
    with section, BENCH.Section(tmp_path):
        pass
    assert (section.count, section.meetings) == (1, 1)


@pytest.mark.parametrize("record", ["", "{", "[]", '{"user": 1}', "x" * 9000, "\udcff\n\0"])
def test_a_record_that_cannot_be_read_blocks_nothing(record: str, dialect: Dialect) -> None:
    leases = take(HERE, dialect, ["a"])
    Path(dialect.leases, "a").write_bytes(record.encode("utf-8", "surrogateescape"))
    assert look(HERE, dialect, soon()) == (Lease("a", None),)
    with pytest.raises(LabError) as caught:
        take(HERE, dialect, ["a"], 0.2)
    assert "left no record" in caught.value.seen
    leases.close()


def test_a_record_is_text_of_others_and_shown_without_control_characters() -> None:
    text = json.dumps({**asdict(ME), "run": "a\x1b[31m" + "b" * 500})
    who = Holder.parse(text)
    assert who is not None
    assert who.run.startswith("a?[31mb")
    assert len(who.run) == 100
    assert Holder.parse(json.dumps(asdict(ME))) == ME


@given(st.text())
def test_no_line_of_a_list_of_leases_is_dropped_silently(text: str) -> None:
    try:
        found = parse(text)
    except LabError as error:
        shown = error.seen
    else:
        shown = ""
        assert len(found) == sum(bool(line) for line in text.split("\n"))
    assert shown in text


def test_the_cards_of_a_run_are_all_that_travels_together() -> None:
    def at(text: str, group: int | None = None, pf: str = "") -> Function:
        head = Address.parse(pf) if pf else None
        return function(Address.parse(text), group=group, physical_function=head)

    bridge = function(Address.parse("00:01.0"), config=config(header_type=1), group=5)
    host = [
        bridge,
        at("03:00.0", 1), at("03:00.1", 2),  # one card, two groups
        at("03:10.0", 3, pf="03:00.0"),  # a VF of it
        at("04:00.0", 4), at("05:00.0", 4),  # two cards, one group
        at("06:00.0", 5),  # shares its group with a bridge only
        at("07:00.0"), at("08:00.0"),  # no IOMMU: no groups
    ]  # fmt: skip

    def wanted(*addresses: str) -> tuple[str, ...]:
        return cards(host, [Address.parse(text) for text in addresses])

    assert wanted() == ()
    whole = ("0000:03:00", "0000:03:10")
    assert wanted("03:00.1") == wanted("03:10.0") == whole
    assert wanted("05:00.0") == ("0000:04:00", "0000:05:00")
    assert wanted("06:00.0") == ("0000:06:00",)
    assert wanted("07:00.0") == ("0000:07:00",)
    assert wanted("03:00.0", "08:00.0") == (*whole, "0000:08:00")


def test_a_holder_that_nobody_hears_any_more_leaves_no_file(dialect: Dialect) -> None:
    class Deaf(LocalTransport):
        def open_stream(self, command: Sequence[str], *, deadline: Deadline) -> ByteStream:
            heard, says = os.pipe()
            os.close(heard)
            with os.fdopen(says, "wb") as out:
                subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, check=False)
            raise LabError("nobody is there any more")

    with pytest.raises(LabError):
        Leases.take(Deaf(), dialect, ["card"], ME, soon(60), run="R")
    assert [path.name for path in Path(dialect.leases).glob("run.*")] == []
