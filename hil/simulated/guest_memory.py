"""A guest's physical memory as its kernel uses it: DMA buffers, and the cache of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hil.simulated.files import Files, Regular
from hil.simulated.memory import MIB, PAGE, RangeAllocator
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
