"""bhyve's emulation of a passed function: what a guest sees of it.

Modelled on FreeBSD's usr.sbin/bhyve/pci_passthru.c and pci_emul.c: BARs, COMMAND, MSI and MSI-X
are emulated, every other register of the first 256 bytes is the device's own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hil.pci.address import Address
from hil.simulated.errno import Errno, SimError
from hil.simulated.faults import FaultSet
from hil.simulated.machine import locked
from hil.simulated.memory import GIB, MIB, PAGE
from hil.simulated.pci import (
    BUS_MASTER,
    COMMAND,
    IO_DECODE,
    MEMORY_DECODE,
    MSI,
    MSIX,
    PCIE,
    PciFunction,
)
from hil.simulated.vmm import TrappedRegisters, Vm

_CONFIG_SIZE = 256
_BARS = range(0x10, 0x28)


class Refusal(enum.Enum):
    """Why a function cannot be passed."""

    NOT_PPT = "not-ppt"
    """vm_assign_pptdev() failed; its number is in :attr:`PassthruError.number`."""
    NO_MSI = "no-msi"
    """It has neither MSI nor MSI-X."""
    UNALIGNED_BAR = "unaligned-bar"
    """A memory BAR is not of whole pages."""
    MSIX_MAP = "msix-map"
    """The BAR with the MSI-X table cannot be mapped."""


class PassthruError(Exception):
    """The function cannot be passed."""

    def __init__(self, refusal: Refusal, number: Errno, bar: int = 0) -> None:
        super().__init__(f"{refusal.value}: {number.text}")
        self.refusal = refusal
        self.number = number
        self.bar = bar


@dataclass(frozen=True, slots=True)
class GuestBar:
    """A BAR in the guest's address space."""

    index: int
    address: int
    """0: it was not placed."""
    size: int
    memory: bool
    wide: bool
    prefetchable: bool


@dataclass(frozen=True, slots=True)
class BarRequest:
    """What a device wants of the guest's address space."""

    owner: object
    index: int
    size: int
    memory: bool
    wide: bool


