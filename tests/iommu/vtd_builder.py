"""Build VT-d tables in a memory image: the reader's counterpart, written apart from it."""

from __future__ import annotations

from tests.iommu.memory_image import PAGE, MemoryImage

READ, WRITE, BIG = 1, 2, 1 << 7
LEVELS = {39: 3, 48: 4, 57: 5}
WIDTH_FIELD = {39: 1, 48: 2, 57: 3}


class Image(MemoryImage):
    """One unit's tables."""

    def __init__(self, start: int = 0x100_0000) -> None:
        super().__init__(start)
        self.root = self.page()

    def context_address(self, requester_id: int) -> int:
        """Where the function's context entry is; makes its bus's table."""
        root_entry = self.root + 16 * (requester_id >> 8)
        if not self.qword(root_entry):
            self.set_qword(root_entry, self.page() | 1)
        return (self.qword(root_entry) & ~(PAGE - 1)) + 16 * (requester_id & 0xFF)

    def context(
        self,
        requester_id: int,
        *,
        domain: int = 1,
        kind: int = 0,
        width: int = 48,
        present: bool = True,
        fault_disabled: bool = False,
    ) -> int:
        """Write a context entry with an empty page table; returns the table's address."""
        at = self.context_address(requester_id)
        table = self.page()
        self.set_qword(at, table | kind << 2 | fault_disabled << 1 | present)
        self.set_qword(at + 8, WIDTH_FIELD[width] | domain << 8)
        return table

    def entry_address(self, table: int, width: int, iova: int, level: int) -> int:
        """Where the entry of ``level`` for ``iova`` is; makes the tables above it."""
        for above in range(LEVELS[width], level, -1):
            at = table + 8 * (iova >> 12 + 9 * (above - 1) & 0x1FF)
            if not self.qword(at):
                self.set_qword(at, self.page() | READ | WRITE)
            table = self.qword(at) & ((1 << 52) - PAGE)
        return table + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)

    def map(
        self,
        table: int,
        width: int,
        iova: int,
        physical: int,
        *,
        level: int = 1,
        rights: int = READ | WRITE,
    ) -> None:
        """Map the page of ``level`` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) around ``iova``."""
        size = 1 << 12 + 9 * (level - 1)
        assert physical % size == 0
        at = self.entry_address(table, width, iova, level)
        self.set_qword(at, physical | rights | (BIG if level > 1 else 0))
