"""Physical memory by /proc/kcore, and canary memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import LabError
from hil.journal import LINUX, Journal
from hil.platforms.linux_canary import FileCanary, parse_changes
from hil.platforms.linux_memory import (
    KcoreMemory,
    Segment,
    parse_core_headers,
    read_device_memory,
)
from hil.platforms.linux_undo import KINDS
from hil.transport.base import Transport
from hil.transport.local import LocalTransport
from tests.fakes import Answer, FakeTransport, soon

NOT_RAM = (1 << 64) - 1


def core(
    segments: list[tuple[int, int, int]], *, kind: int = 1, data: dict[int, bytes] | None = None
) -> bytes:
    """A core file with program headers (physical, length, offset), as fs/proc/kcore.c writes."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    for physical, length, offset in segments:
        address = 0xFFFF_8880_0000_0000 + (physical & 0xFFFF_FFFF)
        head += struct.pack("<IIQQQQQQ", kind, 7, offset, address, physical, length, length, 4096)
    image = bytearray(head)
    for offset, content in (data or {}).items():
        image = image.ljust(offset + len(content), b"\0")
        image[offset : offset + len(content)] = content
    return bytes(image)


def test_only_ram_is_kept_and_in_order() -> None:
    file = core([(0x100000, 0x3000, 0x5000), (NOT_RAM, 1 << 40, 0x9000), (0x1000, 0x2000, 0x2000)])
    assert parse_core_headers(file) == (
        Segment(0x1000, 0x2000, 0x2000),
        Segment(0x100000, 0x3000, 0x5000),
    )
    assert parse_core_headers(core([(0, 4096, 0x1000)], kind=4)) == ()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a 64-bit little-endian ELF"),
        (b"\x7fELF\1\1" + bytes(90), "not a 64-bit little-endian ELF"),
        (core([(0, 4096, 4096)] * 3)[:-1], "program header 2 of 3"),
    ],
)
def test_what_is_no_core_file_is_said(data: bytes, words: str) -> None:
    with pytest.raises(LabError, match=words):
        parse_core_headers(data)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_damaged_headers_give_segments_or_a_lab_error(patch: bytes, at: int) -> None:
    file = bytearray(core([(0x1000, 0x1000, 0x1000), (0x2000, 0x1000, 0x2000)]))
    file[at : at + len(patch)] = patch
    try:
        segments = parse_core_headers(bytes(file))
    except LabError:
        return
    assert all(isinstance(segment, Segment) for segment in segments)


def files(contents: dict[str, bytes]) -> FakeTransport:
    """A host whose dd(1) reads these."""

    def dd(command: tuple[str, ...], _stdin: bytes) -> Answer:
        words = dict(word.partition("=")[::2] for word in command[1:])
        start = int(words["skip"])
        data = contents.get(words["if"], b"")[start : start + int(words["count"])]
        return 0, data, ""

    return FakeTransport(dd)


def test_a_physical_address_leads_to_its_bytes() -> None:
    ram = bytes(range(256)) * 32
    contents = core([(0x10000, 0x2000, 0x4000)], data={0x4000: ram})
    memory = KcoreMemory(files({"/proc/kcore": contents}), soon())
    assert memory.read(0x10000, 0x2000) == ram
    assert memory.read(0x10105, 3) == bytes([5, 6, 7])


@pytest.mark.parametrize(("address", "length"), [(0xFFFF, 2), (0x11FFF, 2), (0, 8), (1 << 63, 8)])
def test_what_is_no_ram_is_said(address: int, length: int) -> None:
    contents = core([(0x10000, 0x2000, 0x4000)], data={0x4000: bytes(0x2000)})
    memory = KcoreMemory(files({"/proc/kcore": contents}), soon())
    with pytest.raises(LabError, match=f"physical memory {address:#x}"):
        memory.read(address, length)


def test_a_locked_down_kernel_reads_short() -> None:
    memory = KcoreMemory(files({"/proc/kcore": core([(0x10000, 0x2000, 0x4000)])}), soon())
    with pytest.raises(LabError, match="cannot be read"):
        memory.read(0x10000, 8)


def test_device_registers_are_read_whole_or_not_at_all() -> None:
    transport = files({"/dev/mem": bytes(range(64))})
    assert read_device_memory(transport, 16, 4, soon()) == bytes([16, 17, 18, 19])
    with pytest.raises(LabError) as caught:
        read_device_memory(transport, 62, 4, soon())
    assert "iomem=relaxed" in caught.value.hint


def test_changes_are_told_in_hexadecimal() -> None:
    assert parse_changes("page 5 20497 21 245\n") == ("page 5: byte 0x5011 was 0x11 and is 0xa5",)
    assert parse_changes("") == ()
    assert parse_changes("error cmp: EOF on memory\nwhat?\n") == ("cmp: EOF on memory", "what?")


@given(st.text())
def test_no_line_of_the_check_is_lost(text: str) -> None:
    assert len(parse_changes(text)) == sum(bool(line.strip()) for line in text.splitlines())


def fill(transport: Transport, folder: Path, size: int) -> FileCanary:
    dialect = replace(LINUX, journal=str(folder / "journal"), leases=str(folder / "leases"))
    return FileCanary.fill(transport, Journal(transport, dialect, KINDS), size, soon())


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[FileCanary]:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    made = fill(LocalTransport(), tmp_path, 200_000)
    yield made
    made.close(soon())


def test_a_canary_sees_every_changed_page(canary: FileCanary) -> None:
    assert canary.changes(soon()) == ()
    memory = Path(canary._directory) / "memory"
    assert memory.stat().st_size == 4 * 65536
    content = memory.read_bytes()
    for at in (0, 4095, 4096 * 30 + 17, 4 * 65536 - 1):
        canary.spoil(at, bytes([content[at] ^ 0xFF]), soon())
    lines = canary.changes(soon())
    assert [line.split(":")[0] for line in lines] == ["page 0", "page 30", "page 63"]
    assert "byte 0x1e011 " in lines[1]


def test_a_canary_sees_that_it_was_cut_or_removed(canary: FileCanary) -> None:
    memory = Path(canary._directory) / "memory"
    with memory.open("r+b") as file:
        file.truncate(65536)
    assert any("size is now 65536" in line for line in canary.changes(soon()))
    memory.unlink()
    assert canary.changes(soon())


def test_a_closed_canary_leaves_nothing(tmp_path: Path) -> None:
    made = fill(LocalTransport(), tmp_path, 1)
    directory = Path(made._directory)
    assert directory.is_dir()
    assert len(made._journal.outstanding) == 1
    made.close(soon())
    assert not directory.exists()
    assert not made._journal.outstanding


def test_a_host_without_room_is_the_lab_s_and_keeps_nothing(tmp_path: Path) -> None:
    transport = FakeTransport(
        lambda command, _: (command[3] == "hil" and "cat" in command[2], "", "No space left")
    )
    with pytest.raises(LabError) as caught:
        fill(transport, tmp_path, 1 << 20)
    assert "/dev/shm" in caught.value.hint
    made, undone = transport.commands
    assert made[4] in undone
