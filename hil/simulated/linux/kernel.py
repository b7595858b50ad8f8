"""The kernel of a Linux guest: PCI functions, who drives them, interrupts, uptime.

Modelled on Linux's drivers/pci/{probe,pci-driver,pci-sysfs}.c and on what igb, igbvf, e1000e, nvme
and virtio-pci say as they attach.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

from hil.pci.address import Address
from hil.simulated.errno import Errno, SimError
from hil.simulated.guest_image import GuestImage
from hil.simulated.guest_kernel import GuestKernel, Hardware
from hil.simulated.guest_memory import HugePages
from hil.simulated.guest_text import Line, Voice
from hil.simulated.kernel import Interrupt
from hil.simulated.linux import text
from hil.simulated.linux.drivers import DRIVERS, Bound, Driver
from hil.simulated.machine import locked
from hil.simulated.newbus import Device
from hil.simulated.pci import PCIE, PM, PciFunction

#: Seconds after its first line at which a kernel runs the first process.
_BOOTED = 4.0


class PciDevice(Device):
    """A function as Linux's PCI core knows it."""

    def __init__(self, function: PciFunction) -> None:
        super().__init__(function)
        self.driver: Driver | None = None
        self.bound: Bound | None = None
        self.override = ""
        """``driver_override``."""

    @property
    def name(self) -> str:
        """``0000:00:08.0``."""
        return str(self.address)

    @property
    def resets(self) -> bool:
        """Whether some reset of it is known: FLR, or a transition to D3hot and back."""
        function = self.function
        return function.has_flr or bool(function.capability(PM) and not function.no_soft_reset)


