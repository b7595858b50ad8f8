"""The file system of a simulated machine, in memory: directories, files, device nodes.

Everything belongs to root, and everything runs as root: modes are kept and shown, and
checked by nobody.  Contents are kept in pages that copies share until one of them is
written, so a disk image costs nothing to clone.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from hil.simulated.errno import Errno, SimError
from hil.simulated.process import OpenFile, Process, Stream

_PAGE = 65536
#: Symbolic links that a path may lead through.
_MOST_LINKS = 16


@dataclass
class Node:
    """What files of all kinds have."""

    mode: int = 0o644
    changed: float = field(default_factory=time.time)
    number: int = field(default_factory=itertools.count(2).__next__)


class Regular(Node):
    """A file with contents; holes read as zeros and take no room."""

    def __init__(self, data: bytes = b"", mode: int = 0o644, size: int | None = None) -> None:
        super().__init__(mode)
        self.pages: dict[int, bytes] = {}
        self.size = 0
        self.lock = threading.Lock()
        self.write_at(0, data)
        self.size = len(data) if size is None else size

    def read_at(self, offset: int, length: int) -> bytes:
        with self.lock:
            length = max(0, min(length, self.size - offset))
            pieces = []
            while length:
                page, within = divmod(offset, _PAGE)
                step = min(length, _PAGE - within)
                held = self.pages.get(page)
                pieces.append(bytes(step) if held is None else held[within : within + step])
                offset, length = offset + step, length - step
            return b"".join(pieces)

    def write_at(self, offset: int, data: bytes) -> None:
        with self.lock:
            rest = memoryview(data)
            while rest:
                page, within = divmod(offset, _PAGE)
                step = min(len(rest), _PAGE - within)
                if step == _PAGE:
                    self.pages[page] = bytes(rest[:step])
                else:
                    held = bytearray(self.pages.get(page) or bytes(_PAGE))
                    held[within : within + step] = rest[:step]
                    self.pages[page] = bytes(held)
                offset, rest = offset + step, rest[step:]
            self.size = max(self.size, offset)
            self.changed = time.time()

    def truncate(self, size: int) -> None:
        with self.lock:
            if size < self.size:
                last = (size + _PAGE - 1) // _PAGE
                self.pages = {n: page for n, page in self.pages.items() if n < last}
                if size % _PAGE and last - 1 in self.pages:
                    kept = self.pages[last - 1][: size % _PAGE]
                    self.pages[last - 1] = kept + bytes(_PAGE - len(kept))
            self.size = size
            self.changed = time.time()

    def copy(self) -> Regular:
        with self.lock:
            twin = Regular(mode=self.mode, size=self.size)
            twin.pages = dict(self.pages)
            return twin

    @property
    def data(self) -> bytes:
        return self.read_at(0, self.size)


#: Opens a device for a process; ``mode`` is as for :meth:`Files.open`.
Opener: TypeAlias = Callable[[Process, str], Stream]


class Device(Node):
    """A character device; ``size`` is what ls(1) shows where a file has its length."""

    def __init__(self, opener: Opener, mode: int = 0o600, size: str = "0x10") -> None:
        super().__init__(mode)
        self.opener = opener
        self.size = size


class Link(Node):
    """A symbolic link."""

    def __init__(self, target: str) -> None:
        super().__init__(0o755)
        self.target = target


class Directory(Node):
    """A directory.

    Args:
        dynamic: more entries, asked for whenever somebody looks.
        clone: makes an entry whose name somebody looks up, as devfs does for nmdm(4).
    """

    def __init__(
        self,
        mode: int = 0o755,
        dynamic: Callable[[], Mapping[str, Node]] = dict,
        clone: Callable[[str], Node | None] = lambda _: None,
    ) -> None:
        super().__init__(mode)
        self.own: dict[str, Node] = {}
        self.dynamic = dynamic
        self.clone = clone

    def entries(self) -> dict[str, Node]:
        return {**self.own, **self.dynamic()}


class Files:
    """A tree of :class:`Node`. Paths are absolute; a missing one is ``ENOENT``."""

    def __init__(self) -> None:
        self.root = Directory()
        for name in ("/dev", "/etc", "/tmp", "/var", "/var/run", "/var/tmp", "/root", "/boot"):
            self.make_directory(name)
        self.add_device("/dev/null", lambda _process, _mode: Null(), 0o666)
        self.add_device("/dev/zero", lambda _process, _mode: Zero(), 0o666)

    def find(self, path: str, *, follow: bool = True) -> Node:
        """The node at ``path``; ``..`` is the directory that a node is really in."""
        node: Node = self.root
        words = _words(path)
        above: list[Node] = []
        links = 0
        while words:
            word = words.pop(0)
            if not isinstance(node, Directory):
                raise SimError(Errno.ENOTDIR, path)
            if word == "..":
                node = above.pop() if above else self.root
                continue
            below = node.entries().get(word) or node.clone(word)
            if below is None:
                raise SimError(Errno.ENOENT, path)
            if isinstance(below, Link) and (follow or words):
                links += 1
                if links > _MOST_LINKS:
                    raise SimError(Errno.EINVAL, path)
                if below.target.startswith("/"):
                    node, above = self.root, []
                words = _words(below.target) + words
                continue
            above.append(node)
            node = below
        return node

    def exists(self, path: str) -> bool:
        try:
            self.find(path)
        except SimError:
            return False
        return True

    def directory(self, path: str) -> Directory:
        node = self.find(path)
        if not isinstance(node, Directory):
            raise SimError(Errno.ENOTDIR, path)
        return node

    def parent(self, path: str) -> tuple[Directory, str]:
        """The directory that ``path`` is in, and its name there."""
        above, _, name = path.rstrip("/").rpartition("/")
        try:
            return self.directory(above or "/"), name
        except SimError as error:
            raise SimError(error.number, path) from None

    def open(self, process: Process, path: str, mode: str) -> OpenFile:
        """Open a file.

        Args:
            process: for whom.
            path: absolute.
            mode: ``r``, ``w`` (made empty), ``a`` (appended to) or ``rw`` (made if missing);
                with ``n`` after it, without waiting for a carrier.
        """
        try:
            node = self.find(path)
        except SimError as error:
            directory, name = self.parent(path)
            if error.number is not Errno.ENOENT or (mode[0] == "r" and "w" not in mode) or not name:
                raise
            node = directory.own[name] = Regular()
        if isinstance(node, Device):
            return OpenFile(node.opener(process, mode), path)
        if isinstance(node, Directory):
            if "w" in mode or "a" in mode:
                raise SimError(Errno.EISDIR, path)
            return OpenFile(_OpenDirectory(), path)
        if not isinstance(node, Regular):
            raise SimError(Errno.EINVAL, path)
        if mode[0] == "w":
            node.truncate(0)
        return OpenFile(RegularStream(node, append=mode[0] == "a"), path)

    def read(self, path: str) -> bytes:
        node = self.find(path)
        if not isinstance(node, Regular):
            raise SimError(Errno.EISDIR, path)
        return node.data

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        directory, name = self.parent(path)
        directory.own[name] = Regular(data, mode)

    def add(self, path: str, node: Node) -> None:
        directory, name = self.parent(path)
        directory.own[name] = node

    def add_device(self, path: str, opener: Opener, mode: int = 0o600) -> None:
        self.add(path, Device(opener, mode))

    def make_directory(self, path: str, mode: int = 0o755) -> Directory:
        directory, name = self.parent(path)
        if not name or name in directory.entries():
            raise SimError(Errno.EEXIST, path)
        made = directory.own[name] = Directory(mode)
        return made

    def remove(self, path: str) -> None:
        directory, name = self.parent(path)
        node = self.find(path, follow=False)
        if isinstance(node, Directory) and node.entries():
            raise SimError(Errno.ENOTEMPTY, path)
        if name not in directory.own:
            raise SimError(Errno.EPERM, path)
        del directory.own[name]

    def rename(self, source: str, target: str) -> None:
        node = self.find(source, follow=False)
        to, name = self.parent(target)
        existing = to.entries().get(name)
        if isinstance(existing, Directory):
            to, name = existing, source.rstrip("/").rpartition("/")[2]
        origin, old = self.parent(source)
        if old not in origin.own:
            raise SimError(Errno.EPERM, source)
        del origin.own[old]
        to.own[name] = node

    def matching(self, directory: str, accept: Callable[[str], bool]) -> Iterator[str]:
        """Names in ``directory`` that ``accept`` takes, sorted; none if it is no directory."""
        try:
            names = self.directory(directory).entries()
        except SimError:
            return
        yield from sorted(name for name in names if accept(name))


def _words(path: str) -> list[str]:
    return [word for word in path.split("/") if word not in ("", ".")]


class RegularStream:
    """An open file with an offset."""

    def __init__(self, file: Regular, *, append: bool = False) -> None:
        self.file = file
        self.offset = 0
        self._append = append

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        piece = self.file.read_at(self.offset, limit)
        self.offset += len(piece)
        return piece

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        if self._append:
            self.offset = self.file.size
        self.file.write_at(self.offset, data)
        self.offset += len(data)

    def close(self) -> None:
        return


class _OpenDirectory:
    def read(self, process: Process, limit: int) -> bytes:
        raise SimError(Errno.EISDIR)

    def write(self, process: Process, data: bytes) -> None:
        raise SimError(Errno.EBADF)

    def close(self) -> None:
        return


class Null:
    """/dev/null."""

    def read(self, process: Process, limit: int) -> bytes:
        return b""

    def write(self, process: Process, data: bytes) -> None:
        return

    def close(self) -> None:
        return


class Zero(Null):
    """/dev/zero."""

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        return bytes(limit)
