"""A guest makes its device write outside its memory: is that blocked, and blamed rightly?"""

from __future__ import annotations

import contextlib

from hil.bench import BenchDevice
from hil.deadline import poll
from hil.errors import DeadlineExceeded
from hil.guests.guest import Guest
from hil.iommu.faults import FaultRecord
from hil.oracles.iommu import check_fault, new_faults
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
    before = platform.faults(deadline)
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
