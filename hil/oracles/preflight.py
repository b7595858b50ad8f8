"""Can this device be passed at all?  Looked at before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hil.errors import LabError, ProductError
from hil.gpu.known import vendor_of
from hil.pci import vectors
from hil.pci.budget import Budget, Windows, advice, plan
from hil.pci.reset import reset_facts
from hil.pci.vectors import VectorLimits, VectorPlan, wanted_vectors
from hil.platforms import pinning
from hil.platforms.bar_windows import wanted_bars
from hil.platforms.contract import Function, HostFacts
from hil.platforms.pinning import MemoryPlan, Pinning

PAGE = 4096


def check_iommu(facts: HostFacts) -> None:
    """PF1: firmware describes an IOMMU (DMAR or IVRS) and the kernel uses it."""
    if facts.iommu == "none":
        raise ProductError(
            "the firmware has neither a DMAR nor an IVRS table: no IOMMU",
            hint="switch on VT-d or AMD-Vi in the firmware",
        )
    if not facts.iommu_enabled:
        raise ProductError(
            f"the firmware describes {facts.iommu}, but the kernel does not use it",
            seen=facts.extra.get("cmdline", ""),
            hint="on Linux with VT-d, boot with intel_iommu=on; on FreeBSD ask hil doctor",
        )


def check_interrupts(function: Function) -> None:
    """PF4: a hypervisor needs MSI or MSI-X to forward its interrupts."""
    if function.config.msi is None and function.config.msix is None:
        raise ProductError(
            f"{function.address} has neither MSI nor MSI-X",
            hint="bhyve refuses such a function: failed to initialize MSI",
        )


def check_bars(function: Function) -> None:
    """PF5: every memory BAR covers whole pages, or it cannot be mapped for a guest."""
    wrong = [
        f"BAR{bar.index}: address {bar.address:#x}, size {bar.size:#x}"
        for bar in function.bars
        if bar.memory and (bar.size % PAGE or bar.address % PAGE)
    ]
    if wrong:
        raise ProductError(
            f"memory BARs of {function.address} are not page aligned", seen="\n".join(wrong)
        )


def check_budget(
    devices: Mapping[str, Sequence[Function]], windows: Windows | None, memory: int
) -> Budget:
    """PF6: a guest with these devices and so much memory (bytes) has room for all their BARs.

    Asked before the start: hypervisors leave out what does not fit, and may not say so.

    Raises:
        ProductError: it has not, with which BARs it lacks, and what would fit.
        LabError: where the platform puts BARs is not known.
    """
    if windows is None:
        raise LabError("the platform does not state where its guests get their BARs")
    cards = {
        name: [bar for function in functions for bar in wanted_bars(function)]
        for name, functions in devices.items()
    }
    budget = plan([bar for card in cards.values() for bar in card], windows, memory)
    if not budget.fits:
        raise ProductError(
            f"a guest has no room for {', '.join(map(str, budget.left_out))}",
            seen=budget.describe(),
            hint=advice(cards, windows, memory),
        )
    return budget


def check_memory(guests: Mapping[str, int], found: Pinning | None) -> MemoryPlan:
    """PF9: the host has memory for guests with devices of so many bytes, all alive together.

    Raises:
        ProductError: it has not, with which guests lack it, how much, and what would fit.
        LabError: what the host has is not known.
    """
    if found is None:
        raise LabError("the host does not tell how much memory guests with devices may have")
    planned = pinning.plan(guests, found)
    if not planned.fits:
        raise ProductError(
            f"the host has no memory for {', '.join(planned.missing)}",
            seen=planned.describe(),
            hint=planned.advice(),
        )
    return planned


def check_vectors(
    guests: Mapping[str, Sequence[Function]], limits: VectorLimits | None
) -> VectorPlan:
    """The host, and each guest, have interrupt vectors for all functions that are to be passed.

    What a driver asks for is known of some; of others one vector is taken as the least.

    Raises:
        ProductError: some get none, with how many there are.
        LabError: what the host has is not known.
    """
    if limits is None:
        raise LabError("the host does not tell how many interrupt vectors it has")
    wanted = {
        name: [
            wanted_vectors(str(function.address), function.config, least_vectors(function))
            for function in functions
        ]
        for name, functions in guests.items()
    }
    planned = vectors.plan(wanted, limits)
    if not planned.fits:
        raise ProductError(
            f"there are too few interrupt vectors for {', '.join(planned.without)}",
            seen=planned.describe(),
            hint="fewer cards a guest, or more processors; on FreeBSD the tunable "
            "machdep.num_msi_irqs",
        )
    return planned


def least_vectors(function: Function) -> int:
    """Interrupt vectors that a function's driver is known to ask for; 1 where nothing is known."""
    vendor = vendor_of(function)
    return vendor.vectors if vendor and vendor.vectors else 1


def check_reset(function: Function) -> None:
    """PF7: the function promises a reset of its own between two owners.

    A bus reset is none: it is not the function's, and most hypervisors do not use it.
    """
    facts = reset_facts(function.config)
    if not facts.methods:
        raise ProductError(
            f"{function.address} has no reset of its own (no FLR, no D3 that resets)",
            seen=f"{facts}\nplatform: {' '.join(function.reset_methods) or 'none'}",
            hint="its state, and DMA under way, survive from one guest to the next",
        )


def check_whole(chosen: Iterable[Function], everything: Iterable[Function]) -> None:
    """PF8: no function of the same card, and none of the same group, is left out."""
    chosen = tuple(chosen)
    names = {function.address for function in chosen}
    for function in chosen:
        for other in everything:
            if other.address in names or other.config.header_type != 0:
                continue
            if other.physical_function is not None:
                continue
            # A VF shares a card with its PF, and a bus and device too, if it is one of eight.
            same_card = function.physical_function is None and (
                other.address.domain == function.address.domain
                and other.address.bus == function.address.bus
                and other.address.device == function.address.device
            )
            same_group = other.group is not None and other.group == function.group
            if same_card or same_group:
                raise ProductError(
                    f"{other.address} travels with {function.address} but is left on the host",
                    seen=f"same {'card' if same_card else 'IOMMU group'}",
                    hint="name all functions of the card in the inventory's device",
                )


def check_free(function: Function) -> None:
    """PF11: the host itself does not need the function."""
    if function.in_use_as:
        raise ProductError(
            f"{function.address} is the host's {function.in_use_as}",
            hint="name another device in the inventory",
        )
