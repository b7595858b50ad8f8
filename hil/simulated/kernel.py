"""The modelled FreeBSD kernel: modules, tunables, messages, interrupts, drivers, disks, networks.

It prints nothing but kernel messages.  What commands show is read from here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hil.pci.address import Address
from hil.simulated.drivers import DriverError, NicDriver, NicVectors, NvmeDriver
from hil.simulated.errno import Errno, SimError
from hil.simulated.machine import Machine, locked
from hil.simulated.memory import MIB, PAGE, HostMemory, OutOfMemory
from hil.simulated.net import Interface, Stack, Tap
from hil.simulated.newbus import Attached, Device, Driver, Newbus, Nothing
from hil.simulated.nic import Igb, IgbVf
from hil.simulated.pci import MESSAGES, MSI, MSIX, SRIOV, PciFunction

if TYPE_CHECKING:
    from hil.simulated.vmm import Vmm

#: The first interrupt number that messages get (sys/x86/x86/io_apic.c: after 24 lines).
FIRST_MESSAGE_IRQ = 24
INTX_DISABLE = 0x400


@dataclass(slots=True)
class Module:
    """A loaded file of the kernel, as kldstat(8) lists it."""

    id: int
    name: str
    address: int
    size: int
    references: int = 1
    submodules: list[tuple[int, str]] = field(default_factory=list)


#: Modules that can be loaded: address and size as the recorded host showed them, submodules.
_FILES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "vmm": (0xFFFFFFFF81200000, 0x5390A8, ("vmm", "pci/ppt", "pci/amdiommu", "acpi/ivhd")),
    "nmdm": (0xFFFFFFFF81118000, 0x21CC, ("nmdm",)),
    "if_tuntap": (0xFFFFFFFF8111B000, 0x4D60, ("if_tuntap", "if_tun", "if_tap")),
    "if_bridge": (0xFFFFFFFF81120000, 0x9ED8, ("if_bridge",)),
    "bridgestp": (0xFFFFFFFF8112A000, 0x4690, ("bridgestp",)),
}
_FIRST_SUBMODULE = 230
#: Address and size of vmm.ko where the loader has loaded it.
_VMM_OF_LOADER = (0xFFFFFFFF80F80000, 0x56F858)
#: How many of the kernel's own modules a file needs; 2 where it is not known.
_KERNEL_REFERENCES = {"vmm": 8, "nmdm": 2}


@dataclass(slots=True)
class Interrupt:
    """An interrupt source and how often it came, as vmstat -i counts."""

    irq: int
    name: str
    """``em0:rxq0``, ``ppt0``; empty while no handler is set up."""
    count: int = 0
    handler: Callable[[], None] | None = None
    taken: bool = True
    """Some device has it, with a handler or without."""


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel variable."""

    value: str
    tunable: bool = False
    """Read only at run time; its value comes from the kernel environment."""
    writable: bool = False


@dataclass(slots=True)
class Disk:
    """A disk device, ``/dev/NAME``."""

    name: str
    size: int
    read: Callable[[int, int], bytes]
    """Offset and length to bytes.  Raises SimError EIO."""
    write: Callable[[int, bytes], None]
    description: str = ""
    mounted: str = ""
    """Where, if it is."""


@dataclass(frozen=True, slots=True)
class MemoryDisk:
    """A malloc-backed md(4): its pages are host memory."""

    unit: int
    size: int
    chunks: tuple[tuple[int, int], ...]
    """Physical addresses and lengths, in the order of the disk's bytes."""


