"""Do guests with devices pin their memory, all of it, and give it back when they end?"""

from __future__ import annotations

from collections.abc import Iterable

from hil.bench import BenchHost
from hil.errors import LabError, ProductError
from hil.guests.guest import Guest
from hil.platforms.pinning import Pinning, mib


def now(host: BenchHost) -> int:
    """Bytes that are pinned on the host.

    Raises:
        LabError: the host cannot tell.
    """
    return _pinned(_asked(host), host)


def check_held(host: BenchHost, guests: Iterable[Guest]) -> None:
    """Guests with devices, all that this run has on a host, have their whole memory pinned.

    Where the host tells what these have and no other program, it is not more either.

    Raises:
        ProductError: less is pinned than these guests have, or more than that and their firmware.
        LabError: the host cannot tell.
    """
    found = _asked(host)
    pinned = _pinned(found, host)
    sizes = {guest.name: guest.machine.spec.memory for guest in guests}
    wanted = sum(sizes.values())
    too_many = found.guests_only and pinned > wanted + found.overhead * len(sizes)
    if pinned < wanted or too_many:
        raise ProductError(
            f"{mib(pinned)} are pinned on {host.name}, and its guests with devices have "
            f"{mib(wanted)}",
            host=host.name,
            seen="\n".join(f"guest {name}: {mib(size)}" for name, size in sizes.items()),
            hint="less: a device's DMA can meet a page that is somebody else's by now; "
            "more: a guest that has ended still holds its memory",
        )


def check_given_back(host: BenchHost, guest: Guest, before: int) -> None:
    """A guest that was destroyed has given back what it had pinned.

    Args:
        host: where it was.
        guest: with a device.
        before: bytes that were pinned on the host while it still ran.

    Raises:
        ProductError: it has not; with how much is still there.
        LabError: the host cannot tell.
    """
    found = _asked(host)
    returned = before - _pinned(found, host)
    size = guest.machine.spec.memory
    if not size <= returned <= size + found.overhead:
        raise ProductError(
            f"guest {guest.name} had {mib(size)} pinned on {host.name}, and has given back "
            f"{mib(max(0, returned))}",
            host=host.name,
            hint="does its hypervisor still run, or is its virtual machine still there?",
        )


def _asked(host: BenchHost) -> Pinning:
    found = host.pinning()
    if found is None:
        raise LabError(
            f"{host.name} does not tell how much memory is pinned",
            host=host.name,
            hint="mark the test: features=[Feature.PINNED_MEMORY]",
        )
    return found


def _pinned(found: Pinning, host: BenchHost) -> int:
    if found.pinned is None:
        raise LabError(
            f"{host.name} is shared, and does not tell which run's guests have memory pinned",
            host=host.name,
        )
    return found.pinned
