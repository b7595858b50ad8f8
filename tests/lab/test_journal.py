"""The journal: an undo is on disk before its change, and is right whatever happened between."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import LabError
from hil.journal import (
    LINUX,
    RUN,
    Dialect,
    Entry,
    Journal,
    Kind,
    Undo,
    Unreadable,
    parse,
    read,
    run_lock,
    undo,
)
from hil.transport.agent import Agent, AgentError, program
from hil.transport.base import Transport
from hil.transport.local import LocalTransport
from tests.fakes import FakeTransport, soon
from tests.lab.places import KINDS, change

BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.fixture
def journal(transport: Transport, dialect: Dialect) -> Journal:
    return Journal(transport, dialect, KINDS)


def on_disk(dialect: Dialect) -> list[Path]:
    return sorted(Path(dialect.journal).glob("*/*"))


def test_the_undo_stands_on_disk_before_the_change_is_made(
    journal: Journal, dialect: Dialect, tmp_path: Path
) -> None:
    path = tmp_path / "made"
    look = ["sh", "-c", 'cat "$1"/*/*; touch "$2"', "hil", dialect.journal, str(path)]
    entry, result = journal.change(change(path)[0], look, deadline=soon())
    assert json.loads(result.check().stdout) == {
        "kind": "file", "arguments": [str(path)], "guard": "run", "by": entry.by,
    }  # fmt: skip
    assert path.exists()


def test_it_is_synced_before_the_change_is_begun(
    transport: Transport, dialect: Dialect, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    telling = replace(dialect, sync=("sh", "-c", f'echo "$@" >> {log}', "sync"))
    journal = Journal(transport, telling, KINDS)
    command = ["sh", "-c", f"echo change >> {log}"]
    journal.change(change(tmp_path / "made")[0], command, deadline=soon())
    folder = f"{dialect.journal}/{journal.run}"
    assert log.read_text().splitlines() == [
        dialect.journal, f"{folder}/00001 {folder}", "change",
    ]  # fmt: skip


def test_a_change_costs_one_command(dialect: Dialect, tmp_path: Path) -> None:
    transport = FakeTransport()
    journal = Journal(transport, dialect, KINDS)
    for n in range(3):
        entry, _ = journal.change(*change(tmp_path / str(n)), deadline=soon())
        journal.forget(entry)
    assert len(transport.commands) == 3


def test_the_result_is_the_command_s_own(journal: Journal, tmp_path: Path) -> None:
    command = ["sh", "-c", "cat; echo no >&2; exit 7"]
    entry, result = journal.change(
        change(tmp_path / "x")[0], command, deadline=soon(), stdin=b"in\xff"
    )
    assert (result.status, result.out, result.err) == (7, b"in\xff", b"no\n")
    assert journal.outstanding == (entry,)


def test_what_succeeded_is_told_from_what_may_have_been_made_in_part(
    transport: Transport, journal: Journal, dialect: Dialect, tmp_path: Path
) -> None:
    journal.change(*change(tmp_path / "a"), deadline=soon())
    journal.change(change(tmp_path / "b")[0], ["false"], deadline=soon())
    found = read(transport, dialect, soon()).entries
    assert [(e.name, e.made) for e in found] == [("00002", False), ("00001", True)]


def test_a_journal_that_takes_no_entry_lets_nothing_be_changed(
    journal: Journal, dialect: Dialect, tmp_path: Path
) -> None:
    Path(dialect.journal).write_text("a file where the directory should be")
    with pytest.raises(LabError, match="nothing is changed on lab1"):
        journal.change(*change(tmp_path / "made"), deadline=soon())
    assert not (tmp_path / "made").exists()
    assert journal.outstanding == ()


@pytest.mark.parametrize("record", [None, ""])
def test_a_run_that_lost_its_leases_changes_nothing_any_more(
    journal: Journal, dialect: Dialect, tmp_path: Path, record: str | None
) -> None:
    lock = Path(run_lock(dialect, journal.run))
    lock.parent.mkdir()
    lock.write_text("held")
    journal.lease = str(lock)
    journal.change(*change(tmp_path / "before"), deadline=soon())
    lock.unlink()
    if record is not None:
        lock.write_text(record)
    with pytest.raises(LabError) as caught:
        journal.change(*change(tmp_path / "after"), deadline=soon())
    assert "have lapsed" in caught.value.seen
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["before"]


def test_what_is_forgotten_goes_with_the_next_change_and_at_the_end(
    journal: Journal, dialect: Dialect, tmp_path: Path
) -> None:
    entries = [journal.change(*change(tmp_path / n), deadline=soon())[0] for n in "abc"]
    journal.forget(entries[1], entries[1])
    assert [path.name for path in on_disk(dialect)] == ["00001", "00002", "00003"]
    last, _ = journal.change(*change(tmp_path / "d"), deadline=soon())
    assert [path.name for path in on_disk(dialect)] == ["00001", "00003", "00004"]
    journal.forget(entries[0], entries[2], last)
    journal.close(soon())
    assert list(Path(dialect.journal).iterdir()) == []
    # They were undone by other means, so the files that they made are not the journal's.
    assert (tmp_path / "a").exists()


def test_at_the_end_all_is_undone_the_latest_first_each_tried(
    journal: Journal, dialect: Dialect, tmp_path: Path
) -> None:
    for name in "abc":
        journal.change(*change(tmp_path / name), deadline=soon())
    (tmp_path / "b.stuck").write_text("")
    with pytest.raises(ExceptionGroup) as caught:
        journal.close(soon())
    (error,) = caught.value.exceptions
    assert isinstance(error, LabError)
    assert error.message == f"the file {tmp_path}/b was made: this could not be undone"
    assert error.seen == f"{tmp_path}/b is stuck"
    assert error.hint == f"as root on lab1: rm -f {tmp_path}/b"
    assert f"{dialect.journal}/{journal.run}" in str(caught.value)
    assert [name for name in "abc" if (tmp_path / name).exists()] == ["b"]
    assert (tmp_path / "undone.log").read_text().split() == ["c", "a"]
    # What could not be undone is still on disk for whoever comes next.
    assert [path.name for path in on_disk(dialect)] == ["00002"]
    (tmp_path / "b.stuck").unlink()
    journal.close(soon())
    assert not on_disk(dialect)


def test_an_undo_runs_once_and_again_does_nothing(
    journal: Journal, transport: Transport, dialect: Dialect, tmp_path: Path
) -> None:
    entry, _ = journal.change(*change(tmp_path / "a"), deadline=soon())
    journal.undo(entry, soon())
    journal.undo(entry, soon())
    assert undo(entry, BY_NAME, transport, dialect, soon())
    assert (tmp_path / "undone.log").read_text().split() == ["a"]


def test_a_change_that_is_made_by_other_means_can_be_recorded(
    journal: Journal, dialect: Dialect, tmp_path: Path
) -> None:
    entry = journal.record(change(tmp_path / "a")[0], deadline=soon(), guard="0000:03:00")
    assert entry.guard == "0000:03:00"
    assert len(on_disk(dialect)) == 1
    journal.close(soon())


@pytest.mark.parametrize(
    "wrong",
    [
        Undo("file", ()),
        Undo("file", ("/a", "/b")),
        Undo("file", ("$(touch /tmp/x)",)),
        Undo("file", ("/a\n/b",)),
        Undo("other", ("/a",)),
    ],
)
def test_what_a_kind_does_not_accept_is_neither_recorded_nor_undone(
    wrong: Undo, dialect: Dialect
) -> None:
    transport = FakeTransport()
    with pytest.raises(LabError, match="no change of the kind"):
        Journal(transport, dialect, KINDS).change(wrong, ["true"], deadline=soon())
    with pytest.raises(LabError, match="cannot be undone") as caught:
        undo(Entry("R", "1", wrong, RUN, "ann"), BY_NAME, transport, dialect, soon())
    assert f"{dialect.journal}/R/1" in caught.value.seen
    assert transport.commands == []


@pytest.mark.parametrize(("run", "name"), [("..", "1"), ("R", "../../etc/passwd"), ("R", "lock")])
def test_a_name_that_is_no_entry_s_is_never_removed(run: str, name: str, dialect: Dialect) -> None:
    transport = FakeTransport()
    with pytest.raises(LabError, match="cannot be undone"):
        undo(Entry(run, name, Undo("file", ("/a",)), RUN, ""), BY_NAME, transport, dialect, soon())
    assert transport.commands == []


def test_arguments_reach_the_script_as_they_are_and_a_person_quoted(tmp_path: Path) -> None:
    kind = Kind("say", 'printf "%s" "$1" > "$2"', (r".*", r".*"), "say {0} {1}", "{0}")
    text = "'; touch x; $(touch y) `z` \\n \" é"
    dialect = replace(LINUX, journal=str(tmp_path / "j"), leases=str(tmp_path / "l"))
    journal = Journal(LocalTransport(), dialect, [kind])
    journal.change(Undo("say", (text, str(tmp_path / "out"))), ["true"], deadline=soon())
    (entry,) = read(LocalTransport(), dialect, soon()).entries
    assert entry.undo.arguments[0] == text
    journal.close(soon())
    assert (tmp_path / "out").read_text() == text
    assert kind.command(entry.undo).startswith("say ''\"'\"'; touch x; $(touch y)")


def test_the_lasting_program_writes_what_the_script_writes(
    transport: Transport, journal: Journal, dialect: Dialect
) -> None:
    code = program("hil.platforms.remote", "on_host")
    agent = Agent(transport, code, soon())
    lock = Path(run_lock(dialect, journal.run))
    lock.parent.mkdir()
    lock.write_text("held")
    journal.lease = str(lock)
    made = Undo("file", ("/nonexistent",))

    def bind(record: object) -> object:
        lease = journal.lease
        return agent.ask("bind", soon(), address="none", override="", lease=lease, record=record)

    first, _ = journal.change(made, ["false"], deadline=soon(), guard="0000:03:00")
    second, answer = journal.change_by(made, bind, guard="0000:03:00")
    assert "No such file" in str(answer)
    one, two = on_disk(dialect)
    assert one.read_bytes() == two.read_bytes()
    journal.forget(first, second)
    lock.write_text("")
    with pytest.raises(AgentError, match="bind failed") as caught:
        journal.change_by(made, bind)
    assert "have lapsed" in caught.value.seen
    assert len(on_disk(dialect)) == 2
    lock.write_text("held")
    journal.change_by(made, bind)
    assert [path.name for path in on_disk(dialect)] == ["00004"]
    agent.close()


# ---- what is read back ------------------------------------------------------------------

LINE = '{"kind": "file", "arguments": ["/a"], "guard": "%s", "by": "ann"}'


def text(**files: str) -> str:
    return "".join(
        f"entry {name.replace('__', '/')}\n" + "".join(f"| {line}\n" for line in body.split("\n"))
        for name, body in files.items()
    )


def test_a_run_s_own_is_undone_before_what_cards_guard_and_the_latest_first() -> None:
    run, card = LINE % RUN, LINE % "0000:03:00"
    found = parse(text(A__1=run, A__2=card, B__1=card, B__2=run))
    assert [(e.run, e.name) for e in found.entries] == [
        ("B", "2"), ("A", "1"), ("B", "1"), ("A", "2"),
    ]  # fmt: skip


@pytest.mark.parametrize("length", range(len(LINE % RUN)))
def test_an_entry_that_was_cut_off_is_known_to_have_begun_nothing(length: int) -> None:
    found = parse(text(A__1=(LINE % RUN)[:length]))
    assert found.entries == ()
    assert [(file.run, file.name, file.torn) for file in found.unreadable] == [("A", "1", True)]


@pytest.mark.parametrize(
    "line", ["{}", "[]}", '{"kind": 1, "arguments": [], "guard": "run", "by": ""}', "zeros\0}"]
)
def test_what_is_no_entry_is_kept_and_shown(line: str) -> None:
    (file,) = parse(text(A__1=line)).unreadable
    assert file == Unreadable("A", "1", line, torn=False)


def test_runs_that_live_are_told() -> None:
    assert parse("alive A\nalive B\n").alive == {"A", "B"}


@given(st.text())
def test_no_line_is_dropped_silently(line: str) -> None:
    try:
        found = parse(line)
    except LabError as error:
        shown = error.seen
    else:
        shown = ""
        heads = sum(part.startswith(("entry ", "alive ")) for part in line.split("\n"))
        assert len(found.unreadable) + len(found.alive) <= heads
    assert shown in line
