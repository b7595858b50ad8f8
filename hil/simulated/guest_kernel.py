"""A guest's kernel, on the memory and devices of a virtual machine; and FreeBSD's.

Interrupts, disks and the network are those of :class:`hil.simulated.kernel.Kernel`, for a FreeBSD
guest its drivers and devctl's verbs too.  Addresses that drivers give to devices are guest
physical, and reach memory through the host's IOMMU, or do not.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hil.pci.address import Address
from hil.simulated import guest_pci
from hil.simulated.commands.options import size_of
from hil.simulated.faults import FaultSet
from hil.simulated.guest_image import GuestImage
from hil.simulated.guest_memory import GuestMemory
from hil.simulated.guest_network import Tap
from hil.simulated.guest_text import BootFacts, Line, Voice, boot_log
from hil.simulated.kernel import FIRST_MESSAGE_IRQ, Interrupt, Kernel, Sysctl, _native_drivers
from hil.simulated.machine import Machine, locked
from hil.simulated.memory import MIB, HostMemory
from hil.simulated.net import Interface
from hil.simulated.newbus import Device
from hil.simulated.pci import Fabric
from hil.simulated.topology import RELEASES, MachineSpec

if TYPE_CHECKING:
    from hil.simulated.passthru import Passthru
    from hil.simulated.vmm import Vm, Vmm

#: A guest's first message interrupt: what is below are lines of the I/O APIC and timers.
_FIRST_IRQ = 41
#: Where bhyve puts the registers of its own virtio devices.
_PORTS, _MEMORY = 0x2000, 0xDFF0_0000


class _NoVmm:
    """A guest of bhyve has no hypervisor of its own."""

    def pci_added(self, device: Device) -> None:
        """Nobody to tell."""

    def pci_deleted(self, device: Device) -> None:
        """Nobody to tell."""

    def owner_of(self, device: Device) -> None:
        """No VM has it."""


class _Window(HostMemory):
    """A guest's physical memory where the model asks for a host's."""

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(MIB)
        self._guest_memory = memory

    def read(self, address: int, length: int) -> bytes:
        return self._guest_memory.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        self._guest_memory.write(address, data)

    def allocate(self, size: int, align: int = 4096) -> int:
        return self._guest_memory.allocate(size, align)

    def release(self, address: int, size: int) -> None:
        self._guest_memory.release(address, size)


class GuestMachine(Machine):
    """What a guest's kernel runs on.  It shares its host's lock."""

    def __init__(self, vm: Vm, image: GuestImage, cpus: int, memory: GuestMemory) -> None:
        # No hardware of its own: what Machine makes, bhyve has made.
        self.host = vm.machine
        self.lock = vm.machine.lock
        self.panic = ""
        release = RELEASES.get(image.release.partition("-")[0], vm.machine.spec.release)
        self.spec = MachineSpec(
            vm.name,
            release,
            vm.machine.spec.vendor,
            (),
            memory.size,
            hostname=image.hostname,
            cpus=cpus,
            virtualizes=False,
            has_iommu=False,
        )
        self.faults = FaultSet(())
        self.memory = _Window(memory)
        self.fabric = Fabric(self.memory)
        no_vmm: Vmm = _NoVmm()  # type: ignore[assignment]
        self.vmm = no_vmm

    def check_alive(self) -> None:
        self.host.check_alive()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What bhyve gives a guest."""

    vm: Vm
    """The virtual machine on the kernel's side, its memory set up."""
    cpus: int
    """Virtual processors."""
    passthru: Mapping[tuple[int, int], Passthru]
    """The devices passed to it, by slot and function in the guest."""
    slots: Mapping[tuple[int, int], str]
    """bhyve's own devices, as ``-s`` names them: ``{(3, 0): "virtio-net", …}``."""
    taps: Sequence[Tap]
    """Its virtio NICs, in the order of their slots."""


