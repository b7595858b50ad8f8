"""``python3 -c`` in a simulated guest: hil's own in-guest programs, as they are.

The program's real source runs in this process, with other modules under the names ``os``,
``mmap``, ``ctypes``, ``subprocess``, ``sys`` and ``time``: their files, devices and commands
are the guest's, and a mapping of ``/dev/mem`` is the guest's physical memory, each access of
the width that the program asks for.  Only programs of :mod:`hil.probes.remote` are run:
this is a stand-in for one interpreter and four programs, no sandbox.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import os
import posixpath
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files as package_files
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

from hil.simulated.errno import SimError
from hil.simulated.guest_memory import HugePages
from hil.simulated.memory import OutOfMemory
from hil.simulated.process import OpenFile, Process
from hil.transport.agent import program

#: Modules that mean the same everywhere.
_SHARED = frozenset(
    "__future__ array base64 binascii errno json re secrets struct typing".split()  # noqa: SIM905
)
_PAGE = 4096
_MAP_HUGETLB = 0x40000
_LOCK_NB = 4


class PhysicalMemory(Protocol):
    """An address space: memory, and registers among it."""

    def read(self, address: int, length: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


class Mappable(Protocol):
    """An open file that is a piece of physical memory: a BAR, in Linux's sysfs."""

    region: tuple[int, int]
    """Address and length."""


class Seekable(Protocol):
    """An open file with an offset."""

    offset: int

    def read(self, process: Process, limit: int) -> bytes: ...

    def write(self, process: Process, data: bytes) -> None: ...


@functools.cache
def _programs() -> frozenset[str]:
    """The sources that may be run."""
    sources = {
        entry.name.removesuffix(".py"): entry.read_text("utf-8")
        for entry in package_files("hil.probes.remote").iterdir()
        if entry.name.endswith(".py")
    }
    served = {program("hil.probes.remote", name) for name in sources}
    return frozenset({*sources.values(), *served})


def python3(
    process: Process,
    memory: PhysicalMemory,
    system: str,
    huge_pages: HugePages | None = None,
) -> int:
    """The command: ``python3 [-u] -c CODE [ARGUMENT …]``.

    Args:
        process: the command's.
        memory: the machine's.
        system: what ``sys.platform`` tells, as ``freebsd13``.
        huge_pages: what ``MAP_HUGETLB`` maps, where there is such a thing.
    """
    arguments = process.arguments[1:]
    while arguments and arguments[0] in ("-u", "-I", "-B"):
        arguments.pop(0)
    if len(arguments) < 2 or arguments[0] != "-c" or arguments[1] not in _programs():
        process.complain("only hil's own programs run in a simulated machine's Python")
        return 2
    return _Interpreter(process, memory, system, huge_pages).run(
        arguments[1], ["-c", *arguments[2:]]
    )


