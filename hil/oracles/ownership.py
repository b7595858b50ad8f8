"""Does the right side have the device, and does it work there?"""

from __future__ import annotations

from hil.bench import BenchDevice
from hil.errors import GuestError, ProductError
from hil.guests.guest import Guest
from hil.probes import host_io


def check_guest_sees(guest: Guest, device: BenchDevice) -> None:
    """In the guest stands a function with the ids that the host knows."""
    seen = guest.seen(device.address)
    passed = device.look()
    if (seen.vendor, seen.device) != (passed.vendor, passed.device):
        raise ProductError(
            f"guest {guest.name} sees {seen.vendor:04x}:{seen.device:04x} "
            f"where {passed.vendor:04x}:{passed.device:04x} was passed"
        )


def check_bars(guest: Guest, device: BenchDevice) -> None:
    """In the guest each of the device's memory BARs has its size, and a place.

    Raises:
        ProductError: one is missing, has another size, or was left at address 0.
    """
    seen = guest.bars(device.address)
    wrong = []
    for bar in device.look().bars:
        if not bar.memory:
            continue
        there = seen.get(bar.index)
        if there is None or not there.address or there.size != bar.size:
            wrong.append(f"BAR {bar.index} of {bar.size:#x} bytes: in the guest {there}")
    if wrong:
        raise ProductError(
            f"guest {guest.name} lacks BARs of {device}",
            seen="\n".join(wrong),
            hint="do they fit into the hypervisor's window for BARs?",
        )


def check_back_on_host(device: BenchDevice, driver: str | None) -> None:
    """The host's driver has it again, and it does I/O there.

    ``driver``: the one it had before; ``None`` for a device that the host has none for.
    """
    function = device.look()
    if function.driver != driver:
        raise ProductError(
            f"{device} is bound to {function.driver or 'no driver'} after its return, "
            f"not to {driver or 'no driver'}"
        )
    host_io.check(device)


def check_unharmed(guest: Guest) -> None:
    """The guest still runs, and its shell answers."""
    answer = guest.run(["echo", "alive"])
    if answer.stdout.strip() != "alive":
        raise GuestError(f"guest {guest.name} answers {answer.stdout!r}")
