"""The table reader against QEMU's VT-d: DMA lands, or faults, exactly where it says.

Each case is random tables (seeded: the test's id is the seed) and one DMA by an
``edu`` engine.  The same check must catch readers that are wrong on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from hil.emulated.qtest import QTest
from hil.errors import LabError
from hil.iommu.tables import INTERRUPT_RANGE, Translation, TranslationFault
from hil.iommu.vtd import ContextEntry, Reason, VtdTables
from tests.iommu.edu_machine import (
    ARENA,
    ARENA_SIZE,
    TABLES,
    WINDOW,
    Case,
    check_caught,
    disagreements,
)
from tests.iommu.memory_image import PAGE
from tests.iommu.vtd_builder import READ, WRITE, Image
from tests.iommu.vtd_machine import VtdMachine

CASES = 50
WINDOW_IOVA = 0x7000


@pytest.fixture(scope="module")
def machine() -> Iterator[VtdMachine]:
    with VtdMachine() as running:
        yield running


def random_case(rng: random.Random, requester_ids: list[int]) -> Case[Image]:
    image = Image(TABLES)
    requester_id, other = rng.sample(requester_ids, 2)
    length = rng.choice([1, 8, rng.randint(1, PAGE), PAGE])
    write = rng.random() < 0.6
    width = rng.choice([39, 48])
    image.context(other, domain=7)
    if rng.random() < 0.05:
        image.set_qword(image.root + 16 * (requester_id >> 8), 0)
        return Case(image, requester_id, ARENA, length, write, None)
    kind = rng.choice([0] * 9 + [2])
    table = image.context(
        requester_id,
        domain=rng.randint(1, 0xFFFF),
        kind=kind,
        width=48 if kind == 2 else width,
        present=rng.random() < 0.95,
        fault_disabled=rng.random() < 0.2,
    )
    arena_offset = rng.randrange(0, ARENA_SIZE - 3 * PAGE)
    if kind == 2:
        return Case(image, requester_id, ARENA + arena_offset, length, write, WINDOW)
    if rng.random() < 0.05:
        at = image.context_address(requester_id)
        image.set_qword(at, image.qword(at) | 1 << rng.randrange(4, 12))
    image.map(table, width, WINDOW_IOVA, WINDOW)
    # far from the window, and congruent to the arena so that big pages can lead there
    base = rng.randrange(1, (1 << width) >> 30) << 30
    address = base + ARENA % (1 << 30) + arena_offset
    if address in INTERRUPT_RANGE or address + length in INTERRUPT_RANGE:
        address += 1 << 30
    level = rng.choice([1, 1, 1, 2, 3])
    rights = rng.choice([READ | WRITE] * 4 + [READ, WRITE, 0])
    if level == 1:
        for page in range(address & ~(PAGE - 1), address + length, PAGE):
            if rng.random() < 0.9:
                target = ARENA + rng.randrange(ARENA_SIZE // PAGE) * PAGE
                mine = rng.choice([READ | WRITE, READ | WRITE, rights])
                image.map(table, width, page, target, rights=mine)
    else:
        physical = ARENA if level == 2 else ARENA & ~((1 << 30) - 1)
        image.map(table, width, address, physical, level=level, rights=rights)
    spoil(rng, image, table, width, address, level)
    if rng.random() < 0.05:
        address |= 1 << rng.randrange(width, 52)
    return Case(image, requester_id, address, length, write, WINDOW_IOVA)


def spoil(
    rng: random.Random, image: Image, table: int, width: int, address: int, leaf: int
) -> None:
    """Sometimes take a permission from an upper entry, or set a bit of some entry."""
    levels = {39: 3, 48: 4}[width]
    chosen = rng.randint(leaf, levels)
    at = image.entry_address(table, width, address, chosen)
    value = image.qword(at)
    dice = rng.random()
    if dice < 0.15 and chosen > leaf:
        image.set_qword(at, value & ~rng.choice([READ, WRITE, READ | WRITE]))
    elif dice < 0.25:
        # reserved at some levels, ignored at others
        image.set_qword(at, value | 1 << rng.choice([8, 9, 10, 11, 50, 51, 52, 58, 61, 63]))
    elif dice < 0.3 and leaf > 1:
        leaf_at = image.entry_address(table, width, address, leaf)
        image.set_qword(leaf_at, image.qword(leaf_at) | 1 << rng.randrange(12, 21))


def reader_of(machine: VtdMachine, reader_class: type[VtdTables] = VtdTables) -> VtdTables:
    registers = machine.registers()
    return reader_class(
        machine.qtest,
        registers.root_table,
        capability=registers.capability,
        extended_capability=registers.extended_capability,
        host_address_width=48,
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_dma_goes_where_the_reader_says(machine: VtdMachine, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(CASES):
        case = random_case(rng, list(machine.functions))
        found = disagreements(machine, case, partial(reader_of, machine), rng)
        assert not found, f"seed {seed}, case {number}: {found}\n{case}"


def test_random_cases_reach_every_outcome(machine: VtdMachine) -> None:
    """The random cases are not all of one kind: each fault, each size of page is there."""
    rng = random.Random(0)
    seen: set[object] = set()
    for _ in range(600):
        case = random_case(rng, list(machine.functions))
        registers = machine.registers()
        reader = VtdTables(
            case.image,
            case.image.root,
            capability=registers.capability,
            extended_capability=registers.extended_capability,
            host_address_width=48,
        )
        outcome = reader.translate(case.requester_id, case.address, case.write)
        seen.add(outcome.page_size if isinstance(outcome, Translation) else outcome.reason)
        if isinstance(outcome, TranslationFault) and not outcome.recorded:
            seen.add("not recorded")
    assert seen == {
        0,
        PAGE,
        2 << 20,
        1 << 30,
        Reason.ROOT_NOT_PRESENT,
        Reason.CONTEXT_NOT_PRESENT,
        Reason.CONTEXT_RESERVED,
        Reason.ADDRESS_BEYOND_WIDTH,
        Reason.WRITE_DENIED,
        Reason.READ_DENIED,
        Reason.PAGING_RESERVED,
        "not recorded",
    }


# -- readers that are wrong on purpose ------------------------------------------------


class OneLevelOff(VtdTables):
    def entry(self, requester_id: int) -> ContextEntry | None:
        entry = super().entry(requester_id)
        if entry is None:
            return None
        return replace(entry, address_width={39: 48, 48: 39, 0: 0}[entry.address_width])


class NoBigPages(VtdTables):
    def _is_leaf(self, level: int, value: int) -> bool:
        return level == 1


class IgnoresReservedBits(VtdTables):
    def _reserved(self, level: int, value: int) -> int:
        return 0


class IgnoresWrite(VtdTables):
    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        return super().translate(requester_id, address, False)


class IgnoresTheBus(VtdTables):
    def entry(self, requester_id: int) -> ContextEntry | None:
        return super().entry(requester_id & 0xFF)


class IgnoresFaultDisable(VtdTables):
    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        outcome = super().translate(requester_id, address, write)
        return replace(outcome, recorded=True) if isinstance(outcome, TranslationFault) else outcome


class ForgetsTheOffset(VtdTables):
    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        return super().translate(requester_id, address & ~(PAGE - 1), write)


class PassesAll(VtdTables):
    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        return Translation(address, 0, readable=True, writable=True)


@pytest.mark.parametrize(
    "wrong",
    [
        OneLevelOff,
        NoBigPages,
        IgnoresReservedBits,
        IgnoresWrite,
        IgnoresTheBus,
        IgnoresFaultDisable,
        ForgetsTheOffset,
        PassesAll,
    ],
)
def test_a_wrong_reader_is_caught(machine: VtdMachine, wrong: type[VtdTables]) -> None:
    check_caught(machine, random_case, partial(reader_of, machine, wrong), wrong.__name__)


# -- single facts ---------------------------------------------------------------------


def test_translation_disabled_means_physical_addresses() -> None:
    with VtdMachine() as machine:
        registers = machine.registers()
        assert not registers.translation_enabled
        assert registers.unit(machine.qtest, 0xFED90000).tables is None
        requester_id = next(iter(machine.functions))
        machine.qtest.write(ARENA, b"abcd")
        machine.dma(requester_id, ARENA, 4, write=False)
        machine.dma(requester_id, WINDOW, 4, write=True)
        assert machine.qtest.read(WINDOW, 4) == b"abcd"


def test_an_address_width_that_the_unit_lacks_is_refused_by_both() -> None:
    with VtdMachine(width=39) as machine:
        requester_id = next(iter(machine.functions))
        image = Image(TABLES)
        table = image.context(requester_id, width=48)
        image.map(table, 48, 0x5000, ARENA)
        found = disagreements(
            machine,
            Case(image, requester_id, 0x5000, 8, False, None),
            partial(reader_of, machine),
            random.Random(2),
        )
        assert not found
        unit = machine.registers().unit(machine.qtest, 0xFED90000)
        assert unit.tables is not None
        outcome = unit.tables.translate(requester_id, 0x5000, False)
        assert isinstance(outcome, TranslationFault)
        assert outcome.reason is Reason.CONTEXT_INVALID


def test_a_full_unit_records_anew_once_it_is_cleared(machine: VtdMachine) -> None:
    image = Image(TABLES)
    first, second = machine.functions
    for requester_id in (first, second):
        image.context(requester_id, domain=2, width=39)
    machine.use(image)

    def recorded(requester_id: int, address: int) -> list[int | None]:
        machine.dma(requester_id, address, 64, write=True)
        return [fault.address for fault in machine.registers().faults()]

    assert recorded(first, 0x5000) == [0x5000]
    assert recorded(second, 0x6000) == [0x5000]
    assert machine.registers().fault_overflow
    machine.clear_faults()
    assert not machine.registers().fault_overflow
    assert machine.registers().clearing_writes() == ()
    assert recorded(second, 0x7000) == [0x7000]
    machine.clear_faults()


def test_the_unit_and_its_entries_are_shown(machine: VtdMachine) -> None:
    image = Image(TABLES)
    first, second = machine.functions
    table = image.context(first, domain=2, width=39)
    image.context(second, domain=3, kind=2, fault_disabled=True)
    machine.use(image)
    registers = machine.registers()
    assert registers.version == (1, 0)
    assert registers.translation_enabled
    text = registers.unit(machine.qtest, 0xFED90000).describe()
    assert text.splitlines() == [
        "drhd @ 0xfed90000 PCI segment 0:",
        f"root table @ {TABLES:#018x}",
        "  bus 00:",
        f"    02.0 UNTR SLPT {table:#x} width 39 domain 2",
        "  bus 01:",
        "    00.0 FPD PASS domain 3",
    ]


def test_memory_that_is_not_there_is_an_error() -> None:
    with QTest(memory=1 << 20) as small, pytest.raises(LabError, match="no memory at"):
        small.read((1 << 20) - 4, 8)
