"""Which BARs a hypervisor will find room for in a guest: told before the start (PF6).

A BAR for which there is no room may be left out without a word; the guest then sees a
function without it.  What is placed where is the hypervisor's choice, stated by its adapter
as :class:`Windows`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hil.pci.config import ConfigSpace

GIB = 1 << 30
_RESIZABLE = 0x0015


@dataclass(frozen=True, slots=True)
class WantedBar:
    """A memory BAR of a function that is to be passed."""

    owner: str
    """The function's address on the host, or whatever names it to a person."""
    index: int
    size: int
    """Bytes, a power of two."""
    wide: bool
    """64-bit."""
    bus: int = 0
    """In the guest."""
    sizes: tuple[int, ...] = ()
    """To which it could be resized, the smallest first; empty if it has one size."""

    def __str__(self) -> str:
        return f"BAR{self.index} of {self.owner} ({human(self.size)})"


@dataclass(frozen=True, slots=True)
class Windows:
    """Where a hypervisor puts the BARs of its guests.  Addresses and sizes in bytes."""

    name: str
    """For people: the hypervisor, or its firmware."""
    low: tuple[int, int]
    """First address of the window below 4 GiB, and the one after its last."""
    memory_below: int
    """Guest memory below 4 GiB, at most; all more lies at 4 GiB and up."""
    alignment: int
    """Of the start of the window above 4 GiB, which follows the guest's memory."""
    high_size: int | None
    """Of that window; ``None``: up to :attr:`high_end`."""
    high_end: int | None = None
    """The first address that a guest's processor does not have; ``None``: it is never reached."""
    large: int | None = None
    """64-bit BARs of more bytes than this go above 4 GiB, all others below.  ``None``: all go
    below if they fit there together; else all 64-bit ones above."""
    gaps: tuple[int, int] = (0, 0)
    """Left free after each bus, below and above 4 GiB; what follows begins at a multiple."""

    def high(self, memory: int) -> tuple[int, int]:
        """The window above 4 GiB of a guest with so much memory: start, and end."""
        start = _up(4 * GIB + max(0, memory - self.memory_below), self.alignment)
        ends = [start + self.high_size] if self.high_size is not None else []
        ends += [self.high_end] if self.high_end is not None else []
        return start, min(ends)


@dataclass(frozen=True, slots=True)
class Budget:
    """What became of each BAR."""

    windows: Windows
    memory: int
    """Of the guest, in bytes."""
    placed: Mapping[WantedBar, int]
    """Guest physical addresses."""
    left_out: tuple[WantedBar, ...]

    @property
    def fits(self) -> bool:
        """Whether all have a place."""
        return not self.left_out

    def describe(self) -> str:
        """A line for each BAR, the largest first, and one for each window."""
        start, end = self.windows.high(self.memory)
        lines = [
            f"{bar}: at {self.placed[bar]:#x}" if bar in self.placed else f"{bar}: NO PLACE"
            for bar in sorted((*self.placed, *self.left_out), key=lambda bar: -bar.size)
        ]
        low = self.windows.low
        lines.append(
            f"{self.windows.name}, guest with {human(self.memory)}: "
            f"{human(low[1] - low[0])} below 4 GiB (from {low[0]:#x}), "
            f"{human(max(0, end - start))} above (from {start:#x})"
        )
        return "\n".join(lines)


def plan(bars: Iterable[WantedBar], windows: Windows, memory: int) -> Budget:
    """Place the BARs as the hypervisor does: bus by bus, the largest first."""
    bars = tuple(bars)
    if windows.large is not None:
        large = windows.large
        return _placed(
            bars, windows, memory, {bar for bar in bars if bar.wide and bar.size > large}
        )
    below = _placed(bars, windows, memory, set())
    return below if below.fits else _placed(bars, windows, memory, {b for b in bars if b.wide})


def _placed(
    bars: Sequence[WantedBar], windows: Windows, memory: int, above: set[WantedBar]
) -> Budget:
    low, high = windows.low, windows.high(memory)
    free = {False: low[0], True: high[0]}
    ends = {False: low[1], True: high[1]}
    placed: dict[WantedBar, int] = {}
    left_out: list[WantedBar] = []
    for _, on_bus in itertools.groupby(sorted(bars, key=lambda bar: bar.bus), lambda bar: bar.bus):
        for bar in sorted(on_bus, key=lambda bar: -bar.size):
            where = bar in above
            address = _up(free[where], bar.size)
            if address + bar.size > ends[where]:
                left_out.append(bar)
            else:
                placed[bar] = address
                free[where] = address + bar.size
        for where, gap in zip((False, True), windows.gaps, strict=True):
            if gap:
                free[where] = _up(free[where] + gap, gap)
    return Budget(windows, memory, placed, tuple(left_out))


