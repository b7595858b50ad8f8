"""The simulated host's physical address space: RAM, and registers of devices.

Only pages that were written take memory here.  Addresses that nobody answers read as all
ones, as they do on x86.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30

#: Where device registers lie below 4 GiB; RAM of more than this goes above 4 GiB (q35).
HOLE = range(0x8000_0000, 0x1_0000_0000)
#: What the kernel allocates begins here: above its own text and what the loader left.
KERNEL_START = 32 * MIB
#: Firmware keeps its tables in as much at the end of low memory.
FIRMWARE = 16 * MIB
#: Guest memory is given out in pieces of this size: FreeBSD's superpages.
SUPERPAGE = 2 * MIB


def pieces(address: int, length: int) -> Iterator[tuple[int, int]]:
    """What a range has in each page that it touches: address and length."""
    end = address + length
    while address < end:
        size = min(end - address, PAGE - address % PAGE)
        yield address, size
        address += size


class Registers(Protocol):
    """A device's registers, reached by loads and stores of 1, 2, 4 or 8 bytes."""

    def load(self, offset: int, width: int) -> int: ...

    def store(self, offset: int, width: int, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Window:
    """A range of physical addresses that reaches registers, ``base`` being their offset 0."""

    start: int
    end: int
    """One past the last address."""
    registers: Registers


class OutOfMemory(Exception):  # noqa: N818 - named for what happened
    """No free range of that size is left."""


class RangeAllocator:
    """First fit over one range of addresses, from its lower or its upper end."""

    def __init__(self, start: int, end: int) -> None:
        self._free = [(start, end)]

    @property
    def free(self) -> int:
        """Bytes left."""
        return sum(end - start for start, end in self._free)

    def take(self, size: int, align: int = PAGE, *, high: bool = False) -> int:
        """The lowest (``high``: the highest) free place.

        Raises:
            OutOfMemory: there is none.
        """
        holes = range(len(self._free))
        for index in reversed(holes) if high else holes:
            start, end = self._free[index]
            at = (end - size) // align * align if high else -(-start // align) * align
            if at < start or at + size > end:
                continue
            pieces = [(start, at), (at + size, end)]
            self._free[index : index + 1] = [piece for piece in pieces if piece[0] < piece[1]]
            return at
        raise OutOfMemory(f"no room for {size:#x} bytes")

    def give(self, start: int, size: int) -> None:
        """Make a range free again."""
        bisect.insort(self._free, (start, start + size))
        merged: list[tuple[int, int]] = []
        for begin, end in self._free:
            if merged and merged[-1][1] == begin:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((begin, end))
        self._free = merged


class HostMemory:
    """Physical memory; also what ``/dev/mem`` reads and writes.

    Memory disks come from the bottom, the rest of the kernel's from the end of low memory,
    guests' memory from the top: a guest physical address that is used untranslated hits a
    memory disk first.

    Args:
        size: bytes of RAM, in whole MiB; what exceeds 2 GiB lies above 4 GiB.
    """

    def __init__(self, size: int) -> None:
        low = min(size, HOLE.start)
        self.ram = [range(low)]
        if size > low:
            self.ram.append(range(HOLE.stop, HOLE.stop + size - low))
        self._pages: dict[int, bytearray] = {}
        self._fixed: list[Window] = []
        self._movable: Callable[[], Iterable[Window]] = tuple
        self._kernel = RangeAllocator(KERNEL_START, low - FIRMWARE)
        top = self.ram[-1]
        self._guest = RangeAllocator(top.start, top.stop) if len(self.ram) > 1 else self._kernel

    @property
    def end(self) -> int:
        """One past the last byte of RAM: FreeBSD's ``Maxmem``."""
        return self.ram[-1].stop

    def is_ram(self, address: int, length: int = 1) -> bool:
        """Whether all of a range is RAM."""
        return any(address >= part.start and address + length <= part.stop for part in self.ram)

    # -- registers ------------------------------------------------------------------------

    def add_window(self, start: int, length: int, registers: Registers) -> None:
        """Let a range reach registers, for ever."""
        self._fixed.append(Window(start, start + length, registers))

    def movable_windows(self, source: Callable[[], Iterable[Window]]) -> None:
        """Where the windows come from that software moves: BARs."""
        self._movable = source

    def _window(self, address: int) -> Window | None:
        for windows in (self._fixed, self._movable()):
            for window in windows:
                if window.start <= address < window.end:
                    return window
        return None

    # -- loads and stores -----------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a physical address; all ones where nothing answers.

        Registers are read in naturally aligned pieces of four bytes, or in one load where
        ``length`` is 1, 2, 4 or 8.
        """
        parts = []
        for at, size in pieces(address, length):
            page = self._pages.get(at // PAGE)
            if page is not None:
                parts.append(bytes(page[at % PAGE : at % PAGE + size]))
            elif self.is_ram(at):
                parts.append(bytes(size))
            else:
                parts.append(self._load(at, size))
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Bytes to a physical address; lost where nothing answers."""
        for at, size in pieces(address, len(data)):
            piece = data[at - address : at - address + size]
            page = self._pages.get(at // PAGE)
            if page is None and self.is_ram(at):
                page = self._pages[at // PAGE] = bytearray(PAGE)
            if page is not None:
                page[at % PAGE : at % PAGE + size] = piece
            else:
                self._store(at, piece)

    def _load(self, address: int, length: int) -> bytes:
        window = self._window(address)
        if window is None:
            return b"\xff" * length
        parts = []
        for at, width in _accesses(address, length):
            value = window.registers.load(at - window.start, width)
            parts.append((value & (1 << 8 * width) - 1).to_bytes(width, "little"))
        return b"".join(parts)

    def _store(self, address: int, data: bytes) -> None:
        window = self._window(address)
        if window is None:
            return
        for at, width in _accesses(address, len(data)):
            piece = data[at - address : at - address + width]
            window.registers.store(at - window.start, width, int.from_bytes(piece, "little"))

    def load(self, address: int, width: int = 8) -> int:
        """One little-endian number."""
        return int.from_bytes(self.read(address, width), "little")

    def store(self, address: int, value: int, width: int = 8) -> None:
        """One little-endian number."""
        self.write(address, value.to_bytes(width, "little"))

    # -- allocation -----------------------------------------------------------------------

    def allocate(self, size: int, align: int = PAGE) -> int:
        """Contiguous memory for the kernel's own use, zeroed; from the end of low memory.

        Raises:
            OutOfMemory: no such range is free.
        """
        return self._kernel.take(-(-size // PAGE) * PAGE, align, high=True)

    def allocate_low(self, size: int) -> int:
        """The same, from :data:`KERNEL_START` up: where guests have their DMA buffers.

        Raises:
            OutOfMemory: no such range is free.
        """
        return self._kernel.take(-(-size // PAGE) * PAGE)

    def release(self, address: int, size: int) -> None:
        """Free what :meth:`allocate` or :meth:`allocate_low` gave."""
        self._drop(address, size)
        self._kernel.give(address, -(-size // PAGE) * PAGE)

    def allocate_guest(self, size: int) -> tuple[int, ...]:
        """Memory for a guest: addresses of as many superpages as ``size`` needs.

        Raises:
            OutOfMemory: there are not that many.
        """
        count = -(-size // SUPERPAGE)
        taken: list[int] = []
        try:
            while len(taken) < count:
                zone = self._guest if self._guest.free >= SUPERPAGE else self._kernel
                taken.append(zone.take(SUPERPAGE, SUPERPAGE, high=True))
        except OutOfMemory:
            self.release_guest(taken)
            raise
        return tuple(taken)

    def release_guest(self, superpages: Iterable[int]) -> None:
        """Free a guest's memory."""
        for address in superpages:
            self._drop(address, SUPERPAGE)
            zone = self._guest if address >= self.ram[-1].start else self._kernel
            zone.give(address, SUPERPAGE)

    @property
    def free(self) -> int:
        """Bytes that nobody has."""
        return self._kernel.free + (self._guest.free if self._guest is not self._kernel else 0)

    def _drop(self, address: int, size: int) -> None:
        for page in range(address // PAGE, -(-(address + size) // PAGE)):
            self._pages.pop(page, None)


def _accesses(address: int, length: int) -> Iterable[tuple[int, int]]:
    if length in (1, 2, 4, 8) and address % length == 0:
        yield address, length
        return
    end = address + length
    while address < end:
        width = 4 if address % 4 == 0 and end - address >= 4 else 1
        yield address, width
        address += width
