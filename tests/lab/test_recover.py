"""What a run that was killed left is put back, whenever it was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hil import events
from hil.deadline import poll
from hil.errors import LabError
from hil.journal import RUN, Dialect, Journal, read, run_lock
from hil.lab.lease import Holder, Leases, look
from hil.lab.recover import leftovers, put_back, recover
from hil.platforms.contract import Platform
from hil.transport.base import Transport
from hil.transport.local import LocalTransport
from tests.fakes import FakePlatform, soon
from tests.lab.places import KINDS, change
from tests.transport.conftest import host_key_line
from tests.transport.server import SshServer

HERE = LocalTransport("lab1")
ME = Holder.this_process("this")


@pytest.fixture
def host(transport: Transport, dialect: Dialect) -> Platform:
    return host_of(transport, dialect)


def host_of(transport: Transport, dialect: Dialect) -> FakePlatform:
    platform = FakePlatform()
    platform.transport, platform.dialect, platform.undo_kinds = transport, dialect, KINDS
    return platform


def dead_run(dialect: Dialect, made: Sequence[tuple[Path, str]]) -> Journal:
    """The journal of a run that made files, each with its guard, and was then no more."""
    journal = Journal(HERE, dialect, KINDS)
    for path, guard in made:
        undo, command = change(path)
        journal.change(undo, command, deadline=soon(), guard=guard)
    return journal


def log(folder: Path) -> list[str]:
    path = folder / "undone.log"
    return path.read_text().split() if path.exists() else []


def journals(dialect: Dialect) -> list[str]:
    folder = Path(dialect.journal)
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def test_all_of_a_dead_run_is_undone_its_own_first_then_the_latest_first(
    host: Platform, dialect: Dialect, tmp_path: Path
) -> None:
    guards = {"vf": "card", "guest": RUN, "driver": "card", "canary": RUN}
    dead_run(dialect, [(tmp_path / name, guard) for name, guard in guards.items()])
    recovered = recover(host, soon())
    assert log(tmp_path) == ["canary", "guest", "driver", "vf"]
    assert len(recovered.undone) == 4
    assert journals(dialect) == []
    assert recover(host, soon()) == type(recovered)()


def test_a_dry_look_tells_what_would_be_undone_and_changes_nothing(
    host: Platform, dialect: Dialect, tmp_path: Path
) -> None:
    dead_run(dialect, [(tmp_path / "a", RUN)])
    for _ in range(2):
        (entry,) = leftovers(read(host.transport, dialect, soon()))
        assert (entry.undo, entry.made) == (change(tmp_path / "a")[0], True)
    assert (tmp_path / "a").exists()


def test_what_a_living_run_has_made_is_left_alone(
    host: Platform, dialect: Dialect, tmp_path: Path
) -> None:
    journal = Journal(HERE, dialect, KINDS)
    leases = Leases.take(HERE, dialect, ["card"], ME, soon(), run=journal.run)
    journal.lease = run_lock(dialect, journal.run)
    journal.change(*change(tmp_path / "own"), deadline=soon())
    journal.change(*change(tmp_path / "driver"), deadline=soon(), guard="card")
    recovered = recover(host, soon())
    assert (recovered.undone, len(recovered.busy)) == ((), 2)
    assert leftovers(read(host.transport, dialect, soon())) == ()
    leases.close()
    poll(lambda: not look(HERE, dialect, soon()), soon(60), interval=0.01)
    assert len(recover(host, soon()).undone) == 2


def test_a_card_that_somebody_has_leased_is_left_to_whom_it_is(
    host: Platform, dialect: Dialect, tmp_path: Path
) -> None:
    guards = {"a": "card-a", "b": "card-b", "c": RUN}
    dead_run(dialect, [(tmp_path / name, guard) for name, guard in guards.items()])
    leases = Leases.take(HERE, dialect, ["card-b"], ME, soon())
    # Not ours, though nobody has it: a run puts back the cards that it holds, and guests.
    recovered = put_back(host, soon(), {"card-b"})
    assert log(tmp_path) == ["c", "b"]
    assert [entry.guard for entry in recovered.kept] == ["card-a"]
    dead_run(dialect, [(tmp_path / "b", "card-b")])
    recovered = recover(host, soon())
    assert log(tmp_path) == ["c", "b", "a"]
    assert [entry.guard for entry in recovered.kept] == ["card-b"]
    leases.close()


def test_each_undo_is_tried_whatever_the_others_did(
    host: Platform, dialect: Dialect, tmp_path: Path
) -> None:
    dead_run(dialect, [(tmp_path / name, "card") for name in "abc"])
    (tmp_path / "b.stuck").write_text("")
    ((entry, error),) = recover(host, soon()).failed
    assert entry.undo.arguments == (f"{tmp_path}/b",)
    assert error.hint.endswith(f": rm -f {tmp_path}/b")
    assert log(tmp_path) == ["c", "a"]
    (tmp_path / "b.stuck").unlink()
    assert len(recover(host, soon()).undone) == 1


def test_a_run_does_not_begin_on_a_card_that_could_not_be_put_back(
    host: Platform, dialect: Dialect, tmp_path: Path
) -> None:
    heard: list[events.Event] = []
    dead_run(dialect, [(tmp_path / "a", "card"), (tmp_path / "b", RUN)])
    for name in "ab":
        (tmp_path / f"{name}.stuck").write_text("")
    with (
        events.subscribed(heard.append),
        pytest.raises(LabError, match="is not as it was before a run that died") as caught,
    ):
        put_back(host, soon(), {"card"})
    assert f"rm -f {tmp_path}/a" in caught.value.seen
    assert f"rm -f {tmp_path}/b" not in caught.value.seen
    (tmp_path / "a.stuck").unlink()
    with events.subscribed(heard.append):
        put_back(host, soon(), {"card"})
    texts = [event.data.decode() for event in heard if isinstance(event, events.Evidence)]
    assert len(texts) == 2
    assert f"undone: the file {tmp_path}/a was made" in texts[1]
    assert f"rm -f {tmp_path}/b" in texts[1]


def test_what_was_cut_off_in_a_crash_is_swept_and_what_is_no_entry_stays(
    host: Platform, dialect: Dialect, tmp_path: Path
) -> None:
    folder = Path(dialect.journal, "R")
    folder.mkdir(parents=True)
    (folder / "00001").write_text('{"kind": "fi')
    assert recover(host, soon()).unreadable == ()
    assert journals(dialect) == []
    folder.mkdir()
    (folder / "00001").write_text("what is this?}\n")
    (text,) = recover(host, soon()).unreadable
    assert text == f"{folder}/00001: what is this?}}"
    assert (folder / "00001").exists()


# ---- runs that are really killed ----------------------------------------------------------

RUN_OF_ANOTHER = """
import sys
from pathlib import Path
from hil.deadline import Deadline
from hil.journal import RUN, Journal, run_lock
from hil.lab.lease import Holder, Leases
from hil.transport.local import LocalTransport
from hil.transport.ssh import SshTransport
from tests.lab import places

