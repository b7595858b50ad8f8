"""Where BARs go in a guest, and which are left out."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.pci.budget import GIB, WantedBar, Windows, advice, human, plan, resizable
from hil.pci.config import ConfigSpace
from hil.platforms.bar_windows import BHYVE, q35, wanted_bars
from hil.platforms.contract import Bar
from hil.simulated.faults import FaultSet
from hil.simulated.passthru import BarRequest, GuestWindows
from tests.fakes import function

MIB = 1 << 20
GUEST = 4 * GIB


def card(name: str, *sizes: int, bus: int = 0, narrow: int = 16 * MIB) -> list[WantedBar]:
    """A card with 64-bit BARs of these sizes, and a 32-bit one."""
    bars = [WantedBar(name, 2 * i + 1, size, True, bus) for i, size in enumerate(sizes)]
    return [WantedBar(name, 0, narrow, False, bus), *bars]


#: 32-bit registers, 64-bit framebuffer and a small 64-bit BAR, as on cards of that size.
P10 = card("P10", 32 * GIB, 32 * MIB)
MI50 = card("MI50", 16 * GIB, 2 * MIB, narrow=512 << 10)
DESKTOP = card("GTX", 256 * MIB, 32 * MIB)
H100 = card("H100", 128 * GIB, 32 * MIB)


@pytest.mark.parametrize("bars", [P10, MI50, DESKTOP])
def test_one_card_fits_into_a_guest_of_bhyve(bars: list[WantedBar]) -> None:
    budget = plan(bars, BHYVE, GUEST)
    assert budget.fits
    assert advice({"gpu": bars}, BHYVE, GUEST) == ""


def test_a_bar_of_more_than_32_gib_has_no_place_in_bhyve() -> None:
    budget = plan(H100, BHYVE, GUEST)
    assert [(bar.index, bar.size) for bar in budget.left_out] == [(1, 128 * GIB)]
    assert "BAR1 of H100 (128 GiB): NO PLACE" in budget.describe()
    assert "bhyve, guest with 4 GiB: 512 MiB below 4 GiB (from 0xc0000000), 32 GiB above" in (
        budget.describe()
    )
    assert advice({"gpu": H100}, BHYVE, GUEST) == "no guest of bhyve has room for gpu"


def test_cards_that_do_not_fit_together_fit_into_separate_guests() -> None:
    cards = {"P10": P10, "MI50": MI50, "GTX": DESKTOP}
    budget = plan([bar for bars in cards.values() for bar in bars], BHYVE, GUEST)
    assert {bar.owner for bar in budget.left_out} == {"MI50", "GTX"}
    assert advice(cards, BHYVE, GUEST) == ("they fit into separate guests: P10; MI50 with GTX")


def test_two_cards_that_fill_the_window_fit_on_one_bus_only() -> None:
    one, two = card("a", 16 * GIB), card("b", 16 * GIB)
    assert plan([*one, *two], BHYVE, GUEST).fits
    apart = [replace(bar, bus=1) for bar in two]
    assert [bar.owner for bar in plan([*one, *apart], BHYVE, GUEST).left_out] == ["b"]
    assert "if all are on one bus" in advice({"a": one, "b": apart}, BHYVE, GUEST)


def test_the_hole_below_4_gib_holds_512_mib() -> None:
    cards = {str(n): card(str(n), 128 * MIB) for n in range(4)}
    every = [bar for bars in cards.values() for bar in bars]
    budget = plan(every, BHYVE, GUEST)
    # 4 of 128 MiB fill it, and the 32-bit BARs come last: none is above 4 GiB.
    assert [(bar.size, bar.wide) for bar in budget.left_out] == [(16 * MIB, False)] * 4
    assert all(address < 4 * GIB for address in budget.placed.values())


def test_more_guest_memory_moves_bhyve_s_window_but_makes_it_no_smaller() -> None:
    assert BHYVE.high(GUEST) == (32 * GIB, 64 * GIB)
    assert BHYVE.high(31 * GIB) == (32 * GIB, 64 * GIB)
    assert BHYVE.high(31 * GIB + 1) == (64 * GIB, 96 * GIB)


def test_qemu_puts_bars_below_4_gib_if_all_fit_there() -> None:
    assert all(a < 4 * GIB for a in plan(DESKTOP, q35(39), GUEST).placed.values())
    above = plan(P10, q35(39), GUEST).placed
    assert {bar.index for bar, address in above.items() if address >= 4 * GIB} == {1, 3}


def test_qemu_is_bound_by_the_processor_s_addresses_and_the_guest_s_memory() -> None:
    cards = {name: card(name, 128 * GIB) for name in "abc"}
    every = [bar for bars in cards.values() for bar in bars]
    assert plan(every, q35(39), GUEST).fits
    assert not plan(every, q35(39), 256 * GIB).fits
    assert (
        advice(cards, q35(39), 256 * GIB) == "they fit into a guest with at most 126 GiB of memory"
    )
    assert plan(every, q35(46), 256 * GIB).fits


def test_a_resizable_bar_is_to_be_made_as_large_as_fits() -> None:
    sizes = tuple(256 * MIB << n for n in range(10))
    bars = [replace(bar, sizes=sizes if bar.index == 1 else ()) for bar in H100]
    assert advice({"gpu": bars}, BHYVE, GUEST) == (
        "they fit once resized, before the host's driver takes them: BAR1 of H100 to 32 GiB"
    )


def rebar(*registers: int) -> ConfigSpace:
    data = bytearray(4096)
    struct.pack_into("<HH", data, 0, 0x10DE, 0x2330)
    data[0x100 : 0x104 + 4 * len(registers)] = struct.pack(
        f"<{1 + len(registers)}I", 0x0001_0015, *registers
    )
    return ConfigSpace(bytes(data))


def test_resizable_bars_are_read() -> None:
    # 64 MiB to 128 GiB, BAR 1 of one, now 128 GiB
    assert resizable(rebar(0x0003_FFC0 << 4, 1 | 1 << 5 | 17 << 8))[1] == tuple(
        MIB << bit for bit in range(6, 18)
    )
    assert resizable(rebar(0x10, 0 | 2 << 5, 0x20, 2)) == {0: (MIB,), 2: (2 * MIB,)}
    assert resizable(rebar(0, 1 | 1 << 5 | 1 << 16)) == {1: (1 << 48,)}
    assert resizable(rebar()) == {}
    assert resizable(ConfigSpace(bytes(256))) == {}


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_whatever_stands_there_reading_does_not_fail(registers: list[int]) -> None:
    for sizes in resizable(rebar(*registers)).values():
        assert list(sizes) == sorted(sizes)


def test_the_bars_of_a_function_are_wanted_but_for_ports() -> None:
    bars = [Bar(0, 0, 4096, True), Bar(2, 0, 64, False), Bar(4, 0, 0, True)]
    (bar,) = wanted_bars(function(bars=bars))
    assert (bar.index, bar.size, bar.wide, bar.owner) == (0, 4096, False, str(function().address))


BARS = st.lists(
    st.tuples(st.integers(12, 38), st.booleans()).map(
        lambda each: (1 << min(each[0], 30) if not each[1] else 1 << each[0], each[1])
    ),
    max_size=12,
)


@given(BARS, st.integers(1, 200))
def test_the_model_of_bhyve_places_them_likewise(bars: list[tuple[int, bool]], gib: int) -> None:
    wanted = [WantedBar("x", index, size, wide) for index, (size, wide) in enumerate(bars)]
    budget = plan(wanted, BHYVE, gib * GIB)
    model = GuestWindows(gib * GIB, FaultSet()).place(
        [BarRequest("x", index, size, True, wide) for index, (size, wide) in enumerate(bars)]
    )
    for bar in wanted:
        assert model["x", bar.index] == budget.placed.get(bar, 0)


@given(BARS, st.integers(1, 200), st.sampled_from([BHYVE, q35(39)]))
def test_no_two_bars_overlap(bars: list[tuple[int, bool]], gib: int, windows: Windows) -> None:
    wanted = [WantedBar("x", index, size, wide) for index, (size, wide) in enumerate(bars)]
    placed = plan(wanted, windows, gib * GIB).placed
    ranges = sorted((address, address + bar.size) for bar, address in placed.items())
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    assert all(address % bar.size == 0 for bar, address in placed.items())
    assert all(bar.wide or address < 4 * GIB for bar, address in placed.items())


def test_sizes_are_told_in_whole_units() -> None:
    assert [human(size) for size in (0, 100, 4096, 3 * MIB, 16 * GIB, 1536 * MIB)] == [
        *("0 bytes", "100 bytes", "4 KiB", "3 MiB", "16 GiB", "1536 MiB"),
    ]
