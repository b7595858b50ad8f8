"""A run from its leases to its last undo: open_lab, hil leases and hil recover on one host."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from hil import cli
from hil.deadline import poll
from hil.errors import LabError
from hil.journal import RUN, Dialect, Journal
from hil.lab import live
from hil.lab.document import InvalidFileError
from hil.lab.lease import Holder, look
from hil.lab.load import parse
from hil.lab.models import Lab
from hil.platforms.contract import Platform
from hil.transport.base import Transport
from hil.transport.local import LocalTransport
from tests.fakes import DISK, NIC, FakePlatform, function, soon
from tests.inventories import HERE
from tests.lab.places import KINDS, change

DEVICE = """
[devices.{name}]
kind = "other"
host = "alpha"
functions = ["{address}"]
"""
LOCAL = LocalTransport("alpha")

pytestmark = pytest.mark.usefixtures("signals")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, dialect: Dialect) -> None:
    """A host alpha with a NIC and a disk, whose journal and leases are this test's."""

    def platform_of(_lab: Lab, host: str, transport: Transport) -> Platform:
        platform = FakePlatform(function(NIC), function(DISK, group=2))
        platform.host, platform.transport, platform.dialect = host, transport, dialect
        platform.undo_kinds = KINDS
        platform.journal = Journal(transport, dialect, KINDS)
        return platform

    monkeypatch.setattr(live, "platform_of", platform_of)


def lab(shared: bool = False, **devices: object) -> Lab:
    text = HERE + ("shared = true\n" if shared else "")
    for name, address in devices.items():
        text += DEVICE.format(name=name, address=address)
    return parse(text, Path("rack.toml"))


def run(inventory: Lab, wait: float = 60) -> AbstractContextManager[live.LiveLab]:
    return live.open_lab(inventory, soon(60), run="nightly", wait=wait)


def cards_in_use(dialect: Dialect) -> list[str]:
    return [lease.name for lease in look(LOCAL, dialect, soon()) if "run." not in lease.name]


def test_a_run_has_the_whole_host_and_another_is_told_whom_it_waits_for(dialect: Dialect) -> None:
    heard: list[tuple[str, Holder | None]] = []
    with run(lab(nic0=NIC)) as first:
        assert cards_in_use(dialect) == ["0000:01:00", "0000:02:00"]
        assert first.leases["alpha"].names == {"0000:01:00", "0000:02:00"}
        second = live.open_lab(
            lab(disk0=DISK),
            soon(60),
            wait=0.3,
            on_wait=lambda name, who, _seconds: heard.append((name, who)),
        )
        with pytest.raises(LabError, match="0000:01:00 of alpha: waited"), second:
            pass
    ((name, who),) = heard
    assert name == "0000:01:00 of alpha"
    assert who is not None
    assert who.run == "nightly"
    with run(lab(disk0=DISK)):
        pass


def test_on_a_shared_host_runs_with_different_devices_go_side_by_side(dialect: Dialect) -> None:
    with run(lab(shared=True, nic0=NIC)), run(lab(shared=True, disk0=DISK)):
        assert cards_in_use(dialect) == ["0000:01:00", "0000:02:00"]
        with pytest.raises(LabError), run(lab(shared=True, nic0=NIC), wait=0.3):
            pass


def test_a_shared_host_may_run_nothing_that_takes_it_from_others() -> None:
    text = HERE + "shared = true\ndanger = 2\n"
    with pytest.raises(InvalidFileError, match="a shared host"):
        parse(text, Path("rack.toml"))


def test_what_a_run_has_not_taken_back_is_undone_at_its_end(
    dialect: Dialect, tmp_path: Path
) -> None:
    with run(lab(nic0=NIC)) as opened:
        journal = opened.platforms["alpha"].journal
        assert Path(journal.lease).exists()
        journal.change(*change(tmp_path / "a"), deadline=soon(), guard="0000:01:00")
        journal.change(*change(tmp_path / "b"), deadline=soon())
    assert (tmp_path / "undone.log").read_text().split() == ["b", "a"]
    assert list(Path(dialect.journal).iterdir()) == []


def test_what_could_not_be_undone_is_told_and_left_for_the_next_run(tmp_path: Path) -> None:
    def leave_something() -> None:
        with run(lab(nic0=NIC)) as opened:
            journal = opened.platforms["alpha"].journal
            journal.change(*change(tmp_path / "a"), deadline=soon(), guard="0000:01:00")
            (tmp_path / "a.stuck").write_text("")

    with pytest.raises(ExceptionGroup) as caught:
        leave_something()
    assert f"rm -f {tmp_path}/a" in str(caught.value.exceptions[0])
    with pytest.raises(LabError, match="is not as it was"), run(lab(nic0=NIC)):
        pass
    (tmp_path / "a.stuck").unlink()
    with run(lab(nic0=NIC)):
        assert not (tmp_path / "a").exists()