folder, port, host_key, gate = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
deadline = Deadline(600, "all of it")
transport = LocalTransport()
if port:
    transport = SshTransport.connect("lab1", "127.0.0.1", port=port, key_file=folder / "key",
        host_key=host_key, deadline=deadline)
dialect = places.dialect(folder)
journal = Journal(transport, dialect, places.KINDS)
me = Holder.this_process("killed")
leases = Leases.take(transport, dialect, ["card"], me, deadline, run=journal.run)
journal.lease = run_lock(dialect, journal.run)
print("leased", flush=True)

def make(name, guard, command=None):
    undo, touch = places.change(folder / name)
    entry, _ = journal.change(undo, command or touch, deadline=deadline, guard=guard)
    print(name, flush=True)
    return entry

if gate:
    # A change that takes until the gate is gone, whoever is still there by then.
    script = 'touch "$2"; while [ -e "$2" ]; do sleep 0.02; done; touch "$1" "$2.passed"'
    make("late", "card", ["sh", "-c", script, "hil", str(folder / "late"), gate])
while True:
    driver, vfs, guest = make("driver", "card"), make("vfs", "card"), make("guest", RUN)
    journal.undo(guest, deadline)
    print("destroyed", flush=True)
    make("canary", RUN)
    journal.undo(vfs, deadline)
    (folder / "driver").unlink()
    journal.forget(driver)
    print("returned", flush=True)
    for entry in reversed(journal.outstanding):
        journal.undo(entry, deadline)
