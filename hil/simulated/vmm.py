"""vmm(4) and ppt(4): virtual machines, and the devices that they are given.

Modelled on FreeBSD's sys/amd64/vmm: vmm.c, io/ppt.c, and lib/libvmmapi for how memory is set up.
bhyve's own half, the emulation in userland, is :mod:`hil.simulated.passthru`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hil.pci.address import Address
from hil.simulated.errno import Errno, SimError
from hil.simulated.iommu import AmdUnit, VtdUnit
from hil.simulated.machine import Machine, locked
from hil.simulated.memory import GIB, PAGE, SUPERPAGE, OutOfMemory, pieces
from hil.simulated.newbus import Attached, Device, Driver
from hil.simulated.panic import HostPanic
from hil.simulated.pci import BUS_MASTER, COMMAND, IO_DECODE, MEMORY_DECODE, PciFunction
from hil.simulated.remapping import AmdDriver, Domain, IommuDriver, Remapping, VtdDriver

if TYPE_CHECKING:
    from hil.simulated.kernel import Kernel

#: Guest memory above this lies at 4 GiB and up (bhyve's lowmem limit).
LOW_MEMORY = 3 * GIB
_HIGH_START = 4 * GIB
_MAX_SEGMENTS = 7


@dataclass(slots=True)
class _Segment:
    """Guest memory: pages at ``address``, and the flags that it was mapped with."""

    address: int
    length: int
    superpages: tuple[int, ...]
    wired: bool
    in_iommu: bool = False

    def pieces(self) -> list[tuple[int, int, int]]:
        """Guest address, host address, length."""
        found = []
        for number, physical in enumerate(self.superpages):
            offset = number * SUPERPAGE
            found.append((self.address + offset, physical, min(SUPERPAGE, self.length - offset)))
        return found


@dataclass(slots=True)
class PptState:
    """What ppt keeps for a device (struct pptdev)."""

    device: Device
    owner: Vm | None = None
    mappings: list[tuple[int, int, int]] = field(default_factory=list)
    """Guest address, length, host address of mapped BARs."""
    msi: list[int] = field(default_factory=list)
    """Interrupt numbers."""
    msix: dict[int, int] = field(default_factory=dict)
    """Interrupt number by vector; vectors that are masked have one too."""


InterruptSink = Callable[[int, int], None]
"""Takes address and data of a message for a guest's local APIC."""


