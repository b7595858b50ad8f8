"""The userland of a simulated bhyve host: devices in /dev, disks, datasets, guests, terminals."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hil.simulated.builtins import PLACES
from hil.simulated.console import Nmdm
from hil.simulated.errno import Errno, SimError
from hil.simulated.files import Device, Directory, Files, Link, Node, Regular, RegularStream
from hil.simulated.guest_image import LINUX, GuestImage, LinuxKernelFile
from hil.simulated.guest_network import GuestNetworks
from hil.simulated.kernel import Sysctl
from hil.simulated.machine import Machine
from hil.simulated.panic import HostPanic
from hil.simulated.process import Command, Process, Stream, System

if TYPE_CHECKING:
    from hil.simulated.guest import Guest

#: Where disks of guests lie on every simulated host.
GUEST_IMAGE, LINUX_IMAGE = "/vm/guest.img", "/vm/linux.img"
#: Size of that image in bytes; as recorded (888,837 sectors).
GUEST_IMAGE_SIZE = 888837 * 512
_NMDM = re.compile(r"nmdm(.+)([AB])")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system."""

    device: str
    where: str
    kind: str
    options: str = ""
    """As mount(8) prints them after the type."""


@dataclass
class Storage:
    """What is mounted, and the ZFS datasets: volumes and snapshots by name, with contents."""

    mounts: list[Mount] = field(default_factory=list)
    datasets: dict[str, Regular] = field(default_factory=dict)


class HostSystem(System):
    """A host's userland over its :class:`~hil.simulated.machine.Machine`.

    Args:
        machine: the model.
        commands: what can be run.
        version: of its FreeBSD, as ``uname -r`` prints it.
        build: see :class:`~hil.simulated.process.System`.
        ident: its kernel configuration's name.
        settings: kernel variables that the model does not know.
    """

    def __init__(
        self,
        machine: Machine,
        commands: Mapping[str, Command],
        *,
        version: str,
        build: str,
        ident: str,
        settings: Mapping[str, str],
    ) -> None:
        files = Files()
        super().__init__(
            machine.spec.hostname,
            commands,
            files,
            machine,
            version=version,
            build=build,
            ident=ident,
        )
        self.host = machine
        self.storage = Storage([Mount("/dev/gpt/rootfs", "/", "ufs", ", local")])
        #: What a loader has put into a VM's memory, by the VM's name.
        self.loaded: dict[str, GuestImage] = {}
        #: The guests that run, by the VM's name.
        self.guests: dict[str, Guest] = {}
        self.networks = GuestNetworks()
        self._terminals: dict[str, Nmdm] = {}
        self._lock = threading.Lock()
        self._values = dict(settings)
        self.settings = self._settings
        self.set_sysctl = self._set_sysctl
        self._make_files()

    def _settings(self) -> dict[str, Sysctl]:
        known = {name: Sysctl(value, writable=True) for name, value in self._values.items()}
        known["kern.boottime"] = Sysctl(
            f"{{ sec = {int(self.booted)}, usec = 0 }} {time.ctime(self.booted)}"
        )
        disks = [
            f"0 DISK {disk.name} {disk.size} 512 hd 0 sc 0"
            for disk in list(self.host.kernel.disks.values())
        ]
        geom = known["kern.geom.conftxt"].value
        known["kern.geom.conftxt"] = Sysctl("\n".join([geom, *disks]))
        return known

    def _set_sysctl(self, name: str, value: str) -> None:
        if name in ("debug.kdb.panic", "debug.kdb.enter"):
            self.host.panicked("kdb_sysctl_panic")
            raise HostPanic("kdb_sysctl_panic")
        self._values[name] = value

    def restart(self) -> None:
        """The machine has booted again: memory and terminals are new, disks are not."""
        self.booted = time.time()
        self.loaded.clear()
        self.guests.clear()
        self._terminals.clear()

    def _make_files(self) -> None:
        files = self.files
        dev = files.directory("/dev")
        dev.mode = 0o555
        dev.dynamic = self._devices
        dev.clone = self._clone
        for name in ("cam", "fd", "gpt", "gptid", "input", "led", "net", "pts", "reroot", "usb"):
            files.make_directory(f"/dev/{name}", 0o555)
        files.add("/dev/mem", Device(lambda _process, _mode: DevMem(self), 0o640))
        files.add("/dev/console", Device(lambda _process, _mode: Console(self)))
        for name in ("/vm", "/mnt", "/usr", "/usr/local", "/usr/local/share", "/var/db"):
            if not files.exists(name):
                files.make_directory(name)
        files.make_directory("/usr/local/share/uefi-firmware")
        if not self.host.spec.name.startswith("recorded-"):
            files.write("/usr/local/share/uefi-firmware/BHYVE_UEFI.fd", bytes(4096))
        self._make_programs()
        image = GuestImage(release=self.version, kernel=self.ident).contents()
        files.add(GUEST_IMAGE, _image(image))
        files.add(LINUX_IMAGE, _image(LINUX.contents()))
        files.make_directory("/vm/linux")
        files.write(f"/vm/linux/vmlinuz-{LINUX.release}", LinuxKernelFile().contents())
        files.write(f"/vm/linux/initrd.img-{LINUX.release}", b"070701")
        for name in ("vmlinuz", "initrd.img"):
            files.add(f"/vm/linux/{name}", Link(f"{name}-{LINUX.release}"))
        kenv = self.host.spec.loader_conf
        lines = "".join(f'{name}="{value}"\n' for name, value in kenv.items())
        files.write("/boot/loader.conf", lines.encode())

    def _make_programs(self) -> None:
        """A file for each command, where FreeBSD has it."""
        for name in self.commands:
            path = PLACES.get(name, "/usr/bin")
            at = ""
            for word in path.strip("/").split("/"):
                at += f"/{word}"
                if not self.files.exists(at):
                    self.files.make_directory(at)
            self.files.write(f"{path}/{name}", b"", 0o555)

    def _devices(self) -> dict[str, Node]:
        kernel = self.host.kernel
        found: dict[str, Node] = {}
        for unit in kernel.md_units():
            found[f"md{unit}"] = Device(lambda _p, _m, u=unit: MemoryDisk(self, u), 0o640)  # type: ignore[misc]
        for name in list(kernel.disks):
            found[name] = Device(lambda _p, _m, n=name: RawDisk(self, n), 0o640)  # type: ignore[misc]
        vms = sorted(self.host.vmm.vms)
        if vms:
            below = Directory(0o555)
            below.own = {name: Device(_refuse, 0o600) for name in vms}
            found["vmm"] = below
            rom = Directory(0o555)
            rom.own = {f"{name}.bootrom": Device(_refuse, 0o600) for name in vms}
            found["vmm.io"] = rom
        for name, pair in list(self._terminals.items()):
            for letter, end in (("A", pair.a), ("B", pair.b)):
                found[f"nmdm{name}{letter}"] = Device(end.open, 0o620)
        if self.storage.datasets:
            found["zvol"] = self._volumes()
        return found

    def _volumes(self) -> Directory:
        top = Directory()
        for name, volume in self.storage.datasets.items():
            if "@" in name or not volume.size:
                continue  # a snapshot, or a file system
            *above, last = name.split("/")
            place = top
            for word in above:
                below = place.own.setdefault(word, Directory())
                assert isinstance(below, Directory)
                place = below
            place.own[last] = Device(lambda _p, _m, v=volume: RegularStream(v), 0o640)  # type: ignore[misc]
        return top

    def _clone(self, name: str) -> Node | None:
        found = _NMDM.fullmatch(name)
        if not found or not self.host.kernel.has_module("nmdm"):
            return None
        with self._lock:
            self._terminals.setdefault(found.group(1), Nmdm())
        return self._devices().get(name)

    def terminal(self, path: str) -> Device | None:
        """The null modem's end at ``path``, if it is one."""
        try:
            node = self.files.find(path)
        except SimError:
            return None
        return (
            node if isinstance(node, Device) and _NMDM.fullmatch(path.rpartition("/")[2]) else None
        )

    def image_at(self, path: str) -> bytes | None:
        """The first bytes of a disk: a file, a volume or a memory disk; ``None``: no such file."""
        from hil.simulated.guest_image import HEAD

        try:
            node = self.files.find(path)
        except SimError:
            return None
        if isinstance(node, Regular):
            return node.read_at(0, HEAD)
        for name, volume in self.storage.datasets.items():
            if path == f"/dev/zvol/{name}":
                return volume.read_at(0, HEAD)
        return b""


