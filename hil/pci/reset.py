"""What reset a function offers, and whether one took place."""

from __future__ import annotations

from dataclasses import dataclass

from hil.pci.config import ConfigSpace


@dataclass(frozen=True, slots=True)
class ResetFacts:
    """What resets a function's configuration space promises.

    A promise only: devices are known whose FLR, or whose way through D3hot, changes
    nothing.  Resets of the bus or slot are not the function's and so not told here.
    """

    flr: bool
    """Function Level Reset (PCIe 6.6.2)."""
    af_flr: bool
    """Function Level Reset by the Advanced Features capability."""
    power_management: bool
    """Has D3hot at all (PCIe 5.3.1.4)."""
    no_soft_reset: bool
    """D3hot to D0 keeps the function's state."""

    @property
    def d3_resets(self) -> bool:
        """Whether going to D3hot and back is promised to reset the function."""
        return self.power_management and not self.no_soft_reset

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order to prefer, by the names of Linux's ``reset_method``."""
        named = {"flr": self.flr, "af_flr": self.af_flr, "pm": self.d3_resets}
        return tuple(name for name, there in named.items() if there)


def reset_facts(config: ConfigSpace) -> ResetFacts:
    """The resets that this configuration space promises."""
    power = config.power_management
    return ResetFacts(
        flr=config.pcie is not None and config.pcie.flr,
        af_flr=config.advanced_features is not None and config.advanced_features.flr,
        power_management=power is not None,
        no_soft_reset=power is not None and power.no_soft_reset,
    )


#: COMMAND bits that a reset clears (PCIe 7.5.1.1.3), by name.
_COMMAND = {"I/O decode": 1, "memory decode": 2, "bus master": 4, "INTx disable": 0x400}


def defaults_after_reset(config: ConfigSpace, *, bars_restored: bool = False) -> tuple[str, ...]:
    """Where the function is not as a reset leaves it (PCIe 6.6.2); empty if all is well.

    Args:
        config: read after the reset, by itself or by a platform that restored part of it.
        bars_restored: the platform writes the BARs back after a reset, so they may hold
            addresses.  Linux restores COMMAND and MSI too: read before it does, or
            look at what a new owner of the function finds.
    """
    if config.absent:
        return ("the function does not answer: all ones",)
    complaints = [
        f"COMMAND: {name} is set ({config.command:04x})"
        for name, bit in _COMMAND.items()
        if config.command & bit
    ]
    if config.msi and config.msi.enabled:
        complaints.append("MSI is enabled")
    if config.msix and config.msix.enabled:
        complaints.append("MSI-X is enabled")
    if config.msix and config.msix.masked:
        complaints.append("MSI-X: the function mask is set")
    if config.pcie and config.pcie.transactions_pending:
        complaints.append("PCI Express: transactions are pending")
    if config.advanced_features and config.advanced_features.transactions_pending:
        complaints.append("Advanced Features: transactions are pending")
    if config.power_management and config.power_management.state:
        complaints.append(f"power state is D{config.power_management.state}")
    if config.sriov and config.sriov.enabled:
        complaints.append(f"SR-IOV is enabled with {config.sriov.number} VFs")
    if not bars_restored:
        complaints += [f"BAR{bar.index} holds {bar.value:#x}" for bar in config.bars if bar.value]
    return tuple(complaints)