class Vm:
    """A virtual machine: ``/dev/vmm/NAME``."""

    def __init__(self, vmm: Vmm, name: str) -> None:
        self.machine = vmm.machine
        self.name = name
        self.destroyed = False
        self.started = False
        """Whether its first instruction has run, ever."""
        self.running = False
        self.interrupt_sink: InterruptSink = lambda _address, _data: None
        self.on_destroy: list[Callable[[], None]] = []
        """Called when the VM is destroyed, with the machine's lock held."""
        self.traps: list[tuple[int, int, TrappedRegisters]] = []
        """Guest address ranges that are emulated, not mapped."""
        self._vmm = vmm
        self._segments: list[_Segment] = []
        self._domain: Domain | None = None

    # -- memory ---------------------------------------------------------------------------

    @locked
    def setup_memory(self, size: int, *, wired: bool) -> None:
        """vm_setup_memory(3), by the loader first and then by bhyve.

        Raises:
            SimError: EEXIST (mapped with other flags: not wired, or already given to the
                IOMMU), EINVAL (another size), ENOMEM (no such memory, or it cannot be wired).
        """
        wanted = [(0, min(size, LOW_MEMORY))]
        if size > LOW_MEMORY:
            wanted.append((_HIGH_START, size - LOW_MEMORY))
        if self._segments:
            if [(part.address, part.length) for part in self._segments] != wanted:
                raise SimError(Errno.EINVAL)
            if any(part.wired != wired or part.in_iommu for part in self._segments):
                raise SimError(Errno.EEXIST)
            return
        memory = self.machine.memory
        if wired and self._vmm.wired + size > self._vmm.wired_limit:
            raise SimError(Errno.ENOMEM)
        try:
            for address, length in wanted:
                superpages = memory.allocate_guest(length)
                self._segments.append(_Segment(address, length, superpages, wired))
        except OutOfMemory:
            self._free_memory()
            raise SimError(Errno.ENOMEM) from None

    @property
    def memory_size(self) -> int:
        """Bytes of guest memory; 0 before it is set up."""
        return sum(part.length for part in self._segments)

    @property
    def wired(self) -> bool:
        """Whether its memory cannot be paged out."""
        return bool(self._segments) and all(part.wired for part in self._segments)

    def host_address(self, address: int) -> int | None:
        """Where guest memory is in the host; ``None``: it is no memory."""
        for part in self._segments:
            if part.address <= address < part.address + part.length:
                number, offset = divmod(address - part.address, SUPERPAGE)
                return part.superpages[number] + offset
        return None

    def _resolve(self, address: int) -> int | None:
        """Host address of memory or of a mapped BAR."""
        physical = self.host_address(address)
        if physical is not None:
            return physical
        for ppt in self._vmm.assigned_to(self):
            for start, length, base in ppt.mappings:
                if start <= address < start + length:
                    return base + address - start
        return None

    @locked
    def read(self, address: int, length: int) -> bytes:
        """As a virtual processor loads: memory, or a device's registers; else all ones."""
        parts = []
        for at, size in pieces(address, length):
            trap = self._trap(at)
            physical = self._resolve(at)
            if trap is not None:
                start, registers = trap
                parts.append(registers.trapped_load(at - start, size))
            elif physical is not None:
                parts.append(self.machine.memory.read(physical, size))
            else:
                parts.append(b"\xff" * size)
        return b"".join(parts)

    @locked
    def write(self, address: int, data: bytes) -> None:
        """As a virtual processor stores; lost where nothing is."""
        for at, size in pieces(address, len(data)):
            piece = data[at - address : at - address + size]
            trap = self._trap(at)
            physical = self._resolve(at)
            if trap is not None:
                start, registers = trap
                registers.trapped_store(at - start, piece)
            elif physical is not None:
                self.machine.memory.write(physical, piece)

    def _trap(self, address: int) -> tuple[int, TrappedRegisters] | None:
        for start, end, registers in self.traps:
            if start <= address < end:
                return start, registers
        return None

    def _free_memory(self) -> None:
        for part in self._segments:
            self.machine.memory.release_guest(part.superpages)
        self._segments.clear()

    # -- devices --------------------------------------------------------------------------

    @property
    def devices(self) -> list[Device]:
        """What it has been given."""
        return [ppt.device for ppt in self._vmm.assigned_to(self)]

    @property
    def domain(self) -> Domain | None:
        """Its IOMMU domain, if it has one."""
        return self._domain

    @locked
    def assign(self, bus: int, slot: int, function: int) -> None:
        """vm_assign_pptdev(): reset the device and give it to this VM.

        Raises:
            SimError: ENOENT (absent, or ppt has it not), EBUSY (some VM has it), ENXIO (no
                IOMMU).
        """
        vmm, remapping = self._vmm, self._vmm.remapping
        first = not vmm.assigned_to(self)
        if first:
            if not self._make_domain():
                raise SimError(Errno.ENXIO)
            if self.machine.spec.release.maps_before_assigning:
                self._map()
        try:
            vmm.assign(self, bus, slot, function)
        except SimError:
            if first and not self.machine.spec.release.maps_before_assigning:
                self._drop_domain()
            raise
        if first and not self.machine.spec.release.maps_before_assigning:
            self._map()
        if self._domain is not None and remapping.driver is not None:
            remapping.driver.add_device(self._domain, Address(0, bus, slot, function).requester_id)

    def _make_domain(self) -> bool:
        """Whether there is one now, or the host does without."""
        limit = max((part.address + part.length for part in self._segments), default=0)
        before = self._domain
        self._domain = self._vmm.remapping.create_domain(limit, self._vmm.tunables)
        if before is not None and self._vmm.remapping.driver is not None:
            self._vmm.remapping.driver.destroy_domain(before)
        return self._domain is not None or "1-no-translation" in self.machine.faults

    def _drop_domain(self) -> None:
        if self._domain is not None and self._vmm.remapping.driver is not None:
            self._vmm.remapping.driver.destroy_domain(self._domain)
        self._domain = None

    def _map(self) -> None:
        if self._domain is None:
            return
        pieces = [piece for part in self._segments if part.wired for piece in part.pieces()]
        self._vmm.remapping.map_guest(self._domain, pieces)
        for part in self._segments:
            part.in_iommu = part.wired

    def _unmap(self, *, used: bool = True) -> None:
        if self._domain is None:
            return
        pieces = [piece for part in self._segments if part.in_iommu for piece in part.pieces()]
        if pieces:
            self._vmm.remapping.unmap_guest(self._domain, pieces, used=used)
        for part in self._segments:
            part.in_iommu = False

    @locked
    def unassign(self, bus: int, slot: int, function: int) -> None:
        """vm_unassign_pptdev().

        Raises:
            SimError: ENOENT (absent, or ppt has it not), EBUSY (not this VM's).
        """
        self._vmm.unassign(self, bus, slot, function)
        if not self._vmm.assigned_to(self):
            self._unmap()

    @locked
    def map_mmio(
        self, bus: int, slot: int, function: int, guest: int, length: int, physical: int
    ) -> None:
        """vm_map_pptdev_mmio(): let the guest reach a part of a BAR.

        Raises:
            SimError: EINVAL (no whole pages, or not within a BAR), ENOENT, EBUSY, ENOSPC.
        """
        if not length or length % PAGE or guest % PAGE or physical % PAGE:
            raise SimError(Errno.EINVAL)
        ppt = self._vmm.find(self, bus, slot, function)
        inside = any(
            bar.memory and bar.address <= physical and physical + length <= bar.address + bar.size
            for bar in ppt.device.function.bars
        )
        if not inside and "28-unchecked-mapping" not in self.machine.faults:
            raise SimError(Errno.EINVAL)
        if len(ppt.mappings) >= _MAX_SEGMENTS:
            raise SimError(Errno.ENOSPC)
        ppt.mappings.append((guest, length, physical))

    @locked
    def unmap_mmio(self, bus: int, slot: int, function: int, guest: int, length: int) -> None:
        """vm_unmap_pptdev_mmio().  Raises SimError ENOENT, EBUSY."""
        ppt = self._vmm.find(self, bus, slot, function)
        for mapping in ppt.mappings:
            if mapping[:2] == (guest, length):
                ppt.mappings.remove(mapping)
                return
        raise SimError(Errno.ENOENT)

    @locked
    def setup_msi(
        self, bus: int, slot: int, function: int, address: int, data: int, count: int
    ) -> None:
        """vm_setup_pptdev_msi(): ``count`` messages, or 0 to end them.

        Raises:
            SimError: ENOENT, EBUSY (not this VM's; MSI-X is on), EINVAL (too many).
        """
        ppt = self._vmm.find(self, bus, slot, function)
        if ppt.msix and count:
            raise SimError(Errno.EBUSY)
        self._vmm.teardown_msi(ppt)
        if not count:
            return
        if count > ppt.device.function.msi_count:
            raise SimError(Errno.EINVAL)
        kernel = self.machine.kernel
        for number in range(count):
            ppt.msi.append(
                kernel.allocate_irq(ppt.device.name or "", self._deliver(address, data + number))
            )
        kernel.write_msi(ppt.device.function, ppt.msi)

    @locked
    def setup_msix(
        self,
        bus: int,
        slot: int,
        function: int,
        vector: int,
        address: int,
        data: int,
        masked: bool,
    ) -> None:
        """vm_setup_pptdev_msix(): one vector.

        Raises:
            SimError: ENOENT, EBUSY (not this VM's; MSI is on), EINVAL (no such vector).
        """
        ppt = self._vmm.find(self, bus, slot, function)
        if ppt.msi:
            raise SimError(Errno.EBUSY)
        count = ppt.device.function.msix_count
        if not vector < count:
            raise SimError(Errno.EINVAL)
        kernel = self.machine.kernel
        if not ppt.msix:
            ppt.msix = {number: kernel.allocate_irq("") for number in range(count)}
            kernel.write_msix(ppt.device.function, {n: (irq, True) for n, irq in ppt.msix.items()})
        irq = ppt.msix[vector]
        if masked:
            kernel.set_handler(irq, "", None)
        else:
            kernel.set_handler(irq, ppt.device.name or "", self._deliver(address, data))
        kernel.write_msix(ppt.device.function, {vector: (irq, masked)})

    @locked
    def disable_msix(self, bus: int, slot: int, function: int) -> None:
        """vm_disable_pptdev_msix().  Raises SimError ENOENT, EBUSY."""
        self._vmm.teardown_msix(self._vmm.find(self, bus, slot, function))

    def _deliver(self, address: int, data: int) -> Callable[[], None]:
        return lambda: self.interrupt_sink(address, data)

    # -- life -----------------------------------------------------------------------------

    @locked
    def start(self) -> None:
        """Its processors run."""
        self.started = self.running = True

    @locked
    def stop(self) -> None:
        """They do not run any more; bhyve's process has ended.  Memory and devices stay."""
        self.running = False

    @locked
    def reinit(self) -> None:
        """vm_reinit(3), of a loader that finds the VM there.  Raises SimError EBUSY (it runs)."""
        if self.running:
            raise SimError(Errno.EBUSY, self.name)

    @locked
    def destroy(self) -> None:
        """Free it, and let its devices go; also while it runs."""
        for ppt in self._vmm.assigned_to(self):
            at = ppt.device.address
            self.unassign(at.bus, at.device, at.function)
        if "23-state-left-behind" not in self.machine.faults:
            # only an assignment that failed has left anything mapped
            self._unmap(used=False)
        self._drop_domain()
        self._free_memory()
        self.traps.clear()
        self.destroyed = True
        del self._vmm.vms[self.name]
        for notify in self.on_destroy:
            notify()