def test_a_run_that_lost_its_leases_is_told_so_and_changes_nothing(tmp_path: Path) -> None:
    with run(lab(nic0=NIC)) as opened:
        journal, leases = opened.platforms["alpha"].journal, opened.leases["alpha"]
        leases.check()
        assert journal.run_alone(["echo", "x"], deadline=soon()).stdout == "x\n"
        leases.close()
        poll(lambda: leases.lost and not Path(journal.lease).exists(), soon(60))
        with pytest.raises(LabError, match="lost its leases on alpha"):
            leases.check()
        with pytest.raises(LabError, match="nothing is changed on alpha"):
            journal.change(*change(tmp_path / "a"), deadline=soon())
        with pytest.raises(LabError, match="nothing is changed on alpha"):
            journal.run_alone(["touch", str(tmp_path / "a")], deadline=soon())
    assert not (tmp_path / "a").exists()


# ---- the command line -------------------------------------------------------------------


@pytest.fixture
def inventory(tmp_path: Path) -> str:
    path = tmp_path / "rack.toml"
    path.write_text(HERE)
    return str(path)


def test_hil_leases_lists_who_uses_what(inventory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["leases", "--lab", inventory]) == 0
    assert capsys.readouterr().out == "alpha: nobody uses it\n"
    assert cli.main(["lab", "status", "--lab", inventory]) == 1
    capsys.readouterr()
    with run(lab(nic0=NIC)):
        assert cli.main(["leases", "--lab", inventory]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.rpartition(": held by ")[0] for line in lines] == [
            "alpha: 0000:01:00", "alpha: 0000:02:00",
        ]  # fmt: skip
        assert all("run nightly, process " in line for line in lines)
        assert cli.main(["leases", "--json", "--lab", inventory]) == 0
        assert '"run": "nightly"' in capsys.readouterr().out
        assert cli.main(["lab", "status", "--lab", inventory]) == 0


def leave(dialect: Dialect, path: Path, guard: str = RUN) -> None:
    """Something of a run that is dead."""
    undo, command = change(path)
    Journal(LOCAL, dialect, KINDS).change(undo, command, deadline=soon(), guard=guard)


def test_hil_recover_shows_what_a_dead_run_left_and_puts_it_back(
    inventory: str, dialect: Dialect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(dialect, tmp_path / "a")
    assert cli.main(["recover", "--dry-run", "--lab", inventory]) == 0
    out = capsys.readouterr().out
    assert f"alpha: the file {tmp_path}/a was made, by " in out
    assert f"by hand: rm -f {tmp_path}/a" in out
    assert (tmp_path / "a").exists()
    assert cli.main(["recover", "--lab", inventory]) == 0
    assert capsys.readouterr().out == f"alpha: undone: the file {tmp_path}/a was made\n"
    assert not (tmp_path / "a").exists()
    for words in (["recover"], ["recover", "--dry-run"]):
        assert cli.main([*words, "--lab", inventory]) == 0
        assert capsys.readouterr().out == "alpha: no dead run left anything\n"


def test_hil_recover_leaves_alone_what_is_in_use_and_fails_for_what_it_cannot_do(
    inventory: str, dialect: Dialect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run(lab(shared=True, nic0=NIC)):
        leave(dialect, tmp_path / "a", "0000:01:00")
        leave(dialect, tmp_path / "b")
        (tmp_path / "b.stuck").write_text("")
        assert cli.main(["recover", "--lab", inventory]) == 4
        out, err = capsys.readouterr()
        assert out == f"alpha: in use, left alone: the file {tmp_path}/a was made\n"
        assert "is stuck" in err
        assert "rm -f" in err


@pytest.mark.parametrize("words", [["leases"], ["recover"], ["recover", "--dry-run"]])
def test_a_lab_that_each_run_makes_for_itself_has_neither(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--lab", "emulated"]) == 5
    assert "nobody else can use it" in capsys.readouterr().err


def test_what_is_no_entry_is_shown_without_control_characters(
    inventory: str, dialect: Dialect, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(dialect.journal, "R")
    folder.mkdir(parents=True)
    (folder / "00001").write_text("\x1b[31mred}\n")
    assert cli.main(["recover", "--lab", inventory]) == 0
    out = capsys.readouterr().out
    assert "cannot be read, left alone" in out
    assert "\x1b" not in out