def _image(contents: bytes) -> Regular:
    image = Regular(contents)
    image.truncate(GUEST_IMAGE_SIZE)
    return image


def _refuse(_process: Process, _mode: str) -> Stream:
    raise SimError(Errno.EOPNOTSUPP)


def host_storage(system: System) -> Storage:
    """The disks of a host."""
    assert isinstance(system, HostSystem)
    return system.storage


class _Seekable:
    """A device that is read and written at an offset."""

    def __init__(self, system: HostSystem) -> None:
        self.system = system
        self.offset = 0

    def close(self) -> None:
        return


class DevMem(_Seekable):
    """/dev/mem: physical memory and registers; the width of an access is that of the call."""

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        with self.system.host.lock:
            self.system.host.check_alive()
            data = self.system.host.memory.read(self.offset, limit)
        self.offset += len(data)
        return data

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        with self.system.host.lock:
            self.system.host.check_alive()
            self.system.host.memory.write(self.offset, data)
        self.offset += len(data)


class MemoryDisk(_Seekable):
    """/dev/mdN: a disk in the kernel's memory."""

    def __init__(self, system: HostSystem, unit: int) -> None:
        super().__init__(system)
        self._unit = unit

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        data = self.system.host.kernel.md_read(self._unit, self.offset, limit)
        self.offset += len(data)
        return data

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        if self.system.host.kernel.md_write(self._unit, self.offset, data) < len(data):
            raise SimError(Errno.ENOSPC)
        self.offset += len(data)


class RawDisk(_Seekable):
    """A disk of the kernel's, in whole sectors."""

    def __init__(self, system: HostSystem, name: str) -> None:
        super().__init__(system)
        self._name = name

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        with self.system.host.lock:
            disk = self.system.host.kernel.disks.get(self._name)
            if disk is None:
                raise SimError(Errno.ENXIO)
            if limit % 512 or self.offset % 512:
                raise SimError(Errno.EINVAL)
            length = min(limit, disk.size - self.offset)
            data = disk.read(self.offset, length) if length > 0 else b""
        self.offset += len(data)
        return data

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        with self.system.host.lock:
            disk = self.system.host.kernel.disks.get(self._name)
            if disk is None:
                raise SimError(Errno.ENXIO)
            if len(data) % 512 or self.offset % 512:
                raise SimError(Errno.EINVAL)
            if self.offset + len(data) > disk.size:
                raise SimError(Errno.ENOSPC)
            disk.write(self.offset, data)
        self.offset += len(data)


class Console:
    """/dev/console: what is written there goes among the kernel's messages."""

    def __init__(self, system: HostSystem) -> None:
        self._system = system

    def read(self, process: Process, limit: int) -> bytes:
        return b""

    def write(self, process: Process, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            self._system.host.kernel.log(line)

    def close(self) -> None:
        return