class GuestKernel(Kernel):
    """The kernel of one boot of a guest, whatever the system.

    Args:
        hardware: what it runs on.
        image: the system on its disk.
        say: prints a line of the kernel on the console.
    """

    #: Name of the interface that leads back.
    loopback = "lo0"

    def __init__(self, hardware: Hardware, image: GuestImage, say: Callable[[str], None]) -> None:
        vm = hardware.vm
        kenv = dict(image.environment)
        usable = size_of(kenv["hw.physmem"]) if "hw.physmem" in kenv else 0
        self.ram = GuestMemory(vm, vm.memory_size, usable)
        self.vm = vm
        self.image = image
        self._guest_machine = GuestMachine(vm, image, hardware.cpus, self.ram)
        self._guest_machine.kernel = self
        super().__init__(self._guest_machine, kenv)
        self._say = say
        self._alive = True
        self._taps = tuple(hardware.taps)
        #: The interfaces of the virtio NICs, in the order of their taps.
        self._wired: list[Interface] = []
        self.started = time.time()
        self._add_functions(hardware)

    def _add_functions(self, hardware: Hardware) -> None:
        fabric = self._guest_machine.fabric
        for number, (where, kind) in enumerate(sorted(hardware.slots.items())):
            place = _MEMORY + 0x2000 * number
            address = Address(0, 0, *where)
            fabric.add(guest_pci.emulated(kind, address, _PORTS + 0x80 * number, place))
        for where, passed in hardware.passthru.items():
            fabric.add(guest_pci.PassedFunction(passed, Address(0, 0, *where)))

    # -- life -----------------------------------------------------------------------------

    def boot_lines(self) -> Iterator[Line]:
        """Boot; what is to be printed, as it happens."""
        raise NotImplementedError

    def _begin(self) -> None:
        """What comes before the first driver: interrupts arrive, and there is a loopback."""
        loopback = self.stack.add(Interface(self.loopback, b"", lambda _frame: True))
        loopback.mtu, loopback.groups, loopback.up = 16384, ["lo"], True
        loopback.addresses = [ipaddress.IPv4Interface("127.0.0.1/8")]
        self.vm.interrupt_sink = self._guest_machine.fabric.on_message

    def _wire(self, name: str) -> Interface:
        """The next virtio NIC, on its tap: its frames go straight to the host's end."""
        tap = self._taps[len(self._wired)]
        mac = bytes.fromhex(tap.mac.replace(":", ""))

        def transmit(frame: bytes) -> bool:
            if self._alive:
                tap.interface.receive(frame)
            return self._alive

        interface = self.stack.add(Interface(name, mac, transmit))
        tap.interface.far_end = lambda frame: interface.receive(frame) if self._alive else None
        self._wired.append(interface)
        return interface

    def stop(self) -> None:
        """No instruction runs any more: interrupts and frames are nobody's business."""
        self._alive = False
        with self._guest_machine.lock:
            self.vm.interrupt_sink = lambda _address, _data: None
            for tap in self._taps:
                tap.interface.far_end = None

    def detach_all(self) -> None:
        """As the system goes down: drivers let their devices rest."""
        with self._guest_machine.lock:
            if not self._alive:
                return
            for interface in self.stack.interfaces.values():
                if interface.name != self.loopback and interface not in self._wired:
                    interface.set_up(False)

    # -- what the host's kernel does otherwise ----------------------------------------------

    def log(self, line: str) -> None:
        self.dmesg.append(line)
        self._say(line)

    def irq_line(self, address: Address) -> int:
        function = self._guest_machine.fabric.functions[address.requester_id]
        if isinstance(function, guest_pci.PassedFunction):
            # what the host's kernel has written into the device's own register
            return self.vm.machine.kernel.irq_line(Address(0, *function.passthru.host))
        return function.peek(0x3C, 1)

    def reachable_at(self, host: str) -> bool:
        """Whether a virtio NIC that is up, and wired to a tap that is up, has this address."""
        with self._guest_machine.lock:
            for tap, interface in zip(self._taps, self._wired, strict=False):
                if not (self._alive and interface.up and tap.interface.up):
                    continue
                if any(str(own.ip) == host for own in interface.addresses):
                    return True
        return False


