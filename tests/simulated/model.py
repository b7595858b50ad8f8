"""A guest reduced to what the model's tests need: memory, a passed function, its driver."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from hil.iommu.host import host_tables
from hil.iommu.scope import Topology
from hil.iommu.tables import HostTables, Kind
from hil.pci.address import Address
from hil.simulated.machine import Machine
from hil.simulated.memory import MIB, PAGE
from hil.simulated.passthru import GuestWindows, Passthru
from hil.simulated.pci import MESSAGES, MSI, MSIX, RootPort
from hil.simulated.vmm import Vm

GUEST_MEMORY = 64 * MIB
#: Guest physical address of DMA memory: the host's kernel has its own at the same numbers.
DMA_START = 32 * MIB


class Guest:
    """A VM of wired memory; ``take`` gives it a function."""

    def __init__(self, machine: Machine, name: str = "g", *, wired: bool = True) -> None:
        self.machine = machine
        self.vm: Vm = machine.vmm.create(name)
        self.vm.setup_memory(GUEST_MEMORY, wired=wired)
        self.handlers: dict[int, Callable[[], None]] = {}
        self.vm.interrupt_sink = self._interrupt
        self.counts: dict[int, int] = {}
        self._vectors = itertools.count(0x30)
        self._windows = GuestWindows(GUEST_MEMORY, machine.faults)
        self._next = DMA_START

    def take(self, name: str) -> GuestPort:
        """Pass the function of this name in the machine's specification."""
        at = self.machine.function_named(name).address
        return self.take_at(at)

    def take_at(self, at: Address) -> GuestPort:
        """Pass the function at a host address."""
        passthru = Passthru(self.vm, (at.bus, at.device, at.function))
        passthru.setup()
        passthru.place(self._windows.place(passthru.requests()))
        return GuestPort(self, passthru)

    def _interrupt(self, _address: int, data: int) -> None:
        self.counts[data] = self.counts.get(data, 0) + 1
        self.handlers.get(data, lambda: None)()

    def new_vector(self, handler: Callable[[], None]) -> int:
        """A vector of its own local APIC."""
        vector = next(self._vectors)
        self.handlers[vector] = handler
        return vector

    # DmaMemory
    def allocate(self, size: int) -> int:
        """Guest physical memory for DMA."""
        at = self._next
        self._next += -(-size // PAGE) * PAGE
        self.write(at, bytes(size))
        return at

    def release(self, address: int, size: int) -> None:
        """Never reused here."""

    def read(self, address: int, length: int) -> bytes:
        """Guest physical memory."""
        return self.vm.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        """Guest physical memory."""
        self.vm.write(address, data)


class GuestPort:
    """A passed function as the guest's driver reaches it."""

    def __init__(self, guest: Guest, passthru: Passthru) -> None:
        self.guest = guest
        self.passthru = passthru
        self.config_read = passthru.config_read
        self.config_write = passthru.config_write
        self.bar_load = passthru.bar_load
        self.bar_store = passthru.bar_store

    def _capability(self, wanted: int) -> int:
        at = self.config_read(0x34, 1)
        while at and self.config_read(at, 1) != wanted:
            at = self.config_read(at + 1, 1)
        return at

    def enable_interrupts(self, handlers: Sequence[tuple[str, Callable[[], None]]]) -> int:
        """MSI-X, or one MSI."""
        at = self._capability(MSIX)
        if at:
            bar, start = self.config_read(at + 4, 4) & 7, self.config_read(at + 4, 4) & ~7
            for number, (_, handler) in enumerate(handlers):
                entry = start + 16 * number
                self.bar_store(bar, entry, 4, MESSAGES.start)
                self.bar_store(bar, entry + 4, 4, 0)
                self.bar_store(bar, entry + 8, 4, self.guest.new_vector(handler))
                self.bar_store(bar, entry + 12, 4, 0)
            self.config_write(at + 2, 2, 0x8000)
            return len(handlers)
        at = self._capability(MSI)
        self.config_write(at + 4, 4, MESSAGES.start)
        self.config_write(at + 12, 2, self.guest.new_vector(handlers[0][1]))
        self.config_write(at + 2, 2, self.config_read(at + 2, 2) | 1)
        return 1

    def disable_interrupts(self) -> None:
        """All off."""
        at = self._capability(MSIX)
        if at:
            self.config_write(at + 2, 2, 0)


def reserve(machine: Machine, name: str) -> None:
    """Give a function to ppt, whoever has it."""
    if not machine.kernel.has_module("vmm"):
        machine.kernel.load_module("vmm")
    machine.kernel.set_driver(selector(machine, name), "ppt", force=True)


def selector(machine: Machine, name: str) -> str:
    """``pci0:5:0:0`` of a function of the specification."""
    at = machine.function_named(name).address
    return f"pci{at.domain}:{at.bus}:{at.device}:{at.function}"


def tables(machine: Machine) -> HostTables:
    """The IOMMU's tables, by the reader that hil has for real hosts."""
    with machine.lock:
        return host_tables(
            dmar=machine.acpi.tables.get("DMAR"),
            ivrs=machine.acpi.tables.get("IVRS"),
            registers=machine.memory,
            memory=machine.memory,
            topology=lambda: topology(machine),
        )


def topology(machine: Machine) -> Topology:
    """Bridges of the machine, for the scopes of units."""
    ports = [f for f in machine.fabric.in_order() if isinstance(f, RootPort)]
    return Topology({p.requester_id: range(p.secondary, p.secondary + 1) for p in ports})


def owner(machine: Machine, requester_id: int) -> str:
    """Whose memory a function reaches: ``nobody``, ``host``, or the name of a VM."""
    seen = tables(machine)
    entry = seen.entry(requester_id)
    if entry is None or entry.kind is Kind.BLOCKED:
        return "nobody"
    if entry.kind is Kind.PASS_THROUGH:
        return "host"
    for name, vm in machine.vmm.vms.items():
        mapped = seen.translate(requester_id, DMA_START, True)
        if getattr(mapped, "physical", None) == vm.host_address(DMA_START):
            return name
    return "host"
