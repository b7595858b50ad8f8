"""Where a PCI function is: domain, bus, device, function.

The text forms are those that hosts print and take:

==================  =======================================  ===========
form                who                                      numbers
==================  =======================================  ===========
``0000:03:00.0``    Linux, sysfs, lspci (domain may be left  hexadecimal
                    out)
``pci0:3:0:0``      FreeBSD's pciconf(8), devctl(8); the     decimal
                    domain may be left out: ``pci3:0:0``
``3/0/0``           bhyve(8) ``passthru``, loader ``pptdevs``  decimal
==================  =======================================  ===========
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hil.errors import InventoryError

_FORMS = (
    (re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})\.([0-9])"), 16),
    (re.compile(r"pci(?:([0-9]{1,10}):)?([0-9]{1,3}):([0-9]{1,2}):([0-9])", re.ASCII), 10),
    (re.compile(r"()([0-9]{1,3})/([0-9]{1,2})/([0-9])", re.ASCII), 10),
)
_LIMITS = {"domain": 0xFFFFFFFF, "bus": 0xFF, "device": 0x1F, "function": 7}


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A PCI function's address; orders by domain, bus, device, function.

    Args:
        domain: PCI segment group, 0 to 2**32 - 1 (Linux goes past 16 bits for VMD).
        bus: 0 to 255.
        device: 0 to 31.
        function: 0 to 7.

    Raises:
        InventoryError: a number is out of its range.
    """

    domain: int
    bus: int
    device: int
    function: int

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise InventoryError(
                    f"PCI address with {name} {value}: must be 0 to {limit}",
                    hint="addresses look like 0000:03:00.0, pci0:3:0:0 or 3/0/0",
                )

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that ``text`` names, in any of the module's forms.

        Raises:
            InventoryError: it has none of the forms, or a number is out of range.
        """
        for form, base in _FORMS:
            match = form.fullmatch(text.strip())
            if match:
                domain, bus, device, function = (int(part or "0", base) for part in match.groups())
                return cls(domain, bus, device, function)
        raise InventoryError(
            f"not a PCI address: {text[:60]!r}",
            hint="addresses look like 0000:03:00.0 (hexadecimal), pci0:3:0:0 or 3/0/0 (decimal)",
        )

    @classmethod
    def from_requester_id(cls, requester_id: int, domain: int = 0) -> Address:
        """The function that a 16-bit requester id names (PCIe 6.0, 2.2.6.2), without ARI.

        Raises:
            InventoryError: the id is not 16 bits.
        """
        return cls(domain, requester_id >> 8, requester_id >> 3 & 0x1F, requester_id & 7)

    @property
    def requester_id(self) -> int:
        """16 bits: bus in 15:8, device in 7:3, function in 2:0."""
        return self.bus << 8 | self.device << 3 | self.function

    @property
    def bdf(self) -> str:
        """As Linux writes it: ``0000:03:00.0``."""
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"

    @property
    def selector(self) -> str:
        """As FreeBSD's pciconf writes it, decimal: ``pci0:3:0:0``."""
        return f"pci{self.domain}:{self.bus}:{self.device}:{self.function}"

    @property
    def slashes(self) -> str:
        """As bhyve's passthru and pptdevs take it, decimal: ``3/0/0``.  Has no domain."""
        return f"{self.bus}/{self.device}/{self.function}"

    def __str__(self) -> str:
        return self.bdf
