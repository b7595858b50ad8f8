"""Disk images that the user brought: ``hil image add``, ``list``, ``remove``.

Each is a folder of ``host-images`` in the cache, with the disk and with what :class:`Image`
says of it.  An image is written below a name that nobody looks for, checked while it comes,
and renamed when it is whole.  Unlike the rest of the cache nothing here is removed unasked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from hil.emulated import cache
from hil.errors import HilError, InventoryError, LabError

Progress = Callable[[str], None]

_PIECE = 1 << 20
#: Seconds without a byte from a server.
_SILENCE = 60
_NEW = ".new-"
_XZ, _ZSTD = b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
#: Beginnings of what is no disk image that can be used as it is, and what it is.
_OTHER = {
    _XZ: "compressed by xz",
    _ZSTD: "compressed by Zstandard",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"KDMV": "a disk of VMware's format",
    b"conectix": "a disk of Microsoft's format VHD",
    b"vhdxfile": "a disk of Microsoft's format VHDX",
    b"<": "a text such as a page of a web server",
}


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk image in a file."""

    path: Path
    format: str
    """``raw`` or ``qcow2``."""
    size: int
    """Of the disk in it, bytes."""


@dataclass(frozen=True, slots=True)
class Image:
    """A disk image in the store."""

    name: str
    disk: Disk
    source: str
    """Where it came from: a URL or a file."""
    sha256: str
    """Of what came, before it was decompressed."""
    added: float
    """Seconds since the epoch."""


