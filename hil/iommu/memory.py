"""Sources of physical memory, which table readers and oracles read through."""

from __future__ import annotations

from typing import Protocol

PAGE = 4096


class PhysicalMemory(Protocol):
    """Physical memory of a host or guest, by address."""

    def read(self, address: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``address``.

        Raises:
            LabError: any byte of it cannot be read.
        """
        ...


class CachedMemory:
    """A page cache around another source, for a walk over tables.

    It shows each 4 KiB page as it was first read: make one for each walk.
    """

    def __init__(self, source: PhysicalMemory) -> None:
        self._source = source
        self._pages: dict[int, bytes] = {}

    def read(self, address: int, length: int) -> bytes:
        """As :meth:`PhysicalMemory.read`."""
        parts = []
        end = address + length
        while address < end:
            offset = address % PAGE
            page = self._page(address - offset)
            parts.append(page[offset : offset + end - address])
            address += PAGE - offset
        return b"".join(parts)

    def _page(self, address: int) -> bytes:
        if address not in self._pages:
            self._pages[address] = self._source.read(address, PAGE)
        return self._pages[address]