class TrappedRegisters:
    """Registers in a guest's address space that bhyve emulates."""

    def trapped_load(self, offset: int, length: int) -> bytes:
        """Bytes at an offset from the range's start."""
        raise NotImplementedError

    def trapped_store(self, offset: int, data: bytes) -> None:
        """Bytes to an offset from the range's start."""
        raise NotImplementedError


class _AttachedPpt:
    """ppt_attach() and ppt_detach()."""

    def __init__(self, kernel: Kernel, device: Device) -> None:
        self._vmm = kernel.machine.vmm
        self._device = device
        self._vmm.ppt_attached(device)

    def detach(self) -> None:
        self._vmm.ppt_detached(self._device)

    def resumed(self) -> None:
        """The driver does not mind."""


class Vmm:
    """The module, from load to unload."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.vms: dict[str, Vm] = {}
        self.tunables: Mapping[str, str] = {}
        """The kernel environment as it was when the module was loaded."""
        self._ppts: dict[int, PptState] = {}
        self.remapping = self._make_remapping()

    # -- the module -----------------------------------------------------------------------

    def _make_remapping(self) -> Remapping:
        machine = self.machine
        units = machine.units.units
        driver: IommuDriver
        if machine.spec.vendor == "intel":
            intel = [unit for unit in units if isinstance(unit, VtdUnit)]
            driver = VtdDriver(machine.memory, machine.faults, machine.kernel.log, intel)
        else:
            amd = [unit for unit in units if isinstance(unit, AmdUnit)]
            driver = AmdDriver(machine.memory, machine.faults, machine.kernel.log, amd)
        return Remapping(driver, machine.memory, machine.faults, self._functions)

    def _functions(self) -> list[tuple[int, bool]]:
        return [
            (device.function.requester_id, device.driver_name == "ppt")
            for device in self.machine.kernel.bus.in_order()
        ]

    def load(self) -> None:
        """MOD_LOAD: tunables are read, ppt and the IOMMU's drivers look for devices."""
        kernel = self.machine.kernel
        self.tunables = dict(kernel.kenv)
        self.remapping = self._make_remapping()
        kernel.bus.drivers["ppt"] = Driver("ppt", self._ppt_probe, _AttachedPpt, _is_endpoint)
        if isinstance(self.remapping.driver, AmdDriver) and self.remapping.driver.units:
            kernel.bus.drivers["amdiommu"] = Driver("amdiommu", _is_amd_iommu, self._attach_amd)
        for device in kernel.bus.in_order():
            if not device.attached:
                try:
                    kernel.bus.probe_and_attach(device, quiet=True)
                except SimError:
                    continue
        if not self.machine.spec.virtualizes:
            kernel.log("vmx_modinit: processor does not support VMX operation")
            kernel.log("module_register_init: MOD_LOAD (vmm, 0xffffffff81204300, 0) error 6")

    def _attach_amd(self, kernel: Kernel, device: Device) -> Attached:
        driver = self.remapping.driver
        assert isinstance(driver, AmdDriver)
        kernel.write_msi(device.function, [kernel.allocate_irq(device.name or "")])
        log = kernel.log
        log("AMD-Vi: IVRS Info VAsize = 0 PAsize = 40 GVAsize = 0 flags:0")
        for number, unit in enumerate(self.machine.units.units):
            name = f"ivhd{number}"
            assert isinstance(unit, AmdUnit)
            log(f"{name}: <AMD-Vi/IOMMU ivhd with EFR> on acpi0")
            log(f"{name}: Flag:11<HtTunEn,IotlbSup>")
            log(f"{name}: Features(type:0x11) MsiNumPPR = 0 PNBanks= 0 PNCounters= 0")
            log(
                f"{name}: Extended features[31:0]:29d3<PreFSup,PPRSup,GTSup,IASup,GASup,HESup> "
                "HATS = 0x2 GATS = 0x2 GLXSup = 0x0 SmiFSup = 0x0 SmiFRC = 0x0 GAMSup = 0x0 "
                "DualPortLogSup = 0x0 DualEventLogSup = 0x0"
            )
            log(
                f"{name}: Extended features[62:32]:0 Max PASID: 0x0 DevTblSegSup = 0x0 "
                "MarcSup = 0x0"
            )
            log(f"{name}: supported paging level:7, will use only: 4")
            for part in unit.ranges:
                log(f"{name}: device [{part.first:#x} - {part.last:#x}] config:0")
            log(f"{name}: PCI cap 0x1f03000f@0x40 feature:1f<IOTLB,HT,NPCache,EFR,CapExt>")
        driver.attach()
        return _AttachedAmd(kernel, device, driver)

    def unload(self) -> None:
        """MOD_UNLOAD.

        Raises:
            SimError: EBUSY, a VM exists; the IOMMU's drivers have let go by then.
        """
        kernel = self.machine.kernel
        if "26-kldunload-panics" in self.machine.faults and self._ppts:
            raise HostPanic("page fault")
        for device in kernel.bus.in_order():
            if device.driver_name == "amdiommu":
                kernel.bus.detach_device(device)
                kernel.bus.no_match(device)
        if self.vms:
            raise SimError(Errno.EBUSY, "vmm")
        for ppt in list(self._ppts.values()):
            kernel.bus.detach_device(ppt.device)
            kernel.bus.no_match(ppt.device)
        for name in ("ppt", "amdiommu"):
            kernel.bus.drivers.pop(name, None)
        self.remapping.stop()

    # -- ppt ------------------------------------------------------------------------------

    def _ppt_probe(self, function: PciFunction) -> str | None:
        """Takes what the tunables name (vmm_is_pptdev)."""
        named = " ".join(self.tunables.get(key, "") for key in ("pptdevs", "pptdevs2", "pptdevs3"))
        at = function.address
        wanted = f"{at.bus}/{at.device}/{at.function}"
        return "" if _is_endpoint(function) and wanted in named.split() else None

    @property
    def ppt_count(self) -> int:
        """``hw.vmm.ppt.devices``."""
        return len(self._ppts)

    @property
    def _switches_command(self) -> bool:
        """Whether ppt itself lets a function decode and master the bus only for a guest."""
        older = ("3-host-domain-while-idle", "10-bogus-command-register", "11-msix-bar-busy")
        return self.machine.spec.release.switches_command and not any(
            name in self.machine.faults for name in older
        )

    @property
    def _idle_in_host_domain(self) -> bool:
        return (
            self.machine.spec.release.idle_in_host_domain
            or "3-host-domain-while-idle" in self.machine.faults
        )

    def ppt_attached(self, device: Device) -> None:
        """The driver gets a device."""
        self._ppts[device.function.requester_id] = PptState(device)
        if self._switches_command:
            self._quiet(device.function)
        if not self._idle_in_host_domain:
            self.remapping.take_from_host(device.function.requester_id)

    def ppt_detached(self, device: Device) -> None:
        """It lets go.  Raises SimError EBUSY."""
        identity = device.function.requester_id
        if self._ppts[identity].owner is not None:
            raise SimError(Errno.EBUSY, device.name or "")
        del self._ppts[identity]
        function = device.function
        function.config_write(COMMAND, 2, function.config_read(COMMAND, 2) & ~BUS_MASTER)
        if self._idle_in_host_domain or "2-host-domain-not-restored" in self.machine.faults:
            return
        self.remapping.give_to_host(identity)

    def pci_added(self, device: Device) -> None:
        """A function came."""
        if "5-domains-not-updated" not in self.machine.faults:
            self.remapping.give_to_host(device.function.requester_id)

    def pci_deleted(self, device: Device) -> None:
        """A function went."""
        if "5-domains-not-updated" not in self.machine.faults:
            self.remapping.take_from_host(device.function.requester_id)

    def owner_of(self, device: Device) -> Vm | None:
        """The VM that has a device."""
        ppt = self._ppts.get(device.function.requester_id)
        return ppt.owner if ppt is not None else None

    def assigned_to(self, vm: Vm) -> list[PptState]:
        """What a VM has, in the order in which ppt got them."""
        return [ppt for ppt in self._ppts.values() if ppt.owner is vm]

    def find(self, vm: Vm | None, bus: int, slot: int, function: int) -> PptState:
        """ppt_find().  Raises SimError ENOENT, EBUSY (the owner is another)."""
        ppt = self._ppts.get(bus << 8 | slot << 3 | function)
        if ppt is None:
            raise SimError(Errno.ENOENT)
        if ppt.owner is not vm:
            raise SimError(Errno.EBUSY)
        return ppt

    def assign(self, vm: Vm, bus: int, slot: int, function: int) -> None:
        """ppt_assign_device(), but for the IOMMU."""
        try:
            ppt = self.find(None, bus, slot, function)
        except SimError as error:
            ppt_taken = self._ppts.get(bus << 8 | slot << 3 | function)
            # the race: the owner has it, but has not begun to run
            if (
                error.number is not Errno.EBUSY
                or "27-double-bind" not in self.machine.faults
                or ppt_taken is None
                or ppt_taken.owner is vm
                or (ppt_taken.owner is not None and ppt_taken.owner.started)
            ):
                raise
            ppt = ppt_taken
        device = ppt.device.function
        self._reset(device)
        if self._switches_command:
            bars = {bar.memory for bar in device.bars}
            enables = (MEMORY_DECODE if True in bars else 0) | (IO_DECODE if False in bars else 0)
            command = device.config_read(COMMAND, 2)
            device.config_write(COMMAND, 2, command | enables | BUS_MASTER)
        ppt.owner = vm
        if self._idle_in_host_domain:
            self.remapping.take_from_host(ppt.device.function.requester_id)

    def unassign(self, vm: Vm, bus: int, slot: int, function: int) -> None:
        """ppt_unassign_device()."""
        ppt = self.find(vm, bus, slot, function)
        device = ppt.device.function
        if self._switches_command:
            self._quiet(device)
        self._reset(device)
        ppt.mappings.clear()
        self.teardown_msi(ppt)
        self.teardown_msix(ppt)
        if vm.domain is not None and self.remapping.driver is not None:
            self.remapping.driver.remove_device(vm.domain, device.requester_id)
        ppt.owner = None
        if self._idle_in_host_domain:
            self.remapping.give_to_host(device.requester_id)
        command = device.config_read(COMMAND, 2)
        if "11-msix-bar-busy" in self.machine.faults:
            device.config_write(COMMAND, 2, command & ~MEMORY_DECODE)
        if "10-bogus-command-register" in self.machine.faults:
            device.config_write(COMMAND, 2, command & ~(BUS_MASTER | MEMORY_DECODE))

    @staticmethod
    def _quiet(device: PciFunction) -> None:
        command = device.config_read(COMMAND, 2)
        device.config_write(COMMAND, 2, command & ~(IO_DECODE | MEMORY_DECODE | BUS_MASTER))

    def _reset(self, function: PciFunction) -> None:
        if "6-no-flr" not in self.machine.faults:
            self.machine.kernel.bus.reset_function(function)

    def teardown_msi(self, ppt: PptState) -> None:
        """Free MSI's interrupts."""
        if ppt.msi:
            for irq in ppt.msi:
                self.machine.kernel.free_irq(irq)
            ppt.msi.clear()
            self.machine.kernel.silence(ppt.device.function)

    def teardown_msix(self, ppt: PptState) -> None:
        """Free MSI-X's interrupts."""
        if ppt.msix:
            for irq in ppt.msix.values():
                self.machine.kernel.free_irq(irq)
            ppt.msix.clear()
            self.machine.kernel.silence(ppt.device.function)

    # -- VMs ------------------------------------------------------------------------------

    @property
    def wired(self) -> int:
        """Bytes of guest memory that cannot be paged out."""
        return sum(vm.memory_size for vm in self.vms.values() if vm.wired)

    @property
    def wired_limit(self) -> int:
        """``vm.max_user_wired``, in bytes: four fifths of memory (sys/vm/vm_pageout.c)."""
        return self.machine.spec.memory // PAGE * 4 // 5 * PAGE

    @locked
    def create(self, name: str) -> Vm:
        """vm_create(3); the module is loaded if need be, as bhyve and bhyveload do.

        Raises:
            SimError: EEXIST, ENXIO (the processor cannot virtualize).
        """
        if not self.machine.kernel.has_module("vmm"):
            self.machine.kernel.load_module("vmm")
        if not self.machine.spec.virtualizes:
            raise SimError(Errno.ENXIO, name)
        if name in self.vms:
            raise SimError(Errno.EEXIST, name)
        vm = self.vms[name] = Vm(self, name)
        return vm

    @locked
    def open(self, name: str) -> Vm:
        """vm_open(3).  Raises SimError ENOENT."""
        if name not in self.vms:
            raise SimError(Errno.ENOENT, name)
        return self.vms[name]


class _AttachedAmd:
    def __init__(self, kernel: Kernel, device: Device, driver: AmdDriver) -> None:
        self._kernel = kernel
        self._device = device
        self._driver = driver

    def detach(self) -> None:
        for unit in self._driver.units:
            self._kernel.log(f"{unit.name}: detached")
        self._kernel.free_irqs(self._device.name or "")
        self._driver.detach()

    def resumed(self) -> None:
        """Nothing was reset."""


def _is_endpoint(function: PciFunction) -> bool:
    return function.header_type == 0


def _is_amd_iommu(function: PciFunction) -> str | None:
    return "" if function.class_code == 0x080600 and function.vendor == 0x1022 else None
