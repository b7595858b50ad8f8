"""Sparse physical memory that tests build tables in."""

from __future__ import annotations

import struct

from hil.errors import LabError

PAGE = 4096


class MemoryImage:
    """Pages of 512 words, handed out one after the other; all else is unreadable."""

    def __init__(self, start: int) -> None:
        self.pages: dict[int, list[int]] = {}
        self._next = start

    def page(self) -> int:
        """A new page of zeros; returns its address."""
        address = self._next
        self._next += PAGE
        self.pages[address] = [0] * 512
        return address

    def read(self, address: int, length: int) -> bytes:
        parts = []
        for page in range(address & ~(PAGE - 1), address + length, PAGE):
            if page not in self.pages:
                raise LabError(f"no memory at {page:#x}")
            parts.append(struct.pack("<512Q", *self.pages[page]))
        offset = address % PAGE
        return b"".join(parts)[offset : offset + length]

    def qword(self, address: int) -> int:
        return self.pages[address & ~(PAGE - 1)][address % PAGE // 8]

    def set_qword(self, address: int, value: int) -> None:
        self.pages[address & ~(PAGE - 1)][address % PAGE // 8] = value
