"""Device drivers and devices of the modelled kernel: who has what, and how that changes.

Modelled on FreeBSD's sys/kern/subr_bus.c (devctl2_ioctl) and sys/dev/pci/pci.c.  Every verb is
one request of devctl(8) and fails with the number that the kernel gives.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hil.pci.address import Address
from hil.simulated.errno import Errno, SimError
from hil.simulated.pci import (
    BUS_MASTER,
    COMMAND,
    D3HOT,
    MSI,
    MSIX,
    PCIE,
    PM,
    Bar,
    PciFunction,
    RootPort,
)

if TYPE_CHECKING:
    from hil.simulated.kernel import Kernel

PPT = "ppt"
#: What the kernel waits after FLR and after a change of power state (PCIe 6.6.2, 5.9).
_FLR_WAIT, _D3_WAIT = 0.1, 0.01


class Attached(Protocol):
    """What a driver keeps for a device that it has."""

    def detach(self) -> None:
        """Let the device go.  Raises SimError if that cannot be."""
        ...

    def resumed(self) -> None:
        """The device was reset under it."""
        ...


class Nothing:
    """For drivers that keep nothing."""

    def detach(self) -> None:
        """Lets go."""

    def resumed(self) -> None:
        """Does not mind."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver of the PCI bus."""

    name: str
    describes: Callable[[PciFunction], str | None]
    """The description of a function that it would take by itself; ``None``: not its own."""
    attach: Callable[[Kernel, Device], Attached]
    takes_forced: Callable[[PciFunction], bool] = lambda _function: False
    """Whether it takes a function when told to, though not by itself."""
    quiet: bool = False
    """Attaches without a message (device_quiet(9))."""


class Device:
    """A PCI function as newbus knows it."""

    def __init__(self, function: PciFunction) -> None:
        self.function = function
        self.driver_name: str | None = None
        """Name of its device class: stays after a detach if the driver was forced."""
        self.unit = -1
        self.fixed = False
        """Its driver was forced, by devctl or by SR-IOV."""
        self.enabled = True
        self.state: Attached | None = None
        self.virtual_function_of: Device | None = None

    @property
    def name(self) -> str | None:
        """``em0``; ``None`` where pciconf says ``noneN``."""
        return None if self.driver_name is None else f"{self.driver_name}{self.unit}"

    @property
    def attached(self) -> bool:
        """Whether a driver has it."""
        return self.state is not None

    @property
    def address(self) -> Address:
        """Where it is."""
        return self.function.address

    @property
    def selector(self) -> str:
        """``pci0:5:0:0``."""
        at = self.address
        return f"pci{at.domain}:{at.bus}:{at.device}:{at.function}"


_SELECTOR = re.compile(r"pci(?:(\d+):)?(\d+):(\d+)(?::(\d+))?:?", re.ASCII)


@functools.lru_cache(maxsize=4096)
def _selected(text: str) -> int | None:
    """The requester id that a selector names, -1 for one in another domain; ``None``: none."""
    match = _SELECTOR.fullmatch(text)
    if match is None:
        return None
    numbers = [int(part) for part in match.groups() if part is not None]
    if len(numbers) == 3:
        numbers.insert(0, 0)
    domain, bus, device, function = numbers
    return bus << 8 | device << 3 | function if domain == 0 else -1


#: What the bus says of a device that nobody takes (pci_nomatch_tab); an empty text: nothing.
_NO_MATCH = {
    0x000000: "old",
    0x00FF00: "old",
    0x080600: "base peripheral, IOMMU",
    0x060400: "bridge, PCI-PCI",
    0x020000: "network, ethernet",
    0x010802: "mass storage, NVM",
    0x010601: "mass storage, SATA",
    0x038000: "display",
    0x0C0500: "",
}


