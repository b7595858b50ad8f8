"""The in-guest driver's way to functions and memory of FreeBSD, among tools that only pretend."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from hil.probes.remote import in_guest

BASE = 0x3000
SELECTOR = "pci0:0:8:0"


class Guest:
    """A file for physical memory, and pciconf and kenv as shell scripts that keep COMMAND."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = folder / "mem"
        self.memory.write_bytes(bytes(8 << 20))
        (folder / "command").write_text("0100\n")
        self.has(
            "pciconf",
            f"""
case "$1$2" in
-r-h) cat {folder}/command ;;
-w-h) echo "$5" >{folder}/command ;;
-lb*) cat {folder}/bars ;;
esac
""",
        )
        (folder / "bars").write_text(
            f"none0@{SELECTOR}:\tclass=0x00ff00 rev=0x10\n"
            "    bar   [10] = type I/O Port, range 32, base 0x7100, size 32, enabled\n"
            f"    bar   [14] = type Memory, range 32, base {BASE:#x}, size 8192, enabled\n"
        )
        self.has("kenv", "echo 0x200000:0x400000")

    def has(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    made = Guest(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    whole = os.open

    def opened(path: str, *arguments: Any) -> int:
        places = {"/dev/mem": str(made.memory)}
        return whole(places.get(path, path.replace("/var/run", str(tmp_path))), *arguments)

    monkeypatch.setattr(os, "open", opened)
    return made


def test_opening_switches_memory_and_bus_mastering_on(guest: Guest) -> None:
    in_guest.FreebsdDevice("0000:00:08.0")
    assert int((guest.folder / "command").read_text(), 16) == 0x106


def test_registers_are_those_of_the_bar_in_physical_memory(guest: Guest) -> None:
    device = in_guest.FreebsdDevice("0000:00:08.0")
    device.register(1, 0x1004, 4).value = 0x12345678
    data = guest.memory.read_bytes()
    assert data[BASE + 0x1004 :][:4] == bytes.fromhex("78563412")
    assert device.register(1, 0x1004, 2).value == 0x5678


@pytest.mark.parametrize("bar", [0, 2])
def test_a_bar_that_is_not_memory_or_not_there_is_an_error(guest: Guest, bar: int) -> None:
    with pytest.raises(OSError, match=f"no memory BAR {bar}"):
        in_guest.FreebsdDevice("0000:00:08.0").register(bar, 0, 4)


def test_a_function_that_is_not_there_is_an_error_with_pciconf_s_words(guest: Guest) -> None:
    guest.has("pciconf", "echo 'ioctl(PCIOCREAD): Operation not supported' >&2; exit 1")
    with pytest.raises(OSError, match="Operation not supported"):
        in_guest.FreebsdDevice("0000:00:08.0")


def test_nobody_can_listen_to_a_function_s_interrupts(guest: Guest) -> None:
    with pytest.raises(OSError, match="gives no program the interrupts"):
        in_guest.FreebsdDevice("0000:00:08.0").listen()


def test_memory_for_dma_is_what_the_loader_kept(guest: Guest) -> None:
    first = in_guest.FreebsdMemory(100)
    assert (first.size, first.pages) == (2 << 20, [0x200000])
    first.map[5:8] = b"abc"
    assert guest.memory.read_bytes()[0x200005:][:3] == b"abc"
    second = in_guest.FreebsdMemory(2 << 20)
    assert second.pages == [0x400000]
    with pytest.raises(OSError, match="has no 0x1 left"):
        in_guest.FreebsdMemory(1)
    second.release()
    assert in_guest.FreebsdMemory(1).pages == [0x400000]


def test_pages_follow_one_another(guest: Guest) -> None:
    guest.has("kenv", "echo 0x0:0x800000")
    pages = [in_guest.FreebsdMemory(1) for _ in range(4)]
    for index in (0, 2, 3):
        pages[index].release()
    found = in_guest.FreebsdMemory(4 << 20)
    assert found.pages == [0x400000, 0x600000]
    assert in_guest.FreebsdMemory(1).pages == [0]


@pytest.mark.parametrize("script", ["exit 255", "echo nonsense"])
def test_without_kept_memory_the_error_says_what_the_loader_lacked(
    guest: Guest, script: str
) -> None:
    guest.has("kenv", script)
    with pytest.raises(OSError, match=r"hw\.physmem and hil\.dma"):
        in_guest.FreebsdMemory(1)
