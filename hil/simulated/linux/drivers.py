"""The PCI drivers of a Linux guest: what they match, what they make of a function, what they say.

They move frames and blocks by the drivers that a FreeBSD guest has too; the vectors, and the names
of interfaces and disks, are Linux's (igb_main.c, igbvf/netdev.c, e1000e/netdev.c, nvme/host/pci.c).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hil.simulated.drivers import DriverError, NicDriver, NicVectors, NvmeDriver
from hil.simulated.errno import Errno, SimError
from hil.simulated.kernel import Disk, HostDma, HostPort
from hil.simulated.net import Interface
from hil.simulated.pci import PciFunction

if TYPE_CHECKING:
    from hil.pci.address import Address
    from hil.simulated.linux.kernel import LinuxKernel, PciDevice

_INTEL, _VIRTIO = 0x8086, 0x1AF4


class Bound(Protocol):
    """What a driver keeps of a function."""

    interface: str
    """The network interface that it made; empty: none."""
    disk: str
    """The disk that it made, ``nvme0n1``; empty: none."""

    def remove(self) -> None:
        """Let the function go."""
        ...


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver of the PCI bus."""

    name: str
    matches: Callable[[PciFunction], bool]
    probe: Callable[[LinuxKernel, PciDevice], Bound]
    """Raises SimError: the function is not fit to be used."""


def interface_name(address: Address) -> str:
    """The name by path that udev gives: ``enp0s8``."""
    function = f"f{address.function}" if address.function else ""
    return f"enp{address.bus}s{address.device}{function}"


def _check(function: PciFunction) -> None:
    """What every driver asks for first: an answer, and all its memory."""
    if function.config_read(0, 2) == 0xFFFF:
        raise SimError(Errno.EIO)
    if any(bar.memory and not bar.address for bar in function.bars):
        raise SimError(Errno.EBUSY)


class _Nic:
    disk = ""

    def __init__(self, kernel: LinuxKernel, device: PciDevice) -> None:
        _check(device.function)
        self._kernel = kernel
        self._kind = device.function.kind
        self._name = device.name
        self.interface = interface_name(device.address)
        self._driver = NicDriver(
            HostPort(kernel, device),
            HostDma(kernel.machine.memory),
            self._kind,
            _vectors(self._kind, self.interface),
        )
        self._driver.attach()
        made = kernel.stack.add(Interface(self.interface, self._driver.mac, self._driver.transmit))
        self._driver.on_frame = made.receive
        made.on_up = self._up
        driver, mac = _NAMES[self._kind], self._driver.mac.hex(":")
        for line in _SAID[self._kind]:
            kernel.log(f"{driver} {self._name}{line.format(mac=mac)}")
        kernel.log(f"{driver} {self._name} {self.interface}: renamed from eth1")

    def _up(self, up: bool) -> None:
        with self._kernel.machine.lock:
            if not up:
                self._driver.stop()
                return
            self._driver.start()
            link = self._driver.link
        # without the lock: a guest's console may wait for its reader
        if link:
            text = _UP[self._kind].format(name=self.interface)
            self._kernel.log(f"{_NAMES[self._kind]} {self._name}{text}")

    def remove(self) -> None:
        self._driver.detach()
        self._kernel.stack.remove(self.interface)


_NAMES = {"igb": "igb", "igbvf": "igbvf", "e1000e": "e1000e"}
_SAID = {
    "igb": (
        ": added PHC on eth1",
        ": Intel(R) Gigabit Ethernet Network Connection",
        ": eth1: (PCIe:2.5Gb/s:Width x1) {mac}",
        ": eth1: PBA No: 000000-000",
        ": Using MSI-X interrupts. 1 rx queue(s), 1 tx queue(s)",
    ),
    "igbvf": (": Intel(R) 82576 Virtual Function", ": Address: {mac}"),
    "e1000e": (
        ": Interrupt Throttling Rate (ints/sec) set to dynamic conservative mode",
        " eth1: (PCI Express:2.5GT/s:Width x1) {mac}",
        " eth1: Intel(R) PRO/1000 Network Connection",
        " eth1: MAC: 3, PHY: 8, PBA No: 000000-000",
    ),
}
_UP = {
    "igb": " {name}: igb: {name} NIC Link is Up 1000 Mbps Full Duplex, Flow Control: RX/TX",
    "igbvf": ": Link is Up 1000 Mbps Full Duplex",
    "e1000e": " {name}: NIC Link is Up 1000 Mbps Full Duplex, Flow Control: Rx/Tx",
}


