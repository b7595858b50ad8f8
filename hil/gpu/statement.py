"""What becomes of a function between two guests, said before the first has it."""

from __future__ import annotations

from dataclasses import dataclass

from hil.gpu.known import vendor_of
from hil.gpu.vendor import Quirk
from hil.pci.reset import reset_facts
from hil.platforms.contract import Function

#: By the platform's first method: whether it resets the function, and what it leaves.
_LEAVES = {
    "device_specific": "by the vendor's own way, known to the host's kernel",
    "acpi": "by the firmware's own way",
    "flr": "registers and DMA are cleared; device memory may keep its content (PCIe 6.6.2)",
    "af_flr": "registers and DMA are cleared; device memory may keep its content",
    "pm": "registers are cleared by way of D3hot; device memory may keep its content",
    "bus": "all that is behind its port is reset, other functions too",
}
_NOTHING = "registers, device memory and DMA under way go on to the next guest"


@dataclass(frozen=True, slots=True)
class Statement:
    """In words, for people."""

    has: tuple[str, ...]
    """What the configuration space promises."""
    method: str
    """What the platform will do, by the name of Linux's ``reset_method``; empty: nothing."""
    leaves: str
    interrupts: str
    rom: str
    quirks: tuple[Quirk, ...]
    """Known of its vendor's cards, or of this one."""

    @property
    def resets(self) -> bool:
        """Whether the platform will do anything between two guests."""
        return bool(self.method)

    def __str__(self) -> str:
        parts = [
            f"has {', '.join(self.has) or 'no reset of its own'}",
            f"the platform resets it by {self.method or 'nothing'}",
            self.leaves,
            self.interrupts,
            self.rom,
        ]
        return "; ".join(parts)


def statement(function: Function) -> Statement:
    """What a host says of a function, put together."""
    facts = reset_facts(function.config)
    config = function.config
    has = [
        word
        for word, there in (
            ("FLR", facts.flr),
            ("FLR by Advanced Features", facts.af_flr),
            ("a D3hot that resets", facts.d3_resets),
            ("a D3hot that resets nothing (NoSoftRst)", facts.no_soft_reset),
        )
        if there
    ]
    method = function.reset_methods[0] if function.reset_methods else ""
    if config.msix is not None:
        interrupts = f"MSI-X with {config.msix.vectors} vectors"
    elif config.msi is not None:
        interrupts = f"MSI with {config.msi.vectors} message(s)"
    else:
        interrupts = "INTx only" if config.interrupt_pin else "no interrupts"
    rom = "its option ROM is not given to guests" if config.rom & ~0x7FF else "no option ROM"
    vendor = vendor_of(function)
    quirks = vendor.quirks_of(function.device) if vendor else ()
    leaves = _LEAVES.get(method, f"by {method}") if method else _NOTHING
    return Statement(tuple(has), method, leaves, interrupts, rom, quirks)
