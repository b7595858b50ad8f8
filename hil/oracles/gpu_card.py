"""Has the guest the whole card, with a driver that is meant for it?"""

from __future__ import annotations

import base64
import itertools

from hil.bench import BenchDevice
from hil.deadline import poll
from hil.errors import DeadlineExceeded, GuestError, ProductError
from hil.gpu.known import vendor_of
from hil.gpu.vendor import Vendor
from hil.guests.guest import Guest
from hil.guests.os import SeenFunction
from hil.platforms.contract import Function


def check_whole(guest: Guest, *devices: BenchDevice) -> None:
    """GP5: every function of the devices is in the guest, as what it is on the host.

    Raises:
        ProductError: one is missing, or is another.
    """
    seen = {one.address: one for one in guest.functions()}
    wrong = []
    for function in itertools.chain.from_iterable(device.look_at_all() for device in devices):
        where = guest.address_of(function.address)
        there = seen.get(where)
        if there is None:
            wrong.append(f"{function.config.class_name} {function.address}: not at {where}")
        elif (there.vendor, there.device) != (function.vendor, function.device):
            wrong.append(f"{function.address}: at {where} is {there.vendor:04x}:{there.device:04x}")
    if wrong:
        raise ProductError(
            f"guest {guest.name} has not the whole of {', '.join(map(str, devices))}",
            seen="\n".join(wrong),
        )


def check_driver(guest: Guest, device: BenchDevice) -> None:
    """GP1: a Linux guest's driver for this vendor's cards has taken it.

    Raises:
        ProductError: it has not, with the guest's last console lines.
    """
    function = device.look()
    vendor = vendor_of(function)

    def looked() -> bool:
        return not driver_complaint(guest.seen(device.address), vendor)

    try:
        # Drivers of large cards take their time after the log-in.
        poll(looked, guest.limit(30, f"a driver for {device}"), interval=0.5)
    except DeadlineExceeded:
        complaint = driver_complaint(guest.seen(device.address), vendor)
        raise ProductError(
            f"{device} has no driver in guest {guest.name}",
            seen=complaint,
            hint=hint(vendor, function),
            console=guest.console.log.tail(30),
        ) from None


def check_rom(guest: Guest, device: BenchDevice) -> None:
    """GP6: the guest reads the option ROM that it was given.

    Raises:
        ProductError: it reads none, or another.
    """
    given = device.host.platform.transport.get(
        device.rom, deadline=device.host.limit(30, f"the option ROM of {device}")
    )
    result = guest.run(guest.os.read_rom(guest.address_of(device.address)))
    seen = _decoded(result.stdout) if result.status == 0 else b""
    if complaint := rom_complaint(given, seen):
        raise ProductError(
            f"guest {guest.name} does not read the option ROM of {device} that it was given",
            seen="\n".join(part for part in (complaint, result.stderr.strip()) if part),
        )


def check_no_rom(guest: Guest, device: BenchDevice) -> None:
    """GP6: a guest that was given no option ROM reads none.

    Raises:
        ProductError: it does.
    """
    result = guest.run(guest.os.read_rom(guest.address_of(device.address)))
    seen = _decoded(result.stdout) if result.status == 0 else b""
    if seen:
        raise ProductError(
            f"guest {guest.name} reads an option ROM of {device}, and was given none",
            seen=f"{len(seen)} bytes: {seen[:32].hex()}…",
        )


def rom_complaint(given: bytes, seen: bytes) -> str:
    """What is wrong with an option ROM as a guest reads it; empty if it is the one given.

    A guest's kernel reads as much as the images in it say (PCI Firmware Specification 5.1),
    which may be less than the file has, or more where the BAR is larger.
    """
    length = min(len(given), len(seen))
    if not length:
        return f"{len(seen)} bytes are read, {len(given)} were given"
    at = next((i for i in range(length) if given[i] != seen[i]), length)
    return "" if at == length else f"they differ from byte {at:#x} on"


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise GuestError("the guest prints its option ROM in no known form", seen=text) from error


def driver_complaint(seen: SeenFunction, vendor: Vendor | None) -> str:
    """What is wrong with a function's driver in a guest; empty if it is one of the vendor's."""
    wanted = vendor.drivers if vendor else ()
    if seen.driver and (not wanted or seen.driver in wanted):
        return ""
    return f"{seen.address} has {seen.driver or 'no driver'}, not {' or '.join(wanted) or 'any'}"


def hint(vendor: Vendor | None, function: Function) -> str:
    """Where to look if a driver does not take a card."""
    if vendor is None:
        return "has the guest's image a driver for it?"
    known = map(str, vendor.quirks_of(function.device))
    said = ["has the guest's image its driver?", vendor.hiding, *known]
    return "; ".join(text for text in said if text)
