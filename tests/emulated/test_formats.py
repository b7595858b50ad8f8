from __future__ import annotations

import contextlib
import lzma
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.emulated.formats import Cpio, kernel_elf, module_info
from hil.errors import LabError


def read_cpio(data: bytes) -> list[tuple[str, int, bytes]]:
    """A reader of its own, from the format's description."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_size, size, mode = fields[11], fields[6], fields[1]
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        at += (110 + name_size + 3) // 4 * 4
        body = data[at : at + size]
        at += (size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            return found
        found.append((name[:-1].decode(), mode, body))


@given(
    st.lists(
        st.tuples(st.text("abcdefgh/._", min_size=1, max_size=40), st.binary(max_size=300)),
        max_size=8,
    )
)
def test_what_is_written_to_a_cpio_is_read_from_it(files: list[tuple[str, bytes]]) -> None:
    archive = Cpio()
    archive.directory("dev")
    archive.device("dev/console", 5, 1)
    archive.link("bin/sh", "busybox")
    for name, data in files:
        archive.file(name, data, 0o755)
    whole = archive.finish()
    assert len(whole) % 512 == 0
    assert read_cpio(whole) == [
        ("dev", 0o040755, b""),
        ("dev/console", 0o020600, b""),
        ("bin/sh", 0o120777, b"busybox"),
        *((name, 0o100755, data) for name, data in files),
    ]


def module(info: bytes) -> bytes:
    names = b"\0.modinfo\0.shstrtab\0"
    body = bytes(64) + info + names
    header = bytearray(bytes(64))
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x28, len(body))
    struct.pack_into("<HHH", header, 0x3A, 64, 3, 2)
    sections = bytes(64)
    for name, offset, size in ((1, 64, len(info)), (10, 64 + len(info), len(names))):
        sections += struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size) + bytes(24)
    return bytes(header) + body[64:] + sections


def test_module_info() -> None:
    info = module_info(module(b"license=GPL\0depends=mdio,dca\0name=igb\0"))
    assert info == {"license": "GPL", "depends": "mdio,dca", "name": "igb"}


def test_a_module_without_info() -> None:
    assert module_info(module(b"")) == {}


@given(
    st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x7fELF\x02\x01" + tail)
)
def test_rubbish_is_no_module(data: bytes) -> None:
    with contextlib.suppress(LabError):
        assert isinstance(module_info(data), dict)


def bzimage(payload: bytes) -> bytes:
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"what follows"


def elf(segment: bytes) -> bytes:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x20, 64)
    struct.pack_into("<Q", header, 0x28, 4096)
    struct.pack_into("<HHHHH", header, 0x36, 56, 1, 64, 5, 4)
    size = len(segment)
    program = struct.pack("<IIQQQQQQ", 1, 7, 120, 0, 0, size, size + 100, 4096)
    return bytes(header) + program + segment + b"sections"


def test_the_kernel_of_a_bzimage_without_its_zeros() -> None:
    kernel = kernel_elf(bzimage(lzma.compress(elf(b"text\0data" + bytes(500)))))
    assert kernel[120:] == b"text\0data"
    file_size, memory_size = struct.unpack_from("<QQ", kernel, 64 + 0x20)
    assert (file_size, memory_size) == (9, 609)
    assert struct.unpack_from("<HH", kernel, 0x3C) == (0, 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bzImage"),
        (bytes(4096), "no bzImage"),
        (bzimage(b"LZ4!"), "unknown way"),
        (bzimage(lzma.compress(b"MZ, no kernel")), "no ELF kernel"),
    ],
)
def test_what_is_no_kernel(data: bytes, words: str) -> None:
    with pytest.raises(LabError, match=words):
        kernel_elf(data)
