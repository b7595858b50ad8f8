"""Are there interrupt vectors for all cards of a cluster?  Told before the start.

A message-signalled interrupt (MSI, MSI-X) takes a vector of a processor in the guest, whose kernel
gives it to a driver, and one on the host, which passes it on.  How many a driver asks for is its
own choice, up to the function's table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hil.pci.config import ConfigSpace

#: Vectors of one processor that a guest's kernel has for passed functions.  Of 256, exceptions have
#: 32 and the kernel's own interrupts those from 0xec on (Linux, arch/x86/include/asm/irq_vectors.h;
#: FreeBSD, sys/x86/include/apicvar.h, APIC_NUM_IOINTS: 191); the guest's own devices get 32.
GUEST_VECTORS = 160


@dataclass(frozen=True, slots=True)
class WantedVectors:
    """What a function's driver asks for."""

    owner: str
    """The function's address on the host, or whatever names it to a person."""
    most: int
    """Messages that the function has; 0 if it has neither MSI nor MSI-X."""
    least: int = 1
    """What its driver asks for as far as that is known."""

    def __str__(self) -> str:
        if not self.most:
            return f"{self.owner}: none, it has neither MSI nor MSI-X"
        if self.least == self.most:
            return f"{self.owner}: {self.most}"
        return f"{self.owner}: {self.least} to {self.most}, as its driver asks"


@dataclass(frozen=True, slots=True)
class VectorLimits:
    """What a host has."""

    name: str
    """For people: what says so."""
    total: int
    """For all devices of the host, its own too."""
    used: int
    """By devices that have their vectors now, passed ones too."""
    whole_table: bool
    """Whether the host gives a function vectors for its whole MSI-X table, whatever the guest's
    driver asks for, or refuses it."""

    @property
    def free(self) -> int:
        """For functions that are to be passed."""
        return max(0, self.total - self.used)


@dataclass(frozen=True, slots=True)
class VectorPlan:
    """Who gets what."""

    limits: VectorLimits
    guests: Mapping[str, Sequence[WantedVectors]]
    cpus: int
    """Processors of each guest."""
    without: Mapping[str, str]
    """Owners of functions that do not get what they ask for: who has too few, and how many."""

    @property
    def fits(self) -> bool:
        """Whether all get at least what their drivers are known to ask for."""
        return not self.without

    def describe(self) -> str:
        """A line for each guest and function, and one for the host."""
        lines = []
        for name, wanted in self.guests.items():
            room = GUEST_VECTORS * self.cpus
            most = sum(one.most for one in wanted)
            note = "" if most <= room else ": too few if the drivers ask for all"
            lines.append(f"guest {name}: {room} vectors, at most {most} are asked for{note}")
            lines += [
                f"  {one}" + (f"; {self.without[one.owner]}" if one.owner in self.without else "")
                for one in wanted
            ]
        limits = self.limits
        lines.append(f"host: {limits.free} of {limits.total} vectors are free ({limits.name})")
        return "\n".join(lines)


def wanted_vectors(owner: str, config: ConfigSpace, least: int = 1) -> WantedVectors:
    """What the driver of a function with this configuration space may ask for.

    ``least``: what it is known to ask for, if the function has so many.
    """
    msix, msi = config.msix, config.msi
    most = msix.vectors if msix else msi.vectors if msi else 0
    return WantedVectors(owner, most, min(least, most))


def plan(
    guests: Mapping[str, Sequence[WantedVectors]], limits: VectorLimits, cpus: int = 1
) -> VectorPlan:
    """Give each function, guest by guest, at least what it needs."""
    without: dict[str, str] = {}
    on_host = limits.free
    for wanted in guests.values():
        in_guest = GUEST_VECTORS * cpus
        for one in wanted:
            hosts = one.most if limits.whole_table else one.least
            if hosts > on_host:
                without[one.owner] = f"NO VECTORS: the host has {on_host} left, it takes {hosts}"
            elif one.least > in_guest:
                without[one.owner] = f"NO VECTORS: its guest has {in_guest} left"
            else:
                on_host -= hosts
                in_guest -= one.least
    return VectorPlan(limits, guests, cpus, without)
