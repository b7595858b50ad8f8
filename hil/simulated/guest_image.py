"""What a simulated guest's disk holds: one line that says which system would boot from it.

A real image would be gigabytes that nothing here could execute.  This one begins with a
line of JSON, and the rest of the disk is whatever its file has::

    {"hil-simulated-guest": 1, "os": "freebsd", "release": "13.2-RELEASE", …}

A Linux kernel outside of a disk is a file of one such line, ``{"hil-simulated-kernel": 1, …}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

_MARK, _KERNEL_MARK = "hil-simulated-guest", "hil-simulated-kernel"
#: Bytes in which the line must end.
HEAD = 4096
SYSTEMS = ("freebsd", "linux")


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A guest's system disk."""

    os: str = "freebsd"
    release: str = "13.2-RELEASE"
    """As ``uname -r`` prints it."""
    kernel: str = "GENERIC"
    """FreeBSD: its configuration's name; Linux: ``uname -v``."""
    hostname: str = "bhyveguest"
    python: bool = True
    """Whether Python 3 is installed."""
    root: str = ""
    """Linux: where the first disk's root file system is, ``/dev/vda1``."""
    environment: tuple[tuple[str, str], ...] = ()
    """What the loader was told besides: it stands in a FreeBSD guest's kernel environment."""
    arguments: str = ""
    """A Linux kernel's command line, as its loader has given it."""
    firmware: bool = False
    """Whether it is the virtual machine's firmware that boots it."""

    def with_environment(self, values: Mapping[str, str]) -> GuestImage:
        """The same image, its loader told ``values``."""
        return replace(self, environment=tuple(values.items()))

    def loaded(self, kernel: LinuxKernelFile, arguments: str) -> GuestImage:
        """The same image, running a kernel that a loader has put into memory."""
        return replace(self, release=kernel.release, kernel=kernel.version, arguments=arguments)

    def contents(self) -> bytes:
        """The first bytes of the disk."""
        told = ("environment", "arguments", "firmware")
        values = {name: value for name, value in asdict(self).items() if name not in told}
        return json.dumps({_MARK: 1, **values}).encode() + b"\n"

    @classmethod
    def parse(cls, head: bytes) -> GuestImage | None:
        """What the first :data:`HEAD` bytes of a disk say; ``None`` where nothing can boot."""
        values = _parse(head, _MARK)
        try:
            image = cls(**values) if values is not None else None
        except TypeError:
            return None
        return image if image is not None and image.os in SYSTEMS else None

    # ---- a Linux disk's file system, as GRUB reads it ----------------------------------

    @property
    def boot_files(self) -> dict[str, bytes]:
        """What it has below ``/boot``, by path."""
        if self.os != "linux":
            return {}
        linux, initrd = f"/boot/vmlinuz-{self.release}", f"/boot/initrd.img-{self.release}"
        menu = _MENU.format(linux=linux, initrd=initrd, root=self.root)
        kernel = LinuxKernelFile(self.release, self.kernel)
        return {
            "/boot/grub/grub.cfg": menu.encode(),
            linux: kernel.contents(),
            initrd: b"070701",
        }

    def booted_by_firmware(self) -> GuestImage:
        """The same image, booted by firmware and its own loader."""
        arguments = self.own_arguments if self.os == "linux" else ""
        return replace(self, firmware=True, arguments=arguments)

    @property
    def own_arguments(self) -> str:
        """The command line that its own GRUB gives its kernel."""
        return f"BOOT_IMAGE=/boot/vmlinuz-{self.release} root={self.root} ro console=ttyS0"


_MENU = """\
set default=0
set timeout=1
menuentry 'Debian GNU/Linux' {{
    insmod ext2
    set root='hd0,msdos1'
    linux {linux} root={root} ro console=ttyS0
    initrd {initrd}
}}
"""


@dataclass(frozen=True, slots=True)
class LinuxKernelFile:
    """A Linux kernel as a file: what would be a bzImage."""

    release: str = "6.12.41+deb13-amd64"
    version: str = "#1 SMP PREEMPT_DYNAMIC Debian 6.12.41-1 (2025-08-12)"

    def contents(self) -> bytes:
        """The whole file."""
        return json.dumps({_KERNEL_MARK: 1, **asdict(self)}).encode() + b"\n"

    @classmethod
    def parse(cls, head: bytes) -> LinuxKernelFile | None:
        """What a file says; ``None`` if it is no kernel."""
        values = _parse(head, _KERNEL_MARK)
        try:
            return cls(**values) if values is not None else None
        except TypeError:
            return None


_KERNEL = LinuxKernelFile()
#: What the simulated hosts have as their Linux guest's disk.
LINUX = GuestImage("linux", _KERNEL.release, _KERNEL.version, "debian", root="/dev/vda1")


def _parse(head: bytes, mark: str) -> dict[str, Any] | None:
    line = head[:HEAD].partition(b"\n")[0]
    try:
        values: dict[str, Any] = json.loads(line)
        return values if values.pop(mark) == 1 else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
