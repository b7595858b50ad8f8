"""Devices of the simulated host that are neither NIC nor NVMe: edu, a GPU, and plain ones."""

from __future__ import annotations

import contextlib
import math

from hil.pci.address import Address
from hil.simulated.memory import MIB, PAGE
from hil.simulated.pci import DmaAborted, PciFunction


class Edu(PciFunction):
    """QEMU's ``edu``: a DMA engine, a factorial unit, messages (QEMU docs/specs/edu.rst).

    A transfer is complete as its command register is written.  No reset reaches its
    registers, as in QEMU.

    Args:
        address: where it is.
        dma_mask: addresses that its engine can send; QEMU's default is 28 bits.
    """

    BUFFER = 0x40000
    _STATUS_INTERRUPT, _DMA_INTERRUPT = 0x80, 0x100

    def __init__(self, address: Address, dma_mask: int = (1 << 64) - 1) -> None:
        super().__init__("edu", address)
        self._dma_mask = dma_mask
        self._liveness = self._factorial = self._status = self._raised = 0
        self._dma = {0x80: 0, 0x88: 0, 0x90: 0, 0x98: 0}
        self._buffer = bytearray(PAGE)

    def bar_load(self, bar: int, offset: int, width: int) -> int:
        """A register; accesses of other widths than the device's answer all ones."""
        wide = offset & ~7
        if offset >= 0x80 and wide in self._dma and width in (4, 8):
            return self._dma[wide] >> 8 * (offset - wide) & (1 << 8 * width) - 1
        if width != 4:
            return (1 << 8 * width) - 1
        return {
            0x00: 0x010000ED,
            0x04: self._liveness,
            0x08: self._factorial,
            0x20: self._status,
            0x24: self._raised,
        }.get(offset, 0xFFFFFFFF)

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """A register write, with its effect."""
        wide = offset & ~7
        if offset >= 0x80 and wide in self._dma and width in (4, 8):
            shift = 8 * (offset - wide)
            mask = (1 << 8 * width) - 1 << shift
            self._dma[wide] = self._dma[wide] & ~mask | value << shift & mask
            if wide == 0x98 and value & 1 and not shift:
                self._transfer()
        elif width != 4:
            return
        elif offset == 0x04:
            self._liveness = ~value & 0xFFFFFFFF
        elif offset == 0x08:
            # wraps at 32 bits, so that 34! and up are 0
            self._factorial = math.factorial(min(value, 34)) & 0xFFFFFFFF
            if self._status & self._STATUS_INTERRUPT:
                self._raise(1)
        elif offset == 0x20:
            self._status = value & self._STATUS_INTERRUPT
        elif offset == 0x60:
            self._raise(value)
        elif offset == 0x64:
            self._raised &= ~value & 0xFFFFFFFF

    def _raise(self, bits: int) -> None:
        self._raised |= bits
        if self._raised:
            self.send_message(0)

    def _transfer(self) -> None:
        source, target, count, command = self._dma.values()
        inside = source if command & 2 else target
        start = inside - self.BUFFER
        if start in range(PAGE) and start + count <= PAGE:
            with contextlib.suppress(DmaAborted):  # as in QEMU: the engine is told nothing
                if command & 2:
                    self.dma_write(target & self._dma_mask, bytes(self._buffer[start:][:count]))
                else:
                    data = self.dma_read(source & self._dma_mask, count)
                    self._buffer[start : start + count] = data
        self._dma[0x98] &= ~1
        if command & 4:
            self._raise(self._DMA_INTERRUPT)


class Gpu(PciFunction):
    """A virtio-gpu with a large BAR of memory on the card, which is all that it does.

    Args:
        address: where it is.
        memory: bytes on the card, a power of two; BAR 2.
    """

    MEMORY_BAR = 2

    def __init__(self, address: Address, memory: int = 256 * MIB) -> None:
        mask = ((1 << 64) - memory).to_bytes(8, "little")
        super().__init__("virtio-gpu", address, {0x18: b"\x0c"}, {0x18: mask})
        self._memory: dict[int, bytearray] = {}
        self._registers = bytearray(4 * PAGE)

    def bar_load(self, bar: int, offset: int, width: int) -> int:
        """Memory of the card, or a register."""
        if bar == self.MEMORY_BAR:
            page = self._memory.get(offset // PAGE, bytes(PAGE))
            return int.from_bytes(page[offset % PAGE : offset % PAGE + width], "little")
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """Memory of the card, or a register."""
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        if bar == self.MEMORY_BAR:
            page = self._memory.setdefault(offset // PAGE, bytearray(PAGE))
            page[offset % PAGE : offset % PAGE + width] = data
        elif offset + width <= len(self._registers):
            self._registers[offset : offset + width] = data

    def reset_state(self) -> None:
        """Registers are back to 0; the card's memory is lost."""
        self._memory.clear()
        self._registers[:] = bytes(len(self._registers))