"""


@pytest.fixture(params=["local", "ssh"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts another run on this machine."""
    words = ["0", ""]
    if request.param == "ssh":
        server: SshServer = request.getfixturevalue("server")
        (tmp_path / "key").write_bytes(server.client_key.export_private_key("openssh"))
        words = [str(server.port), host_key_line(server)]

    def run(gate: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RUN_OF_ANOTHER, str(tmp_path), *words, gate]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return run


def kill(run: subprocess.Popen[str]) -> None:
    run.send_signal(signal.SIGKILL)
    run.communicate()


def next_run(dialect: Dialect) -> None:
    """What a run does before it begins: takes the card, puts it back."""
    leases = Leases.take(HERE, dialect, ["card"], ME, soon(120))
    put_back(host_of(HERE, dialect), soon(120), {"card"})
    leases.close()


def check_nothing_stays(folder: Path, dialect: Dialect) -> None:
    made = ("driver", "vfs", "guest", "canary", "late")
    assert [name for name in made if (folder / name).exists()] == []
    assert journals(dialect) == []
    poll(lambda: not look(HERE, dialect, soon()), soon(60), interval=0.01)
    poll(lambda: not processes(folder), soon(60), interval=0.01)
    assert [path.name for path in Path(dialect.leases).glob("run.*")] == []


def processes(folder: Path) -> list[str]:
    """Command lines of processes that are about ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words.replace("\0", " ")[:200])
    return found


#: After so many lines of what it says, a run is killed: while it does the next thing.
POINTS = (1, 2, 4, 5, 7, 8, 10)


@pytest.mark.parametrize("lines", POINTS)
def test_nothing_stays_of_a_run_that_was_killed_anywhere(
    start: Callable[..., subprocess.Popen[str]], dialect: Dialect, tmp_path: Path, lines: int
) -> None:
    run = start()
    assert run.stdout is not None
    for _ in range(lines):
        assert run.stdout.readline()
    kill(run)
    next_run(dialect)
    check_nothing_stays(tmp_path, dialect)


def test_a_command_that_outlives_its_run_is_waited_for(
    start: Callable[..., subprocess.Popen[str]], dialect: Dialect, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    run = start(str(gate))
    poll(gate.exists, soon(60), interval=0.01)
    kill(run)
    thread = threading.Thread(target=next_run, args=(dialect,))
    thread.start()
    # It has the card, but the host still works on what the dead run last began.
    poll(lambda: [lease.name for lease in look(HERE, dialect, soon())] == ["card"], soon(60))
    gate.unlink()
    thread.join(120)
    assert Path(f"{gate}.passed").exists()
    assert log(tmp_path) == ["late"]
    check_nothing_stays(tmp_path, dialect)


def test_without_a_recovery_something_would_stay(
    start: Callable[..., subprocess.Popen[str]], dialect: Dialect, tmp_path: Path
) -> None:
    run = start()
    assert run.stdout is not None
    while run.stdout.readline() != "guest\n":
        pass
    kill(run)
    with pytest.raises(AssertionError):
        check_nothing_stays(tmp_path, dialect)
    next_run(dialect)
