"""The table reader against QEMU's AMD-Vi: DMA lands, or does not, exactly where it says.

As ``test_vtd_qemu.py`` does for VT-d; :mod:`tests.iommu.amdvi_machine` tells what QEMU lacks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from hil.emulated.machine import find_qemu
from hil.iommu.amdvi import AmdviTables, DeviceTableEntry, Reason
from hil.iommu.tables import INTERRUPT_RANGE, Kind, Translation, TranslationFault
from tests.iommu.amdvi_builder import READ, VALID, WRITE, Image, level_bits
from tests.iommu.amdvi_machine import UNIT, AmdviMachine
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

pytestmark = pytest.mark.skipif(
    find_qemu().version < (10, 0), reason="the AMD-Vi of QEMU before 10.0 was never compared"
)

CASES = 50
MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(scope="module")
def machine() -> Iterator[AmdviMachine]:
    with AmdviMachine() as running:
        yield running


def random_case(rng: random.Random, requester_ids: list[int]) -> Case[Image]:
    image = Image(TABLES)
    requester_id, other = rng.sample(requester_ids, 2)
    length = rng.choice([1, 8, rng.randint(1, PAGE), PAGE])
    write = rng.random() < 0.6
    image.device(other, domain=7)
    # QEMU takes bit 8 of a domain id for a reserved one
    domain = rng.randrange(1 << 16) & ~0x100
    rights = rng.choice([READ | WRITE] * 6 + [READ, WRITE, 0])
    arena_offset = rng.randrange(0, ARENA_SIZE - 3 * PAGE)
    straight = Case(image, requester_id, ARENA + arena_offset, length, write)
    dice = rng.random()
    if dice < 0.05:
        # not valid: all else in it is without meaning
        mode = rng.randrange(8)
        image.device(
            requester_id, domain=domain, mode=mode, rights=rights, flags=rng.choice([0, 2])
        )
        return straight
    if dice < 0.1:
        image.device(requester_id, domain=domain, mode=3, rights=0, flags=VALID)
        return straight
    mode = rng.choice([0, 7]) if dice < 0.2 else rng.randint(1, 6)
    table = image.device(requester_id, domain=domain, mode=mode, rights=rights)
    if rng.random() < 0.05:
        at = image.entry_at(requester_id)
        image.set_qword(at, image.qword(at) | 1 << rng.choice([2, 3, 63]))
    if mode in (0, 7):
        return straight
    levels = tuple(range(mode, 0, -1))
    if mode > 2 and rng.random() < 0.3:
        levels = tuple(sorted({mode, 1, *rng.sample(levels, rng.randint(0, 2))}, reverse=True))
    small = rng.random() < 0.6
    depth = len(levels) if small else rng.randint(1, len(levels))
    size = 1 << 12 + 9 * (levels[depth - 1] - 1)
    if not small and levels[depth - 1] < 6:
        size <<= rng.randint(0, 4)
    address = random_address(rng, levels, size, ARENA + arena_offset)
    if small:
        for page in range(address & ~(PAGE - 1), address + length, PAGE):
            if rng.random() < 0.9:
                target = ARENA + rng.randrange(ARENA_SIZE // PAGE) * PAGE
                mine = rng.choice([READ | WRITE, READ | WRITE, READ, WRITE, 0])
                image.map(table, levels, page, target, rights=mine)
    else:
        rights = rng.choice([READ | WRITE, READ | WRITE, READ, WRITE])
        image.map(table, levels[:depth], address, ARENA & ~(size - 1), rights=rights, size=size)
    spoil(rng, image, table, levels, address)
    return Case(image, requester_id, address, length, write)


def random_address(rng: random.Random, levels: tuple[int, ...], size: int, physical: int) -> int:
    """One that a page of ``size`` can map to ``physical``; bits of skipped levels are 0."""
    bits = PAGE - 1
    for level in levels:
        bits |= 0x1FF << 12 + 9 * (level - 1)
    bits &= (1 << 64) - 1
    while True:
        address = rng.randrange(1 << 64) & bits & -size | physical & (size - 1)
        both = address, address + PAGE
        if not any(one in INTERRUPT_RANGE or one & ~(bits | size - 1) for one in both):
            return address


def spoil(
    rng: random.Random, image: Image, table: int, levels: tuple[int, ...], address: int
) -> None:
    """Sometimes take a permission, or presence, from an entry, or set an ignored bit of it."""
    at = table + 8 * (address >> 12 + 9 * (levels[0] - 1) & 0x1FF)
    for _ in range(rng.randrange(len(levels))):
        below = image.qword(at) >> 9 & 7
        if below in (0, 7):
            break
        base = image.qword(at) & ((1 << 52) - PAGE)
        at = base + 8 * (address >> 12 + 9 * (below - 1) & 0x1FF)
    value = image.qword(at)
    if not value:
        return
    leads_to_a_page = value >> 9 & 7 in (0, 7)
    dice = rng.random()
    if dice < 0.15:
        image.set_qword(at, value & ~rng.choice([READ, WRITE, READ | WRITE]))
    elif dice < 0.2 and not leads_to_a_page:
        image.set_qword(at, value & ~1)
    elif dice < 0.3:
        image.set_qword(at, value | 1 << rng.choice([1, 2, 3, 4, 5, 6, 63]))


def reader_of(machine: AmdviMachine, reader_class: type[AmdviTables] = AmdviTables) -> AmdviTables:
    registers = machine.registers()
    return reader_class(
        machine.qtest, registers.device_table, extended_features=registers.extended_features
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_dma_goes_where_the_reader_says(machine: AmdviMachine, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(CASES):
        case = random_case(rng, list(machine.functions))
        found = disagreements(machine, case, partial(reader_of, machine), rng)
        assert not found, f"seed {seed}, case {number}: {found}\n{case}"


def test_random_cases_reach_every_outcome(machine: AmdviMachine) -> None:
    """The random cases are not all of one kind: each fault, each way of mapping is there."""
    rng = random.Random(0)
    seen: set[object] = set()
    sizes: set[int] = set()
    for _ in range(1500):
        case = random_case(rng, list(machine.functions))
        reader = AmdviTables(case.image, case.image.register)
        outcome = reader.translate(case.requester_id, case.address, case.write)
        entry = reader.entry(case.requester_id)
        assert entry is not None
        seen.add((entry.mode, entry.kind))
        if isinstance(outcome, Translation):
            sizes.add(outcome.page_size)
        else:
            seen.add(outcome.reason)
    assert {reason for reason in seen if isinstance(reason, Reason)} == {
        Reason.ENTRY_RESERVED,
        Reason.ENTRY_LEVELS,
        Reason.NOT_TRANSLATED,
        Reason.NOT_PRESENT,
        Reason.READ_DENIED,
        Reason.WRITE_DENIED,
    }
    assert {(mode, Kind.TRANSLATED) for mode in range(1, 7)} <= seen
    assert {(0, Kind.PASS_THROUGH), (0, Kind.BLOCKED), (7, Kind.BLOCKED)} <= seen
    assert {0, PAGE, 2 * PAGE, 2 * MIB, 4 * MIB, GIB, 2 * GIB, 512 * GIB} <= sizes


# -- readers that are wrong on purpose ------------------------------------------------


class OneLevelOff(AmdviTables):
    def entry(self, requester_id: int) -> DeviceTableEntry | None:
        entry = super().entry(requester_id)
        if entry is None or not 1 < entry.mode < 7:
            return entry
        return replace(entry, mode=entry.mode - 1)


class UntouchedIsBlocked(AmdviTables):
    def entry(self, requester_id: int) -> DeviceTableEntry | None:
        entry = super().entry(requester_id)
        return None if entry is None or not entry.present else entry


class NoCodedSizes(AmdviTables):
    def _below(self, level: int, value: int) -> int | Reason:
        return Reason.LEVEL_INVALID if value >> 9 & 7 == 7 else super()._below(level, value)


class OnlySmallPages(AmdviTables):
    def _below(self, level: int, value: int) -> int | Reason:
        below = super()._below(level, value)
        return Reason.LEVEL_INVALID if below == 0 and level > 1 else below


class NeverSkips(AmdviTables):
    def _below(self, level: int, value: int) -> int | Reason:
        below = super()._below(level, value)
        return below if isinstance(below, Reason) or below == 0 else level - 1


class IgnoresReservedBits(AmdviTables):
    def entry(self, requester_id: int) -> DeviceTableEntry | None:
        entry = super().entry(requester_id)
        return None if entry is None else replace(entry, reserved_bits=False)


class IgnoresPresence(AmdviTables):
    def _below(self, level: int, value: int) -> int | Reason:
        return super()._below(level, value | 1 if value else value)


class IgnoresTheEntrysRights(AmdviTables):
    def entry(self, requester_id: int) -> DeviceTableEntry | None:
        entry = super().entry(requester_id)
        return None if entry is None else replace(entry, readable=True, writable=True)


class IgnoresWrite(AmdviTables):
    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        return super().translate(requester_id, address, False)


class IgnoresTheFunction(AmdviTables):
    def entry(self, requester_id: int) -> DeviceTableEntry | None:
        return super().entry(requester_id & ~7)


class ForgetsTheOffset(AmdviTables):
    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        return super().translate(requester_id, address & ~(PAGE - 1), write)


class PassesAll(AmdviTables):
    def translate(
        self, requester_id: int, address: int, write: bool
    ) -> Translation | TranslationFault:
        return Translation(address, 0, readable=True, writable=True)


@pytest.mark.parametrize(
    "wrong",
    [
        OneLevelOff,
        UntouchedIsBlocked,
        NoCodedSizes,
        OnlySmallPages,
        NeverSkips,
        IgnoresReservedBits,
        IgnoresPresence,
        IgnoresTheEntrysRights,
        IgnoresWrite,
        IgnoresTheFunction,
        ForgetsTheOffset,
        PassesAll,
    ],
)
def test_a_wrong_reader_is_caught(machine: AmdviMachine, wrong: type[AmdviTables]) -> None:
    check_caught(machine, random_case, partial(reader_of, machine, wrong), wrong.__name__)


# -- single facts ---------------------------------------------------------------------


def test_a_unit_that_is_not_enabled_passes_all() -> None:
    with AmdviMachine() as machine:
        assert not machine.registers().translation_enabled
        assert machine.registers().unit(machine.qtest, UNIT).tables is None
        requester_id = next(iter(machine.functions))
        machine.qtest.write(ARENA, b"abcd")
        machine.dma(requester_id, ARENA, 4, write=False)
        machine.dma(requester_id, WINDOW, 4, write=True)
        assert machine.qtest.read(WINDOW, 4) == b"abcd"


def test_qemu_translates_only_if_pass_through_is_off() -> None:
    """With pt=on, its default, all DMA passes whatever the tables say."""
    with AmdviMachine(passes=True) as machine:
        requester_id = next(iter(machine.functions))
        image = Image(TABLES)
        image.device(requester_id, rights=0, mode=0)
        case = Case(image, requester_id, ARENA, 8, True)
        found = disagreements(machine, case, partial(reader_of, machine), random.Random(3))
        assert found == ["memory differs from the expected at arena + 0x0"]


def test_the_unit_and_its_entries_are_shown(machine: AmdviMachine) -> None:
    image = Image(TABLES)
    first, second = machine.functions
    table = image.device(first, domain=2)
    image.device(second, domain=3, mode=0, rights=READ, more=1 << 33)
    machine.use(image)
    registers = machine.registers()
    assert registers.translation_enabled
    assert registers.event_log_enabled
    assert (registers.event_log_size, registers.event_tail) == (4096, 0)
    assert registers.extended_features >> 10 & 3 == 2
    text = registers.unit(machine.qtest, UNIT).describe()
    assert text.splitlines() == [
        "ivhd @ 0xfed80000 PCI segment 0:",
        f"device table @ {TABLES:#018x}, 0x80 entries",
        "  bus 00:",
        f"    02.0 TV=1 mode 4 root {table:#x} IR=1 IW=1 domain 2",
        "    0d.3 TV=1 mode 0 IR=1 IW=0 domain 3 SE",
    ]


def test_an_entry_of_a_removed_function_still_leads_where_it_led(machine: AmdviMachine) -> None:
    """What bhyve leaves after amdvi_remove_device: V, TV, root and rights as they were."""
    requester_id = next(iter(machine.functions))
    image = Image(TABLES)
    table = image.device(requester_id, domain=0, more=1 << 33)
    image.map(table, (4, 3, 2, 1), 0x5000, ARENA)
    case = Case(image, requester_id, 0x5000, 8, True)
    assert not disagreements(machine, case, partial(reader_of, machine), random.Random(4))
    outcome = reader_of(machine).translate(requester_id, 0x5000, True)
    assert outcome == Translation(ARENA, PAGE, readable=True, writable=True)
    assert image.qword(image.entry_at(requester_id)) & level_bits(7) == level_bits(4)