class HostPort:
    """A device as a driver of the host's kernel reaches it."""

    def __init__(self, kernel: Kernel, device: Device) -> None:
        self._kernel = kernel
        self._device = device

    @property
    def _function(self) -> PciFunction:
        return self._device.function

    def config_read(self, offset: int, width: int) -> int:
        """As pci_read_config(9)."""
        return self._function.config_read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        """As pci_write_config(9)."""
        self._function.config_write(offset, width, value)

    def _at(self, bar: int, offset: int) -> int:
        place = next(each for each in self._function.bars if each.index == bar)
        return place.address + offset

    def bar_load(self, bar: int, offset: int, width: int) -> int:
        """By the BAR's physical address, so that it must be decoded."""
        return self._kernel.machine.memory.load(self._at(bar, offset), width)

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """By the BAR's physical address."""
        self._kernel.machine.memory.store(self._at(bar, offset), value, width)

    def enable_interrupts(self, handlers: Sequence[tuple[str, Callable[[], None]]]) -> int:
        """As :meth:`hil.simulated.drivers.Port.enable_interrupts`."""
        return self._kernel.enable_messages(self._device, handlers)

    def disable_interrupts(self) -> None:
        """Mask and free all."""
        self._kernel.disable_messages(self._device)


class HostDma:
    """Memory for a host driver's rings: host physical addresses."""

    def __init__(self, memory: HostMemory) -> None:
        self.allocate = memory.allocate
        self.release = memory.release
        self.read = memory.read
        self.write = memory.write


class _AttachedNic:
    def __init__(self, kernel: Kernel, device: Device) -> None:
        self._kernel = kernel
        self._device = device
        dma = HostDma(kernel.machine.memory)
        port = HostPort(kernel, device)
        vectors = NicVectors.of_freebsd(min(kernel.machine.spec.cpus, 2))
        self.driver = NicDriver(port, dma, device.function.kind, vectors)
        self.driver.attach()
        name = device.name or ""
        self.interface = Interface(name, self.driver.mac, self.driver.transmit)
        self.driver.on_frame = self.interface.receive
        self.interface.on_up = self._up
        kernel.stack.add(self.interface)
        mac = self.driver.mac.hex(":")
        queues = kernel.machine.spec.cpus
        log = kernel.log
        if device.function.kind != "igbvf":
            log(f"{name}: EEPROM V2.1-0")
        log(f"{name}: Using 1024 TX descriptors and 1024 RX descriptors")
        log(f"{name}: Using {queues} RX queues {queues} TX queues")
        log(f"{name}: Using MSI-X interrupts with {queues + 1} vectors")
        log(f"{name}: Ethernet address: {mac}")
        log(f"{name}: netmap queues/slots: TX {queues}/1024, RX {queues}/1024")

    def _up(self, up: bool) -> None:
        with self._kernel.machine.lock:
            if not up:
                self.driver.stop()
                return
            self.driver.start()
            link = self.driver.link
        # without the lock: a guest's console may wait for its reader
        if link:
            self._kernel.log(f"{self.interface.name}: link state changed to UP")

    def detach(self) -> None:
        if isinstance(self._device.function, Igb) and self._device.function.virtual_functions:
            raise SimError(Errno.EBUSY, self.interface.name)
        self.driver.detach()
        self._kernel.stack.remove(self.interface.name)

    def resumed(self) -> None:
        self.driver.detach()
        self.driver.attach()
        if self.interface.up:
            self.driver.start()


class _AttachedNvme:
    def __init__(self, kernel: Kernel, device: Device) -> None:
        self._kernel = kernel
        self._device = device
        dma = HostDma(kernel.machine.memory)
        vectors = ["admin", *(f"io{number}" for number in range(kernel.machine.spec.cpus))]
        self.driver = NvmeDriver(HostPort(kernel, device), dma, vectors)
        self.disk = ""
        try:
            self.driver.attach()
        except DriverError:
            kernel.log(f"{device.name}: controller ready did not become 1 within 7500 ms")
            return
        kind = kernel.machine.spec.release.nvme_disk
        used = set(kernel.disks)
        self.disk = next(f"{kind}{n}" for n in range(len(used) + 1) if f"{kind}{n}" not in used)
        model = self.driver.model
        kernel.disks[self.disk] = Disk(self.disk, self.driver.size, self._read, self._write, model)
        log = kernel.log
        log(f"{self.disk}: <{model}> NVMe namespace")
        log(f"{self.disk}: {self.driver.size // MIB}MB ({self.driver.blocks} 512 byte sectors)")
        log(f"{device.name}: SET FEATURES (09) sqid:0 cid:11 nsid:0 cdw10:00000008 cdw11:00000000")
        log(f"{device.name}: FEATURE NOT CHANGEABLE (01/0e) crd:0 m:0 dnr:1 sqid:0 cid:11 cdw0:0")

    def _read(self, offset: int, length: int) -> bytes:
        try:
            with self._kernel.machine.lock:
                return self.driver.read(offset, length)
        except DriverError:
            raise SimError(Errno.EIO, self.disk) from None

    def _write(self, offset: int, data: bytes) -> None:
        try:
            with self._kernel.machine.lock:
                self.driver.write(offset, data)
        except DriverError:
            raise SimError(Errno.EIO, self.disk) from None

    def detach(self) -> None:
        if self.disk:
            del self._kernel.disks[self.disk]
            self._kernel.log(f"{self.disk}: detached")
        self.driver.detach()

    def resumed(self) -> None:
        if self.disk:
            self.driver.detach()
            self.driver.attach()


