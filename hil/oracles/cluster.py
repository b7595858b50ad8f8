"""Do the cards of a cluster work, all of them at once?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

from hil import events
from hil.bench import BenchDevice, BenchHost
from hil.errors import HilError, LabError, ProductError
from hil.guests.guest import Guest
from hil.oracles import dma, gpu_card, ownership, picture, preflight
from hil.pci.vectors import wanted_vectors
from hil.platforms.contract import Function
from hil.probes.display import Display
from hil.probes.edu import edu_engine

#: Seconds in which all are ready to begin.
READY = 60.0


def check_all_at_once(
    formed: Mapping[Guest, Sequence[BenchDevice]], *, left_out: BenchDevice | None = None
) -> None:
    """Each card does its own work, judged by its own oracle, and all begin together.

    A display draws a picture that is compared pixel by pixel; a DMA engine copies patterns.
    ``left_out`` is given no work: the control.

    Raises:
        ProductError: a card did something wrong, or nothing.
        LabError: what a card could do is not known.
    """
    held = [(guest, device) for guest, devices in formed.items() for device in devices]
    busy = [(guest, device) for guest, device in held if device is not left_out]
    barrier = Barrier(len(busy))
    done: list[str] = []

    def together(guest: Guest) -> None:
        try:
            barrier.wait(guest.limit(READY, "the other cards").remaining)
        except BrokenBarrierError:
            raise LabError(f"guest {guest.name} waited in vain for the other cards") from None

    def work(guest: Guest, device: BenchDevice) -> None:
        try:
            _work_of(device)(guest, device, lambda: together(guest))
        except BaseException as error:
            barrier.abort()  # the others need not wait
            if isinstance(error, HilError):
                error.host = device.host.name
                error.message = f"{device} on {device.host.name}: {error.message}"
            raise
        done.append(device.name)

    with ThreadPoolExecutor(len(busy)) as pool:
        jobs = [pool.submit(work, guest, device) for guest, device in busy]
        failures = [error for job in jobs if (error := job.exception()) is not None]
    if failures:
        # One that broke the barrier comes before those that waited at it.
        raise next((e for e in failures if not isinstance(e, LabError)), failures[0])
    if idle := [str(device) for _, device in held if device.name not in done]:
        raise ProductError(f"{len(idle)} of {len(held)} cards did nothing", seen="\n".join(idle))


def check_complete(formed: Mapping[Guest, Sequence[BenchDevice]]) -> None:
    """Each guest sees its cards, every memory BAR of each, and has a vector of each that has any.

    Raises:
        ProductError: something of a card is missing in its guest.
    """
    for guest, devices in formed.items():
        gpu_card.check_whole(guest, *devices)
        for device in devices:
            ownership.check_bars(guest, device)
    check_vectors(formed)


def check_vectors(
    formed: Mapping[Guest, Sequence[BenchDevice]], *, more: int = 0
) -> tuple[str, ...]:
    """Each function that a driver of its (Linux) guest has taken has its interrupt vectors.

    In the guest it has at least one, and as many as its driver is known to ask for; on the host
    there is one for each.  ``more``: take each driver to ask for so many more than it does: the
    control.

    Returns what each has, a line for each function.

    Raises:
        ProductError: some have fewer, with what each has.
    """
    lines, wrong = [], []
    for guest, devices in formed.items():
        for function in itertools.chain.from_iterable(d.look_at_all() for d in devices):
            told, enough = _vectors_of(guest, function, devices[0].host, more)
            lines.append(told)
            if not enough:
                wrong.append(str(function.address))
    events.emit(events.Evidence("interrupt vectors", "\n".join(lines).encode()))
    if wrong:
        raise ProductError(
            f"{', '.join(wrong)} have too few interrupt vectors",
            seen="\n".join(lines),
            hint="the kernel logs of guest and host tell what was refused",
        )
    return tuple(lines)


def _vectors_of(guest: Guest, function: Function, host: BenchHost, more: int) -> tuple[str, bool]:
    """What a function has, in words, and whether that is enough."""
    wanted = wanted_vectors(
        f"{function.address} in guest {guest.name}",
        function.config,
        preflight.least_vectors(function),
    )
    where = guest.address_of(function.address)
    if not guest.seen(function.address).driver:
        return f"{wanted.owner}: no driver has it", True
    if not wanted.most:
        return str(wanted), True
    inside = _messages(guest.interrupts(where))
    outside = host.platform.interrupts(
        function.address, host.limit(20, f"the interrupts of {function.address}")
    )
    held = _messages({name: n for name, n in outside.items() if _is_passed(name, function)})
    enough = wanted.least + more <= inside <= held
    asked = f"its driver asks for {wanted.least + more} or more"
    return f"{wanted.owner}: {inside} of {wanted.most}, {asked}; {held} on the host", enough


def _messages(counts: Mapping[str, int]) -> int:
    """How many of a function's interrupts are messages.

    Linux: the interrupt chip's name says so; its line ``irq`` may be another device's too.
    FreeBSD: ppt's are of no other kind once they are named for it.
    """
    return len([name for name in counts if "MSI" in name or re.search(r" ppt\d+$", name)])


def _is_passed(name: str, function: Function) -> bool:
    """Whether a host's interrupt is of this function: ``… vfio-msix[0](0000:07:00.0)``."""
    return "vfio" not in name or f"({function.address})" in name


_Work = Callable[[Guest, BenchDevice, Callable[[], None]], None]


def _work_of(device: BenchDevice) -> _Work:
    if device.kind == "edu":
        return _copy
    if device.screen is not None:
        return _draw
    raise LabError(
        f"nothing is known that {device} could do beside other cards",
        hint="a display needs the key capture in the inventory",
    )


def _draw(guest: Guest, device: BenchDevice, together: Callable[[], None]) -> None:
    with Display(guest, device) as display:
        together()
        picture.check_draws(display, device)


def _copy(guest: Guest, device: BenchDevice, together: Callable[[], None]) -> None:
    with edu_engine(guest, device) as (engine, memory):
        together()
        dma.check_copies(engine, memory, dma.edge_copies())
