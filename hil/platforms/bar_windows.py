"""Where the hypervisors put BARs: data, for :mod:`hil.pci.budget`."""

from __future__ import annotations

import re

from hil.pci.budget import GIB, WantedBar, Windows, resizable
from hil.platforms.contract import Function

#: FreeBSD's usr.sbin/bhyve/pci_emul.c: PCI_EMUL_MEMBASE32, PCI_EMUL_ECFG_BASE and
#: PCI_EMUL_MEMSIZE64, pci_emul_assign_bar(), whose result init_pci() ignores, and
#: BUSMEM32_ROUNDUP and BUSMEM64_ROUNDUP.  So from 13.2 to CURRENT of 2026.
BHYVE = Windows(
    name="bhyve",
    low=(0xC000_0000, 0xE000_0000),
    memory_below=3 * GIB,
    alignment=32 * GIB,
    high_size=32 * GIB,
    large=128 << 20,
    gaps=(1 << 20, 512 << 20),
)


def q35(address_bits: int) -> Windows:
    """QEMU's q35 with SeaBIOS, on a processor with physical addresses of so many bits.

    QEMU's hw/i386/pc_q35.c (2 GiB of memory below 4 GiB, of guests that have 2.75 GiB or
    more); SeaBIOS's src/fw/pciinit.c: mch_mmconfig_setup() and pci_bios_map_devices(), which
    ends in a panic of the firmware where not even the 32-bit BARs fit below.
    """
    return Windows(
        name="QEMU's q35",
        low=(0xC000_0000, 0xFEC0_0000),
        memory_below=2 * GIB,
        alignment=GIB,
        high_size=None,
        high_end=1 << address_bits,
    )


def address_bits(sizes: str) -> int:
    """Of a processor whose ``address sizes`` (Linux, /proc/cpuinfo) hold these numbers.

    The first number is of physical addresses; where there is none, the fewest that
    processors with an IOMMU have.
    """
    found = re.search(r"\d{1,2}", sizes)
    return int(found[0]) if found else 39


def wanted_bars(function: Function, bus: int = 0) -> tuple[WantedBar, ...]:
    """The memory BARs of a function, as the host sized them; ``bus``: in the guest."""
    sizes = resizable(function.config)
    return tuple(
        WantedBar(
            str(function.address), bar.index, bar.size, bar.wide, bus, sizes.get(bar.index, ())
        )
        for bar in function.bars
        if bar.memory and bar.size
    )