class _Vectors(Nothing):
    """A driver that is modelled by its interrupts alone."""

    def __init__(self, kernel: Kernel, device: Device, count: int) -> None:
        self._kernel = kernel
        self._device = device
        name = device.name or ""
        for _ in range(count):
            kernel.allocate_irq(name)
        function = device.function
        for capability, enable in ((MSIX, 0x8000), (MSI, 1)):
            at = function.capability(capability)
            if count and at:
                function.poke(at + 2, 2, function.peek(at + 2, 2) | enable)
                break

    def detach(self) -> None:
        self._kernel.free_irqs(self._device.name or "")


_IDS = {
    "em": {(0x8086, 0x10D3): "Intel(R) Gigabit CT 82574L"},
    "igb": {
        (0x8086, 0x10C9): "Intel(R) PRO/1000 82576",
        (0x8086, 0x10CA): "Intel(R) PRO/1000 82576 Virtual Function",
    },
    "virtio_pci": {
        (0x1AF4, 0x1000): "VirtIO PCI (legacy) Network adapter",
        (0x1AF4, 0x1001): "VirtIO PCI (legacy) Block adapter",
    },
}
_CLASSES = {
    "hostb": {0x060000: ""},
    "pcib": {0x060400: "ACPI PCI-PCI bridge"},
    "isab": {0x060100: "PCI-ISA bridge"},
    "ahci": {0x010601: "Intel ICH9 AHCI SATA controller"},
    "nvme": {0x010802: "Generic NVMe Device"},
}
#: Vectors of drivers that are modelled by them alone.
_VECTORS = {"virtio-net": 3, "virtio-blk": 2, "ahci": 1}


def _by_id(name: str) -> Callable[[PciFunction], str | None]:
    return lambda function: _IDS[name].get((function.vendor, function.device))


def _by_class(name: str) -> Callable[[PciFunction], str | None]:
    return lambda function: _CLASSES[name].get(function.class_code)


def _attach_vectors(kernel: Kernel, device: Device) -> Attached:
    return _Vectors(kernel, device, _VECTORS.get(device.function.kind, 0))


def _native_drivers() -> tuple[Driver, ...]:
    return (
        Driver("hostb", _by_class("hostb"), _attach_vectors, quiet=True),
        Driver("virtio_pci", _by_id("virtio_pci"), _attach_vectors),
        Driver("em", _by_id("em"), _AttachedNic),
        Driver("igb", _by_id("igb"), _AttachedNic),
        Driver("nvme", _by_class("nvme"), _AttachedNvme),
        Driver("pcib", _by_class("pcib"), _attach_vectors),
        Driver("isab", _by_class("isab"), _attach_vectors),
        Driver("ahci", _by_class("ahci"), _attach_vectors),
    )


