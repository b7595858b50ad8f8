"""Build AMD-Vi tables in a memory image: the reader's counterpart, written apart from it."""

from __future__ import annotations

from tests.iommu.memory_image import PAGE, MemoryImage

READ, WRITE = 1 << 61, 1 << 62
PRESENT = VALID = 1
TRANSLATION_VALID = 2


def level_bits(level: int) -> int:
    return level << 9


def page_address(physical: int, size: int) -> int:
    """Address field of an entry with Next Level 7: the page's, with its size coded in."""
    return physical | size // 2 - PAGE


class Image(MemoryImage):
    """One unit's tables; the device table has ``table_pages`` pages of 128 entries."""

    def __init__(self, start: int = 0x100_0000, table_pages: int = 1) -> None:
        super().__init__(start)
        self.table, *_ = (self.page() for _ in range(table_pages))
        self.register = self.table | table_pages - 1
        """The Device Table Base Address register."""

    def entry_at(self, requester_id: int) -> int:
        return self.table + 32 * requester_id

    def device(
        self,
        requester_id: int,
        *,
        domain: int = 1,
        mode: int = 4,
        rights: int = READ | WRITE,
        flags: int = VALID | TRANSLATION_VALID,
        more: int = 0,
    ) -> int:
        """Write a device table entry with an empty page table; returns the table's address.

        ``more`` are further bits of its second word.
        """
        table = self.page() if 1 <= mode <= 6 else 0
        at = self.entry_at(requester_id)
        self.set_qword(at, table | level_bits(mode) | rights | flags)
        self.set_qword(at + 8, domain | more)
        return table

    def path(self, table: int, levels: tuple[int, ...], iova: int) -> list[int]:
        """Addresses of the entries for ``iova`` in tables of ``levels``, from the top down.

        Makes the tables.  ``levels`` may skip some; the last is that of the leaf.
        """
        found = []
        for level, below in zip(levels, (*levels[1:], 0), strict=True):
            at = table + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)
            found.append(at)
            if below:
                if not self.qword(at):
                    self.set_qword(at, self.page() | level_bits(below) | PRESENT | READ | WRITE)
                table = self.qword(at) & ((1 << 52) - PAGE)
        return found

    def map(
        self,
        table: int,
        levels: tuple[int, ...],
        iova: int,
        physical: int,
        *,
        rights: int = READ | WRITE,
        size: int = 0,
    ) -> None:
        """Map the page around ``iova``, of the last level's size or of ``size``, coded."""
        step = 1 << 12 + 9 * (levels[-1] - 1)
        if size in (0, step):
            self.set_qword(self.path(table, levels, iova)[-1], physical | PRESENT | rights)
            return
        start = iova & ~(size - 1)
        for at in range(start, start + size, step):
            value = page_address(physical, size) | level_bits(7) | PRESENT | rights
            self.set_qword(self.path(table, levels, at)[-1], value)
