"""Does the next guest find in a device's memory what the one before has left there?"""

from __future__ import annotations

import secrets

from hil import events
from hil.bench import BenchDevice, GuestPool
from hil.errors import LabError, ProductError
from hil.guests.guest import Guest
from hil.probes.device_memory import DeviceMemory, device_memory

#: Pieces that an error tells.
TOLD = 20


def new_tag() -> int:
    """For a pattern of 24 bits that stands nowhere yet; never 0."""
    return secrets.randbelow((1 << 24) - 1) + 1


def leave(memory: DeviceMemory, device: BenchDevice) -> int:
    """Fill the device's memory with a pattern from the guest that has it; the pattern's tag.

    Raises:
        LabError: it does not stand there afterwards, so that its absence would prove nothing.
    """
    tag = new_tag()
    memory.mark(tag)
    held = sum(trace.length for trace in memory.search(tag))
    if held < memory.length // 2:
        raise LabError(
            f"the memory of {device} does not hold what is written to it",
            seen=f"{held:#x} of {memory.length:#x} bytes",
        )
    return tag


def check_nothing_left(memory: DeviceMemory, device: BenchDevice, tag: int) -> None:
    """Nothing of the pattern of ``tag`` stands in the memory.

    Raises:
        ProductError: a data leak: how much, and where.
    """
    traces = memory.search(tag)
    total = sum(trace.length for trace in traces)
    words = f"{total:#x} of the {memory.length:#x} bytes searched, from {memory.first:#x} on"
    events.emit(events.Evidence(f"{device.name}: what the guest before left", words.encode()))
    if traces:
        raise ProductError(
            f"a data leak: a guest finds in the memory of {device} what the one before left there",
            seen="\n".join([words, *map(str, traces[:TOLD])]),
            hint="its reset does not clear its memory; a guest may have to do so before it ends",
        )


def check_next_guest(first: Guest, device: BenchDevice, guests: GuestPool) -> None:
    """The guest that has the device fills its memory and ends; the next finds nothing of it.

    Raises:
        ProductError: see :func:`check_nothing_left`.
    """
    with device_memory(first, device) as memory:
        tag = leave(memory, device)
    first.destroy()
    with device_memory(guests.shared(device), device) as memory:
        check_nothing_left(memory, device, tag)
