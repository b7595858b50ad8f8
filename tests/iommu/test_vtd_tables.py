"""The table reader on tables that QEMU's VT-d does not take, and on damaged ones."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hil.errors import LabError
from hil.iommu.tables import Kind, Mapping, Translation, TranslationFault
from hil.iommu.vtd import Reason, TranslationType, VtdTables
from tests.iommu.vtd_builder import BIG, READ, WRITE, Image

RID = 0x0310
GIB = 1 << 30


@pytest.mark.parametrize("width", [39, 48, 57])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_each_depth_and_page_size(width: int, level: int) -> None:
    image = Image()
    table = image.context(RID, domain=5, width=width)
    size = 1 << 12 + 9 * (level - 1)
    iova = (1 << width) - 3 * size
    image.map(table, width, iova, 8 * size, level=level, rights=READ)
    reader = VtdTables(image, image.root)
    entry = reader.entry(RID)
    assert entry is not None
    assert (entry.present, entry.domain, entry.address_width) == (True, 5, width)
    assert (entry.translation_type, entry.page_table_root) == (TranslationType.UNTRANSLATED, table)
    assert reader.translate(RID, iova + 5, False) == Translation(8 * size + 5, size, True, False)
    denied = reader.translate(RID, iova + 5, True)
    assert isinstance(denied, TranslationFault)
    assert denied.reason is Reason.WRITE_DENIED
    beyond = reader.translate(RID, 1 << width, False)
    assert isinstance(beyond, TranslationFault)
    assert beyond.reason is Reason.ADDRESS_BEYOND_WIDTH
    assert reader.mappings(RID) == (Mapping(iova, 8 * size, size, True, False),)


def test_device_tlb_needs_the_capability() -> None:
    image = Image()
    table = image.context(RID, kind=1)
    image.map(table, 48, 0x1000, 0x2000)
    assert isinstance(VtdTables(image, image.root).translate(RID, 0x1000, True), Translation)
    lacking = VtdTables(image, image.root, extended_capability=0)
    outcome = lacking.translate(RID, 0x1000, True)
    assert isinstance(outcome, TranslationFault)
    assert outcome.reason is Reason.CONTEXT_INVALID
    assert lacking.mappings(RID) == ()


def test_pass_through_reaches_everything() -> None:
    image = Image()
    image.context(RID, kind=2)
    reader = VtdTables(image, image.root, capability=0x00D2008C222F0606)
    assert reader.translate(RID, 0x12345678, True) == Translation(0x12345678, 0, True, True)
    assert reader.mappings(RID) == (Mapping(0, 0, 1 << 48, True, True),)


def test_big_pages_need_the_capability() -> None:
    image = Image()
    table = image.context(RID)
    image.map(table, 48, 0, 0, level=2)
    none_big = 0x00D2008C222F0606 & ~(3 << 34)
    outcome = VtdTables(image, image.root, capability=none_big).translate(RID, 0, True)
    assert isinstance(outcome, TranslationFault)
    assert outcome.reason is Reason.PAGING_RESERVED


def test_the_interrupt_range_is_never_memory() -> None:
    image = Image()
    table = image.context(RID)
    image.map(table, 48, 0xFEE00000, 0x5000)
    image.map(table, 48, 0x1000, 0xFEE00000)
    for iova in (0xFEE00000, 0x1000):
        outcome = VtdTables(image, image.root).translate(RID, iova, True)
        assert isinstance(outcome, TranslationFault)
        assert outcome.reason is Reason.INTERRUPT_ADDRESS


@pytest.mark.parametrize(
    ("bits", "name"), [(0x400, "scalable mode"), (0x800, "extended mode"), (0xC00, "abort-DMA")]
)
def test_other_modes_are_refused_by_name(bits: int, name: str) -> None:
    with pytest.raises(LabError, match=name) as caught:
        VtdTables(Image(), 0x1000000 | bits)
    assert caught.value.hint


def test_an_empty_bus_and_a_stale_entry() -> None:
    image = Image()
    table = image.context(RID, present=False, domain=9)
    reader = VtdTables(image, image.root)
    assert reader.entry(0x0400) is None
    stale = reader.entry(RID)
    assert stale is not None
    assert (stale.present, stale.page_table_root, stale.domain) == (False, table, 9)
    assert list(reader.entries()) == []
    assert reader.mappings(RID) == reader.mappings(0x0400) == ()


def test_entries_come_in_order_with_bus_255() -> None:
    image = Image()
    for requester_id in (0xFFFF, 0x0310, 0x0008):
        image.context(requester_id, domain=requester_id & 0xF)
    found = [entry.requester_id for entry in VtdTables(image, image.root).entries()]
    assert found == [0x0008, 0x0310, 0xFFFF]


def test_adjacent_pages_merge_if_alike() -> None:
    image = Image()
    table = image.context(RID, width=39)
    for n in range(3):
        image.map(table, 39, 0x10000 + n * 4096, 0x50000 + n * 4096)
    image.map(table, 39, 0x13000, 0x53000, rights=READ)
    image.map(table, 39, 0x14000, 0x90000, rights=READ)
    image.map(table, 39, 0x16000, 0x92000, rights=0)
    image.map(table, 39, 1 << 21, 1 << 21, level=2)
    assert VtdTables(image, image.root).mappings(RID) == (
        Mapping(0x10000, 0x50000, 0x3000, True, True),
        Mapping(0x13000, 0x53000, 0x1000, True, False),
        Mapping(0x14000, 0x90000, 0x1000, True, False),
        Mapping(1 << 21, 1 << 21, 1 << 21, True, True),
    )


def test_of_contiguous_memory_only_what_exists_is_a_range() -> None:
    image = Image()
    table = image.context(RID, width=39)
    for n in range(512):
        image.map(table, 39, n << 12, (1 << 32) - (100 - n) * 4096)
        if n:
            image.map(table, 39, n << 21, n << 21, level=2)
    reader = VtdTables(image, image.root, host_address_width=32)
    assert reader.mappings(RID) == (
        Mapping(0, (1 << 32) - 100 * 4096, 100 * 4096, True, True),
        Mapping(1 << 21, 1 << 21, (1 << 30) - (1 << 21), True, True),
    )


@pytest.mark.parametrize("seed", range(20))
def test_ranges_and_single_addresses_agree(seed: int) -> None:
    rng = random.Random(seed)
    image = Image()
    table = image.context(RID, width=39)
    for _ in range(30):
        iova = rng.randrange(1 << 12) << 12
        image.map(table, 39, iova, rng.randrange(64) << 12, rights=rng.choice([0, 1, 2, 3, 3]))
    at = image.entry_address(table, 39, 0, 2)
    image.set_qword(at, image.qword(at) & ~rng.choice([READ, WRITE]))
    image.set_qword(image.entry_address(table, 39, 8 << 21, 2), BIG | 4 << 21 | 3)
    # Whole tables of contiguous memory, but for some page of every second one.
    for start in (9 << 21, 10 << 21, 11 << 21):
        physical = rng.randrange(64) << 12
        for offset in range(0, 1 << 21, 4096):
            image.map(table, 39, start + offset, physical + offset)
        if rng.random() < 0.5:
            at = start + (rng.randrange(512) << 12)
            image.map(table, 39, at, rng.randrange(64) << 12, rights=rng.choice([0, 1, 3]))
    reader = VtdTables(image, image.root)
    covered = {
        (iova, mapping.physical + iova - mapping.iova, mapping.readable, mapping.writable)
        for mapping in reader.mappings(RID)
        for iova in range(mapping.iova, mapping.iova + mapping.length, 4096)
    }
    single = set()
    for iova in range(0, 1 << 25, 4096):
        outcomes = [reader.translate(RID, iova, write) for write in (False, True)]
        allowed = [isinstance(outcome, Translation) for outcome in outcomes]
        good = next((o for o in outcomes if isinstance(o, Translation)), None)
        if good is not None:
            single.add((iova, good.physical, allowed[0], allowed[1]))
    assert covered == single


def test_tables_that_contain_themselves_end_in_an_error() -> None:
    image = Image()
    table = image.context(RID, width=48)
    for index in range(512):
        image.set_qword(table + 8 * index, table | 3)
    reader = VtdTables(image, image.root)
    reader.TABLE_LIMIT = 200
    with pytest.raises(LabError, match="damaged"):
        reader.mappings(RID, limit=1 << 30)
    with pytest.raises(LabError, match="more than 10 ranges"):
        reader.mappings(RID, limit=10)


def test_tables_outside_memory_are_an_error_that_names_them() -> None:
    image = Image()
    table = image.context(RID)
    image.set_qword(table, 0x7000_0000 | 3)
    with pytest.raises(LabError, match="level 3 table at 0x70000000 cannot be read"):
        VtdTables(image, image.root).translate(RID, 0, True)
    with pytest.raises(LabError, match="root table"):
        VtdTables(image, 0x6000_0000).entry(RID)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 2**64 - 1)), max_size=8),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.booleans(),
)
def test_any_tables_are_read(
    entries: list[tuple[int, int]], low: int, high: int, address: int, write: bool
) -> None:
    """Random contents give an answer or a LabError, and never run on."""
    image = Image()
    table = image.context(RID)
    for index, value in entries:
        image.set_qword(table + 8 * index, value)
        # lead the walk into our own pages often
        image.set_qword(table + 8 * (index ^ 1), value & 0xFFF | table)
    at = image.context_address(RID)
    image.set_qword(at, low & 0xFFF | table)
    image.set_qword(at + 8, high)
    reader = VtdTables(image, image.root)
    reader.TABLE_LIMIT = 50
    for act in (
        lambda: reader.translate(RID, address, write),
        lambda: reader.translate(RID, address & 0xFFFFFFFFFF, write),
        lambda: reader.mappings(RID),
        reader.describe,
    ):
        try:
            act()
        except LabError as error:
            if "cannot be read" not in error.message and "damaged" not in error.message:
                raise


@pytest.mark.parametrize(
    ("low", "high", "kind", "words"),
    [
        (0, 0, Kind.BLOCKED, "(not present) UNTR SLPT 0x1000 width 0 domain 0"),
        (1, 2 | 7 << 8, Kind.TRANSLATED, "UNTR SLPT 0x1000 width 48 domain 7"),
        (5, 1 | 7 << 8, Kind.TRANSLATED, "TR SLPT 0x1000 width 39 domain 7"),
        (9, 2 | 7 << 8, Kind.PASS_THROUGH, "PASS domain 7"),
        (8, 2 | 7 << 8, Kind.BLOCKED, "(not present) PASS domain 7"),
        (13, 2 | 7 << 8, Kind.BLOCKED, "RSVD domain 7"),
        (
            3,
            2 | 1 << 24,
            Kind.BLOCKED,
            "FPD UNTR SLPT 0x1000 width 48 domain 0 (reserved bits set)",
        ),
        (1, 5, Kind.BLOCKED, "UNTR SLPT 0x1000 width 0 domain 0"),
    ],
)
def test_what_becomes_of_dma(low: int, high: int, kind: Kind, words: str) -> None:
    image = Image()
    at = image.context_address(RID)
    image.set_qword(at, low | 0x1000)
    image.set_qword(at + 8, high)
    entry = VtdTables(image, image.root, unit=0xFED90000).entry(RID)
    assert entry is not None
    assert (entry.kind, entry.unit, entry.describe()) == (kind, 0xFED90000, words)
