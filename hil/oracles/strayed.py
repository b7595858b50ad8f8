"""A guest makes its device write outside its memory: is that blocked, and blamed rightly?"""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter

from hil.bench import BenchDevice
from hil.deadline import poll
from hil.errors import DeadlineExceeded, ProductError
from hil.guests.guest import Guest
from hil.iommu.faults import FaultRecord
from hil.oracles.iommu import check_fault, new_faults, watch_faults
from hil.probes.edu import edu_engine

#: A DMA address that no guest of ours has memory at: 64 GiB.
OUTSIDE = 64 << 30
LENGTH = 64


def check_blocked(device: BenchDevice, guest: Guest, *, inside: bool = False) -> FaultRecord:
    """A DMA write at :data:`OUTSIDE` is recorded as a fault of this very function.

    ``inside`` writes to the guest's own memory instead: the control.

    Raises:
        ProductError: no such fault is recorded.
    """
    platform = device.host.platform
    deadline = device.host.limit(30, "the fault log")
    before = watch_faults(device.host)
    with edu_engine(guest, device) as (engine, memory):
        target = memory.physical(0) if inside else OUTSIDE
        engine.copy_out(target, LENGTH)
    faults: tuple[FaultRecord, ...] = ()

    def recorded() -> bool:
        nonlocal faults
        faults = new_faults(before, platform.faults(deadline))
        return any(record.requester_id == device.requester_id for record in faults)

    with contextlib.suppress(DeadlineExceeded):  # check_fault says what is missing
        poll(recorded, device.host.limit(1.5, "a fault line"))
    return check_fault(faults, device.address, dma_address=target, write=True)


#: More than AMD-Vi's smallest event log holds (48882, 2.5: 256 entries).
MANY = 300
_PAGE = 4096


def check_told_once(device: BenchDevice, guest: Guest, *, again: bool = False) -> int:
    """Of very many DMA faults, each at a page of its own, none is told again.

    ``again`` takes what was told first for told twice: the control.  Returns how many were told.

    Raises:
        ProductError: a page is told twice, or none is told at all.
    """
    platform = device.host.platform
    deadline = device.host.limit(60, "the fault log")
    before = watch_faults(device.host)
    # Never the same pages: AMD-Vi tells of a page once as long as the device stays assigned.
    first = OUTSIDE + secrets.randbelow(1 << 14) * MANY * _PAGE
    with edu_engine(guest, device) as (engine, _):
        for number in range(MANY):
            engine.copy_out(first + number * _PAGE, LENGTH)
    records = [
        record
        for record in new_faults(before, platform.faults(deadline))
        if record.requester_id == device.requester_id
    ]
    told = Counter((record.source, record.address) for record in records + records[:1] * again)
    twice = [f"{address}: {count} times" for (_, address), count in told.items() if count > 1]
    if twice or not told:
        raise ProductError(
            f"{len(twice)} DMA faults of {device} were told again" if told else "no fault was told",
            seen="\n".join(twice[:20]),
        )
    return len(told)
