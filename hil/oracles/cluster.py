"""Do the cards of a cluster work, all of them at once?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

from hil.bench import BenchDevice
from hil.errors import HilError, LabError, ProductError
from hil.guests.guest import Guest
from hil.oracles import dma, gpu_card, ownership, picture
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
            config = device.look().config
            if device.kind == "gpu" and (config.msix or config.msi):
                _check_interrupts(guest, device)


def _check_interrupts(guest: Guest, device: BenchDevice) -> None:
    if not guest.interrupts(guest.address_of(device.address)):
        raise ProductError(
            f"the driver of {device} has no interrupt in guest {guest.name}",
            hint="are there vectors enough for all cards? the guest's console tells",
        )


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
