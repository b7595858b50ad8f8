"""Memory that guests with passed devices keep from being paged: what a host has for it.

A device may write to any page of its guest at any time, so all memory of such a guest is pinned
(Linux: by VFIO, drivers/vfio/vfio_iommu_type1.c) or wired (FreeBSD: ``bhyve -S``) from before its
first instruction to its end, whatever it uses of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Pinning:
    """What a host says of it now.  All in bytes."""

    free: int
    """For guests that are to come."""
    bound: str
    """What says so, for people: ``vm.max_user_wired``."""
    pinned: int | None
    """What guests have; ``None``: it cannot be told apart from what other runs' guests have."""
    guests_only: bool = False
    """Whether :attr:`pinned` is of this run's guests only, and not of other programs too."""
    per_guest: int | None = None
    """No guest may pin more; ``None``: there is no such limit."""
    besides: int = 0
    """What a guest takes of :attr:`free` besides its memory, about."""
    overhead: int = 0
    """What a guest pins besides its memory, at most: its firmware."""
    remedy: str = ""
    """How to raise the bound, for people."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Which guests a host has memory for, all of them alive together."""

    host: Pinning
    guests: Mapping[str, int]
    """Bytes of memory by name, in the order in which they start."""
    missing: Mapping[str, int]
    """Bytes that there are too few, for each guest that cannot start once those before it run."""

    @property
    def fits(self) -> bool:
        """Whether there is memory for all."""
        return not self.missing

    def describe(self) -> str:
        """A line for each guest, and one for the host."""
        lines = [
            f"{name}, {mib(size)}: "
            + (
                f"NO MEMORY, {mib(self.missing[name] + MIB - 1)} too few"
                if name in self.missing
                else "fits"
            )
            for name, size in self.guests.items()
        ]
        lines.append(f"the host has {mib(self.host.free)} left ({self.host.bound})")
        if self.host.per_guest is not None:
            lines.append(f"and {mib(self.host.per_guest)} for each guest (RLIMIT_MEMLOCK)")
        return "\n".join(lines)

    def advice(self) -> str:
        """A layout that fits, and how to raise the bound; empty if all guests fit."""
        if self.fits:
            return ""
        said = []
        each = _each(self.host, len(self.guests))
        if each >= 64 * MIB:
            said.append(f"all of them fit with {mib(each)} each")
        left = [name for name in self.guests if name not in self.missing]
        if left:
            said.append(f"as they are, only {', '.join(left)} together")
        if not said:
            said.append("not even one of them fits")
        if self.host.remedy:
            said.append(self.host.remedy)
        return "; ".join(said)


def plan(guests: Mapping[str, int], host: Pinning) -> MemoryPlan:
    """Start guests of so many bytes one after the other, none of which ends."""
    left = host.free
    missing: dict[str, int] = {}
    for name, size in guests.items():
        lacking = size + host.besides - left
        if host.per_guest is not None:
            lacking = max(lacking, size + host.overhead - host.per_guest)
        if lacking > 0:
            missing[name] = lacking
        else:
            left -= size + host.besides
    return MemoryPlan(host, guests, missing)


def _each(host: Pinning, count: int) -> int:
    """The most memory, in whole MiB, that each of so many guests could have."""
    size = host.free // count - host.besides
    if host.per_guest is not None:
        size = min(size, host.per_guest - host.overhead)
    return max(0, size // MIB * MIB)


def mib(size: int) -> str:
    """A size in whole MiB, those begun left out: ``256 MiB``."""
    return f"{size // MIB} MiB"