class LinuxKernel(GuestKernel):
    """See :class:`~hil.simulated.guest_kernel.GuestKernel`."""

    loopback = "lo"

    def __init__(self, hardware: Hardware, image: GuestImage, say: Callable[[str], None]) -> None:
        super().__init__(hardware, image, say)
        self.pci: dict[Address, PciDevice] = {}
        self.huge_pages = HugePages(self.ram)
        self.boot_id = str(uuid.uuid4())
        self._virtio = 0
        self._began = time.monotonic()
        self._probing: list[str] | None = None

    @property
    def arguments(self) -> list[str]:
        """The words of its command line."""
        return self.image.arguments.split()

    @property
    def cpus(self) -> int:
        return self.machine.spec.cpus

    # ---- boot ------------------------------------------------------------------------

    def boot_lines(self) -> Iterator[Line]:
        self._begin()
        for name, irq, count in (("rtc0", 8, 1), ("acpi", 9, 0), ("ttyS0", 4, 330)):
            self._interrupts[irq] = Interrupt(irq, name, count)
        with self._guest_machine.lock:
            said = self._probe_all()
        facts = text.BootFacts(self.image, self.ram.size, self.cpus, self._found(), said)
        for line in text.boot_log(facts):
            if line.voice is Voice.KERNEL:
                self.dmesg.append(line.text)
            yield line

    def _probe_all(self) -> list[str]:
        """Give each function its driver; what these say."""
        said: list[str] = []
        self._probing = said
        for function in self._guest_machine.fabric.in_order():
            device = self.pci[function.address] = PciDevice(function)
            self._probe(device)
        self._probing = None
        return said

    def _found(self) -> list[str]:
        """What the PCI core says of each function, ids and BARs (drivers/pci/probe.c)."""
        lines = []
        for device in self.pci.values():
            function = device.function
            kind = "conventional PCI endpoint" if not function.capability(PCIE) else "PCIe Endpoint"
            lines.append(
                f"pci {device.name}: [{function.vendor:04x}:{function.device:04x}] type 00 class "
                f"{function.class_code:#08x} {kind}"
            )
            for bar in function.bars:
                sort = "mem" if bar.memory else "io "
                wide = " 64bit" if bar.wide else ""
                wide += " pref" if bar.prefetchable else ""
                width = 18 if bar.memory and bar.wide else 10 if bar.memory else 6
                span = f"{bar.address:#0{width}x}-{bar.address + bar.size - 1:#0{width}x}"
                lines.append(f"pci {device.name}: BAR {bar.index} [{sort} {span}{wide}]")
        return lines

    # ---- messages --------------------------------------------------------------------

    @property
    def uptime(self) -> float:
        """Seconds since its first line; a boot takes no time here, and is counted as some."""
        return _BOOTED + time.monotonic() - self._began

    def log(self, line: str) -> None:
        if self._probing is not None:
            self._probing.append(line)
        else:
            super().log(f"[{self.uptime:12.6f}] {line}")

    # ---- drivers ---------------------------------------------------------------------

    def _probe(self, device: PciDevice) -> None:
        """Let the first driver that takes a function have it (device_attach)."""
        for driver in DRIVERS:
            if driver.name == device.override or (
                not device.override and driver.matches(device.function)
            ):
                self._bind(device, driver)
                return

    def _bind(self, device: PciDevice, driver: Driver) -> None:
        try:
            device.bound = driver.probe(self, device)
        except SimError as error:
            self.log(
                f"{driver.name} {device.name}: probe with driver {driver.name} failed with error "
                f"-{int(error.number)}"
            )
            return
        device.driver = driver

    @locked
    def bind(self, driver: Driver, name: str) -> None:
        """A write to a driver's ``bind``.

        Raises:
            SimError: ENODEV: there is no such function, it has a driver, or is not for this one.
        """
        device = self._named(name)
        mine = driver.name == device.override or driver.matches(device.function)
        if device.driver is not None or not mine:
            raise SimError(Errno.ENODEV, name)
        self._bind(device, driver)
        if device.driver is None:
            raise SimError(Errno.ENODEV, name)

    @locked
    def unbind(self, driver: Driver, name: str) -> None:
        """A write to a driver's ``unbind``.  Raises SimError ENODEV (it is not the driver's)."""
        device = self._named(name)
        if device.driver is not driver or device.bound is None:
            raise SimError(Errno.ENODEV, name)
        device.bound.remove()
        device.driver = device.bound = None

    @locked
    def probe(self, name: str) -> None:
        """A write to ``drivers_probe``.  Raises SimError EINVAL (no such function)."""
        try:
            device = self._named(name)
        except SimError:
            raise SimError(Errno.EINVAL, name) from None
        if device.driver is None:
            self._probe(device)

    @locked
    def reset_device(self, device: PciDevice) -> None:
        """A write to a function's ``reset``.  Raises SimError ENOTTY (no reset is known)."""
        if not device.resets:
            raise SimError(Errno.ENOTTY, device.name)
        self.bus.reset_function(device.function)

    def _named(self, name: str) -> PciDevice:
        for device in self.pci.values():
            if device.name == name:
                return device
        raise SimError(Errno.ENODEV, name)

    # ---- what drivers ask ------------------------------------------------------------

    def interrupt_name(self, device: Device, label: str) -> str:
        del device  # Linux's drivers name their vectors themselves
        return label

    def attach_virtio(self, kind: str, interface: str) -> None:
        """A virtio device on its bus: numbers, vectors, and a NIC's interface."""
        name = f"virtio{self._virtio}"
        self._virtio += 1
        vectors = {
            "virtio-net": ("config", "input.0", "output.0"),
            "virtio-blk": ("config", "req.0"),
        }
        for vector in vectors.get(kind, ("config",)):
            self.allocate_irq(f"{name}-{vector}")
        if kind == "virtio-net":
            self._wire(interface)
            self.log(f"virtio_net {name} {interface}: renamed from eth0")
        elif kind == "virtio-blk":
            self.log(f"virtio_blk {name}: 1/0/0 default/read/poll queues")
            self.log(f"virtio_blk {name}: [vda] 888837 512-byte logical blocks (455 MB/434 MiB)")
            self.log(" vda: vda1")