class _Interpreter:
    """One run of one program."""

    def __init__(
        self,
        process: Process,
        memory: PhysicalMemory,
        system: str,
        huge_pages: HugePages | None,
    ) -> None:
        self._process = process
        self._memory = memory
        self._huge_pages = huge_pages
        self._files = _Descriptors(process)
        self._modules = {
            "os": self._os(system),
            "sys": SimpleNamespace(platform=system, stdin=_Input(process), exit=sys.exit),
            "mmap": self._mmap(),
            "ctypes": SimpleNamespace(
                **{f"c_uint{bits}": _Cell.of(bits // 8) for bits in (8, 16, 32, 64)},
                c_char=_Cell.of(1),
                addressof=lambda cell: cell.address,
            ),
            "subprocess": self._subprocess(),
            "time": SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=process.sleep),
            "fcntl": SimpleNamespace(
                flock=self._files.flock, LOCK_EX=2, LOCK_NB=_LOCK_NB, LOCK_UN=8
            ),
            "select": SimpleNamespace(select=_unavailable("select.select")),
            "socket": SimpleNamespace(socket=_unavailable("socket.socket")),
        }

    def run(self, code: str, arguments: Sequence[str]) -> int:
        self._modules["sys"].argv = list(arguments)
        names = {name: getattr(builtins, name) for name in dir(builtins)}
        names |= {"__import__": self._import, "print": self._print, "open": self._files.open}
        space = {"__name__": "__main__", "__builtins__": names}
        try:
            exec(compile(code, "<string>", "exec"), space)  # noqa: S102 - hil's own source
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        except Exception:  # noqa: BLE001 - an interpreter shows whatever its program raises
            self._process.err(traceback.format_exc())
            return 1
        return 0

    def _import(
        self,
        name: str,
        globals: Any = None,  # noqa: A002 - the signature of __import__
        locals: Any = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if name in self._modules:
            return self._modules[name]
        if name == "os.path":
            return posixpath if fromlist else self._modules["os"]
        if name in _SHARED:
            module: ModuleType = importlib.import_module(name)
            return module
        raise ModuleNotFoundError(f"No module named {name!r}")

    def _print(
        self, *values: object, sep: str = " ", end: str = "\n", file: Any = None, flush: bool = True
    ) -> None:
        del file, flush  # these programs print to standard output, and nothing is held back
        self._process.out(sep.join(map(str, values)) + end)

    def _os(self, system: str) -> SimpleNamespace:
        files = self._files
        release = getattr(getattr(self._process.system, "image", None), "release", "13.2-RELEASE")
        flags = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "SEEK_SET")
        names = {name: getattr(os, name) for name in flags}
        return SimpleNamespace(
            **names,
            O_CLOEXEC=0,
            path=posixpath,
            name="posix",
            environ=self._process.environment,
            open=files.os_open,
            close=files.close,
            read=files.read,
            write=files.write,
            pread=files.pread,
            pwrite=files.pwrite,
            lseek=files.lseek,
            listdir=self._listdir,
            getpid=lambda: self._process.pid,
            uname=lambda: SimpleNamespace(
                sysname="Linux" if system == "linux" else "FreeBSD",
                release=release,
                machine="x86_64" if system == "linux" else "amd64",
                nodename=self._process.system.name,
            ),
        )

    def _listdir(self, path: str) -> list[str]:
        files = self._process.system.files
        return sorted(files.directory(self._process.path(path)).entries())

    def _mmap(self) -> SimpleNamespace:
        def mmap(
            descriptor: int, length: int, flags: int = 0, *_: Any, offset: int = 0, **__: Any
        ) -> _Mapping:
            if descriptor < 0 and flags & _MAP_HUGETLB and self._huge_pages is not None:
                return self._map_huge(self._huge_pages, length)
            if descriptor < 0:
                return _Mapping(_Plain(length), 0, length)
            region = getattr(self._process.file(descriptor).stream, "region", None)
            if region is not None:
                return _Mapping(self._memory, region[0] + offset, length or region[1])
            if self._files.name(descriptor) != "/dev/mem":
                raise OSError(19, "Operation not supported by device")
            return _Mapping(self._memory, offset, length)

        return SimpleNamespace(
            mmap=mmap,
            PAGESIZE=_PAGE,
            **dict.fromkeys(("MAP_SHARED", "MAP_PRIVATE", "MAP_ANON", "MAP_ANONYMOUS"), 0),
            **dict.fromkeys(("PROT_READ", "PROT_WRITE", "ACCESS_WRITE", "ACCESS_READ"), 0),
        )

    def _map_huge(self, pages: HugePages, length: int) -> _Mapping:
        try:
            return _Mapping(pages, pages.map(self._process, length), length)
        except OutOfMemory:
            raise OSError(12, "Cannot allocate memory") from None

    def _subprocess(self) -> SimpleNamespace:
        names = ("PIPE", "DEVNULL", "STDOUT", "CalledProcessError", "CompletedProcess")

        def check_output(command: Sequence[str], **options: Any) -> Any:
            return self._run(command, check=True, capture_output=True, **options).stdout

        return SimpleNamespace(
            **{name: getattr(subprocess, name) for name in names},
            run=self._run,
            check_output=check_output,
        )

    def _run(
        self,
        command: Sequence[str],
        *,
        check: bool = False,
        text: bool = False,
        universal_newlines: bool = False,
        **_: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command of the guest to its end; both its outputs are kept."""
        process = self._process
        name = command[0].rsplit("/", 1)[-1]
        body = process.system.commands.get(name)
        if body is None:
            raise FileNotFoundError(2, "No such file or directory", command[0])
        out, err = _Collected(), _Collected()
        files = {0: process.file(0), 1: OpenFile(out), 2: OpenFile(err)}
        status = process.run_here(process.child(list(command), files), body)
        outputs: list[Any] = [bytes(out.data), bytes(err.data)]
        if text or universal_newlines:
            outputs = [data.decode("utf-8", "replace") for data in outputs]
        done = subprocess.CompletedProcess[Any](list(command), status, *outputs)
        if check:
            done.check_returncode()
        return done


class _Collected:
    """A stream that keeps all that is written to it."""

    def __init__(self) -> None:
        self.data = bytearray()

    def read(self, process: Process, limit: int) -> bytes:
        del process, limit
        return b""

    def write(self, process: Process, data: bytes) -> None:
        del process
        self.data += data

    def close(self) -> None:
        return


class _Input:
    """``sys.stdin`` as text."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __iter__(self) -> Iterator[str]:
        for line in self._process.lines():
            yield line.decode("utf-8", "replace")

    def read(self) -> str:
        return self._process.read_all().decode("utf-8", "replace")

    def fileno(self) -> int:
        return 0


#: Who holds which file locked, by which descriptor; by system and path.
_LOCKS: dict[tuple[int, str], tuple[Process, int]] = {}
_LOCK_NEWS = threading.Condition()


class _Descriptors:
    """What the program has open: descriptors of the process, and file objects on them."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def os_open(self, path: str, flags: int, mode: int = 0o666) -> int:
        del mode
        return self._open(path, {os.O_RDONLY: "r", os.O_WRONLY: "rw"}.get(flags & 3, "rw"))

    def _open(self, path: str, mode: str) -> int:
        process = self._process
        try:
            file = process.system.files.open(process, process.path(path), mode)
        except SimError as error:
            raise OSError(int(error.number), error.number.text, path) from None
        number = next(n for n in range(3, 10_000) if n not in process.files)
        process.install(number, file)
        return number

    def name(self, descriptor: int) -> str:
        return self._process.file(descriptor).name

    def close(self, descriptor: int) -> None:
        key = (id(self._process.system), self.name(descriptor))
        with _LOCK_NEWS:
            if _LOCKS.get(key) == (self._process, descriptor):
                del _LOCKS[key]
                _LOCK_NEWS.notify_all()
        self._process.close(descriptor)

    def flock(self, file: Any, operation: int) -> None:
        """An exclusive lock, which ends with its process."""
        descriptor: int = file if isinstance(file, int) else file.fileno()
        key = (id(self._process.system), self.name(descriptor))
        own = (self._process, descriptor)

        def free() -> bool:
            holder, number = _LOCKS.get(key, own)
            return (holder, number) == own or holder.status is not None

        with _LOCK_NEWS:
            if operation & _LOCK_NB and not free():
                raise BlockingIOError(35, "Resource temporarily unavailable")
            while not self._process.wait_on(_LOCK_NEWS, free, 1.0):
                pass  # a holder that was killed tells nobody
            _LOCKS[key] = own

    def read(self, descriptor: int, length: int) -> bytes:
        data: bytes = self._call(self._process.read, length, descriptor)
        return data

    def write(self, descriptor: int, data: bytes) -> int:
        self._call(self._process.write, descriptor, bytes(data))
        return len(data)

    def lseek(self, descriptor: int, offset: int, whence: int = 0) -> int:
        if whence:
            raise OSError(22, "Invalid argument")
        self._seekable(descriptor).offset = offset
        return offset

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        self.lseek(descriptor, offset)
        return self.read(descriptor, length)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self.lseek(descriptor, offset)
        return self.write(descriptor, data)

    def _seekable(self, descriptor: int) -> Seekable:
        stream: Any = self._process.file(descriptor).stream
        if not hasattr(stream, "offset"):
            raise OSError(29, "Illegal seek")
        found: Seekable = stream
        return found

    @staticmethod
    def _call(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except SimError as error:
            raise OSError(int(error.number), error.number.text) from None

    def open(self, path: str, mode: str = "r", *_: Any, **__: Any) -> Any:
        """The built-in function; files that are used as bytes are not buffered."""
        kinds = {"r": "r", "w": "w", "a": "a"}
        kind = "rw" if "+" in mode else kinds[mode.strip("bt")]
        raw = _Raw(self, self._open(path, kind))
        if "b" in mode:
            return raw
        buffered = io.BufferedReader(raw) if kind == "r" else io.BufferedWriter(raw)
        return io.TextIOWrapper(buffered, "utf-8", "replace")


class _Raw(io.RawIOBase):
    """A binary file object on a descriptor."""

    def __init__(self, files: _Descriptors, number: int) -> None:
        self._files = files
        self._number = number

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def read(self, size: int = -1) -> bytes:
        if size >= 0:
            return self._files.read(self._number, size)
        pieces = []
        while piece := self._files.read(self._number, 65536):
            pieces.append(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        piece = self._files.read(self._number, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, data: Any) -> int:
        return self._files.write(self._number, bytes(data))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._files.lseek(self._number, offset, whence)

    def close(self) -> None:
        if not self.closed:
            self._files.close(self._number)
        super().close()


class _Plain:
    """Anonymous memory: the process's own, at no physical address that it could know."""

    def __init__(self, length: int) -> None:
        self._data = bytearray(length)

    def read(self, address: int, length: int) -> bytes:
        return bytes(self._data[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self._data[address : address + len(data)] = data


class _Mapping:
    """``mmap.mmap``: a piece of an address space as a sequence of bytes."""

    def __init__(self, memory: PhysicalMemory, base: int, length: int) -> None:
        self.memory = memory
        self.base = base
        self._length = length

    def __len__(self) -> int:
        return self._length

    def _range(self, key: int | slice) -> tuple[int, int]:
        if isinstance(key, int):
            if not 0 <= key < self._length:
                raise IndexError("mmap index out of range")
            return self.base + key, 1
        start, stop, step = key.indices(self._length)
        if step != 1:
            raise ValueError("only whole ranges are simulated")
        return self.base + start, max(0, stop - start)

    def __getitem__(self, key: int | slice) -> Any:
        data = self.memory.read(*self._range(key))
        return data[0] if isinstance(key, int) else data

    def __setitem__(self, key: int | slice, value: Any) -> None:
        address, length = self._range(key)
        data = bytes([value]) if isinstance(key, int) else bytes(value)
        if len(data) != length:
            raise IndexError("mmap slice assignment is wrong size")
        self.memory.write(address, data)

    def close(self) -> None:
        return

    def flush(self) -> None:
        return


class _Cell:
    """A ctypes integer in a mapping: one load or store of its width."""

    width = 1

    def __init__(self, mapping: _Mapping, offset: int) -> None:
        if not 0 <= offset <= len(mapping) - self.width:
            raise ValueError("Buffer size too small")
        self._memory = mapping.memory
        self.address = mapping.base + offset

    @staticmethod
    def of(width: int) -> type[_Cell]:
        return type(f"c_uint{8 * width}", (_Cell,), {"width": width})

    @classmethod
    def from_buffer(cls, mapping: _Mapping, offset: int = 0) -> _Cell:
        return cls(mapping, offset)

    @property
    def value(self) -> int:
        return int.from_bytes(self._memory.read(self.address, self.width), "little")

    @value.setter
    def value(self, number: int) -> None:
        mask = (1 << 8 * self.width) - 1
        self._memory.write(self.address, (number & mask).to_bytes(self.width, "little"))


def _unavailable(name: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(45, f"{name} is not simulated")

    return call