def _vectors(kind: str, name: str) -> NicVectors:
    if kind == "igb":
        return NicVectors((name, f"{name}-TxRx-0"), receive=1, other=0, send=1)
    if kind == "igbvf":
        return NicVectors((f"{name}-tx-0", f"{name}-rx-0", name), receive=1, other=2, send=0)
    return NicVectors((f"{name}-rx-0", f"{name}-tx-0", name), receive=0, other=2, send=1)


class _Nvme:
    interface = ""

    def __init__(self, kernel: LinuxKernel, device: PciDevice) -> None:
        _check(device.function)
        self._kernel = kernel
        used = set(kernel.disks)
        number = next(n for n in range(len(used) + 1) if f"nvme{n}n1" not in used)
        self._controller, self.disk = f"nvme{number}", f"nvme{number}n1"
        kernel.log(f"nvme {self._controller}: pci function {device.name}")
        queues = [f"{self._controller}q{n}" for n in range(kernel.cpus + 1)]
        self._driver = NvmeDriver(HostPort(kernel, device), HostDma(kernel.machine.memory), queues)
        try:
            self._driver.attach()
        except DriverError:
            kernel.log(f"nvme {self._controller}: Device not ready; aborting initialisation")
            raise SimError(Errno.ENODEV) from None
        size, model = self._driver.size, self._driver.model
        kernel.disks[self.disk] = Disk(self.disk, size, self._read, self._write, model)
        kernel.log(f"nvme {self._controller}: {kernel.cpus}/0/0 default/read/poll queues")

    def _read(self, offset: int, length: int) -> bytes:
        return self._moved(lambda: self._driver.read(offset, length))

    def _write(self, offset: int, data: bytes) -> None:
        def write() -> bytes:
            self._driver.write(offset, data)
            return b""

        self._moved(write)

    def _moved(self, move: Callable[[], bytes]) -> bytes:
        try:
            with self._kernel.machine.lock:
                return move()
        except DriverError:
            self._kernel.log(f"I/O error, dev {self.disk}, sector 0 op 0x0:(READ) flags 0x800")
            raise SimError(Errno.EIO, self.disk) from None

    def remove(self) -> None:
        del self._kernel.disks[self.disk]
        self._driver.detach()


class _Virtio:
    """virtio-pci; of bhyve's own devices the virtio bus makes more."""

    interface = disk = ""

    def __init__(self, kernel: LinuxKernel, device: PciDevice) -> None:
        _check(device.function)
        kernel.attach_virtio(device.function.kind, interface_name(device.address))

    def remove(self) -> None:
        """Nothing of it is worked here."""


def _is(*devices: int) -> Callable[[PciFunction], bool]:
    return lambda function: function.vendor == _INTEL and function.device in devices


#: In the order in which they are asked.
DRIVERS: tuple[Driver, ...] = (
    Driver(
        "virtio-pci",
        lambda function: function.vendor == _VIRTIO and 0x1000 <= function.device < 0x1080,
        _Virtio,
    ),
    Driver("igb", _is(0x10C9), _Nic),
    Driver("igbvf", _is(0x10CA), _Nic),
    Driver("e1000e", _is(0x10D3), _Nic),
    Driver("nvme", lambda function: function.class_code == 0x010802, _Nvme),
)
