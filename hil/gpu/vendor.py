"""What a passthrough test has to know of a GPU's vendor."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Quirk:
    """Something known that goes wrong, or is done otherwise."""

    what: str
    """One sentence."""
    reference: str
    """Where that can be read: a source file, a report, a number of the bug catalogue."""
    devices: tuple[range, ...] = ()
    """Device ids concerned; empty: all of the vendor's."""

    def __str__(self) -> str:
        return f"{self.what} ({self.reference})"

    def concerns(self, device: int) -> bool:
        """Whether it is about this device id."""
        return not self.devices or any(device in ids for ids in self.devices)


@dataclass(frozen=True, slots=True)
class Vendor:
    """One vendor's cards."""

    name: str
    vendor: int
    """PCI vendor id."""
    drivers: tuple[str, ...]
    """Drivers that a card can have in a Linux guest, as PCI knows them.  FreeBSD's base system has
    none for GPUs."""
    devices: tuple[range, ...] = ()
    """Device ids; empty: whatever of the vendor's is a display or an accelerator."""
    vectors: int = 0
    """Interrupt vectors that its driver in a Linux guest asks for, where the function has so many;
    0: not known."""
    tool: tuple[str, ...] = ()
    """A command that tells of the cards and changes nothing; empty: there is none."""
    opencl: str = ""
    """How a guest's image gets its OpenCL, for a person; empty: it serves none."""
    hiding: str = ""
    """Where a driver minds the hypervisor; empty: nowhere known."""
    quirks: tuple[Quirk, ...] = field(default=())

    def quirks_of(self, device: int) -> tuple[Quirk, ...]:
        """Those that concern a device id."""
        return tuple(quirk for quirk in self.quirks if quirk.concerns(device))
