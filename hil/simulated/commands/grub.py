"""grub-bhyve: GRUB as a process of the host, which loads a Linux guest's kernel.

Options, words and the order of its steps are those of the package grub2-bhyve
(github.com/grehan-freebsd/grub2-bhyve, version 0.40): grub-core/kern/emu/{main,bhyve_hostif,
hostdisk,hostfs}.c, grub-core/loader/i386/linux.c.  It reads its grub.cfg and then, if that
loaded nothing, commands: from the terminal ``-c`` names, else from standard input, whose end it
does not notice.  Its status is 0 also where nothing was loaded.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from hil.simulated.commands.bhyve import load_vm, loader_console
from hil.simulated.commands.options import flags, getopt, size_of
from hil.simulated.errno import Errno, SimError
from hil.simulated.files import Regular
from hil.simulated.guest_image import GuestImage, LinuxKernelFile
from hil.simulated.host_system import HostSystem
from hil.simulated.process import Command, Exit, OpenFile, Process

_DIRECTORY, _CONFIG, _MAP = "/boot/grub", "grub.cfg", "/boot/grub/device.map"
#: What ncurses sends to a vt100 as it begins, and as it ends.
_BEGIN, _END = "\x1b)0\x1b[1;24r\x1b[m\x0f\x1b[?7h\x1b[H\x1b[J", "\x1b[24;1H\n"
_BANNER = """\
                      GNU GRUB  version 2.00:0.40

   Minimal BASH-like line editing is supported. For the first word, TAB
   lists possible command completions. Anywhere else TAB lists possible
   device or file completions.


"""
_CONSOLE = "console=ttyS0"


class _GrubError(Exception):
    """A command that failed, in GRUB's words."""


class _Done(Exception):  # noqa: N818 - how GRUB ends
    """GRUB ends: a kernel is loaded, or it was told to."""


def grub_bhyve(process: Process) -> int:
    found, words = getopt(process, "r:m:d:vH:c:eg:nM:S")
    option = flags(found)
    if not words:
        process.err("Required VM name parameter not supplied\n")
        return 1
    try:
        memory = size_of(option.get("M", "256"))
    except ValueError:
        process.err(f"Invalid guest memory size `{option['M']}'.\n")
        process.err("Error in parsing command line arguments\n")
        return 1
    host = process.system
    assert isinstance(host, HostSystem)
    size = memory << 20 if memory < 1 << 20 else memory
    step = load_vm(host, words[-1], size, "S" in option)[0]
    if step:
        process.err(f"{_REFUSALS[step].format(name=words[-1])}\nError in initializing VM\n")
        return 1
    if "c" not in option and not process.environment.get("TERM"):
        process.err("Error opening terminal: unknown.\n")
        return 1
    with loader_console(process, host, option.get("c", "stdio")) as (write, source):
        grub = _Grub(process, host, words[-1], option, write, source)
        try:
            grub.run()
        except _Done:
            write(_END.encode())
    return 0


_REFUSALS = {
    "vm_create": "Could not create VM {name}",
    "vm_open": "Could not open VM {name}",
    "vm_reinit": "Could not reinit VM {name}",
    "vm_setup_memory": "Could not setup memory for VM",
}


@dataclass
class _Entry:
    """A menu entry."""

    title: str
    lines: list[str] = field(default_factory=list)