def advice(cards: Mapping[str, Sequence[WantedBar]], windows: Windows, memory: int) -> str:
    """What to change so that all BARs of these cards have a place; empty if they have.

    Tried in this order: one bus rather than several, less guest memory, fewer cards a guest,
    smaller BARs where these can be resized.
    """
    bars = tuple(bar for card in cards.values() for bar in card)
    if plan(bars, windows, memory).fits:
        return ""
    one_bus = [replace(bar, bus=0) for bar in bars]
    if plan(one_bus, windows, memory).fits:
        return "they fit if all are on one bus of the guest: space is left free after each bus"
    if least := _most_memory(one_bus, windows, memory):
        return f"they fit into a guest with at most {human(least)} of memory"
    guests = _split(cards, windows, memory)
    if guests is not None:
        return "they fit into separate guests: " + "; ".join(" with ".join(g) for g in guests)
    resized = _resized(one_bus, windows, memory)
    if resized:
        return "they fit once resized, before the host's driver takes them: " + ", ".join(
            f"BAR{bar.index} of {bar.owner} to {human(bar.size)}" for bar in resized
        )
    never = [name for name in cards if _split({name: cards[name]}, windows, memory) is None]
    return f"no guest of {windows.name} has room for {', '.join(never)}"


def _most_memory(bars: Sequence[WantedBar], windows: Windows, memory: int) -> int:
    """The most memory, in whole GiB, with which they fit; 0 if none is little enough."""
    fit, unfit = 0, memory // GIB + 1
    while unfit - fit > 1:
        middle = (fit + unfit) // 2
        if plan(bars, windows, middle * GIB).fits:
            fit = middle
        else:
            unfit = middle
    return fit * GIB if fit and plan(bars, windows, fit * GIB).fits else 0


def _split(
    cards: Mapping[str, Sequence[WantedBar]], windows: Windows, memory: int
) -> list[list[str]] | None:
    """The cards by guest, as few guests as first fit finds; ``None`` if one fits into none."""
    guests: list[list[str]] = []
    for name in sorted(cards, key=lambda name: -sum(bar.size for bar in cards[name])):
        for guest in [*guests, new := list[str]()]:
            together = [replace(bar, bus=0) for each in (*guest, name) for bar in cards[each]]
            if plan(together, windows, memory).fits:
                guest.append(name)
                break
        else:
            return None
        if new:
            guests.append(new)
    return guests


def _resized(bars: Sequence[WantedBar], windows: Windows, memory: int) -> list[WantedBar]:
    """The BARs to make smaller, with their new sizes; as large as will fit, empty if none will."""
    now = list(bars)
    while not (budget := plan(now, windows, memory)).fits:
        able = [bar for bar in now if bar.sizes and bar.sizes[0] < bar.size]
        able = [bar for bar in able if bar in budget.left_out] or able
        if not able:
            return []
        bar = max(able, key=lambda bar: bar.size)
        smaller = max(size for size in bar.sizes if size < bar.size)
        now[now.index(bar)] = replace(bar, size=smaller)
    return [bar for bar in now if bar not in bars]


def resizable(config: ConfigSpace) -> dict[int, tuple[int, ...]]:
    """Sizes in bytes that each resizable BAR can have, by BAR index (PCIe 7.8.6)."""
    found: dict[int, tuple[int, ...]] = {}
    capability = config.extended_capability(_RESIZABLE)
    if capability is None:
        return found
    words = [
        int.from_bytes(capability.data[at : at + 4], "little")
        for at in range(4, len(capability.data) - 3, 4)
    ]
    # The first control register says how many pairs there are.
    count = words[1] >> 5 & 7 if len(words) > 1 else 0
    for supported, control in list(zip(words[::2], words[1::2], strict=False))[:count]:
        sizes = supported >> 4 | (control >> 16) << 28
        found[control & 7] = tuple(1 << (20 + bit) for bit in range(44) if sizes >> bit & 1)
    return found


def human(size: int) -> str:
    """A size in the largest unit of which it is a whole number: ``16 GiB``."""
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
