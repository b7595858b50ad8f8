"""DMA of one card of a guest at the memory of another one of the same guest.

Whether it may pass depends on the platform (it maps the BARs for the guest's devices or not) and on
what is between the cards (ACS may send it to the root or refuse it).  What may never happen is that
it is lost, or lands elsewhere, without a word.
"""

from __future__ import annotations

import contextlib
import enum
import secrets
from collections.abc import Sequence

from hil import events
from hil.bench import BenchDevice
from hil.deadline import poll
from hil.errors import DeadlineExceeded, LabError, ProductError
from hil.guests.guest import Guest
from hil.iommu.faults import FaultRecord
from hil.oracles.iommu import new_faults, watch_faults
from hil.oracles.pattern import tagged
from hil.probes.agent import GuestMemory
from hil.probes.device_memory import PAGE, DeviceMemory, device_memory, is_memory
from hil.probes.edu import EduEngine, edu_engine


class Outcome(enum.Enum):
    """What came of it."""

    CORRECT = "correct"
    """All bytes are where they were sent, and those around are as they were."""
    REFUSED = "refused"
    """Nothing has arrived, and a fault of the engine was recorded."""


def check_transfers(
    guest: Guest, engine_device: BenchDevice, target: BenchDevice, *, misplace: int = 0
) -> Outcome:
    """A page written by an engine into another card's memory, and one read from there.

    ``misplace`` sends the page that many bytes further on than it is looked for: the control.

    Raises:
        ProductError: neither correct nor refused with a fault: silently wrong; or refused one
            way and correct the other.
    """
    with (
        device_memory(guest, target) as there,
        edu_engine(guest, engine_device) as (engine, memory),
    ):
        written = _written(engine_device, engine, memory, there, misplace)
        read = _read(engine_device, engine, memory, there)
    platform = engine_device.host.platform
    expected = "is mapped for the guest's devices" if platform.peer_to_peer else "is not mapped"
    words = f"written: {written.value}, read: {read.value}; on {platform.name} a BAR {expected}"
    events.emit(events.Evidence(f"{engine_device.name} to {target.name}", words.encode()))
    if written is not read:
        raise ProductError(
            f"DMA of {engine_device} at the memory of {target} is allowed one way only", seen=words
        )
    if written is Outcome.CORRECT and not platform.peer_to_peer:
        raise ProductError(
            f"DMA of {engine_device} reached the memory of {target}, which {platform.name} does "
            "not map for it",
            seen=words,
        )
    return written


def _written(
    device: BenchDevice,
    engine: EduEngine,
    memory: GuestMemory,
    there: DeviceMemory,
    misplace: int,
) -> Outcome:
    """The engine sends a page to the middle of three."""
    tag = secrets.randbits(24)
    around = tagged(tag ^ 1, there.first, 3 * PAGE)
    there.put(there.first, around)
    page = tagged(tag, there.first + PAGE, PAGE)
    engine.agent.fill(memory, 0, page)
    engine.copy_in(memory.physical(0), PAGE)
    before = watch_faults(device.host)
    engine.copy_out(there.start + there.first + PAGE + misplace, PAGE)
    got = there.get(there.first, 3 * PAGE)
    if got == around[:PAGE] + page + around[-PAGE:]:
        return Outcome.CORRECT
    if got == around and _fault_recorded(device, before):
        return Outcome.REFUSED
    raise _wrong(device, "written to", got, around)


def _read(
    device: BenchDevice, engine: EduEngine, memory: GuestMemory, there: DeviceMemory
) -> Outcome:
    """The engine fetches a page, and puts it into the guest's memory."""
    tag = secrets.randbits(24)
    page, other = (tagged(each, there.first, PAGE) for each in (tag, tag ^ 1))
    there.put(there.first, page)
    engine.agent.fill(memory, 0, other)
    engine.copy_in(memory.physical(0), PAGE)
    before = watch_faults(device.host)
    engine.copy_in(there.start + there.first, PAGE)
    engine.copy_out(memory.physical(PAGE), PAGE)
    got = engine.agent.dump(memory, PAGE, PAGE)
    if got == page:
        return Outcome.CORRECT
    # What a refused read gives is not told: all ones, zeros, what was there before.
    if _fault_recorded(device, before):
        return Outcome.REFUSED
    raise _wrong(device, "read from", got, page)


def _wrong(device: BenchDevice, what: str, got: bytes, wanted: bytes) -> ProductError:
    wrong = sum(one != other for one, other in zip(got, wanted, strict=True))
    return ProductError(
        f"DMA of {device} {what} another card's memory is silently wrong",
        seen=f"{wrong} bytes are not as they were or should be, and no fault was recorded",
    )


def _fault_recorded(device: BenchDevice, before: Sequence[FaultRecord]) -> bool:
    """Whether one of the device's is recorded by now, or in a moment."""

    def found() -> bool:
        after = device.host.platform.faults(device.host.limit(20, "the fault log"))
        return any(f.requester_id == device.requester_id for f in new_faults(before, after))

    with contextlib.suppress(DeadlineExceeded):
        return poll(found, device.host.limit(1.5, "a fault line"))
    return False


def engine_and_memory(cards: Sequence[BenchDevice]) -> tuple[BenchDevice, BenchDevice]:
    """Of a guest's cards the first DMA engine, and the first with memory in a BAR.

    Raises:
        LabError: there is none.
    """
    engines = [card for card in cards if card.kind == "edu"]
    memories = [card for card in cards if any(map(is_memory, card.look().bars))]
    if not engines or not memories:
        raise LabError("no DMA engine, or no card with memory in a BAR, is among the guest's cards")
    return engines[0], memories[0]