class _Grub:
    """One run: variables, disks, a menu, and what is loaded."""

    def __init__(
        self,
        process: Process,
        host: HostSystem,
        name: str,
        option: Mapping[str, str],
        write: Callable[[bytes], None],
        source: OpenFile,
    ) -> None:
        self._process = process
        self._host = host
        self._name = name
        self._write = write
        self._source = source
        self._insert = "n" not in option
        self._disks = self._read_map(option.get("m", _MAP))
        self._variables = {"root": option.get("r", "host")}
        self._prefix = f"({self._variables['root']}){option.get('d', _DIRECTORY)}"
        self._config = option.get("g", _CONFIG)
        self._menu: list[_Entry] = []
        self._entry: _Entry | None = None
        self._kernel: tuple[LinuxKernelFile, str] | None = None

    def _say(self, text: str) -> None:
        self._write(text.replace("\n", "\r\n").encode())

    def _read_map(self, path: str) -> dict[str, str]:
        """``(hd0) /path`` a line; what does not exist is left out without a word."""
        try:
            text = self._host.files.read(self._process.path(path)).decode("utf-8", "replace")
        except SimError:
            return {}
        found = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            match = re.fullmatch(r"\(([hfc]d\d+)\)", words[0])
            if match is None or len(words) < 2:
                wrong = "filename expected" if match else "missing `(' symbol"
                self._process.err(f"grub-bhyve: error: {path}:{number}: {wrong}.\n")
                raise Exit(1)
            if self._host.files.exists(words[1]):
                found[match[1]] = words[1]
        return found

    # ---- the course of it ------------------------------------------------------------

    def run(self) -> None:
        """Until a kernel is booted, or it is told to exit; without an end if neither comes."""
        self._say(f"{_BEGIN}Welcome to GRUB!\n\n")
        config = f"{self._prefix}/{self._config}"
        try:
            text = self._read(config).decode("utf-8", "replace")
        except _GrubError:
            text = ""
        for line in text.splitlines():
            self._line(line)
        if self._menu:
            self._choose()
        self._say(f"{_BEGIN}{_BANNER}")
        while True:
            self._say("grub> ")
            self._line(self._typed())

    def _choose(self) -> None:
        self._say(f"{_BEGIN}{_BANNER.splitlines()[0]}\n\n")
        for entry in self._menu:
            self._say(f" {entry.title}\n")
        if "timeout" not in self._variables:
            self._typed()
        number = self._variables.get("default", "0")
        chosen = self._menu[int(number) if number.isdigit() else 0]
        self._say(f"  Booting `{chosen.title}'\n\n")
        for line in chosen.lines:
            self._line(line)
        if self._kernel is not None:
            self._boot()

    def _typed(self) -> str:
        """A line, echoed; the end of the input is no key at all."""
        text = b""
        while not text.endswith((b"\r", b"\n")):
            piece = self._source.stream.read(self._process, 1)
            while not piece:
                self._process.sleep(3600)
            text += piece
            self._say(piece.decode("latin-1").replace("\r", "\n"))
        return text.decode("utf-8", "replace").strip()

    def _line(self, line: str) -> None:
        """A line of a configuration, or one that was typed."""
        words = line.strip()
        if not words or words.startswith("#"):
            return
        if self._entry is not None:
            if words == "}":
                self._menu.append(self._entry)
                self._entry = None
            else:
                self._entry.lines.append(words)
            return
        try:
            self._command(words)
        except _GrubError as error:
            self._say(f"error: {error}.\n")

    def _command(self, line: str) -> None:
        try:
            name, *words = shlex.split(line.replace("{", " { "), comments=True)
        except ValueError:
            raise _GrubError("syntax error") from None
        if name == "menuentry" and words:
            self._entry = _Entry(words[0])
            return
        if name in ("set", "export") and words:
            name = words[0]
        variable, equals, value = name.partition("=")
        if equals:
            self._variables[variable] = value.removeprefix("(").removesuffix(")")
        elif name == "linux":
            self._linux(words)
        elif name == "initrd":
            self._initrd(words)
        elif name == "boot":
            self._boot()
        elif name in ("exit", "reboot", "halt"):
            raise _Done
        elif name == "ls":
            self._say(" ".join(f"({disk})" for disk in (*self._disks, "host")) + "\n")
        elif name == "echo":
            self._say(" ".join(words) + "\n")
        elif name not in ("insmod", "load_env", "load_video", "terminal_output", "search", "set"):
            raise _GrubError(f"can't find command `{name}'")

    # ---- loading ---------------------------------------------------------------------

    def _linux(self, words: list[str]) -> None:
        if not words:
            raise _GrubError("filename expected")
        kernel = LinuxKernelFile.parse(self._read(words[0]))
        if kernel is None:
            raise _GrubError("invalid magic number")
        inserted = [_CONSOLE] if self._insert and _CONSOLE not in words[1:] else []
        self._kernel = kernel, " ".join([*inserted, f"BOOT_IMAGE={words[0]}", *words[1:]])

    def _initrd(self, words: list[str]) -> None:
        if not words:
            raise _GrubError("filename expected")
        if self._kernel is None:
            raise _GrubError("you need to load the kernel first")
        self._read(words[0])

    def _boot(self) -> None:
        if self._kernel is None:
            raise _GrubError("you need to load the kernel first")
        kernel, arguments = self._kernel
        self._host.loaded[self._name] = GuestImage("linux").loaded(kernel, arguments)
        raise _Done

    def _read(self, name: str) -> bytes:
        """A file by ``(device)/path``, or by a path on the root device.

        Raises:
            _GrubError: there is no such device or file.
        """
        match = re.fullmatch(r"(?:\(([^)]*)\))?(.*)", name, re.DOTALL)
        assert match is not None
        device, path = match[1] or self._variables["root"], match[2]
        if device == "host":
            return self._host_file(path)
        disk, _, partition = device.partition(",")
        if disk not in self._disks:
            raise _GrubError(f"disk `{device}' not found")
        image = GuestImage.parse(self._host.image_at(self._disks[disk]) or b"")
        number = re.sub(r"^(msdos|gpt)", "", partition)
        if image is None or number != image.root.removeprefix("/dev/vda"):
            raise _GrubError("unknown filesystem" if not partition else "no such partition")
        try:
            return image.boot_files[path]
        except KeyError:
            raise _GrubError(f"file `{path}' not found") from None

    def _host_file(self, path: str) -> bytes:
        try:
            node = self._host.files.find(path)
            # it has given up root by now
            if isinstance(node, Regular) and not (node.mode & 0o004 and self._passable(path)):
                raise SimError(Errno.EACCES)
            return self._host.files.read(path)
        except SimError as error:
            raise _GrubError(f"can't open `{path}': {error.number.text}") from None

    def _passable(self, path: str) -> bool:
        """Whether anybody may go where a file is."""
        return all(self._host.files.find(above).mode & 0o001 for above in _above(path))


def _above(path: str) -> Iterator[str]:
    words = path.strip("/").split("/")[:-1]
    for count in range(1, len(words) + 1):
        yield "/" + "/".join(words[:count])


COMMANDS: Mapping[str, Command] = {"grub-bhyve": grub_bhyve}