class Newbus:
    """The PCI devices of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.drivers: dict[str, Driver] = {}
        self.devices: dict[int, Device] = {}
        self._deleted: set[int] = set()

    # -- looking up -----------------------------------------------------------------------

    def in_order(self) -> list[Device]:
        """As they were found, which is by address at boot: as pciconf lists them."""
        return list(self.devices.values())

    def find(self, text: str) -> Device:
        """By name (``em0``) or selector (``pci0:0:5:0``, ``pci0:5:0``).

        Raises:
            SimError: ENOENT.
        """
        requester_id = _selected(text)
        if requester_id is not None:
            if requester_id in self.devices:
                return self.devices[requester_id]
        else:
            for device in self.devices.values():
                if device.name == text:
                    return device
        raise SimError(Errno.ENOENT, text)

    # -- the bus --------------------------------------------------------------------------

    def add(self, function: PciFunction) -> Device:
        """A function was found: pci_add_child()."""
        device = Device(function)
        self.devices[function.requester_id] = device
        self.kernel.machine.vmm.pci_added(device)
        return device

    def remove(self, device: Device) -> None:
        """It is gone: pci_child_deleted()."""
        self.kernel.machine.vmm.pci_deleted(device)
        self._leave_class(device)
        del self.devices[device.function.requester_id]

    def scan(self, bus: int | None = None) -> list[Device]:
        """Add the functions that answer and are not known; on one bus, or everywhere."""
        new = []
        for function in self.kernel.machine.fabric.in_order():
            virtual = function.kind == "igbvf"
            on_bus = bus is None or function.address.bus == bus
            if function.requester_id not in self.devices and on_bus and not virtual:
                new.append(self.add(function))
        return new

    def probe_and_attach(self, device: Device, *, quiet: bool = False) -> None:
        """device_probe_and_attach(9).

        Raises:
            SimError: ENXIO, no driver takes it.
        """
        if device.attached or not device.enabled:
            return
        driver = self._choose(device)
        if driver is None:
            if not quiet:
                self.no_match(device)
            raise SimError(Errno.ENXIO, device.selector)
        if device.driver_name != driver.name or device.unit < 0:
            self._enter_class(device, driver.name)
        self._announce(device, driver)
        device.state = driver.attach(self.kernel, device)
        if isinstance(device.function, RootPort):
            self.attach_bus(device.function)

    def attach_bus(self, port: RootPort) -> None:
        """The bus behind a bridge: its functions are found and get drivers."""
        pcib = self.devices[port.requester_id].name
        self.kernel.log(f"pci{port.secondary}: <ACPI PCI bus> on {pcib}")
        for device in self.scan(port.secondary):
            self.try_to_attach(device)

    def try_to_attach(self, device: Device) -> None:
        """Attach if some driver takes it."""
        try:
            self.probe_and_attach(device)
        except SimError:
            return

    def _choose(self, device: Device) -> Driver | None:
        function = device.function
        if device.fixed:
            driver = self.drivers.get(device.driver_name or "")
            if driver is not None and (
                driver.describes(function) is not None or driver.takes_forced(function)
            ):
                return driver
            return None
        # ppt asks for its own before the native driver
        for name in (PPT, *(name for name in self.drivers if name != PPT)):
            found = self.drivers.get(name)
            if found is not None and found.describes(function) is not None:
                return found
        return None

    def _enter_class(self, device: Device, name: str) -> None:
        self._leave_class(device)
        used = {each.unit for each in self.devices.values() if each.driver_name == name}
        used |= self.kernel.static_units.get(name, set())
        device.driver_name = name
        device.unit = next(n for n in range(len(used) + 1) if n not in used)

    @staticmethod
    def _leave_class(device: Device) -> None:
        device.driver_name = None
        device.unit = -1

    def _announce(self, device: Device, driver: Driver) -> None:
        if driver.quiet:
            return
        text = driver.describes(device.function)
        shown = f": <{text}>" if text else ""
        where = f"at device {device.address.device}.{device.address.function}"
        resources = self.resources(device)
        self.kernel.log(f"{device.name}{shown}{resources} {where} on pci{device.address.bus}")

    def resources(self, device: Device) -> str:
        """Ports, memory and interrupt line, as an attach message lists them; with a space."""
        bars = device.function.bars
        ports = ",".join(_span(bar) for bar in bars if not bar.memory and bar.address)
        memory = ",".join(_span(bar) for bar in bars if bar.memory and bar.address)
        irq = self.kernel.irq_line(device.address)
        parts = [
            f"port {ports}" if ports else "",
            f"mem {memory}" if memory else "",
            f"irq {irq}" if irq and device.function.peek(0x3D, 1) else "",
        ]
        text = " ".join(part for part in parts if part)
        return f" {text}" if text else ""

    def no_match(self, device: Device) -> None:
        """What the bus prints of a device without a driver."""
        text = _NO_MATCH.get(device.function.class_code, "old")
        if text:
            where = f"at device {device.address.device}.{device.address.function}"
            self.kernel.log(f"pci{device.address.bus}: <{text}> {where} (no driver attached)")

    # -- detaching ------------------------------------------------------------------------

    def detach_device(self, device: Device) -> None:
        """device_detach(9).

        Raises:
            SimError: EBUSY; what was behind a bridge may be gone by then.
        """
        if device.state is None:
            return
        if isinstance(device.function, RootPort):
            self._detach_bus(device.function)
        device.state.detach()
        device.state = None
        self.kernel.log(f"{device.name}: detached")
        if not device.fixed:
            self._leave_class(device)

    def _detach_bus(self, port: RootPort) -> None:
        children = [d for d in self.in_order() if d.address.bus == port.secondary]
        for child in children:
            self.detach_device(child)
        for child in children:
            self.remove(child)
        self.kernel.log(f"pci{port.secondary}: detached")

    # -- devctl(8) --------------------------------------------------------------------------

    def set_driver(self, text: str, driver: str, *, force: bool = False) -> None:
        """``devctl set driver [-f]``.

        Raises:
            SimError: ENOENT (device, driver), EBUSY (attached, or in use), ENXIO (not taken).
        """
        device = self.find(text)
        if device.driver_name == driver:
            return
        if driver not in self.drivers:
            raise SimError(Errno.ENOENT, driver)
        if device.attached:
            if not force:
                raise SimError(Errno.EBUSY, text)
            self.detach_device(device)
        self._enter_class(device, driver)
        device.fixed = True
        self.probe_and_attach(device)

    def clear_driver(self, text: str, *, force: bool = False) -> None:
        """``devctl clear driver [-f]``: nothing where no driver was forced.

        Raises:
            SimError: ENOENT, EBUSY (attached, or in use), ENXIO (no other driver takes it).
        """
        device = self.find(text)
        if not device.fixed:
            return
        if device.attached:
            if not force:
                raise SimError(Errno.EBUSY, text)
            self.detach_device(device)
        device.fixed = False
        self._leave_class(device)
        self.probe_and_attach(device)

    def attach(self, text: str) -> None:
        """``devctl attach``.

        Raises:
            SimError: ENOENT, EBUSY (has a driver), ENXIO (none takes it).
        """
        device = self.find(text)
        if device.attached:
            raise SimError(Errno.EBUSY, text)
        self.probe_and_attach(device)

    def detach(self, text: str) -> None:
        """``devctl detach [-f]``.

        Raises:
            SimError: ENOENT, ENXIO (has none), EBUSY (in use).
        """
        device = self.find(text)
        if not device.attached:
            raise SimError(Errno.ENXIO, text)
        self.detach_device(device)

    def disable(self, text: str, *, force: bool = False) -> None:
        """``devctl disable [-f]``.

        Raises:
            SimError: ENOENT, ENXIO (is disabled), EBUSY (attached, or in use).
        """
        device = self.find(text)
        if not device.enabled:
            raise SimError(Errno.ENXIO, text)
        if device.attached:
            if not force:
                raise SimError(Errno.EBUSY, text)
            self.detach_device(device)
        device.enabled = False

    def enable(self, text: str) -> None:
        """``devctl enable``.

        Raises:
            SimError: ENOENT, EBUSY (is enabled), ENXIO (no driver takes it).
        """
        device = self.find(text)
        if device.enabled:
            raise SimError(Errno.EBUSY, text)
        device.enabled = True
        self.probe_and_attach(device)

    def rescan(self, text: str) -> None:
        """``devctl rescan``: a bus by its name, ``pci0``.

        Raises:
            SimError: ENOENT, ENODEV (no bus), ENXIO (nobody has it).
        """
        match = re.fullmatch(r"pci(\d+)", text, re.ASCII)
        if match is None:
            device = self.find(text)
            raise SimError(Errno.ENODEV if device.attached else Errno.ENXIO, text)
        bus = int(match[1])
        ports = [
            d
            for d in self.devices.values()
            if isinstance(d.function, RootPort) and d.function.secondary == bus and d.attached
        ]
        if bus and not ports:
            raise SimError(Errno.ENOENT, text)
        present = self.kernel.machine.fabric.functions
        for device in self.in_order():
            if device.address.bus == bus and device.function.requester_id not in present:
                self.detach_device(device)
                self.remove(device)
        for device in self.scan(bus):
            self.try_to_attach(device)

    def delete(self, text: str, *, force: bool = False) -> None:
        """``devctl delete [-f]``: the kernel forgets the device until the next rescan.

        Raises:
            SimError: ENOENT, EBUSY (attached, or in use).
        """
        device = self.find(text)
        if device.attached:
            if not force:
                raise SimError(Errno.EBUSY, text)
            self.detach_device(device)
        self.remove(device)

    def reset(self, text: str, *, detach: bool = False) -> float:
        """``devctl reset [-d]``: FLR, or D3hot; not refused while a guest has the device.

        Returns:
            The seconds that a kernel would have waited for the function.

        Raises:
            SimError: ENOENT; with ``detach`` as :meth:`detach_device`.
        """
        device = self.find(text)
        if detach and device.attached:
            state_fixed = device.fixed
            device.fixed = True  # the class is kept over the reset
            self.detach_device(device)
            took = self.reset_function(device.function)
            device.fixed = state_fixed
            self.probe_and_attach(device)
            return took
        took = self.reset_function(device.function)
        if device.state is not None:
            device.state.resumed()
        return took

    # -- resets (pcie_flr, pci_power_reset, pci_save_state) -----------------------------------

    def reset_function(self, function: PciFunction) -> float:
        """Reset a function and give it back its BARs, COMMAND and messages.

        Returns:
            The seconds that a kernel would have waited: nothing here does.
        """
        saved = save_state(function)
        took = 0.0
        faults = self.kernel.machine.faults
        ignores = function.no_soft_reset and "30-nosoftrst-ignored" in faults
        if function.has_flr and not ignores:
            command = function.config_read(COMMAND, 2)
            function.config_write(COMMAND, 2, command & ~BUS_MASTER)
            control = function.capability(PCIE) + 8
            function.config_write(control, 2, function.config_read(control, 2) | 0x8000)
            took = _FLR_WAIT
        elif function.capability(PM):
            control = function.capability(PM) + 4
            state = function.config_read(control, 2) & ~3
            function.config_write(control, 2, state | D3HOT)
            function.config_write(control, 2, state)
            took = 2 * _D3_WAIT
        restore_state(function, saved)
        return took


def _span(bar: Bar) -> str:
    return f"{bar.address:#x}-{bar.address + bar.size - 1:#x}"


SavedState = tuple[dict[int, int], bytes]


def save_state(function: PciFunction) -> SavedState:
    """What pci_save_state() keeps: header registers, MSI, and the MSI-X table."""
    registers = {offset: function.config_read(offset, 4) for offset in range(0x10, 0x28, 4)}
    registers |= {0xC: function.config_read(0xC, 2), 0x3C: function.config_read(0x3C, 1)}
    msi = function.capability(MSI)
    if msi:
        registers |= {msi + at: function.config_read(msi + at, 4) for at in (4, 8, 12, 16)}
        registers[msi] = function.config_read(msi, 4)
    msix = function.capability(MSIX)
    if msix:
        registers[msix] = function.config_read(msix, 4)
    registers[COMMAND] = function.config_read(COMMAND, 2)
    return registers, function.msix_table()


def restore_state(function: PciFunction, saved: SavedState) -> None:
    """pci_restore_state()."""
    registers, table = saved
    for offset, value in registers.items():
        width = 2 if offset in (0xC, COMMAND) else 1 if offset == 0x3C else 4
        function.config_write(offset, width, value)
    function.restore_msix_table(table)