def inspect(path: Path) -> Disk:
    """What disk image ``path`` is.

    A qcow2 image is told by its header (QEMU, docs/interop/qcow2.txt), a raw one by the
    signature of a partition table in its first sector.

    Raises:
        InventoryError: it is missing, unreadable, or no disk image.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1024)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise InventoryError(f"the image {path} cannot be read: {error.strerror}") from None
    if head[:4] == b"QFI\xfb" and len(head) >= 72:
        version, backing = struct.unpack_from(">IQ", head, 4)
        (inside,) = struct.unpack_from(">Q", head, 24)
        external = version >= 3 and head[79] & 0x04  # incompatible feature 2
        if backing or external:
            raise InventoryError(
                f"the image {path} is but a part: its data is in another file",
                hint="make it whole with: qemu-img convert -O qcow2 IMAGE WHOLE",
            )
        return Disk(path, "qcow2", inside)
    if head[510:512] == b"\x55\xaa" and size % 512 == 0:
        return Disk(path, "raw", size)
    what = next((what for magic, what in _OTHER.items() if head.startswith(magic)), "")
    if what.startswith("compressed by"):
        hint = "hil image add IMAGE --sha256 SUM decompresses xz and Zstandard"
    else:
        hint = "a disk image is wanted, raw or qcow2, such as FreeBSD-…-BASIC-CI-ufs.raw"
    raise InventoryError(
        f"{path} is no disk image" + (f" but {what}" if what else ""),
        seen=head[:32].hex(" ") if not what else "",
        hint=hint,
    )


def add(source: str, sha256: str, *, name: str = "", progress: Progress = lambda _: None) -> Image:
    """Put an image into the store.

    Args:
        source: ``https://…``, ``http://…`` or a file: a disk image, raw or qcow2, as it is or
            compressed by xz or Zstandard.
        sha256: the checksum of ``source`` as it comes, 64 hexadecimal digits.
        name: to call it by; by default the file's name without its suffixes.
        progress: told what is being done.

    Raises:
        InventoryError: a name is taken or bad, the sum is another, it is no disk image, or
            the file is not there.
        LabError: it could not be fetched or written; nothing of it stays.
    """
    wanted = sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", wanted):
        raise InventoryError(
            f"{sha256!r} is no SHA-256 sum", hint="64 hexadecimal digits, as sha256sum prints them"
        )
    name = name or _name_of(source)
    _check(name)
    if (_folder() / name).exists():
        raise InventoryError(
            f"there is an image {name!r} already", hint=f"hil image remove {name}, or --name OTHER"
        )
    place: Path | None = None
    try:
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep()
        place = Path(tempfile.mkdtemp(prefix=_NEW, dir=_folder()))
        with _open(source) as (stream, length):
            hashing = _Hashing(stream, length, source, progress)
            with (place / "disk").open("wb") as file:
                damaged = _decompress(hashing, file)
                hashing.drain()
                if hashing.digest() != wanted:
                    raise InventoryError(
                        f"{source} is not what its sum says",
                        seen=f"wanted: {wanted}\nfound:  {hashing.digest()}",
                        hint="take the sum from the CHECKSUM.SHA256 beside the image",
                    )
                if damaged is not None:
                    raise damaged
                os.fsync(file.fileno())
        disk = _within(source, inspect, place / "disk")
        disk = dataclasses.replace(disk, path=_folder() / name / "disk")
        image = Image(name, disk, source, wanted, time.time())
        about = dataclasses.asdict(image) | {"disk": {"format": disk.format, "size": disk.size}}
        (place / "about.json").write_text(json.dumps(about, indent=1))
        place.rename(_folder() / name)
    except OSError as error:
        raise _not_kept(source, error) from None
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
    return image


def images() -> tuple[Image, ...]:
    """All images of the store, by name."""
    found = (_read(path) for path in sorted(_folder().glob("[!.]*/about.json")))
    return tuple(image for image in found if image is not None)


def remove(name: str) -> None:
    """Remove an image from the store.  A lab that runs from it keeps it until its end.

    Raises:
        InventoryError: there is none of that name.
        LabError: it cannot be removed.
    """
    place = _find(name)
    doomed = place.with_name(f"{_NEW}{name}-{os.getpid()}")
    try:
        place.rename(doomed)  # not to be found half removed
        shutil.rmtree(doomed)
    except OSError as error:
        raise LabError(f"the image {name!r} cannot be removed: {error.strerror}") from None


def disk_of(image: str) -> Disk:
    """The disk of the store's image ``image``, or of the file: what has a slash or exists is one.

    Raises:
        InventoryError: there is neither, or it is no disk image.
    """
    if "/" in image or Path(image).is_file():
        return inspect(Path(image).expanduser().resolve())
    return inspect(_find(image) / "disk")


# ---- the store -----------------------------------------------------------------------------


def _folder() -> Path:
    return cache.directory() / "host-images"


def _find(name: str) -> Path:
    _check(name)
    place = _folder() / name
    if not (place / "about.json").is_file():
        known = ", ".join(image.name for image in images())
        raise InventoryError(
            f"there is no image {name!r}; there are: {known or 'none'}",
            hint="name a file, or: hil image add URL|FILE --sha256 SUM --name NAME",
        )
    return place


def _read(path: Path) -> Image | None:
    try:
        about = json.loads(path.read_text())
        disk = Disk(path.with_name("disk"), **about.pop("disk"))
        return Image(disk=disk, **about)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # of another version of hil: add() refuses its name


def _check(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name):
        raise InventoryError(
            f"{name!r} is no name for an image", hint="letters, digits, '.', '_' and '-': --name"
        )


def _name_of(source: str) -> str:
    name = re.sub(r"[?#].*", "", source).rstrip("/").rpartition("/")[2]
    return re.sub(r"(\.(xz|zst|qcow2|raw|img))+$", "", name)


def _sweep() -> None:
    """Remove what an interrupted :func:`add` left: nothing of it was written for an hour."""
    for left in _folder().glob(f"{_NEW}*"):
        with contextlib.suppress(OSError):
            newest = max(p.stat().st_mtime for p in (left, *left.iterdir()))
            if newest < time.time() - 3600:
                shutil.rmtree(left, ignore_errors=True)


def _not_kept(source: str, error: OSError) -> HilError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LabError(
            f"the disk below {_folder()} is full: {source} was not kept",
            hint="free space there, or name a folder on another disk in HIL_CACHE",
        )
    return LabError(f"{source} could not be kept in {_folder()}: {error.strerror or error}")


def _within(source: str, function: Callable[[Path], Disk], path: Path) -> Disk:
    """What ``function`` finds; where it complains of ``path``, ``source`` is what it means."""
    try:
        return function(path)
    except InventoryError as error:
        raise InventoryError(
            error.message.replace(str(path), source), seen=error.seen, hint=error.hint
        ) from None


# ---- what comes ----------------------------------------------------------------------------


@contextlib.contextmanager
def _open(source: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """The bytes of ``source``, and how many they will be where that is known."""
    if not re.match(r"[a-z][a-z0-9+.-]*://", source):
        try:
            file = Path(source).expanduser().open("rb")
        except OSError as error:
            raise InventoryError(f"{source} cannot be read: {error.strerror}") from None
        with file:
            yield file, None
        return
    if not source.startswith(("https://", "http://")):
        raise InventoryError(f"{source} cannot be fetched", hint="use https://, http:// or a file")
    import http.client
    import urllib.error
    import urllib.request

    try:
        answer = urllib.request.urlopen(source, timeout=_SILENCE)  # noqa: S310 - see above
    except urllib.error.HTTPError as error:
        raise LabError(f"{source}: the server says {error.code} {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise LabError(
            f"{source} cannot be fetched: {reason}",
            hint="is there a network here? a file will do: hil image add FILE",
        ) from None
    with answer:
        length = answer.headers.get("Content-Length")
        yield answer, int(length) if length and length.isdigit() else None


class _Hashing:
    """Reads a stream, and knows the sum of what it has read."""

    def __init__(
        self, stream: IO[bytes], length: int | None, source: str, progress: Progress
    ) -> None:
        self._stream, self._length, self._source = stream, length, source
        self._hash = hashlib.sha256()
        self._progress = progress
        self._count = 0
        self._told = time.monotonic()

    def read(self, size: int = -1) -> bytes:
        import http.client

        try:
            data = self._stream.read(_PIECE if size < 0 else size)
        except (OSError, http.client.HTTPException) as error:
            raise LabError(
                f"{self._source} broke off after {self._count >> 20} MiB: {error}"
            ) from None
        if not data and self._length is not None and self._count < self._length:
            raise LabError(
                f"{self._source} broke off after {self._count} of {self._length} bytes",
                hint="try again",
            )
        self._hash.update(data)
        self._count += len(data)
        if time.monotonic() > self._told + 5:
            self._told = time.monotonic()
            of = f" of {self._length >> 20}" if self._length else ""
            self._progress(f"{self._count >> 20}{of} MiB of {self._source}")
        return data

    def drain(self) -> None:
        """Read what is left: the sum is of all of it."""
        while self.read(_PIECE):
            pass

    def digest(self) -> str:
        return self._hash.hexdigest()


class _Beginning:
    """A stream whose first bytes were looked at already."""

    def __init__(self, first: bytes, rest: _Hashing) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int = -1) -> bytes:
        if self._first:
            cut = len(self._first) if size < 0 else size
            data, self._first = self._first[:cut], self._first[cut:]
            return data
        return self._rest.read(size)


def _decompress(stream: _Hashing, file: BinaryIO) -> LabError | None:
    """Write to ``file`` what comes, decompressed where it is compressed; zeros become holes.

    Returns what is wrong with it: the sum, when all has come, may say it better.
    """
    first = stream.read(_PIECE)
    whole = _Beginning(first, stream)
    if first.startswith(_XZ):
        try:
            with lzma.open(cast("BinaryIO", whole)) as plain:
                _write(plain.read, file)
        except (lzma.LZMAError, EOFError) as error:
            return _damaged("xz", str(error))
    elif first.startswith(_ZSTD):
        return _unzstd(whole, file)
    else:
        _write(whole.read, file)
    return None


def _damaged(how: str, words: str) -> LabError:
    return LabError(f"what came cannot be decompressed by {how}: {words}", hint="fetch it anew")


def _write(read: Callable[[int], bytes], file: BinaryIO) -> None:
    while data := read(_PIECE):
        if data.count(0) == len(data):
            file.seek(len(data), os.SEEK_CUR)
        else:
            file.write(data)
    file.truncate(file.tell())


def _unzstd(whole: _Beginning, file: BinaryIO) -> LabError | None:
    try:
        tool = subprocess.Popen(
            ["zstd", "-dcq"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise LabError("zstd is not installed", hint="apt-get install zstd") from None
    failures: list[HilError] = []

    def feed() -> None:
        assert tool.stdin is not None
        with contextlib.suppress(BrokenPipeError), tool.stdin:
            try:
                while data := whole.read(_PIECE):
                    tool.stdin.write(data)
            except HilError as error:
                failures.append(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    assert tool.stdout is not None
    assert tool.stderr is not None
    try:
        _write(tool.stdout.read, file)
    except BaseException:
        tool.kill()
        raise
    finally:
        words = tool.stderr.read(500).decode("utf-8", "replace")
        status = tool.wait()
        feeder.join()
        tool.stdout.close()
        tool.stderr.close()
    if failures:
        raise failures[0]
    return _damaged("zstd", words.strip()) if status != 0 else None
