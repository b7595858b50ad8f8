"""Saved guests in the cache, for a lab whose host is only told what to plug in."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, cast

import pytest

from hil.emulated.machine import EmulatedLab
from hil.emulated.templates import SIZE, Shelf
from hil.errors import LabError
from hil.platforms.contract import Template
from hil.transport.keys import generate
from tests.fakes import FakeTransport, soon

HOST_KEY = generate()


class FakeLab:
    key = "one"

    def __init__(self) -> None:
        self.plugged: list[tuple[Path, bool]] = []
        self.host = FakeTransport()

    def plug_disk(self, path: Path, deadline: Any, *, read_only: bool) -> str:
        deadline.check()
        assert path.stat().st_size == SIZE
        self.plugged.append((path, read_only))
        return "/dev/vdc"

    def ssh(self, deadline: Any) -> FakeTransport:
        deadline.check()
        return self.host


def shelf(lab: FakeLab, kind: str = "linux") -> Shelf:
    return Shelf(cast("EmulatedLab", lab), kind)


def make(path: str) -> Template:
    assert path == "/dev/vdc"
    return Template("linux", 256 << 20, 1, path, HOST_KEY)


def refuse(path: str) -> Template:
    raise LabError(f"nothing is saved at {path}")


@pytest.mark.usefixtures("cache_folder")
def test_a_guest_is_saved_once_and_then_found() -> None:
    first, second = FakeLab(), FakeLab()
    made = shelf(first).template(make, soon())
    assert ("sync",) in [tuple(command) for command in first.host.commands]
    found = shelf(second).template(refuse, soon())
    assert found == made
    assert found.host_key == HOST_KEY
    ((built, writable), (kept, protected)) = *first.plugged, *second.plugged
    assert (writable, protected) == (False, True)
    assert not built.exists()
    about = kept.with_name("template.json")
    assert stat.S_IMODE(about.stat().st_mode) == 0o600, "a private key is in it"
    assert kept.stat().st_blocks < 100, "the disk is sparse"


@pytest.mark.usefixtures("cache_folder")
def test_other_labs_and_other_guests_have_their_own() -> None:
    shelf(FakeLab()).template(make, soon())
    other = FakeLab()
    other.key = "two"
    for one in (shelf(other), shelf(FakeLab(), "freebsd")):
        with pytest.raises(LabError, match="nothing is saved"):
            one.template(refuse, soon())


def test_what_was_not_made_whole_is_not_found(cache_folder: Path) -> None:
    with pytest.raises(LabError):
        shelf(FakeLab()).template(refuse, soon())
    assert list(cache_folder.glob("templates/[!.]*")) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"image": "linux"}'])
def test_a_damaged_one_is_made_again(cache_folder: Path, damage: str) -> None:
    shelf(FakeLab()).template(make, soon())
    (about,) = cache_folder.glob("templates/*/template.json")
    about.write_text(damage)
    assert shelf(FakeLab()).template(make, soon()).host_key == HOST_KEY


def test_one_that_was_forgotten_is_gone(cache_folder: Path) -> None:
    one = shelf(FakeLab())
    one.template(make, soon())
    one.forget()
    one.forget()
    assert list(cache_folder.glob("templates/[!.]*")) == []
