"""A guest's physical memory as its kernel uses it: DMA buffers, huge pages, cached files."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hil.simulated.files import Files, Regular
from hil.simulated.memory import MIB, PAGE, OutOfMemory, RangeAllocator
from hil.simulated.process import OpenFile, Process

if TYPE_CHECKING:
    from hil.simulated.vmm import Vm

#: What lies below: the kernel's text and what the loader left.
FIRST = 32 * MIB


class GuestMemory:
    """Guest physical memory, and who has which of it.

    The addresses are guest physical; that is what drivers tell their devices.
    """

    def __init__(self, vm: Vm, size: int, usable: int = 0) -> None:
        self.size = size
        self.usable = usable or size
        """What the kernel uses of it, from address 0 on: the tunable ``hw.physmem``."""
        self._vm = vm
        self._free = RangeAllocator(FIRST, self.usable)

    @property
    def physmem(self) -> int:
        """``hw.physmem``: what the kernel counts as memory."""
        return self.usable - 4 * MIB

    def allocate(self, size: int, align: int = PAGE) -> int:
        """Physically contiguous, page aligned, zeroed."""
        whole = -(-size // PAGE) * PAGE
        address = self._free.take(whole, align)
        self.write(address, bytes(whole))
        return address

    def release(self, address: int, size: int) -> None:
        self._free.give(address, -(-size // PAGE) * PAGE)

    def read(self, address: int, length: int) -> bytes:
        return self._vm.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        self._vm.write(address, data)


class CachedFile(Regular):
    """A file whose contents also stand in the guest's memory, as the buffer cache holds them.

    Only what was written in this boot is there, up to :data:`LIMIT` bytes of a file.
    """

    LIMIT = 1 * MIB

    def __init__(self, memory: GuestMemory, mode: int = 0o644) -> None:
        self._memory = memory
        self._cache: dict[int, int] = {}
        super().__init__(mode=mode)

    def write_at(self, offset: int, data: bytes) -> None:
        super().write_at(offset, data)
        for page in range(
            offset // PAGE, min(-(-(offset + len(data)) // PAGE), self.LIMIT // PAGE)
        ):
            if page not in self._cache:
                self._cache[page] = self._memory.allocate(PAGE)
            self._memory.write(self._cache[page], self.read_at(page * PAGE, PAGE))


class GuestFiles(Files):
    """A guest's file system: files written in this boot are in its memory too."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        super().__init__()

    def open(self, process: Process, path: str, mode: str) -> OpenFile:
        if "w" in mode or "a" in mode:
            directory, name = self.parent(path)
            if name and not self.exists(path):
                directory.own[name] = CachedFile(self._memory)
        return super().open(process, path, mode)

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        directory, name = self.parent(path)
        file = directory.own[name] = CachedFile(self._memory, mode)
        file.write_at(0, data)


class HugePages:
    """A Linux guest's pool of 2 MiB pages (Documentation/admin-guide/mm/hugetlbpage.rst).

    Who maps some gets them at virtual addresses that no one else has, so that
    ``/proc/self/pagemap`` can answer for all.
    """

    SIZE = 2 * MIB
    _FIRST = 0x7F00_0000_0000

    def __init__(self, ram: GuestMemory) -> None:
        self._ram = ram
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._mapped: dict[int, int] = {}
        self._next = self._FIRST

    @property
    def total(self) -> int:
        """``nr_hugepages``."""
        return len(self._free) + len(self._mapped)

    @property
    def free(self) -> int:
        """``HugePages_Free``."""
        return len(self._free)

    def resize(self, count: int) -> None:
        """As a write to ``nr_hugepages``: as far as there is memory, and as pages are free."""
        with self._lock:
            while self._free and self.total > count:
                self._ram.release(self._free.pop(), self.SIZE)
            while self.total < count:
                try:
                    self._free.append(self._ram.allocate(self.SIZE, self.SIZE))
                except OutOfMemory:
                    return

    def map(self, process: Process, size: int) -> int:
        """Pages for as long as ``process`` lives; where, in its address space.

        Raises:
            OutOfMemory: so many are not free.
        """
        count = -(-size // self.SIZE)
        with self._lock:
            if count > len(self._free):
                raise OutOfMemory(f"{len(self._free)} of {count} huge pages are free")
            start = self._next
            self._next += (count + 1) * self.SIZE
            places = [start + number * self.SIZE for number in range(count)]
            for place in places:
                self._mapped[place] = self._free.pop(0)
                self._ram.write(self._mapped[place], bytes(self.SIZE))
        tell = process.on_end

        def unmap() -> None:
            with self._lock:
                self._free += [self._mapped.pop(place) for place in places]
            tell()

        process.on_end = unmap
        return start

    def physical(self, address: int) -> int | None:
        """Guest physical address of a byte of the pool's mappings."""
        place = address // self.SIZE * self.SIZE
        page = self._mapped.get(place)
        return None if page is None else page + address - place

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a virtual address."""
        return b"".join(self._ram.read(at, size) for at, size in self._pieces(address, length))

    def write(self, address: int, data: bytes) -> None:
        """Bytes to a virtual address."""
        position = 0
        for at, size in self._pieces(address, len(data)):
            self._ram.write(at, data[position : position + size])
            position += size

    def _pieces(self, address: int, length: int) -> list[tuple[int, int]]:
        found = []
        end = address + length
        while address < end:
            size = min(end, (address // self.SIZE + 1) * self.SIZE) - address
            physical = self.physical(address)
            assert physical is not None, "nothing is mapped there"
            found.append((physical, size))
            address += size
        return found
