"""PCI functions of the simulated host: configuration space, BARs, resets, messages, DMA.

A :class:`PciFunction` is the part that all devices share; a device overrides the hooks
(``bar_load``, ``bar_store``, ``reset_state`` …).  What it does on the bus goes through the
:class:`Fabric`: bus master enable, then the IOMMU, then memory.

References: PCI Local Bus Specification 3.0, PCI Express Base Specification 6.0 ("PCIe").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hil.pci.address import Address
from hil.simulated.config_data import EXTENDED, template
from hil.simulated.memory import HostMemory, Window, pieces

#: Registers of the header (PCIe 7.5.1).
COMMAND, STATUS, CAPABILITY_POINTER = 0x04, 0x06, 0x34
#: COMMAND's bits.
IO_DECODE, MEMORY_DECODE, BUS_MASTER, INTX_DISABLE = 0x1, 0x2, 0x4, 0x400
_STATUS_CLEARED_BY_1 = 0xF900

#: Capability ids.
PM, MSI, PCIE, MSIX = 0x01, 0x05, 0x10, 0x11
ACS, SRIOV, SERIAL = 0x000D, 0x0010, 0x0003

#: PMCSR (PCIe 7.5.2.2): the power state, and NoSoftRst.
POWER_STATE, NO_SOFT_RESET = 0x3, 0x8
D3HOT = 3

#: Where messages go (Intel SDM 3A 10.11.1); no IOMMU translates it for DMA.
MESSAGES = range(0xFEE0_0000, 0xFEF0_0000)
_ABSENT = 0xFFFFFFFF
#: Configuration accesses that a function leaves unanswered after a slow reset: more than any
#: software makes to restore it.
_SLOW_RESET_ACCESSES = 96


class DmaAborted(Exception):  # noqa: N818 - named for what happened
    """A function's access to memory came to nothing; the IOMMU has recorded why, if it did."""


class Remapper(Protocol):
    """An IOMMU, or several: translates what functions ask for."""

    def translate(self, requester_id: int, address: int, write: bool) -> int:
        """The physical address.  Raises DmaAborted, the fault having been recorded."""
        ...


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register as it stands."""

    index: int
    """0 to 5; its register is at 0x10 + 4 * index."""
    address: int
    size: int
    memory: bool
    """False for I/O ports."""
    wide: bool
    prefetchable: bool
    decoded: bool
    """Whether COMMAND lets it answer."""


class Fabric:
    """What connects the functions: requester ids, the IOMMU, memory, message delivery."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory
        self.functions: dict[int, PciFunction] = {}
        self.remapper: Remapper | None = None
        self.on_message: Callable[[int, int], None] = lambda _address, _data: None
        self._windows: tuple[Window, ...] | None = None
        memory.movable_windows(self._bar_windows)
        memory.add_window(MESSAGES.start, len(MESSAGES), _MessageWindow(self))

    def add(self, function: PciFunction) -> None:
        """Plug a function in."""
        function.fabric = self
        self.functions[function.requester_id] = function
        self.bars_moved()

    def remove(self, function: PciFunction) -> None:
        """Pull it out."""
        del self.functions[function.requester_id]
        self.bars_moved()

    def in_order(self) -> list[PciFunction]:
        """By bus, device, function."""
        return [self.functions[key] for key in sorted(self.functions)]

    def bars_moved(self) -> None:
        """Some BAR or COMMAND changed: the address map is made anew when next needed."""
        self._windows = None

    def _bar_windows(self) -> Iterable[Window]:
        if self._windows is None:
            self._windows = tuple(
                Window(bar.address, bar.address + bar.size, _BarRegisters(function, bar.index))
                for function in self.functions.values()
                for bar in function.bars
                if bar.memory and bar.decoded and bar.address
            )
        return self._windows

    def resolve(
        self, function: PciFunction, address: int, length: int, write: bool
    ) -> Iterator[tuple[int, int]]:
        """Physical pieces (address, length) of one access, page by page.

        Raises:
            DmaAborted: not a bus master, asleep, or refused by the IOMMU.
        """
        if not function.may_master:
            raise DmaAborted(f"{function.address} may not master the bus")
        for at, size in pieces(address, length):
            if self.remapper is None or at in MESSAGES:
                yield at, size
            else:
                yield self.remapper.translate(function.requester_id, at, write), size


