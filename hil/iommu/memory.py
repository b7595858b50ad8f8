"""Sources of physical memory, which table readers and oracles read through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from hil.errors import LabError

PAGE = 4096


class PhysicalMemory(Protocol):
    """Physical memory of a host or guest, by address."""

    def read(self, address: int, length: int) -> bytes:
        """Exactly ``length`` bytes at ``address``.

        Raises:
            LabError: any byte of it cannot be read.
        """
        ...


@runtime_checkable
class ReadsMany(PhysicalMemory, Protocol):
    """A source of which several ranges cost no more than one: one command on a host."""

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """What :meth:`read` gives for each address and length."""
        ...


def read_many(source: PhysicalMemory, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several ranges, each by address and length, at once where ``source`` can.

    Raises:
        LabError: any byte of them cannot be read.
    """
    if isinstance(source, ReadsMany) and len(ranges) > 1:
        return source.read_many(ranges)
    return [source.read(address, length) for address, length in ranges]


#: Most bytes that a cache asks its source for at once: what a host's shell gives readily.
_PIECE = 1 << 20


class CachedMemory:
    """A page cache around another source, for a walk over tables.

    It shows each 4 KiB page as it was first read: make one for each walk.  Neighbouring pages
    that it lacks are read at once, since each read of a host costs a command.
    """

    def __init__(self, source: PhysicalMemory) -> None:
        self._source = source
        self._pages: dict[int, bytes] = {}

    def read(self, address: int, length: int) -> bytes:
        """As :meth:`PhysicalMemory.read`."""
        first = address - address % PAGE
        pages = range(first, address + length, PAGE) if length else range(0)
        self._fetch([page for page in pages if page not in self._pages])
        data = b"".join(self._pages[page] for page in pages)
        return data[address - first : address - first + length]

    def expect(self, addresses: Iterable[int]) -> None:
        """Read the pages at these addresses now, neighbours together: a walk will want them.

        One that cannot be read is an error when it is wanted.
        """
        pages = {address - address % PAGE for address in addresses}
        with contextlib.suppress(LabError):
            self._fetch(sorted(pages - self._pages.keys()))

    def _fetch(self, missing: list[int]) -> None:
        while missing:
            start = missing[0]
            count = 1
            while count < len(missing) and missing[count] == start + count * PAGE < start + _PIECE:
                count += 1
            data = self._source.read(start, count * PAGE)
            for number in range(count):
                self._pages[start + number * PAGE] = data[number * PAGE : (number + 1) * PAGE]
            missing = missing[count:]
