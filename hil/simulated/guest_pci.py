"""The PCI functions that a guest of bhyve sees: those passed to it, and bhyve's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hil.pci.address import Address
from hil.simulated.pci import COMMAND, IO_DECODE, MEMORY_DECODE, Bar, PciFunction

if TYPE_CHECKING:
    from hil.simulated.passthru import Passthru

_SIZE = 256


class PassedFunction(PciFunction):
    """A passed function, by way of bhyve's emulation of its configuration space and BARs."""

    def __init__(self, passthru: Passthru, slot: Address) -> None:
        self.passthru = passthru
        super().__init__(passthru.function.kind, slot)

    def peek(self, offset: int, width: int) -> int:
        return self.config_read(offset, width)

    def config_read(self, offset: int, width: int) -> int:
        # bhyve gives access to 256 bytes (PCI_REGMAX)
        if offset + width > _SIZE:
            return (1 << 8 * width) - 1
        return self.passthru.config_read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        if offset + width <= _SIZE:
            self.passthru.config_write(offset, width, value)

    def extended_capability(self, identity: int) -> int:
        del identity
        return 0

    @property
    def bars(self) -> tuple[Bar, ...]:
        command = self.command
        return tuple(
            Bar(
                bar.index,
                bar.address,
                bar.size,
                bar.memory,
                bar.wide,
                bar.prefetchable,
                bool(command & (MEMORY_DECODE if bar.memory else IO_DECODE)),
            )
            for bar in self.passthru.bars
        )

    def access_load(self, bar: int, offset: int, width: int) -> int:
        return self.passthru.bar_load(bar, offset, width)

    def access_store(self, bar: int, offset: int, width: int, value: int) -> None:
        self.passthru.bar_store(bar, offset, width, value)


class EmulatedFunction(PciFunction):
    """One of bhyve's own: configuration bytes, and no registers that matter here.

    Args:
        kind: for drivers to know it by.
        slot: where in the guest.
        config: bytes by offset; the rest is 0.
        bars: (size, address, memory) by index.
    """

    def __init__(
        self,
        kind: str,
        slot: Address,
        config: Mapping[int, bytes],
        bars: Mapping[int, tuple[int, int, bool]],
    ) -> None:
        self._bars = dict(bars)
        super().__init__("virtio-blk", slot)
        self.kind = kind
        whole = bytearray(_SIZE)
        for offset, data in config.items():
            whole[offset : offset + len(data)] = data
        for index, (_, address, memory) in self._bars.items():
            whole[0x10 + 4 * index : 0x14 + 4 * index] = (address | (not memory)).to_bytes(
                4, "little"
            )
        if self._bars:
            whole[COMMAND] |= MEMORY_DECODE | IO_DECODE | 4
        self._config[:] = whole
        self._reset_bytes = bytes(whole)
        self._writable = bytes(4) + b"\x07\x04" + bytes(_SIZE - 6)
        self._capabilities = dict(self._walk(whole))
        self._msix_table = bytearray()

    @property
    def bars(self) -> tuple[Bar, ...]:
        command = self.command
        return tuple(
            Bar(
                index,
                address,
                size,
                memory,
                wide=False,
                prefetchable=False,
                decoded=bool(command & (MEMORY_DECODE if memory else IO_DECODE)),
            )
            for index, (size, address, memory) in sorted(self._bars.items())
        )


def _identity(
    vendor: int, device: int, class_code: int, subvendor: int = 0, subdevice: int = 0
) -> dict[int, bytes]:
    return {
        0x00: vendor.to_bytes(2, "little") + device.to_bytes(2, "little"),
        0x09: class_code.to_bytes(3, "little"),
        0x2C: subvendor.to_bytes(2, "little") + subdevice.to_bytes(2, "little"),
    }


#: Root port capability of bhyve's host bridge (usr.sbin/bhyve/pci_hostbridge.c).
_ROOT_PORT = bytes.fromhex("10004200" + "00800000" + "00000000" + "11040000" + "00001100")
#: Of bhyve's virtio devices (usr.sbin/bhyve/virtio.h): device id, class and subsystem id.
_VIRTIO = {
    "virtio-net": (0x1000, 0x020000, 1),
    "virtio-blk": (0x1001, 0x010000, 2),
    "virtio-rnd": (0x1005, 0x100000, 4),
}


def emulated(kind: str, where: Address, port: int, address: int) -> EmulatedFunction:
    """One of bhyve's own devices, by its name in ``-s``.

    A virtio device is a legacy one: its registers at I/O ``port``, MSI-X at ``address``.  What is
    not known here is a function without a driver.
    """
    if kind in ("hostbridge", "amd_hostbridge"):
        config = _identity(0x1275, 0x1275, 0x060000)
        config |= {0x06: b"\x10\0", 0x34: b"\x40", 0x40: _ROOT_PORT}
        return EmulatedFunction("hostbridge", where, config, {})
    if kind == "lpc":
        return EmulatedFunction("lpc", where, _identity(0x8086, 0x7000, 0x060100), {})
    if kind not in _VIRTIO:
        return EmulatedFunction(kind, where, _identity(0xFB5D, 0x40FB, 0x000000), {})
    device, class_code, subsystem = _VIRTIO[kind]
    config = _identity(0x1AF4, device, class_code, 0x1AF4, subsystem) | {
        0x06: b"\x10\0",
        0x34: b"\x40",
        0x3C: b"\x10\x01",
        # MSI-X: two vectors in BAR 1, its pending bits at 0x1000; then MSI, 64 bit
        0x40: bytes.fromhex("114c0180" + "01000000" + "01100000"),
        0x4C: bytes.fromhex("05008000"),
    }
    bars = {0: (128, port, False), 1: (8192, address, True)}
    return EmulatedFunction(kind, where, config, bars)
