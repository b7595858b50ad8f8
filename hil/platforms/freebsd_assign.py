"""Why a function could not be assigned to a virtual machine: which cause the words stand for.

bhyve says "is not using the ppt(4) driver" of functions that are, where another machine holds
them or where the host's IOMMU is not in use (lib/libvmmapi/vmmapi.c, vm_assign_pptdev;
sys/amd64/vmm/vmm.c).
"""

from __future__ import annotations

import re
from dataclasses import replace

from hil.errors import Fault, InventoryError
from hil.pci.address import Address
from hil.platforms.freebsd_state import Cause, Diagnosis, HostState, Verdict, iommu_causes

#: strerror(3) of EBUSY, ENOENT and ENXIO.
BUSY, ABSENT, NO_DEVICE = "Device busy", "No such file or directory", "Device not configured"


def parsed(text: str) -> Address | None:
    """The address that a tool printed; ``None`` if it is none."""
    try:
        return Address.parse(text)
    except InventoryError:
        return None


def not_using(match: re.Match[str], state: HostState) -> Diagnosis:
    """The old words, and 16's for the one cause that has kept them.

    Until 15 the second line has the reason's errno, as far as it has one: ENOENT for a
    function that is absent or not ppt's, EBUSY for one that a virtual machine holds, and EBUSY
    too where there is no IOMMU.  16 says these words for ENOENT alone, and without ``(4)``.
    """
    address = parsed(match[1])
    second = re.search(r"initialization error: (.*)", match.string, re.IGNORECASE)
    errno = second[1].strip() if second else ""
    newer = "ppt(4)" not in match[0]
    return _assign(state, address, ABSENT if newer else errno)


def vm_assign(match: re.Match[str], state: HostState) -> Diagnosis:
    """16's words for all but the function that ppt does not have."""
    address = state.devices[0] if len(state.devices) == 1 else None
    return _assign(state, address, match[1].strip(), exact=True)


def _assign(
    state: HostState, address: Address | None, errno: str, *, exact: bool = False
) -> Diagnosis:
    causes = [
        _unreserved(state, address, errno),
        _twice(state, address),
        _held(state, address, errno, exact=exact),
    ]
    # ppt looks the function up before anything else, so ENOENT says nothing of the IOMMU.
    if errno != ABSENT:
        causes += [
            replace(cause, verdict=Verdict.RULED_OUT, why="bhyve said: Device busy")
            if exact and errno == BUSY
            else cause
            for cause in iommu_causes(state)
        ]
    ranked = _one_answer(causes)
    name = address.slashes if address else "the device"
    holds = next((one for one in ranked if one.verdict is Verdict.HOLDS), None)
    possible = [one for one in ranked if one.verdict is Verdict.POSSIBLE]
    if holds is None and len(possible) == 1:
        holds = possible[0]
    busy = holds is None and not possible
    meaning = f"{name} cannot be passed: " + (
        holds.text
        if holds
        else "no known cause is left"
        if busy
        else "one of " + str(len(possible)) + " causes, which bhyve does not tell apart"
    )
    remedy = holds.remedy if holds else next((one.remedy for one in possible if one.remedy), "")
    fault = holds.fault if holds else Fault.PRODUCT if busy else Fault.LAB
    return Diagnosis(meaning, remedy, tuple(ranked), fault)


def _one_answer(causes: list[Cause]) -> list[Cause]:
    """Where one cause holds, the merely possible ones are kept, but after it."""
    order = {Verdict.HOLDS: 0, Verdict.POSSIBLE: 1, Verdict.RULED_OUT: 2}
    return sorted(causes, key=lambda cause: order[cause.verdict])


def _unreserved(state: HostState, address: Address | None, errno: str) -> Cause:
    text = "the function is not reserved: ppt(4) is not attached to it"
    if address is None:
        return Cause(text, Verdict.RULED_OUT, f"bhyve said: {errno}")
    remedy = f"devctl set driver -f {address.selector} ppt"
    if state.drivers is not None:
        if address not in state.drivers:
            return Cause(
                "the host has no such function",
                Verdict.HOLDS,
                f"pciconf -l has no {address.selector}",
                "pciconf -l",
                Fault.INVENTORY,
            )
        driver = state.drivers[address]
        if driver == "ppt":
            return Cause(text, Verdict.RULED_OUT, f"ppt is attached to {address.selector}")
        return Cause(text, Verdict.HOLDS, f"{address.selector} has {driver or 'no driver'}", remedy)
    if errno == ABSENT:
        return Cause(
            "the host has no such function, or ppt(4) is not attached to it",
            Verdict.HOLDS,
            f"bhyve said: {errno}",
            remedy,
        )
    if errno == BUSY:
        return Cause(text, Verdict.RULED_OUT, f"bhyve said: {errno}")
    return Cause(text, Verdict.POSSIBLE, "", remedy)


def _twice(state: HostState, address: Address | None) -> Cause:
    text = "the same function is passed twice to this virtual machine"
    if not state.devices:
        return Cause(text, Verdict.POSSIBLE)
    if address is not None and state.devices.count(address) > 1:
        why = f"{address.slashes} was given twice"
        return Cause(text, Verdict.HOLDS, why, "[name it once]", Fault.INVENTORY)
    return Cause(text, Verdict.RULED_OUT, "each device was given once")


def _held(state: HostState, address: Address | None, errno: str, *, exact: bool) -> Cause:
    text = "another virtual machine holds the function, or one that has ended and was not destroyed"
    if errno == ABSENT:
        return Cause(text, Verdict.RULED_OUT, f"bhyve said: {errno}")
    if exact and errno != BUSY:
        return Cause(text, Verdict.RULED_OUT, f"bhyve said: {errno}")
    others = state.others()
    if others is None:
        return Cause(text, Verdict.POSSIBLE, remedy="ls /dev/vmm")
    if not others:
        return Cause(text, Verdict.RULED_OUT, "/dev/vmm has no other virtual machine")
    passed = [
        process.vm
        for process in state.processes or ()
        if process.vm in others and address is not None and address.slashes in process.command
    ]
    names = ", ".join(passed or others)
    sure = bool(passed) or (exact and errno == BUSY)
    return Cause(
        text,
        Verdict.HOLDS if sure else Verdict.POSSIBLE,
        f"/dev/vmm: {names}",
        f"bhyvectl --vm={(passed or list(others))[0]} --destroy",
    )