class Kernel:
    """The kernel of a booted host.

    Args:
        machine: what it runs on.
        kenv: its environment: tunables, as the loader left them.
    """

    def __init__(self, machine: Machine, kenv: dict[str, str]) -> None:
        self.machine = machine
        self.kenv = kenv
        self.dmesg: list[str] = list(machine.spec.boot_messages)
        self.static_units = {"pcib": {0}}
        """Units that devices outside of PCI have."""
        self.bus = Newbus(self)
        self.stack = Stack(machine.lock)
        self.disks: dict[str, Disk] = {}
        self._silent = bool(machine.spec.boot_messages)
        self._modules = [Module(1, "kernel", 0xFFFFFFFF80200000, 0xD7FEC0, 1)]
        self._next_file = 2
        self._next_submodule = _FIRST_SUBMODULE
        self._interrupts: dict[int, Interrupt] = {}
        self._messages: dict[int, list[int]] = {}
        self._memory_disks: dict[int, MemoryDisk] = {}
        machine.fabric.on_message = self._message

    @property
    def _vmm(self) -> Vmm:
        return self.machine.vmm

    def boot(self) -> None:
        """From the first device to the login prompt."""
        for driver in _native_drivers():
            self.bus.drivers[driver.name] = driver
        self._interrupts[1] = Interrupt(1, "atkbd0", 2)
        self._interrupts[4] = Interrupt(4, "uart0", 330)
        self._make_interfaces()
        if self.kenv.get("vmm_load", "").upper() == "YES":
            self._load_file("vmm", by_loader=True)
        for device in self.bus.scan(0):
            self.bus.try_to_attach(device)
        self._silent = False

    def log(self, line: str) -> None:
        """A line of the message buffer."""
        if not self._silent:
            self.dmesg.append(line)

    # -- devices --------------------------------------------------------------------------

    @locked
    def devices(self) -> list[Device]:
        """Every PCI device that the kernel knows, by address."""
        return self.bus.in_order()

    @locked
    def find(self, text: str) -> Device:
        """By name or selector.  Raises SimError ENOENT."""
        return self.bus.find(text)

    @locked
    def set_driver(self, text: str, driver: str, *, force: bool = False) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.set_driver`."""
        self.bus.set_driver(text, driver, force=force)

    @locked
    def clear_driver(self, text: str, *, force: bool = False) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.clear_driver`."""
        self.bus.clear_driver(text, force=force)

    @locked
    def attach(self, text: str) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.attach`."""
        self.bus.attach(text)

    @locked
    def detach(self, text: str, *, force: bool = False) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.detach`; ``force`` makes no difference here."""
        self.bus.detach(text)

    @locked
    def disable(self, text: str, *, force: bool = False) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.disable`."""
        self.bus.disable(text, force=force)

    @locked
    def enable(self, text: str) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.enable`."""
        self.bus.enable(text)

    @locked
    def rescan(self, text: str) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.rescan`."""
        self.bus.rescan(text)

    @locked
    def delete(self, text: str, *, force: bool = False) -> None:
        """See :meth:`hil.simulated.newbus.Newbus.delete`."""
        self.bus.delete(text, force=force)

    @locked
    def reset(self, text: str, *, detach: bool = False) -> float:
        """See :meth:`hil.simulated.newbus.Newbus.reset`."""
        return self.bus.reset(text, detach=detach)

    @locked
    def read_config(self, text: str, offset: int, width: int) -> int:
        """As pci(4)'s PCIOCREAD: a VF shows the ids that its PF tells.

        Raises:
            SimError: ENODEV, there is no such device.
        """
        return self._config_as_seen(self._function(text), offset, width)

    @locked
    def read_configs(self, text: str, offsets: Sequence[int], width: int) -> list[int]:
        """Many of :meth:`read_config`, one after the other.

        Raises:
            SimError: ENODEV, there is no such device.
        """
        function = self._function(text)
        return [self._config_as_seen(function, offset, width) for offset in offsets]

    @staticmethod
    def _config_as_seen(function: PciFunction, offset: int, width: int) -> int:
        value = function.config_read(offset, width)
        if offset < 4 and isinstance(function, IgbVf):
            ids = (function.vendor | function.device << 16).to_bytes(4, "little")
            seen = bytearray(value.to_bytes(width, "little"))
            for at in range(offset, min(offset + width, 4)):
                seen[at - offset] = ids[at]
            value = int.from_bytes(seen, "little")
        return value

    @locked
    def write_config(self, text: str, offset: int, width: int, value: int) -> None:
        """As pci(4)'s PCIOCWRITE.

        Raises:
            SimError: ENODEV, there is no such device.
        """
        self._function(text).config_write(offset, width, value)

    def _function(self, text: str) -> PciFunction:
        try:
            return self.bus.find(text).function
        except SimError:
            raise SimError(Errno.ENODEV, text) from None

    def irq_line(self, address: Address) -> int:
        """The line that firmware routed a function's pin to; 0 if none."""
        return next((f.irq for f in self.machine.spec.functions if f.address == address), 0)

    # -- SR-IOV (iovctl(8)) -----------------------------------------------------------------

    @locked
    def iov_create(self, text: str, count: int, passthrough: Mapping[int, bool]) -> None:
        """Make VFs of a PF.

        Args:
            text: the PF's name.
            count: how many.
            passthrough: whether ppt gets each VF, by number; the native driver by default.

        Raises:
            SimError: ENOENT, EOPNOTSUPP (no SR-IOV), EBUSY (has VFs), EINVAL (too many).
        """
        device = self.bus.find(text)
        physical = device.function
        if not isinstance(physical, Igb) or not device.attached:
            raise SimError(Errno.EOPNOTSUPP, text)
        if physical.virtual_functions:
            raise SimError(Errno.EBUSY, text)
        sriov = physical.extended_capability(SRIOV)
        if not 0 < count <= physical.peek(sriov + 0xE, 2):
            raise SimError(Errno.EINVAL, text)
        place = self.machine.spec.vf_window + physical.address.bus * MIB
        for index in (0, 3):
            physical.config_write(sriov + 0x24 + 4 * index, 4, place)
            place += 256 * 1024
        physical.config_write(sriov + 0x10, 2, count)
        physical.config_write(sriov + 8, 2, 0x9)
        for vf in physical.virtual_functions:
            child = self.bus.add(vf)
            child.virtual_function_of = device
            if passthrough.get(vf.number, False):
                try:
                    self.bus.set_driver(child.selector, "ppt")
                except SimError:
                    continue  # vmm is not loaded: no driver has it
            else:
                self.bus.try_to_attach(child)

    @locked
    def iov_delete(self, text: str) -> None:
        """Remove all VFs of a PF.

        Raises:
            SimError: ENOENT, ECHILD (has none), EBUSY (one is in use).
        """
        device = self.bus.find(text)
        children = [d for d in self.bus.in_order() if d.virtual_function_of is device]
        if not children or not isinstance(device.function, Igb):
            raise SimError(Errno.ECHILD, text)
        if any(self._vmm.owner_of(child) is not None for child in children):
            raise SimError(Errno.EBUSY, text)
        for child in children:
            self.bus.detach_device(child)
        for child in children:
            self.bus.remove(child)
        physical = device.function
        physical.config_write(physical.extended_capability(SRIOV) + 8, 2, 0)

    # -- interrupts -----------------------------------------------------------------------

    @locked
    def interrupts(self) -> list[Interrupt]:
        """All sources, by number; also those that nobody has."""
        return [self._interrupts[irq] for irq in sorted(self._interrupts)]

    def allocate_irq(self, name: str, handler: Callable[[], None] | None = None) -> int:
        """The lowest free message interrupt; an old one keeps its count."""
        irq = FIRST_MESSAGE_IRQ
        while irq in self._interrupts and self._interrupts[irq].taken:
            irq += 1
        source = self._interrupts.setdefault(irq, Interrupt(irq, name))
        source.taken = True
        self.set_handler(irq, name, handler)
        return irq

    def set_handler(self, irq: int, name: str, handler: Callable[[], None] | None) -> None:
        """Who is called when it comes, and under which name it is counted."""
        self._interrupts[irq].name = name
        self._interrupts[irq].handler = handler

    def free_irq(self, irq: int) -> None:
        """Nobody has it now; its count stays."""
        self.set_handler(irq, "", None)
        self._interrupts[irq].taken = False

    def free_irqs(self, name: str) -> None:
        """All of one owner."""
        for source in self._interrupts.values():
            if source.name == name:
                self.free_irq(source.irq)

    def _message(self, _address: int, data: int) -> None:
        source = self._interrupts.get(data & 0xFFFF)
        if source is not None and source.irq >= FIRST_MESSAGE_IRQ:
            source.count += 1
            if source.handler is not None:
                source.handler()

    def enable_messages(
        self, device: Device, handlers: Sequence[tuple[str, Callable[[], None]]]
    ) -> int:
        """Give a device MSI-X vectors, or one MSI; how many it got."""
        function = device.function
        count = min(len(handlers), function.msix_count) or (1 if function.msi_count else 0)
        irqs = []
        for number in range(count):
            label, handler = handlers[number]
            irqs.append(self.allocate_irq(self.interrupt_name(device, label), handler))
        self._messages[function.requester_id] = irqs
        if function.msix_count:
            self.write_msix(function, {n: (irq, False) for n, irq in enumerate(irqs)})
        elif function.msi_count:
            self.write_msi(function, irqs)
        return count

    def interrupt_name(self, device: Device, label: str) -> str:
        """Under which a driver's vector is counted."""
        return f"{device.name or ''}:{label}"

    def message_irqs(self, function: PciFunction) -> tuple[int, ...]:
        """The numbers of a function's messages, in the order of its vectors."""
        return tuple(self._messages.get(function.requester_id, ()))

    def disable_messages(self, device: Device) -> None:
        """Take them away."""
        function = device.function
        for irq in self._messages.pop(function.requester_id, ()):
            self.free_irq(irq)
        self.silence(function)

    @staticmethod
    def silence(function: PciFunction) -> None:
        """MSI and MSI-X off."""
        for capability in (MSI, MSIX):
            at = function.capability(capability)
            if at:
                bit = 1 if capability == MSI else 0x8000
                function.config_write(at + 2, 2, function.config_read(at + 2, 2) & ~bit)

    @staticmethod
    def write_msi(function: PciFunction, irqs: Sequence[int]) -> None:
        """Point MSI at consecutive interrupt numbers, and switch it on."""
        at = function.capability(MSI)
        control = function.config_read(at + 2, 2)
        function.config_write(at + 4, 4, MESSAGES.start)
        function.config_write(at + (12 if control & 0x80 else 8), 2, irqs[0])
        enabled = (len(irqs) - 1).bit_length()
        function.config_write(at + 2, 2, control & ~0x70 | enabled << 4 | 1)
        command = function.config_read(4, 2)
        function.config_write(4, 2, command | INTX_DISABLE)

    @staticmethod
    def write_msix(function: PciFunction, vectors: Mapping[int, tuple[int, bool]]) -> None:
        """Point MSI-X vectors at interrupt numbers (with: masked), and switch it on."""
        bar, start = function.msix_table_place
        for vector, (irq, masked) in vectors.items():
            entry = start + 16 * vector
            function.access_store(bar, entry, 8, MESSAGES.start)
            function.access_store(bar, entry + 8, 4, irq)
            function.access_store(bar, entry + 12, 4, int(masked))
        at = function.capability(MSIX)
        function.config_write(at + 2, 2, function.config_read(at + 2, 2) & 0x7FF | 0x8000)
        command = function.config_read(4, 2)
        function.config_write(4, 2, command | INTX_DISABLE)

    # -- modules --------------------------------------------------------------------------

    @locked
    def modules(self) -> list[Module]:
        """Loaded files, the kernel first."""
        return list(self._modules)

    def has_module(self, name: str) -> bool:
        """Whether a file ``NAME.ko`` is loaded."""
        return any(module.name == f"{name}.ko" for module in self._modules)

    @locked
    def load_module(self, name: str) -> None:
        """``kldload``.

        Raises:
            SimError: ENOENT, EEXIST.
        """
        name = name.removesuffix(".ko")
        if name not in _FILES:
            raise SimError(Errno.ENOENT, name)
        if self.has_module(name):
            raise SimError(Errno.EEXIST, name)
        self._load_file(name)

    def _load_file(self, name: str, *, by_loader: bool = False) -> None:
        address, size, submodules = _FILES[name]
        if by_loader:
            address, size = _VMM_OF_LOADER
        module = Module(self._next_file, f"{name}.ko", address, size)
        self._next_file += 1
        for submodule in submodules:
            # one that refuses to load has had its number
            if submodule != "vmm" or self.machine.spec.virtualizes:
                module.submodules.append((self._next_submodule, submodule))
            self._next_submodule += 1
        self._modules.append(module)
        self._modules[0].references += _KERNEL_REFERENCES.get(name, 2)
        if name == "vmm":
            self._vmm.load()

    @locked
    def unload_module(self, name: str) -> None:
        """``kldunload``.

        Raises:
            SimError: ENOENT, EBUSY.
        """
        name = name.removesuffix(".ko")
        module = next((m for m in self._modules if m.name == f"{name}.ko"), None)
        if module is None:
            raise SimError(Errno.ENOENT, name)
        if name == "vmm":
            self._vmm.unload()
        self._modules[0].references -= _KERNEL_REFERENCES.get(name, 2)
        self._modules.remove(module)

    # -- memory disks (mdconfig(8)) -----------------------------------------------------------

    @locked
    def md_create(self, size: int, unit: int | None = None) -> int:
        """A malloc-backed disk; its unit.

        Raises:
            SimError: ENOMEM, EBUSY (the unit is taken).
        """
        if unit is None:
            unit = next(
                n for n in range(len(self._memory_disks) + 1) if n not in self._memory_disks
            )
        elif unit in self._memory_disks:
            raise SimError(Errno.EBUSY)
        chunks: list[tuple[int, int]] = []
        left = -(-size // PAGE) * PAGE
        try:
            while left:
                length = min(left, 2 * MIB)
                chunks.append((self.machine.memory.allocate_low(length), length))
                left -= length
        except OutOfMemory:
            for address, length in chunks:
                self.machine.memory.release(address, length)
            raise SimError(Errno.ENOMEM) from None
        self._memory_disks[unit] = MemoryDisk(unit, size, tuple(chunks))
        return unit

    @locked
    def md_destroy(self, unit: int) -> None:
        """Free it.  Raises SimError ENOENT."""
        disk = self._memory_disk(unit)
        for address, length in disk.chunks:
            self.machine.memory.release(address, length)
        del self._memory_disks[unit]

    @locked
    def md_units(self) -> dict[int, MemoryDisk]:
        """All of them."""
        return dict(self._memory_disks)

    @locked
    def md_read(self, unit: int, offset: int, length: int) -> bytes:
        """Bytes of the disk, up to its end.  Raises SimError ENOENT."""
        memory = self.machine.memory
        return b"".join(memory.read(at, size) for at, size in self._md_pieces(unit, offset, length))

    @locked
    def md_write(self, unit: int, offset: int, data: bytes) -> int:
        """Bytes to the disk; how many found room.  Raises SimError ENOENT."""
        position = 0
        for at, size in self._md_pieces(unit, offset, len(data)):
            self.machine.memory.write(at, data[position : position + size])
            position += size
        return position

    def _memory_disk(self, unit: int) -> MemoryDisk:
        if unit not in self._memory_disks:
            raise SimError(Errno.ENOENT, f"md{unit}")
        return self._memory_disks[unit]

    def _md_pieces(self, unit: int, offset: int, length: int) -> list[tuple[int, int]]:
        disk = self._memory_disk(unit)
        end = min(offset + length, disk.size)
        pieces = []
        start = 0
        for address, size in disk.chunks:
            first, last = max(offset, start), min(end, start + size)
            if first < last:
                pieces.append((address + first - start, last - first))
            start += size
        return pieces

    # -- network --------------------------------------------------------------------------

    def _make_interfaces(self) -> None:
        loopback = self.stack.add(Interface("lo0", b"", lambda _frame: True))
        loopback.mtu = 16384
        loopback.groups = ["lo"]
        loopback.up = True
        loopback.addresses = [ipaddress.IPv4Interface("127.0.0.1/8")]
        for number, spec in enumerate(
            f for f in self.machine.spec.functions if f.kind == "virtio-net"
        ):
            mac = bytes.fromhex(spec.mac.replace(":", ""))
            management = self.stack.add(Interface(f"vtnet{number}", mac, lambda _frame: True))
            management.up = True
            management.addresses = [ipaddress.IPv4Interface("10.0.2.15/24")]

    @locked
    def interfaces(self) -> dict[str, Interface]:
        """Network interfaces by name, in the order in which they came."""
        return dict(self.stack.interfaces)

    @locked
    def create_interface(self, kind: str) -> Interface:
        """``ifconfig tap create``, ``ifconfig bridge create``, or with a unit: ``tap7``.

        Raises:
            SimError: EINVAL (no such kind), EEXIST.
        """
        base = kind.rstrip("0123456789")
        if base not in ("tap", "bridge"):
            raise SimError(Errno.EINVAL, kind)
        taken = self.stack.interfaces
        name = kind
        if name == base:
            name = next(f"{base}{n}" for n in range(len(taken) + 1) if f"{base}{n}" not in taken)
        if name in taken:
            raise SimError(Errno.EEXIST, name)
        unit = int(name.removeprefix(base))
        if base == "tap":
            if not self.has_module("if_tuntap"):
                self._load_file("if_tuntap")
            mac = b"\x58\x9c\xfc\x10" + (unit & 0xFFFF).to_bytes(2, "big")
            self.log(f"{name}: Ethernet address: {mac.hex(':')}")
            return self.stack.add(Tap(name, mac))
        for needed in ("bridgestp", "if_bridge"):
            if not self.has_module(needed):
                self._load_file(needed)
        mac = b"\x58\x9c\xfc\x20" + (unit & 0xFFFF).to_bytes(2, "big")
        bridge = self.stack.add(Interface(name, mac, lambda _frame: False))
        bridge.groups = ["bridge"]
        self.log(f"{name}: Ethernet address: {mac.hex(':')}")
        return bridge

    @locked
    def destroy_interface(self, name: str) -> None:
        """``ifconfig NAME destroy``.

        Raises:
            SimError: ENXIO (there is none), EINVAL (hardware).
        """
        interface = self._interface(name)
        if not {"tap", "bridge"} & set(interface.groups):
            raise SimError(Errno.EINVAL, name)
        self.stack.remove(name)

    @locked
    def add_member(self, bridge: str, member: str) -> None:
        """``ifconfig BRIDGE addm MEMBER``.

        Raises:
            SimError: ENXIO, ENOENT (no such member), EBUSY (in a bridge), EEXIST.
        """
        owner = self._interface(bridge)
        if member not in self.stack.interfaces:
            raise SimError(Errno.ENOENT, member)
        interface = self.stack.interfaces[member]
        if interface.bridge is owner:
            raise SimError(Errno.EEXIST, member)
        if interface.bridge is not None:
            raise SimError(Errno.EBUSY, member)
        interface.bridge = owner
        owner.members.append(interface)

    @locked
    def remove_member(self, bridge: str, member: str) -> None:
        """``ifconfig BRIDGE deletem MEMBER``.  Raises SimError ENXIO, ENOENT."""
        owner = self._interface(bridge)
        found = next((each for each in owner.members if each.name == member), None)
        if found is None:
            raise SimError(Errno.ENOENT, member)
        owner.members.remove(found)
        found.bridge = None

    def _interface(self, name: str) -> Interface:
        if name not in self.stack.interfaces:
            raise SimError(Errno.ENXIO, name)
        return self.stack.interfaces[name]

    # -- sysctl(8) --------------------------------------------------------------------------

    @locked
    def sysctls(self) -> dict[str, Sysctl]:
        """What the model knows of the kernel's variables, in the order in which they print.

        The ``hw.vmm`` tree is there while vmm is loaded.
        """
        from hil.simulated.sysctls import sysctls

        return sysctls(self.machine)
