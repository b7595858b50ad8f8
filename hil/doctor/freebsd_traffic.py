"""A function that is there in its guest, and of which nothing comes: can it move data?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hil.deadline import Deadline
from hil.doctor.check import Check, State
from hil.errors import HilError
from hil.iommu.faults import FaultRecord
from hil.iommu.tables import Kind
from hil.platforms.contract import Function
from hil.platforms.freebsd import FreebsdBhyve

#: Bits of COMMAND (PCIe 7.5.1.1.3).
_MEMORY_DECODE, _BUS_MASTER = 0x2, 0x4
_NO_DRIVER = "[in the guest: does a driver have it?  pciconf -l, or lspci -k; dmesg]"


@dataclass(frozen=True, slots=True)
class Held:
    """A function that a guest has now."""

    function: Function
    interrupts: Mapping[str, int]
    """Counts since boot, by ``vmstat -ia``'s name of the line."""
    faults: tuple[FaultRecord, ...]
    """Of its DMA, since boot."""


def held(
    platform: FreebsdBhyve, functions: Iterable[Function], deadline: Deadline
) -> tuple[Held, ...]:
    """The reserved functions that a guest has, by the IOMMU's tables; nothing is changed.

    Nobody else tells: bhyve hides its arguments from ps(1), and ppt(4) says nothing of them.
    None where the tables cannot be read.
    """
    reserved = [function for function in functions if function.reserved]
    if not reserved:
        return ()
    with contextlib.suppress(HilError):
        tables = platform.tables(deadline)
        faults = platform.faults(deadline)
        found = []
        for function in reserved:
            entry = tables.entry(function.address.requester_id)
            if entry is not None and entry.present and entry.kind is Kind.TRANSLATED:
                mine = (f for f in faults if f.requester_id == function.address.requester_id)
                counts = platform.interrupts(function.address, deadline)
                found.append(Held(function, counts, tuple(mine)))
        return tuple(found)
    return ()


def traffic_rows(host: str, found: Iterable[Held]) -> list[Check]:
    """A row for each function that a guest has."""
    return [_row(host, one) for one in found]


def _row(host: str, one: Held) -> Check:
    config = one.function.config
    on = [
        name
        for name, there in (("MSI-X", config.msix), ("MSI", config.msi))
        if there is not None and there.enabled
    ]
    count = sum(one.interrupts.values())
    problems: list[tuple[str, str]] = []
    if one.faults:
        problems.append(
            (
                f"its DMA was refused: {one.faults[-1].text.strip()[:200]}",
                "[look at its driver in the guest: it uses addresses that are not its memory]",
            )
        )
    if not config.command & _BUS_MASTER:
        problems.append(("bus mastering is off: it can do no DMA", _NO_DRIVER))
    if not config.command & _MEMORY_DECODE and any(bar.memory for bar in one.function.bars):
        problems.append(("memory decoding is off: its registers do not answer", _NO_DRIVER))
    if not on:
        problems.append(
            ("neither MSI nor MSI-X is on: its driver knows INTx only, or has not come", _NO_DRIVER)
        )
    elif not count:
        problems.append((f"{on[0]} is on, and no interrupt has come", "vmstat -ia"))
    good = f"bus mastering and {' '.join(on)} are on, {count} interrupts, no DMA refused"
    return Check(
        host,
        f"{one.function.address.slashes} works in its guest",
        State.MISSING if problems else State.FOUND,
        "; ".join(text for text, _ in problems) or good,
        problems[0][1] if problems else "",
        needed=False,
    )
