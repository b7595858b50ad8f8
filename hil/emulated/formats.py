"""The three binary formats that making an image needs: cpio, bzImage and .modinfo."""

from __future__ import annotations

import lzma
import struct
import subprocess

from hil.errors import LabError

_PT_LOAD = 1


class Cpio:
    """Writes a ``newc`` archive, as an initrd is one.

    Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, path: str) -> None:
        """An empty folder."""
        self._add(path, 0o040755)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._add(path, 0o100000 | mode, data)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._add(path, 0o120777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(path, 0o020600, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._add("TRAILER!!!", 0)
        data = b"".join(self._parts)
        return data + bytes(-len(data) % 512)

    def _add(
        self, path: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device, node's device, name's size, checksum
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]


def kernel_elf(bzimage: bytes) -> bytes:
    """The ELF kernel that a bzImage holds compressed.

    Source: Linux, Documentation/arch/x86/boot.rst (setup_sects, payload_offset).

    Raises:
        LabError: it is no bzImage, or is compressed in a way not known here.
    """
    if len(bzimage) < 0x250 or bzimage[0x202:0x206] != b"HdrS":
        raise LabError("the kernel is no bzImage", seen=bzimage[0x202:0x206].hex())
    start = ((bzimage[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    payload = bzimage[start + offset : start + offset + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        elf = decompress_zstd(payload)
    else:
        raise LabError("the kernel is compressed in an unknown way", seen=payload[:8].hex())
    if elf[:6] != b"\x7fELF\x02\x01":
        raise LabError("the bzImage holds no ELF kernel", seen=elf[:8].hex())
    return _trimmed(elf)


def _trimmed(elf: bytes) -> bytes:
    """An ELF kernel without section headers and without the zeros that end its segments.

    A third of Debian's kernel is zeros (its .bss), which memory is anyway, and which an
    emulated machine would take long to copy.
    """
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    out = bytearray(elf)
    end = table + size * count
    for index in range(count):
        at = table + index * size
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, at)
        if kind == _PT_LOAD:
            length = len(elf[offset : offset + length].rstrip(b"\0"))
            struct.pack_into("<Q", out, at + 0x20, length)
        end = max(end, offset + length)
    # e_shoff, e_shnum, e_shstrndx
    struct.pack_into("<Q", out, 0x28, 0)
    struct.pack_into("<HH", out, 0x3C, 0, 0)
    return bytes(out[:end])


def decompress_zstd(data: bytes) -> bytes:
    """Zstandard, by the tool: Python's library has had it only since 3.14."""
    try:
        # What follows the stream (a kernel's payload has its size there) is an error to zstd.
        return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=False).stdout
    except FileNotFoundError:
        raise LabError("zstd is not installed", hint="apt-get install zstd") from None


def module_info(module: bytes) -> dict[str, str]:
    """Keys and last values of a kernel module's ``.modinfo`` (ELF-64, little endian).

    Raises:
        LabError: it is no such file.
    """
    try:
        if module[:6] != b"\x7fELF\x02\x01":
            raise LabError("not a 64-bit ELF file", seen=module[:8].hex())
        (table,) = struct.unpack_from("<Q", module, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", module, 0x3A)
        sections = [
            struct.unpack_from("<IIQQQQ", module, table + index * size) for index in range(count)
        ]
        names = sections[names_index][4]
    except (struct.error, IndexError) as error:
        raise LabError("a kernel module is cut off", seen=repr(error)) from None
    for name, _, _, _, offset, length in sections:
        if module[names + name : names + name + 9] == b".modinfo\0":
            text = module[offset : offset + length].decode("utf-8", "replace")
            return dict(word.split("=", 1) for word in text.split("\0") if "=" in word)
    return {}
