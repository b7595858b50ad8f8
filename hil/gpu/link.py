"""What a PCI Express link can carry at most."""

from __future__ import annotations

from dataclasses import dataclass

from hil.pci.config import Pcie


@dataclass(frozen=True, slots=True)
class Link:
    """A link's speed in GT/s, and its lanes; 0 and 0 where a function has none."""

    speed: float
    width: int

    @property
    def limit(self) -> float:
        """Bytes in a second, one way, after the line's coding and before all protocol.

        8b/10b up to 5 GT/s, 128b/130b up to 32 GT/s, and flits of 242 in 256 bytes at 64 GT/s
        (PCIe 4.2).  A card that idles may have slowed its link down.
        """
        share = 0.8 if self.speed <= 5 else 128 / 130 if self.speed <= 32 else 242 / 256
        return self.speed * 1e9 / 8 * self.width * share

    def __str__(self) -> str:
        if not self.limit:
            return "no link told"
        return f"{self.speed:g} GT/s x{self.width}, at most {self.limit / 1e9:.1f} GB/s"


def links(pcie: Pcie | None) -> tuple[Link, Link]:
    """The link as it is now, and the best that the function can do."""
    if pcie is None:
        return Link(0, 0), Link(0, 0)
    return (
        Link(pcie.link_speed, pcie.link_width),
        Link(pcie.max_link_speed, pcie.max_link_width),
    )
