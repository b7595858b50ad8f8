"""Bugs of the past that the simulated host can re-enact, each a switch where the bug lived.

Numbers are those of the project's bug catalogue; a name is what ``--fault`` takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hil.errors import InventoryError


@dataclass(frozen=True, slots=True)
class Fault:
    """One bug."""

    number: int
    name: str
    """As ``--fault`` takes it; begins with the number."""
    sentence: str
    """What the host does wrong."""
    reference: str
    """Revision, review, problem report, or the source it was read in."""
    vendors: tuple[str, ...] = ("intel", "amd")
    """Processor vendors whose IOMMU code had it."""
    beyond: str = ""
    """Why no suite can see it; empty if one can."""


FAULTS: tuple[Fault, ...] = (
    Fault(
        1,
        "1-no-translation",
        "The IOMMU is never switched on, and devices are passed all the same: DMA goes to "
        "host physical addresses.",
        "FreeBSD r304858, D7448",
    ),
    Fault(
        2,
        "2-host-domain-not-restored",
        "A device that ppt lets go is not put back into the host's domain.",
        "FreeBSD r305485",
    ),
    Fault(
        3,
        "3-host-domain-while-idle",
        "A device that ppt holds for nobody reaches all of the host's memory.",
        "FreeBSD PR 222937, r325039",
    ),
    Fault(
        5,
        "5-domains-not-updated",
        "Functions that come and go after the IOMMU was initialized get and lose no entry.",
        "FreeBSD r305497",
    ),
    Fault(
        6,
        "6-no-flr",
        "A device is not reset when a guest gets it, nor when the guest ends.",
        "FreeBSD r305502",
    ),
    Fault(
        7,
        "7-multi-drhd",
        "Device TLBs are allowed for every function because one of several units supports "
        "them; the others refuse all DMA then.",
        "FreeBSD PR 229852, r349184",
        ("intel",),
    ),
    Fault(
        8,
        "8-wrong-rid-range",
        "The IOMMU's range of requester ids ends before the last function of a bus.",
        "FreeBSD D30827",
        ("amd",),
    ),
    Fault(
        9,
        "9-iommu-init-fails",
        "The IOMMU fails to initialize on a host that has one.",
        "FreeBSD PR 290155",
        ("intel",),
    ),
    Fault(
        10,
        "10-bogus-command-register",
        "A guest's end leaves a COMMAND register that the next guest cannot switch on.",
        "FreeBSD PR 205549, D20623",
    ),
    Fault(
        11,
        "11-msix-bar-busy",
        "After its first guest a device keeps memory decoding off, and its MSI-X table cannot "
        "be mapped for the second.",
        "FreeBSD PR 260148, D33628",
    ),
    Fault(
        16,
        "16-bar-unassigned",
        "A BAR that does not fit into the guest's window is left at address 0 without a word.",
        "usr.sbin/bhyve/pci_emul.c: the result of assigning a BAR is ignored",
    ),
    Fault(
        19,
        "19-guest-flr-raw",
        "A function level reset that the guest starts reaches the device, and its BARs and "
        "COMMAND are not restored.",
        "usr.sbin/bhyve/pci_passthru.c, passthru_cfgwrite",
    ),
    Fault(
        20,
        "20-stale-device-table",
        "Removing a device leaves its page table pointer in the device table.",
        "sys/amd64/vmm/amd/amdvi_hw.c, amdvi_set_dte",
        ("amd",),
    ),
    Fault(
        21,
        "21-untouched-entry-passes",
        "The device table entry of a function that ppt has held since boot is never written, "
        "and an entry of zeros translates nothing.",
        "sys/amd64/vmm/io/iommu.c, iommu_init skips ppt",
        ("amd",),
    ),
    Fault(
        22,
        "22-replayed-events",
        "The event log is read past its tail: old faults are reported again.",
        "sys/amd64/vmm/amd/amdvi_hw.c, amdvi_print_events",
        ("amd",),
    ),
    Fault(
        23,
        "23-state-left-behind",
        "After an assignment that failed, the memory of that guest stays out of the host's "
        "domain, also when it is the host's again.",
        "sys/amd64/vmm/vmm.c, vm_assign_pptdev and vm_destroy",
    ),
    Fault(
        24,
        "24-initialized-lies",
        "hw.vmm.iommu.initialized is 1 although the IOMMU could not be initialized.",
        "sys/amd64/vmm/io/iommu.c, iommu_init",
    ),
    Fault(
        26,
        "26-kldunload-panics",
        "Unloading vmm while ppt holds a device panics the host.",
        "bug catalogue 26; see also transcripts, 9-host-panics",
    ),
    Fault(
        27,
        "27-double-bind",
        "Of two guests that start at once both get the device.",
        "FreeBSD D55065",
    ),
    Fault(
        28,
        "28-unchecked-mapping",
        "Any host physical address can be mapped into a guest as if it were a BAR.",
        "FreeBSD D36238",
        beyond="it takes a program that calls ioctl(2) on /dev/vmm; the base system has none",
    ),
    Fault(
        29,
        "29-lying-flr",
        "A function level reset is reported as done, and the function keeps its state.",
        "bug catalogue 29",
    ),
    Fault(
        30,
        "30-nosoftrst-ignored",
        "A device is reset by way of D3hot although its NoSoftRst bit says that D3hot keeps "
        "its state.",
        "sys/dev/pci/pci.c, pci_power_reset",
    ),
)

#: A variant of 29, of the same number: the reset is real, and the function is slow after it.
SLOW_FLR = Fault(
    29,
    "29-slow-flr",
    "A function answers nothing for long after a function level reset, and what is restored "
    "by then is lost.",
    "bug catalogue 29: a fixed wait of 100 ms and no poll for readiness",
)

FAULTS = (*FAULTS, SLOW_FLR)


def fault_named(text: str) -> Fault:
    """A fault by its name, or by its number where one fault only has it.

    Raises:
        InventoryError: there is no such fault.
    """
    found = [fault for fault in FAULTS if text in (fault.name, str(fault.number))]
    if len(found) != 1 and not any(fault.name == text for fault in found):
        names = "\n".join(fault.name for fault in FAULTS)
        raise InventoryError(f"no fault {text!r}", seen=names, hint="give one of these names")
    return found[0]


class FaultSet:
    """The faults that a host has."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.active = tuple(fault_named(name) for name in names)
        self._names = {fault.name for fault in self.active}

    def __contains__(self, name: str) -> bool:
        """Whether a fault is on; a name that no fault has is a mistake of the caller.

        Raises:
            InventoryError: there is no such fault.
        """
        return fault_named(name).name in self._names
