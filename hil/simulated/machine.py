"""A simulated host: memory, functions, IOMMU, kernel and vmm, put together."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar, cast

from hil.errors import InventoryError
from hil.pci.address import Address
from hil.simulated import acpi_tables, iommu
from hil.simulated.devices import Edu, Gpu
from hil.simulated.faults import FaultSet
from hil.simulated.memory import FIRMWARE, HOLE, HostMemory
from hil.simulated.net import Responder
from hil.simulated.nic import E1000e, Igb, Nic, Port, Wire
from hil.simulated.nvme import Nvme
from hil.simulated.panic import HostPanic
from hil.simulated.pci import (
    BUS_MASTER,
    COMMAND,
    IO_DECODE,
    MEMORY_DECODE,
    Fabric,
    PciFunction,
    RootPort,
)
from hil.simulated.topology import FunctionSpec, MachineSpec

if TYPE_CHECKING:
    from hil.simulated.kernel import Kernel
    from hil.simulated.vmm import Vmm

VTD_BASE, SECOND_VTD_BASE, AMD_BASE = 0xFED9_0000, 0xFED9_1000, 0xFED8_0000
_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Owned(Protocol):
    machine: Machine


_S = TypeVar("_S", bound=_Owned)


def locked(method: Callable[Concatenate[_S, _P], _T]) -> Callable[Concatenate[_S, _P], _T]:
    """A verb of the model: under the machine's lock, refused once the kernel has panicked."""

    @functools.wraps(method)
    def verb(self: _S, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self.machine.lock:
            self.machine.check_alive()
            try:
                return method(self, *args, **kwargs)
            except HostPanic as panic:
                self.machine.panicked(str(panic))
                raise

    return cast("Callable[Concatenate[_S, _P], _T]", verb)


class Machine:
    """A host, from power-on.

    Args:
        spec: what it is made of.
        faults: names of bugs that it has (:mod:`hil.simulated.faults`).

    Raises:
        InventoryError: a fault has no such name, or this vendor never had it.
    """

    def __init__(self, spec: MachineSpec, faults: Iterable[str] = ()) -> None:
        self.spec = spec
        self.faults = FaultSet(faults)
        for fault in self.faults.active:
            if spec.vendor not in fault.vendors:
                raise InventoryError(
                    f"fault {fault.name} cannot be had on {spec.vendor}",
                    hint=f"choose a simulated host with {' or '.join(fault.vendors)}",
                )
        self.lock = threading.RLock()
        self.panic = ""
        """The panic's message; empty while the kernel runs."""
        self.memory: HostMemory
        self.fabric: Fabric
        self.units: iommu.Units
        self.acpi: acpi_tables.AcpiTables
        self.kernel: Kernel
        self.vmm: Vmm
        self.boots = 0
        self._disks: dict[str, Nvme] = {}
        self.boot()

    def boot(self, loader_conf: dict[str, str] | None = None) -> None:
        """Power the machine off and on: new memory, new devices; disks keep their contents.

        Args:
            loader_conf: the kernel environment to boot with; the specification's by default.
        """
        from hil.simulated.kernel import Kernel
        from hil.simulated.vmm import Vmm

        with self.lock:
            self.panic = ""
            self.boots += 1
            self.memory = HostMemory(self.spec.memory)
            self.fabric = Fabric(self.memory)
            self._plug_devices()
            self._make_iommu()
            self.kernel = Kernel(
                self, dict(self.spec.loader_conf if loader_conf is None else loader_conf)
            )
            self.vmm = Vmm(self)
            self.kernel.boot()

    # -- life -----------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raises HostPanic if the kernel stands at ``db>``."""
        if self.panic:
            raise HostPanic(self.panic)

    def panicked(self, message: str) -> None:
        """The kernel's end; the first message counts."""
        if not self.panic:
            self.panic = message
            self.kernel.dmesg.append(f"panic: {message}")

    # -- hardware -------------------------------------------------------------------------

    def function_named(self, name: str) -> PciFunction:
        """A function by its name in the specification."""
        spec = next(each for each in self.spec.functions if each.name == name)
        return self.fabric.functions[spec.address.requester_id]

    def _plug_devices(self) -> None:
        wire = Wire()
        ports: dict[str, Port] = {}
        for spec in self.spec.functions:
            if spec.mac and spec.kind in ("igb", "e1000e"):
                ports[spec.name] = Port(wire)
            function = self._make(spec, ports.get(spec.name))
            function.lying_flr = "29-lying-flr" in self.faults
            function.slow_flr = "29-slow-flr" in self.faults
            self.fabric.add(function)
            self._firmware(function, spec)
        for one, other in self.spec.cables:
            ports[one].plug(ports[other])
            ports[other].plug(ports[one])
        for name, address in self.spec.responders.items():
            ports[name].plug(Responder(address, ports[name].receive))

    def _make(self, spec: FunctionSpec, port: Port | None) -> PciFunction:
        mac = bytes.fromhex(spec.mac.replace(":", ""))
        if spec.kind == "root-port":
            return RootPort(spec.address, spec.bus, spec.address.device if spec.bus else 0)
        if spec.kind == "edu":
            return Edu(spec.address)
        if spec.kind == "virtio-gpu":
            return Gpu(spec.address, spec.size)
        if spec.kind == "nvme":
            disk = Nvme(spec.address, spec.size, f"hil-{spec.name}")
            if spec.name in self._disks:
                disk.keep_contents(self._disks[spec.name])
            self._disks[spec.name] = disk
            return disk
        if port is not None:
            nic: Nic = (Igb if spec.kind == "igb" else E1000e)(spec.address, mac, port)
            return nic
        return PciFunction(spec.kind, spec.address)

    @staticmethod
    def _firmware(function: PciFunction, spec: FunctionSpec) -> None:
        for index, address in spec.bars.items():
            function.place_bar(index, address)
        if function.bars:
            kinds = {bar.memory for bar in function.bars}
            command = (MEMORY_DECODE if True in kinds else 0) | (IO_DECODE if False in kinds else 0)
            function.config_write(COMMAND, 2, command)
        if isinstance(function, RootPort):
            function.open_windows(spec.windows)
            function.config_write(COMMAND, 2, MEMORY_DECODE | IO_DECODE | BUS_MASTER)
        function.poke(0x3C, 1, spec.irq if spec.irq < 16 else 0xB)

    def _make_iommu(self) -> None:
        spec = self.spec
        units: list[iommu.Unit] = []
        tables: list[bytes] = []
        if spec.has_iommu and spec.vendor == "intel":
            tables.append(self._make_vtd(units))
        elif spec.has_iommu:
            pairs = spec.iommu_ranges or self._all_ranges()
            ranges = [iommu.RequesterRange(first, last) for first, last in pairs]
            units.append(iommu.AmdUnit(self.memory, AMD_BASE, ranges))
            where = next(each.address for each in spec.functions if each.kind == "amd-iommu")
            tables.append(acpi_tables.ivrs(where, AMD_BASE, ranges))
        self.units = iommu.Units(units)
        if units:
            self.fabric.remapper = self.units
        low = min(spec.memory, HOLE.start)
        self.acpi = acpi_tables.AcpiTables(self.memory, tables, low - FIRMWARE // 2)

    def _all_ranges(self) -> list[tuple[int, int]]:
        """Each function of bus 0 by itself, and each bus behind a root port whole."""
        root = [f.requester_id for f in self.fabric.in_order() if not f.address.bus]
        buses = [f.secondary for f in self.fabric.in_order() if isinstance(f, RootPort)]
        return [(n, n) for n in root] + [(bus << 8, bus << 8 | 0xFF) for bus in buses]

    def _make_vtd(self, units: list[iommu.Unit]) -> bytes:
        """The remapping units; their DMAR table."""
        functions = self.fabric.in_order()
        structures: list[bytes] = []
        second = self.spec.second_unit_bus
        if second:
            port = next(f for f in functions if isinstance(f, RootPort) and f.secondary == second)
            path = ((port.address.device, port.address.function),)
            structures.append(
                acpi_tables.drhd(SECOND_VTD_BASE, include_all=False, scopes=[(2, 0, path)])
            )
            behind = {port.requester_id} | set(range(second << 8, (second + 1) << 8))
            units.append(
                iommu.VtdUnit(self.memory, SECOND_VTD_BASE, behind.__contains__, device_tlb=True)
            )
        listed = self.spec.iommu_ranges
        scopes: list[acpi_tables.Scope] = [(3, 0xFF, ((0, 0),))]
        for first, last in sorted(listed):
            if first == last:
                where = Address.from_requester_id(first)
                function = self.fabric.functions.get(first)
                kind = 2 if isinstance(function, RootPort) else 1
                # the IOMMU itself is a function on AMD only
                if function is not None or where.device in (22, 23):
                    scopes.append((kind, 0, ((where.device, where.function),)))

        def covers(requester_id: int) -> bool:
            return not listed or any(first <= requester_id <= last for first, last in listed)

        units.append(iommu.VtdUnit(self.memory, VTD_BASE, covers))
        structures.append(acpi_tables.drhd(VTD_BASE, include_all=not listed, scopes=scopes))
        return acpi_tables.dmar(structures)