class FreebsdKernel(GuestKernel):
    """A FreeBSD guest's kernel; see :class:`GuestKernel`."""

    _attaching: list[str] | None = None
    """Collects what drivers say while they attach, which is printed elsewhere."""

    def boot_lines(self) -> Iterator[Line]:
        with self._guest_machine.lock:
            devices, late, network = self._attach_all()
        routes = [
            f"pcib0: no PRT entry for 0.{device.address.device}.INTA"
            for device in self.bus.in_order()
            if isinstance(device.function, guest_pci.PassedFunction)
        ]
        facts = BootFacts(
            self.image,
            self.ram.size,
            self._guest_machine.spec.cpus,
            [name for name in self.stack.interfaces if name != "lo0"],
            routes,
            devices,
            late,
            network,
        )
        for line in boot_log(facts):
            if line.voice is Voice.KERNEL:
                self.dmesg.append(line.text)
            yield line

    def _attach_all(self) -> tuple[list[str], list[str], list[Line]]:
        """Find drivers for all; the kernel's lines about it, early and late, and rc's."""
        for driver in _native_drivers():
            self.bus.drivers[driver.name] = driver
        self._interrupts[4] = Interrupt(4, "uart0 uart2", 200)
        self._begin()
        said: list[str] = []
        self._attaching = said
        # Virtual functions too: on this bus nothing tells them from others.
        for device in [self.bus.add(function) for function in self.machine.fabric.in_order()]:
            self.bus.try_to_attach(device)
            if device.function.kind == "virtio-net":
                self._attach_vtnet(device)
            elif device.function.kind == "virtio-blk" and device.name:
                unit = device.name
                said += [f"vtblk0: <VirtIO Block Adapter> on {unit}", _VTBLK]
        self._attaching = None
        late = [line for line in said if ": SET FEAT" in line or ": FEATURE NOT" in line]
        late += [line for line in said if line.startswith(("nvd", "nda"))]
        early = [line for line in said if line not in late]
        network: list[Line] = []
        ups: list[str] = []
        self._attaching = ups
        for name, interface in self.stack.interfaces.items():
            if name != "lo0":
                network += self._rc_network(interface, ups)
        self._attaching = None
        return early, late, network

    def _attach_vtnet(self, device: Device) -> None:
        interface = self._wire(f"vtnet{len(self._wired)}")
        self.log(f"{interface.name}: <VirtIO Networking Adapter> on {device.name}")
        self.log(f"{interface.name}: Ethernet address: {interface.mac.hex(':')}")

    def _rc_network(self, interface: Interface, ups: list[str]) -> list[Line]:
        """What rc prints of an interface that it finds, having brought it up once."""
        virtual = interface.name.startswith("vtnet")
        options = _OPTIONS.get(interface.name.rstrip("0123456789"), "options=80028<VLAN_MTU>")
        lines = [
            f"{interface.name}: flags=8822<BROADCAST,SIMPLEX,MULTICAST> metric 0 mtu 1500",
            f"\t{options}",
            f"\tether {interface.mac.hex(':')}",
        ]
        found = [Line(Voice.PROCESS, line) for line in lines]
        ups.clear()
        if not virtual:
            interface.set_up(True)
            interface.set_up(False)
        found += [Line(Voice.KERNEL, line) for line in ups]
        tail = ["\tmedia: Ethernet autoselect (1000baseT <full-duplex>)", "\tstatus: active"]
        tail.append("\tnd6 options=29<PERFORMNUD,IFDISABLED,AUTO_LINKLOCAL>")
        return found + [Line(Voice.PROCESS, line) for line in tail]

    def detach_all(self) -> None:
        self._attaching = []  # nothing is said of it
        super().detach_all()
        self._attaching = None

    # -- what the host's kernel does otherwise ----------------------------------------------

    def log(self, line: str) -> None:
        if self._attaching is not None:
            self._attaching.append(line)
        else:
            super().log(line)

    def allocate_irq(self, name: str, handler: Callable[[], None] | None = None) -> int:
        for irq in range(FIRST_MESSAGE_IRQ, _FIRST_IRQ):
            self._interrupts.setdefault(irq, Interrupt(irq, "-"))
        irq = super().allocate_irq(name, handler)
        for number in range(FIRST_MESSAGE_IRQ, _FIRST_IRQ):
            del self._interrupts[number]
        return irq

    @locked
    def sysctls(self) -> dict[str, Sysctl]:
        """The variables that probes ask for, and a few more."""
        seconds = int(self.started)
        micro = int(self.started % 1 * 1e6)
        release = self.image.release
        date = time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(seconds))
        values = {
            "kern.ostype": "FreeBSD",
            "kern.osrelease": release,
            "kern.osreldate": "1302001",
            "kern.version": f"FreeBSD {release} {self.image.kernel}",
            "kern.hostname": self.image.hostname,
            "kern.securelevel": "-1",
            "kern.vm_guest": "bhyve",
            "kern.boottime": f"{{ sec = {seconds}, usec = {micro} }} {date}",
            "hw.machine": "amd64",
            "hw.ncpu": str(self._guest_machine.spec.cpus),
            "hw.physmem": str(self.ram.physmem),
            "hw.realmem": str(self.ram.size),
            "hw.hv_vendor": "bhyve bhyve ",
            "security.jail.jailed": "0",
            "debug.kdb.panic": "0",
            "debug.kdb.current": "ddb",
        }
        writable = {"debug.kdb.panic", "kern.hostname"}
        return {name: Sysctl(value, writable=name in writable) for name, value in values.items()}


_VTBLK = "vtblk0: 434MB (888837 512 byte sectors)"
_OPTIONS = {
    "em": "options=481249b<RXCSUM,TXCSUM,VLAN_MTU,VLAN_HWTAGGING,VLAN_HWCSUM,LRO,WOL_MAGIC,"
    "VLAN_HWFILTER,NOMAP>",
    "igb": "options=4e507bb<RXCSUM,TXCSUM,VLAN_MTU,VLAN_HWTAGGING,JUMBO_MTU,VLAN_HWCSUM,TSO4,"
    "TSO6,LRO,VLAN_HWFILTER,VLAN_HWTSO,RXCSUM_IPV6,TXCSUM_IPV6,NOMAP>",
}