class GuestWindows:
    """Where bhyve puts BARs (pci_emul_alloc_bar, pci_emul_assign_bar)."""

    #: 64-bit BARs of more than this go above 4 GiB.
    LARGE = 128 * MIB

    def __init__(self, memory: int, faults: FaultSet) -> None:
        high = max(0, memory - 3 * GIB)
        start = -(-(4 * GIB + high) // (32 * GIB)) * 32 * GIB
        large = 128 * MIB if "16-bar-unassigned" in faults else 32 * GIB
        self._next = {"port": 0x2000, "low": 0xC000_0000, "high": start}
        self._end = {"port": 0x1_0000, "low": 0xE000_0000, "high": start + large}

    def place(self, requests: Sequence[BarRequest]) -> dict[tuple[object, int], int]:
        """Addresses by owner and BAR index, the largest first; 0 for what does not fit."""
        placed = {}
        for request in sorted(requests, key=lambda each: -each.size):
            kind = "low" if request.memory else "port"
            if request.wide and request.size > self.LARGE:
                kind = "high"
            address = -(-self._next[kind] // request.size) * request.size
            if address + request.size > self._end[kind]:
                address = 0  # as in bhyve, nobody is told
            else:
                self._next[kind] = address + request.size
            placed[request.owner, request.index] = address
        return placed


class Passthru(TrappedRegisters):
    """One passed function of a VM.

    Args:
        vm: whose it becomes.
        host: bus, slot and function on the host.
    """

    def __init__(self, vm: Vm, host: tuple[int, int, int]) -> None:
        self.machine = vm.machine
        self.vm = vm
        self.host = host
        self.bars: tuple[GuestBar, ...] = ()
        self._function: PciFunction
        self._command = 0
        self._registers: dict[int, int] = {}
        self._msi = bytearray()
        self._msix_control = 0
        self._table = bytearray()
        self._mapped = False

    @property
    def function(self) -> PciFunction:
        """The device; only after :meth:`setup`."""
        return self._function

    # -- start ----------------------------------------------------------------------------

    @locked
    def setup(self) -> None:
        """passthru_init(): assign the device, and look whether it can be passed.

        After an error it is unassigned again.

        Raises:
            PassthruError: it cannot.
        """
        try:
            self.vm.assign(*self.host)
        except SimError as error:
            raise PassthruError(Refusal.NOT_PPT, error.number) from None
        try:
            self._initialize()
        except PassthruError:
            self.vm.unassign(*self.host)
            raise

    def _initialize(self) -> None:
        requester_id = Address(0, *self.host).requester_id
        function = self._function = self.machine.fabric.functions[requester_id]
        if not function.capability(MSI) and not function.capability(MSIX):
            raise PassthruError(Refusal.NO_MSI, Errno.ENOENT)
        for bar in function.bars:
            if bar.memory and (bar.size % PAGE or bar.address % PAGE):
                raise PassthruError(Refusal.UNALIGNED_BAR, Errno.ENOENT, bar.index)
        at = function.capability(MSI)
        if at:
            self._msi = bytearray(function.peek(at + n, 1) for n in range(24))
        self._command = function.config_read(COMMAND, 2)
        self._prepare_command()
        at = function.capability(MSIX)
        if at:
            self._msix_control = function.peek(at + 2, 2) & 0x7FF
            self._table = bytearray(16 * function.msix_count)
            for vector in range(function.msix_count):
                self._table[16 * vector + 12] = 1

    def _prepare_command(self) -> None:
        """Switch decoding on, as pci_emul_assign_bar() does for each BAR that it places."""
        function, faults = self._function, self.machine.faults
        kinds = {bar.memory for bar in function.bars}
        decoding = (MEMORY_DECODE if True in kinds else 0) | (IO_DECODE if False in kinds else 0)
        off = bool(decoding & ~self._command & MEMORY_DECODE)
        if off and "11-msix-bar-busy" in faults and function.capability(MSIX):
            raise PassthruError(Refusal.MSIX_MAP, Errno.EBUSY, function.msix_table_place[0])
        if off and "10-bogus-command-register" in faults:
            # the emulated register says that all is on, so the guest's writes change nothing
            self._command |= decoding | BUS_MASTER
            return
        self._command |= decoding
        function.config_write(COMMAND, 2, self._command)

    def requests(self) -> list[BarRequest]:
        """What it wants of the guest's address space."""
        return [
            BarRequest(self, bar.index, bar.size, bar.memory, bar.wide)
            for bar in self._function.bars
        ]

    @locked
    def place(self, placed: Mapping[tuple[object, int], int]) -> None:
        """Its BARs get their addresses, of :meth:`GuestWindows.place`."""
        self.bars = tuple(
            GuestBar(
                bar.index,
                placed[self, bar.index],
                bar.size,
                bar.memory,
                bar.wide,
                bar.prefetchable,
            )
            for bar in self._function.bars
        )
        self._map()

    # -- BARs -----------------------------------------------------------------------------

    def _map(self) -> None:
        self._unmap()
        if not self._command & MEMORY_DECODE:
            return
        host = {bar.index: bar.address for bar in self._function.bars}
        for bar in self.bars:
            if not bar.memory or not bar.address:
                continue
            trapped = self._trapped(bar)
            for start, end in _around(bar.size, trapped):
                self.vm.map_mmio(
                    *self.host, bar.address + start, end - start, host[bar.index] + start
                )
            if trapped:
                start, end = bar.address + trapped[0], bar.address + trapped[1]
                self.vm.traps.append((start, end, self))
        self._mapped = True

    def _unmap(self) -> None:
        self.vm.traps[:] = [trap for trap in self.vm.traps if trap[2] is not self]
        if not self._mapped:
            return
        for bar in self.bars:
            if bar.memory and bar.address:
                for start, end in _around(bar.size, self._trapped(bar)):
                    self.vm.unmap_mmio(*self.host, bar.address + start, end - start)
        self._mapped = False

    def _trapped(self, bar: GuestBar) -> tuple[int, int] | None:
        """The pages of a BAR that hold the MSI-X table: start and end within it."""
        if not self._table:
            return None
        where, start = self._function.msix_table_place
        if where != bar.index:
            return None
        return start // PAGE * PAGE, -(-(start + len(self._table)) // PAGE) * PAGE

    def trapped_load(self, offset: int, length: int) -> bytes:
        """The emulated MSI-X table, and what shares its pages."""
        bar, start = self._function.msix_table_place
        page = start // PAGE * PAGE
        at = page + offset - start
        if 0 <= at < len(self._table):
            return bytes(self._table[at : at + length])
        return self.machine.memory.read(self._host_address(bar) + page + offset, length)

    def trapped_store(self, offset: int, data: bytes) -> None:
        """As :meth:`trapped_load`."""
        bar, start = self._function.msix_table_place
        page = start // PAGE * PAGE
        at = page + offset - start
        if 0 <= at < len(self._table):
            self._table[at : at + len(data)] = data
            if self._msix_enabled:
                self._set_vector(at // 16)
        else:
            self.machine.memory.write(self._host_address(bar) + page + offset, data)

    def _host_address(self, index: int) -> int:
        return next(bar.address for bar in self._function.bars if bar.index == index)

    def bar_load(self, bar: int, offset: int, width: int) -> int:
        """A load by the guest; all ones where the BAR is not mapped."""
        return int.from_bytes(self.vm.read(self._guest_address(bar) + offset, width), "little")

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """A store by the guest."""
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        self.vm.write(self._guest_address(bar) + offset, data)

    def _guest_address(self, index: int) -> int:
        return next(bar.address for bar in self.bars if bar.index == index)

    # -- configuration space --------------------------------------------------------------

    @locked
    def config_read(self, offset: int, width: int) -> int:
        """passthru_cfgread(); all ones beyond 256 bytes, which bhyve does not have."""
        if offset + width > _CONFIG_SIZE:
            return (1 << 8 * width) - 1
        at = self.machine.kernel.read_config(_selector(self.host), offset, width)
        value = bytearray(at.to_bytes(width, "little"))
        for number in range(width):
            emulated = self._emulated(offset + number)
            if emulated is not None:
                value[number] = emulated
        return int.from_bytes(value, "little")

    def _emulated(self, offset: int) -> int | None:
        """A byte that bhyve answers by itself."""
        if offset in (COMMAND, COMMAND + 1):
            return self._command >> 8 * (offset - COMMAND) & 0xFF
        if offset in _BARS:
            return self._bar_register(offset & ~3) >> 8 * (offset & 3) & 0xFF
        msi = self._function.capability(MSI)
        if msi and msi + 2 <= offset < msi + self._msi_length:
            return self._msi[offset - msi]
        msix = self._function.capability(MSIX)
        if msix and offset in (msix + 2, msix + 3):
            return self._msix_control >> 8 * (offset - msix - 2) & 0xFF
        return None

    @property
    def _msi_length(self) -> int:
        control = int.from_bytes(self._msi[2:4], "little")
        return 10 + (4 if control & 0x80 else 0) + (10 if control & 0x100 else 0)

    def _bar_register(self, register: int) -> int:
        if register in self._registers:
            return self._registers[register]
        for bar in self.bars:
            low = 0x10 + 4 * bar.index
            flags = (0 if bar.memory else 1) | (4 if bar.wide else 0) | 8 * bar.prefetchable
            if register == low:
                return bar.address & 0xFFFFFFFF | flags
            if register == low + 4 and bar.wide:
                return bar.address >> 32
        return 0

    @locked
    def config_write(self, offset: int, width: int, value: int) -> None:
        """passthru_cfgwrite()."""
        if offset + width > _CONFIG_SIZE:
            return
        function = self._function
        msi, msix = function.capability(MSI), function.capability(MSIX)
        if offset in _BARS:
            self._write_bar(offset & ~3, value & 0xFFFFFFFF)
        elif msi and msi <= offset < msi + self._msi_length:
            self._write_msi(offset - msi, width, value)
        elif msix and msix <= offset < msix + 12:
            if offset <= msix + 3 < offset + width:
                self._write_msix_control(value >> 8 * (msix + 2 - offset) & 0xFFFF)
        elif offset == COMMAND:
            self._write_command(width, value)
        elif not self._is_guest_flr(offset, width, value):
            self.machine.kernel.write_config(_selector(self.host), offset, width, value)

    def _is_guest_flr(self, offset: int, width: int, value: int) -> bool:
        """Whether this starts an FLR, which then is done as the host does it."""
        pcie = self._function.capability(PCIE)
        if not pcie or not self._function.has_flr or "19-guest-flr-raw" in self.machine.faults:
            return False
        if not offset <= pcie + 9 < offset + width:
            return False
        if not value >> 8 * (pcie + 9 - offset) & 0x80:
            return False
        self.machine.kernel.bus.reset_function(self._function)
        return True

    def _write_command(self, width: int, value: int) -> None:
        before = self._command
        mask = 0xFF if width == 1 else 0xFFFF
        self._command = before & ~mask | value & mask & 0x0547
        changed = self._command != before
        if changed or "10-bogus-command-register" not in self.machine.faults:
            self._function.config_write(COMMAND, 2, self._command)
        if (before ^ self._command) & MEMORY_DECODE:
            self._map()

    def _write_bar(self, register: int, value: int) -> None:
        """Sizing and moving; what a guest puts there is where the BAR is mapped."""
        for bar in self.bars:
            low = 0x10 + 4 * bar.index
            if register != low and not (bar.wide and register == low + 4):
                continue
            mask = ~(bar.size - 1)
            flags = (0 if bar.memory else 1) | (4 if bar.wide else 0) | 8 * bar.prefetchable
            if register == low:
                self._registers[register] = value & mask & 0xFFFFFFF0 | flags
            else:
                self._registers[register] = value & mask >> 32 & 0xFFFFFFFF
            sizing = value == 0xFFFFFFFF
            if not sizing:
                self._move(bar)

    def _move(self, bar: GuestBar) -> None:
        low = 0x10 + 4 * bar.index
        address = self._bar_register(low) & ~0xF
        if bar.wide:
            address |= self._bar_register(low + 4) << 32
        if address != bar.address and address >> 32 != 0xFFFFFFFF:
            self._unmap()
            moved = GuestBar(bar.index, address, bar.size, bar.memory, bar.wide, bar.prefetchable)
            self.bars = tuple(moved if each is bar else each for each in self.bars)
            self._map()

    # -- messages -------------------------------------------------------------------------

    def _write_msi(self, offset: int, width: int, value: int) -> None:
        for number in range(width):
            at = offset + number
            byte = value >> 8 * number & 0xFF
            if at == 2:
                self._msi[2] = self._msi[2] & 0x8E | byte & 0x71
            elif at >= 4:
                self._msi[at] = byte
        control = int.from_bytes(self._msi[2:4], "little")
        if not control & 1:
            self.vm.setup_msi(*self.host, 0, 0, 0)
            return
        wide = bool(control & 0x80)
        address = int.from_bytes(self._msi[4 : 12 if wide else 8], "little")
        data = int.from_bytes(self._msi[12:14] if wide else self._msi[8:10], "little")
        self.vm.setup_msi(*self.host, address, data, 1 << (control >> 4 & 7))

    @property
    def _msix_enabled(self) -> bool:
        return bool(self._msix_control & 0x8000)

    def _write_msix_control(self, control: int) -> None:
        before = self._msix_enabled
        self._msix_control = self._msix_control & 0x7FF | control & 0xC000
        if self._msix_enabled:
            for vector in range(len(self._table) // 16):
                self._set_vector(vector)
        elif before:
            self.vm.disable_msix(*self.host)

    def _set_vector(self, vector: int) -> None:
        entry = self._table[16 * vector : 16 * vector + 16]
        address = int.from_bytes(entry[:8], "little")
        data = int.from_bytes(entry[8:12], "little")
        masked = bool(entry[12] & 1 or self._msix_control & 0x4000)
        self.vm.setup_msix(*self.host, vector, address, data, masked)


def _around(size: int, hole: tuple[int, int] | None) -> list[tuple[int, int]]:
    """What is left of a BAR beside its trapped pages."""
    if hole is None:
        return [(0, size)]
    return [(start, end) for start, end in ((0, hole[0]), (hole[1], size)) if start < end]


def _selector(host: tuple[int, int, int]) -> str:
    return "pci0:" + ":".join(str(number) for number in host)
