"""The page cache around a source of physical memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.errors import LabError
from hil.iommu.memory import PAGE, CachedMemory

MIB = 1 << 20


class Source:
    """Every byte is its page's number, up to 8 MiB; remembers what was asked for, in pages."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def read(self, address: int, length: int) -> bytes:
        if address + length > 8 * MIB:
            raise LabError("no memory")
        self.asked.append((address // PAGE, length // PAGE))
        pages = range(address // PAGE, (address + length) // PAGE)
        return b"".join(bytes([page & 0xFF]) * PAGE for page in pages)


def test_each_page_is_read_once_and_neighbours_together() -> None:
    source = Source()
    memory = CachedMemory(source)
    assert memory.read(0x1FFE, 4) == b"\x01\x01\x02\x02"
    assert memory.read(0x0, 0x5000) == b"".join(bytes([n]) * PAGE for n in range(5))
    assert memory.read(0x1003, 0) == b""
    assert source.asked == [(1, 2), (0, 1), (3, 2)]


def test_long_spans_come_in_pieces() -> None:
    source = Source()
    assert len(CachedMemory(source).read(PAGE, 2 * MIB)) == 2 * MIB
    assert source.asked == [(1, 256), (257, 256)]


def test_what_cannot_be_read_is_an_error_and_nothing_is_kept() -> None:
    memory = CachedMemory(Source())
    with pytest.raises(LabError):
        memory.read(8 * MIB - PAGE, 2 * PAGE)
    assert memory.read(8 * MIB - PAGE, PAGE) == b"\xff" * PAGE


def test_pages_that_a_walk_expects_are_read_at_once_and_errors_come_when_wanted() -> None:
    source = Source()
    memory = CachedMemory(source)
    memory.read(2 * PAGE, 1)
    memory.expect([5 * PAGE, 3 * PAGE + 8, 2 * PAGE, 4 * PAGE, 8 * MIB])
    memory.read(3 * PAGE, 3 * PAGE)
    assert source.asked == [(2, 1), (3, 3)]
    with pytest.raises(LabError):
        memory.read(8 * MIB, 1)


@given(st.lists(st.tuples(st.integers(0, 64 * PAGE), st.integers(0, 5 * PAGE)), max_size=6))
def test_any_spans_are_as_the_source_has_them(spans: list[tuple[int, int]]) -> None:
    source = Source()
    memory = CachedMemory(source)
    for address, length in spans:
        expected = bytes(n // PAGE & 0xFF for n in range(address, address + length))
        assert memory.read(address, length) == expected
    asked = [page for first, count in source.asked for page in range(first, first + count)]
    assert len(asked) == len(set(asked))
