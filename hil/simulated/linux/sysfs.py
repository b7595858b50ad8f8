"""``/sys`` and ``/proc`` of a Linux guest, made of its kernel whenever somebody looks.

Sources: Linux's Documentation/ABI/testing/sysfs-bus-pci, Documentation/filesystems/sysfs.rst
and proc.rst, Documentation/admin-guide/mm/pagemap.rst and sysctl/{kernel,vm}.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from hil.simulated.errno import Errno, SimError
from hil.simulated.files import Device, Directory, Link, Node
from hil.simulated.linux.drivers import DRIVERS, Driver
from hil.simulated.memory import PAGE
from hil.simulated.net import Interface
from hil.simulated.pci import Bar
from hil.simulated.process import Process

if TYPE_CHECKING:
    from hil.simulated.linux.guest import LinuxGuest
    from hil.simulated.linux.kernel import LinuxKernel, PciDevice

Tree: TypeAlias = Mapping[str, Node]
_BUS = "../../../devices/pci0000:00"
#: Bits of a resource's flags (include/linux/ioport.h).
_IO, _MEM, _ALIGNED, _PREFETCH, _MEM_64 = 0x100, 0x200, 0x40000, 0x2000, 0x100000
#: Rows of ``resource``: six BARs, the ROM, six of SR-IOV.
_ROWS = 13


class Attribute(Device):
    """A file whose text is made as it is read, and which may do something when written to."""

    def __init__(
        self,
        read: Callable[[], str] | None = None,
        write: Callable[[str], None] | None = None,
    ) -> None:
        mode = (0o444 if read else 0) | (0o200 if write else 0)
        super().__init__(lambda _process, _mode: _OpenAttribute(read, write), mode, "4096")


class _OpenAttribute:
    def __init__(self, read: Callable[[], str] | None, write: Callable[[str], None] | None) -> None:
        self._read = read
        self._write = write
        self._data: bytes | None = None
        self.offset = 0

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        if self._read is None:
            raise SimError(Errno.EIO)
        if self._data is None:
            self._data = self._read().encode()
        piece = self._data[self.offset : self.offset + limit]
        self.offset += len(piece)
        return piece

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        if self._write is None:
            raise SimError(Errno.EACCES)
        self._write(data.decode("utf-8", "replace").strip())

    def close(self) -> None:
        return


def _value(text: object) -> Attribute:
    return Attribute(lambda: f"{text}\n")


def _directory(entries: Callable[[], Tree]) -> Directory:
    return Directory(dynamic=entries)


def _fixed(**entries: Node) -> Directory:
    made = Directory()
    made.own = dict(entries)
    return made


# ---- PCI ---------------------------------------------------------------------------


class _Config:
    """Configuration space at an offset."""

    def __init__(self, device: PciDevice) -> None:
        self._function = device.function
        self.offset = 0

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        size = max(0, min(limit, 256 - self.offset))
        data = bytes(self._function.config_read(self.offset + at, 1) for at in range(size))
        self.offset += size
        return data

    def write(self, process: Process, data: bytes) -> None:
        process.check()
        width = len(data) if len(data) in (1, 2, 4) else 1
        for at in range(0, len(data), width):
            value = int.from_bytes(data[at : at + width], "little")
            self._function.config_write(self.offset + at, width, value)
        self.offset += len(data)

    def close(self) -> None:
        return


class _Resource:
    """A BAR, to be mapped."""

    def __init__(self, bar: Bar) -> None:
        self.region = bar.address, bar.size

    def read(self, process: Process, limit: int) -> bytes:
        raise SimError(Errno.EIO)

    def write(self, process: Process, data: bytes) -> None:
        raise SimError(Errno.EIO)

    def close(self) -> None:
        return


def _flags(bar: Bar) -> int:
    if not bar.memory:
        return _ALIGNED | _IO | 1
    low = (4 if bar.wide else 0) | (8 if bar.prefetchable else 0)
    more = (_MEM_64 if bar.wide else 0) | (_PREFETCH if bar.prefetchable else 0)
    return _ALIGNED | _MEM | more | low


def _resources(device: PciDevice) -> str:
    rows = {bar.index: bar for bar in device.function.bars}
    lines = []
    for index in range(_ROWS):
        bar = rows.get(index)
        numbers = (0, 0, 0)
        if bar is not None:
            numbers = bar.address, bar.address + bar.size - 1, _flags(bar)
        lines.append(" ".join(f"{number:#018x}" for number in numbers))
    return "\n".join(lines) + "\n"


def _pci_device(kernel: LinuxKernel, device: PciDevice) -> Tree:
    function = device.function

    def override(text: str) -> None:
        device.override = text

    entries: dict[str, Node] = {
        "vendor": _value(f"{function.vendor:#06x}"),
        "device": _value(f"{function.device:#06x}"),
        "class": _value(f"{function.class_code:#08x}"),
        "revision": _value(f"{function.config_read(8, 1):#04x}"),
        "subsystem_vendor": _value(f"{function.config_read(0x2C, 2):#06x}"),
        "subsystem_device": _value(f"{function.config_read(0x2E, 2):#06x}"),
        "irq": _value(kernel.irq_line(device.address)),
        "resource": Attribute(lambda: _resources(device)),
        "config": Device(lambda _process, _mode: _Config(device), 0o644, "256"),
        "driver_override": Attribute(lambda: f"{device.override or '(null)'}\n", override),
        "subsystem": Link("../../../bus/pci"),
    }
    for bar in function.bars:
        entries[f"resource{bar.index}"] = Device(
            lambda _process, _mode, bar=bar: _Resource(bar),  # type: ignore[misc]
            0o600,
            str(bar.size),
        )
    if device.resets:
        entries["reset"] = Attribute(None, lambda _text: kernel.reset_device(device))
    if irqs := kernel.message_irqs(function):
        entries["msi_irqs"] = _fixed(
            **{str(irq): _value("msix" if function.msix_count else "msi") for irq in irqs}
        )
    if device.driver is not None:
        entries["driver"] = Link(f"../../../bus/pci/drivers/{device.driver.name}")
    bound = device.bound
    if bound is not None and bound.interface:
        interface = kernel.stack.interfaces.get(bound.interface)
        if interface is not None:
            entries["net"] = _fixed(**{bound.interface: _interface(interface)})
    if bound is not None and bound.disk:
        size = kernel.disks[bound.disk].size // 512
        controller = bound.disk.partition("n1")[0]
        disk = _fixed(size=_value(size))
        entries["nvme"] = _fixed(**{controller: _fixed(**{bound.disk: disk})})
    return entries


def _driver(kernel: LinuxKernel, driver: Driver) -> Tree:
    entries: dict[str, Node] = {
        "bind": Attribute(None, lambda name: kernel.bind(driver, name)),
        "unbind": Attribute(None, lambda name: kernel.unbind(driver, name)),
    }
    for device in kernel.pci.values():
        if device.driver is driver:
            entries[device.name] = Link(f"../../../../devices/pci0000:00/{device.name}")
    return entries


# ---- networks and disks ------------------------------------------------------------


def _interface(interface: Interface) -> Node:
    counters = {
        "rx_packets": interface.received,
        "tx_packets": interface.sent,
        "rx_bytes": interface.received_bytes,
        "tx_bytes": interface.sent_bytes,
    }
    mac = interface.mac or bytes(6)
    return _fixed(
        address=_value(mac.hex(":")),
        mtu=_value(interface.mtu),
        operstate=_value("up" if interface.up else "down"),
        statistics=_fixed(**{name: _value(count) for name, count in counters.items()}),
    )


def _places(kernel: LinuxKernel) -> dict[str, str]:
    """Where each interface stands in /sys/devices, by name."""
    found = {
        device.bound.interface: f"pci0000:00/{device.name}/net/{device.bound.interface}"
        for device in kernel.pci.values()
        if device.bound is not None and device.bound.interface
    }
    return {name: found.get(name, f"virtual/net/{name}") for name in list(kernel.stack.interfaces)}


def sys(guest: LinuxGuest) -> Directory:
    """The whole of ``/sys``."""
    kernel = guest.kernel

    def set_reboot_type(kind: str) -> None:
        guest.reboot_type = kind

    def virtual() -> Tree:
        passed = _places(kernel)
        return {
            name: _interface(interface)
            for name, interface in list(kernel.stack.interfaces.items())
            if passed[name].startswith("virtual/")
        }

    def devices() -> Tree:
        return {
            device.name: _directory(lambda device=device: _pci_device(kernel, device))  # type: ignore[misc]
            for device in kernel.pci.values()
        }

    def block() -> Tree:
        return {
            device.bound.disk: Link(
                f"../../devices/pci0000:00/{device.name}/nvme/"
                f"{device.bound.disk.partition('n1')[0]}/{device.bound.disk}"
            )
            for device in kernel.pci.values()
            if device.bound is not None and device.bound.disk
        }

    return _fixed(
        bus=_fixed(
            pci=_fixed(
                devices=_directory(
                    lambda: {
                        device.name: Link(f"{_BUS}/{device.name}") for device in kernel.pci.values()
                    }
                ),
                drivers=_directory(
                    lambda: {
                        driver.name: _directory(lambda driver=driver: _driver(kernel, driver))  # type: ignore[misc]
                        for driver in DRIVERS
                    }
                ),
                drivers_probe=Attribute(None, kernel.probe),
            )
        ),
        devices=_fixed(
            **{"pci0000:00": _directory(devices), "virtual": _fixed(net=_directory(virtual))}
        ),
        **{
            "class": _fixed(
                net=_directory(
                    lambda: {
                        name: Link(f"../../devices/{place}")
                        for name, place in _places(kernel).items()
                    }
                ),
                block=_directory(block),
            ),
            "kernel": _fixed(
                reboot=_fixed(type=Attribute(lambda: f"{guest.reboot_type}\n", set_reboot_type))
            ),
        },
    )


# ---- /proc -------------------------------------------------------------------------


def _interrupts(kernel: LinuxKernel) -> str:
    of = {
        irq: (device, vector)
        for device in kernel.pci.values()
        for vector, irq in enumerate(kernel.message_irqs(device.function))
    }
    lines = ["           " + "".join(f"CPU{cpu:<8}" for cpu in range(kernel.cpus))]
    for source in kernel.interrupts():
        if not source.name:
            continue
        counts = "".join(f"{count:>11}" for count in (source.count, *[0] * (kernel.cpus - 1)))
        if source.irq in of:
            device, vector = of[source.irq]
            kind = "PCI-MSIX" if device.function.msix_count else "PCI-MSI"
            chip = f"{kind}-{device.name} {vector:>3}-edge"
        elif source.name.startswith("virtio"):
            chip = f"PCI-MSIX {source.irq:>3}-edge"
        else:
            chip = f"IO-APIC {source.irq:>3}-{'fasteoi' if source.name == 'acpi' else 'edge'}"
        lines.append(f"{source.irq:>4}:{counts}  {chip:<28} {source.name}")
    return "\n".join(lines) + "\n"


def _memory(kernel: LinuxKernel) -> str:
    pages = kernel.huge_pages
    total = kernel.ram.size // 1024
    rows = {
        "MemTotal": f"{total - 24576:8} kB",
        "MemFree": f"{total // 2:8} kB",
        "HugePages_Total": f"{pages.total:8}",
        "HugePages_Free": f"{pages.free:8}",
        "HugePages_Rsvd": f"{0:8}",
        "HugePages_Surp": f"{0:8}",
        "Hugepagesize": f"{pages.SIZE // 1024:8} kB",
    }
    return "".join(f"{name + ':':<16}{value}\n" for name, value in rows.items())


class _Pagemap:
    """Eight bytes a page: bit 63 for a page that is there, 55 bits of its number."""

    def __init__(self, kernel: LinuxKernel) -> None:
        self._pages = kernel.huge_pages
        self.offset = 0

    def read(self, process: Process, limit: int) -> bytes:
        process.check()
        found = b""
        while len(found) + 8 <= limit:
            physical = self._pages.physical((self.offset + len(found)) // 8 * PAGE)
            entry = 0 if physical is None else 1 << 63 | physical // PAGE
            found += entry.to_bytes(8, "little")
        self.offset += len(found)
        return found

    def write(self, process: Process, data: bytes) -> None:
        raise SimError(Errno.EACCES)

    def close(self) -> None:
        return


def proc(guest: LinuxGuest) -> Directory:
    """As much of ``/proc`` as somebody has asked for."""
    kernel = guest.kernel
    image = kernel.image
    pages = kernel.huge_pages

    def resize(text: str) -> None:
        try:
            pages.resize(int(text))
        except ValueError:
            raise SimError(Errno.EINVAL) from None

    mounts = f"{image.root} / ext4 rw,relatime 0 0\nproc /proc proc rw 0 0\n"
    mounts += "sysfs /sys sysfs rw 0 0\ntmpfs /run tmpfs rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n"
    version = f"Linux version {image.release} (debian-kernel@lists.debian.org) {image.kernel}"
    return _fixed(
        cmdline=_value(image.arguments),
        interrupts=Attribute(lambda: _interrupts(kernel)),
        meminfo=Attribute(lambda: _memory(kernel)),
        mounts=Attribute(lambda: mounts),
        uptime=Attribute(lambda: f"{kernel.uptime:.2f} {kernel.uptime:.2f}\n"),
        version=_value(version),
        self=_fixed(pagemap=Device(lambda _process, _mode: _Pagemap(kernel), 0o400, "0")),
        sys=_fixed(
            kernel=_fixed(
                random=_fixed(boot_id=_value(kernel.boot_id)),
                hostname=_value(image.hostname),
                osrelease=_value(image.release),
                sysrq=Attribute(lambda: "438\n", lambda _text: None),
            ),
            vm=_fixed(nr_hugepages=Attribute(lambda: f"{pages.total}\n", resize)),
        ),
        **{"sysrq-trigger": Attribute(None, guest.sysrq)},
    )