class _MessageWindow:
    """Message signalled interrupts are writes to the processors' local APICs."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric

    def load(self, offset: int, width: int) -> int:
        return 0

    def store(self, offset: int, width: int, value: int) -> None:
        self._fabric.on_message(MESSAGES.start + offset, value)


class _BarRegisters:
    def __init__(self, function: PciFunction, index: int) -> None:
        self._function = function
        self._index = index

    def load(self, offset: int, width: int) -> int:
        return self._function.access_load(self._index, offset, width)

    def store(self, offset: int, width: int, value: int) -> None:
        self._function.access_store(self._index, offset, width, value)


class PciFunction:
    """A function.  Subclasses are the devices.

    Args:
        kind: the template of its configuration space (:mod:`hil.simulated.config_data`).
        address: where it is.
        patches: bytes that differ from the template, by offset.
        writable: masks that differ from the template's, by offset.
    """

    #: Whether D0 after D3hot and FLR really reset the device; a lying device keeps its state.
    honest_power_reset = True

    def __init__(
        self,
        kind: str,
        address: Address,
        patches: Mapping[int, bytes] | None = None,
        writable: Mapping[int, bytes] | None = None,
    ) -> None:
        self.kind = kind
        self.address = address
        self.fabric: Fabric
        source = template(kind)
        self._config = _patched(source.reset, patches)
        self._reset_bytes = bytes(self._config)
        self._writable = bytes(_patched(source.writable, writable))
        self._capabilities = dict(self._walk(self._config))
        if PCIE in self._capabilities and address.bus:
            self._make_endpoint()
        self._msix_table = bytearray(16 * self.msix_count)
        self._mask_all_vectors()
        self._pending: set[int] = set()
        self._unanswered = 0
        self.lying_flr = False
        self.slow_flr = False

    def _make_endpoint(self) -> None:
        # QEMU's templates were read on bus 0, where PCIe functions are root complex endpoints
        at = self._capabilities[PCIE] + 2
        flags = int.from_bytes(self._config[at : at + 2], "little")
        if flags >> 4 & 0xF == 9:
            self._config[at : at + 2] = (flags & ~0xF0).to_bytes(2, "little")
            self._reset_bytes = bytes(self._config)

    @property
    def requester_id(self) -> int:
        """Bus, device and function as 16 bits."""
        return self.address.requester_id

    # -- configuration space --------------------------------------------------------------

    @staticmethod
    def _walk(config: bytes | bytearray) -> Iterator[tuple[int, int]]:
        """Ids and offsets of the capabilities, the first of each id."""
        seen: set[int] = set()
        at = config[CAPABILITY_POINTER]
        while at and at not in seen:
            seen.add(at)
            yield config[at], at
            at = config[at + 1]

    def capability(self, identity: int) -> int:
        """Offset of a capability, 0 if the function has none of it."""
        return self._capabilities.get(identity, 0)

    def extended_capability(self, identity: int) -> int:
        """Offset of an extended capability, 0 if the function has none of it."""
        if len(self._config) < EXTENDED:
            return 0
        at = 0x100
        while at:
            header = self.peek(at, 4)
            if header & 0xFFFF == identity:
                return at
            at = header >> 20
        return 0

    def peek(self, offset: int, width: int) -> int:
        """A register, without any effect of reading it."""
        if offset + width > len(self._config):
            return (1 << 8 * width) - 1
        return int.from_bytes(self._config[offset : offset + width], "little")

    def poke(self, offset: int, width: int, value: int) -> None:
        """Set a register as hardware does, whatever software may write."""
        self._config[offset : offset + width] = value.to_bytes(width, "little")

    def config_read(self, offset: int, width: int) -> int:
        """One read by software; all ones while the function does not answer."""
        if self._silent():
            return (1 << 8 * width) - 1
        return self.peek(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        """One write by software, with its effects."""
        if self._silent() or offset + width > len(self._config):
            return
        power_before = self.power_state
        command_before = self.command
        for index in range(width):
            at = offset + index
            byte = value >> 8 * index & 0xFF
            mask = self._writable[at]
            self._config[at] = self._config[at] & ~mask | byte & mask
            if at in (STATUS, STATUS + 1):
                cleared = byte & (_STATUS_CLEARED_BY_1 >> 8 * (at - STATUS))
                self._config[at] &= ~cleared & 0xFF
        self._after_write(offset, width, value, power_before)
        if self.command != command_before or offset < 0x28:
            self.fabric.bars_moved()

    def _after_write(self, offset: int, width: int, value: int, power_before: int) -> None:
        written = range(offset, offset + width)
        pcie = self.capability(PCIE)
        if pcie and pcie + 9 in written and value >> 8 * (pcie + 9 - offset) & 0x80:
            self._config[pcie + 9] &= 0x7F
            if self.has_flr:
                self.function_level_reset()
                return
        power = self.capability(PM)
        if power and power + 4 in written:
            self.fabric.bars_moved()
            if power_before == D3HOT and self.power_state == 0:
                self._power_reset()
        msix = self.capability(MSIX)
        if msix and msix + 3 in written:
            self._send_pending()
        msi = self.capability(MSI)
        if msi and written.start < msi + 0x18 and written.stop > msi:
            self._send_pending()

    def _silent(self) -> bool:
        if self._unanswered:
            self._unanswered -= 1
            return True
        return False

    @property
    def command(self) -> int:
        """The COMMAND register."""
        return self.peek(COMMAND, 2)

    @property
    def vendor(self) -> int:
        """The id by which drivers know its maker."""
        return self.peek(0, 2)

    @property
    def device(self) -> int:
        """The id by which drivers know it."""
        return self.peek(2, 2)

    @property
    def class_code(self) -> int:
        """Class, subclass and interface, 24 bits."""
        return self.peek(8, 4) >> 8

    @property
    def header_type(self) -> int:
        """0: endpoint, 1: bridge."""
        return self.peek(0xE, 1) & 0x7F

    @property
    def power_state(self) -> int:
        """0 to 3 for D0 to D3hot."""
        power = self.capability(PM)
        return self.peek(power + 4, 2) & POWER_STATE if power else 0

    @property
    def may_master(self) -> bool:
        """Whether it can read and write memory now."""
        return bool(self.command & BUS_MASTER) and self.power_state == 0 and not self._unanswered

    # -- BARs -----------------------------------------------------------------------------

    @property
    def bars(self) -> tuple[Bar, ...]:
        """The implemented ones, as software would size them."""
        found = []
        index = 0
        last = 6 if self.header_type == 0 else 2
        while index < last:
            at = 0x10 + 4 * index
            wide = self._reset_bytes[at] & 7 == 4
            width = 8 if wide else 4
            memory = not self._reset_bytes[at] & 1
            low = 0xF if memory else 0x3
            mask = int.from_bytes(self._writable[at : at + width], "little") & ~low
            if mask:
                size = mask & -mask
                decode = MEMORY_DECODE if memory else IO_DECODE
                answers = bool(self.command & decode) and self.power_state == 0
                address = self.peek(at, width) & mask
                prefetchable = memory and bool(self._reset_bytes[at] & 8)
                found.append(Bar(index, address, size, memory, wide, prefetchable, answers))
            index += 2 if wide else 1
        return tuple(found)

    def place_bar(self, index: int, address: int) -> None:
        """Write a BAR, as firmware does."""
        for bar in self.bars:
            if bar.index == index:
                self.config_write(0x10 + 4 * index, 4, address & _ABSENT)
                if bar.wide:
                    self.config_write(0x14 + 4 * index, 4, address >> 32)

    def access_load(self, bar: int, offset: int, width: int) -> int:
        """A load by a processor or another function; MSI-X structures are answered here."""
        table = self._in_msix_table(bar, offset)
        if table is not None:
            return int.from_bytes(self._msix_table[table : table + width], "little")
        pba = self._in_pba(bar, offset)
        if pba is not None:
            return sum(1 << n for n in self._pending) >> 8 * pba & (1 << 8 * width) - 1
        return self.bar_load(bar, offset, width)

    def access_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store by a processor or another function."""
        table = self._in_msix_table(bar, offset)
        if table is not None:
            data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
            self._msix_table[table : table + width] = data
            self._send_pending()
        elif self._in_pba(bar, offset) is None:
            self.bar_store(bar, offset, width, value)

    # -- hooks of devices -----------------------------------------------------------------

    def bar_load(self, bar: int, offset: int, width: int) -> int:
        """A register of the device; none by default."""
        return 0

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """A register of the device; none by default."""

    def reset_state(self) -> None:
        """Back to the state after power-on, but for configuration space."""

    # -- resets ---------------------------------------------------------------------------

    @property
    def has_flr(self) -> bool:
        """Whether DEVCAP says so (PCIe 7.5.3.3)."""
        pcie = self.capability(PCIE)
        return bool(pcie and self.peek(pcie + 4, 4) & 1 << 28)

    @property
    def no_soft_reset(self) -> bool:
        """Whether PMCSR says that D3hot keeps the state."""
        power = self.capability(PM)
        return bool(power and self.peek(power + 4, 2) & NO_SOFT_RESET)

    def function_level_reset(self) -> None:
        """FLR (PCIe 6.6.2): configuration space and the device's state."""
        if self.lying_flr:
            return
        self._reset_config()
        self.reset_state()
        if self.slow_flr:
            self._unanswered = _SLOW_RESET_ACCESSES

    def bus_reset(self) -> None:
        """Power-on, or a reset of the bus that the function is on."""
        self._unanswered = 0
        self._reset_config()
        self.reset_state()

    def _power_reset(self) -> None:
        if not self.no_soft_reset and self.honest_power_reset:
            self._reset_config()
            self.reset_state()

    def _reset_config(self) -> None:
        self._config[:] = self._reset_bytes
        self._mask_all_vectors()
        self._pending.clear()
        if hasattr(self, "fabric"):
            self.fabric.bars_moved()

    # -- messages -------------------------------------------------------------------------

    @property
    def msix_count(self) -> int:
        """Vectors of the MSI-X table, 0 without one."""
        msix = self.capability(MSIX)
        return (self.peek(msix + 2, 2) & 0x7FF) + 1 if msix else 0

    @property
    def msi_count(self) -> int:
        """Messages that MSI can send at most, 0 without it."""
        msi = self.capability(MSI)
        return 1 << (self.peek(msi + 2, 2) >> 1 & 7) if msi else 0

    @property
    def msix_table_place(self) -> tuple[int, int]:
        """BAR and offset of the MSI-X table."""
        word = self.peek(self.capability(MSIX) + 4, 4)
        return word & 7, word & ~7

    @property
    def msix_pba_place(self) -> tuple[int, int]:
        """BAR and offset of the pending bits."""
        word = self.peek(self.capability(MSIX) + 8, 4)
        return word & 7, word & ~7

    def _in_msix_table(self, bar: int, offset: int) -> int | None:
        if not self._msix_table:
            return None
        where, start = self.msix_table_place
        inside = where == bar and start <= offset < start + len(self._msix_table)
        return offset - start if inside else None

    def _in_pba(self, bar: int, offset: int) -> int | None:
        if not self._msix_table:
            return None
        where, start = self.msix_pba_place
        inside = where == bar and start <= offset < start + -(-self.msix_count // 64) * 8
        return offset - start if inside else None

    def _mask_all_vectors(self) -> None:
        self._msix_table[:] = bytes(len(self._msix_table))
        for vector in range(len(self._msix_table) // 16):
            self._msix_table[16 * vector + 12] = 1

    def msix_entry(self, vector: int) -> tuple[int, int, bool]:
        """Address, data, and whether the vector is masked."""
        entry = self._msix_table[16 * vector : 16 * vector + 16]
        address = int.from_bytes(entry[:8], "little")
        return address, int.from_bytes(entry[8:12], "little"), bool(entry[12] & 1)

    def msix_table(self) -> bytes:
        """The whole table, for software that saves it over a reset."""
        return bytes(self._msix_table)

    def restore_msix_table(self, table: bytes) -> None:
        """Write it all."""
        if self._unanswered == 0:
            self._msix_table[:] = table

    def _message(self, vector: int) -> tuple[int, int] | None:
        """Where a vector's message goes; ``None``: nowhere, or masked for now."""
        if self.msix_enabled:
            if vector >= self.msix_count:
                return None
            address, data, masked = self.msix_entry(vector)
            return (
                None
                if masked or self.peek(self.capability(MSIX) + 2, 2) & 0x4000
                else (address, data)
            )
        msi = self.capability(MSI)
        if not msi or not self.peek(msi + 2, 2) & 1:
            return None
        control = self.peek(msi + 2, 2)
        wide = bool(control & 0x80)
        address = self.peek(msi + 4, 8 if wide else 4)
        data = self.peek(msi + (12 if wide else 8), 2)
        enabled = 1 << (control >> 4 & 7)
        vector %= enabled
        if control & 0x100 and self.peek(msi + (16 if wide else 12), 4) >> vector & 1:
            return None
        return address, data & ~(enabled - 1) | vector

    @property
    def msix_enabled(self) -> bool:
        """Whether MSI-X is on."""
        msix = self.capability(MSIX)
        return bool(msix and self.peek(msix + 2, 2) & 0x8000)

    @property
    def interrupts_enabled(self) -> bool:
        """Whether MSI-X or MSI is on."""
        msi = self.capability(MSI)
        return self.msix_enabled or bool(msi and self.peek(msi + 2, 2) & 1)

    def send_message(self, vector: int) -> None:
        """Raise a vector: a write to memory, now, or when it is unmasked."""
        if not self.interrupts_enabled or not self.may_master:
            return
        message = self._message(vector)
        if message is None:
            self._pending.add(vector)
            return
        address, data = message
        self.dma_write(address, data.to_bytes(4, "little"))

    def _send_pending(self) -> None:
        for vector in sorted(self._pending):
            if self._message(vector) is not None and self.may_master:
                self._pending.discard(vector)
                self.send_message(vector)

    # -- DMA ------------------------------------------------------------------------------

    def dma_read(self, address: int, length: int) -> bytes:
        """Read memory as a bus master.

        Raises:
            DmaAborted: nothing was read.
        """
        pieces = list(self.fabric.resolve(self, address, length, write=False))
        return b"".join(self.fabric.memory.read(at, size) for at, size in pieces)

    def dma_write(self, address: int, data: bytes) -> None:
        """Write memory as a bus master; what lies before a refused page is written.

        Raises:
            DmaAborted: some of it was not written.
        """
        position = 0
        for at, size in self.fabric.resolve(self, address, len(data), write=True):
            self.fabric.memory.write(at, data[position : position + size])
            position += size


def _patched(data: bytes, patches: Mapping[int, bytes] | None) -> bytearray:
    result = bytearray(data)
    for offset, piece in (patches or {}).items():
        result[offset : offset + len(piece)] = piece
    return result


class RootPort(PciFunction):
    """A PCIe root port: the bus behind it is ``secondary``."""

    def __init__(self, address: Address, secondary: int, slot: int = 0) -> None:
        patches = {0x18: bytes((address.bus, secondary, secondary))}
        # A link of one lane at 2.5 GT/s, and the slot's power on (PCIe 7.5.3.8, 7.5.3.10)
        patches[0x54 + 0x12] = b"\x11\x00"
        patches[0x54 + 0x18] = b"\xc0\x03"
        if slot:  # physical slot number in SLOTCAP (PCIe 7.5.3.9), with an interlock
            patches[0x54 + 0x14] = (0x2007B | slot << 19).to_bytes(4, "little")
        super().__init__("root-port", address, patches)
        self.secondary = secondary

    def open_windows(self, windows: Sequence[range]) -> None:
        """Program what it passes on: ports, memory, prefetchable memory (PCI bridge 3.2.5)."""
        for offset, window, shift in zip((0x1C, 0x20, 0x24), windows, (8, 16, 16), strict=False):
            if not window:
                continue
            width = 1 if offset == 0x1C else 2
            last = window.stop - 1
            self.config_write(offset, width, window.start >> shift & (1 << 8 * width) - 1)
            self.config_write(offset + width, width, last >> shift & (1 << 8 * width) - 1)
            if offset == 0x24:
                self.config_write(0x28, 4, window.start >> 32)
                self.config_write(0x2C, 4, last >> 32)
