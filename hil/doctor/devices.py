"""Checks of the devices that a lab passes to guests, whatever its hosts run.

Pure: functions in, rows out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from hil.doctor.check import Check, State
from hil.gpu.known import is_gpu, rest_of_card, vendor_of
from hil.gpu.statement import statement
from hil.lab.models import Lab
from hil.pci.budget import Windows, advice, human, plan
from hil.platforms import pinning
from hil.platforms.bar_windows import wanted_bars
from hil.platforms.contract import Function
from hil.platforms.pinning import Pinning, mib

Devices = Mapping[str, Sequence[Function]]
"""Functions that travel together, by the name of their device."""


def device_rows(
    host: str, devices: Devices, everything: Iterable[Function], windows: Windows, memory: int
) -> list[Check]:
    """Rows for the devices of one host.

    Args:
        host: its name.
        devices: what of it is passed to guests.
        everything: all its functions.
        windows: where its guests get their BARs.
        memory: bytes that a guest with the devices has.
    """
    everything = tuple(everything)
    checks = budget_rows(host, devices, windows, memory)
    for name, functions in devices.items():
        for function in functions:
            if is_gpu(function):
                checks.append(_whole(host, name, function, functions, everything))
                checks += _between_guests(host, function)
    return checks


def memory_of(lab: Lab, host: str) -> int:
    """Bytes that a guest with all of a host's devices has."""
    return max(device.guest_memory for device in lab.devices_of(host).values()) << 20


def budget_rows(host: str, devices: Devices, windows: Windows, memory: int) -> list[Check]:
    """PF6: whether a guest has room for all BARs; where it has not, hypervisors may be silent."""
    name = "BARs fit into a guest"
    cards = {
        device: [b for f in found for b in wanted_bars(f)] for device, found in devices.items()
    }
    bars = [bar for card in cards.values() for bar in card]
    if not bars:
        return []
    alone = {device: plan(card, windows, memory).left_out for device, card in cards.items()}
    together = plan(bars, windows, memory)
    if together.fits:
        low = sum(bar.size for bar, address in together.placed.items() if address < 1 << 32)
        high = sum(bar.size for bar in bars) - low
        evidence = f"all together: {human(low)} below 4 GiB, {human(high)} above ({windows.name})"
        return [Check(host, name, State.FOUND, evidence, needed=False)]
    missing = [bar for left_out in alone.values() for bar in left_out] or together.left_out
    how = "even alone" if any(alone.values()) else "all together"
    bars_told = ", ".join(map(str, missing))
    evidence = f"{windows.name} has no room, {how}, for {bars_told}: a guest will not see it"
    remedy = f"[{advice(cards, windows, memory)}]"
    return [Check(host, name, State.MISSING, evidence, remedy, needed=False)]


def memory_rows(host: str, lab: Lab, ask: Callable[[], Pinning | None]) -> list[Check]:
    """PF9: whether a host has memory for all its guests of each topology of the lab's clusters.

    ``ask``: what the host has; called only where there is a cluster.

    Raises:
        HilError: it cannot be asked.
    """
    forms = {
        str(form): {
            "+".join(names): max(lab.devices[name].guest_memory for name in names) << 20
            for names in form.guests
            if lab.devices[names[0]].host == host
        }
        for cluster in lab.clusters
        for form in lab.topologies(cluster)
    }
    forms = {name: guests for name, guests in forms.items() if guests}
    found = ask() if forms else None
    if found is None:
        return []
    checks = []
    for form, guests in forms.items():
        planned = pinning.plan(guests, found)
        name = f"memory for {form}"
        if planned.fits:
            wanted = mib(sum(guests.values()))
            evidence = f"{len(guests)} guest(s) with {wanted} of {mib(found.free)} ({found.bound})"
            checks.append(Check(host, name, State.FOUND, evidence, needed=False))
        else:
            evidence = "; ".join(planned.describe().splitlines())
            remedy = f"[{planned.advice()}]"
            checks.append(Check(host, name, State.MISSING, evidence, remedy, needed=False))
    return checks


def _whole(
    host: str,
    device: str,
    function: Function,
    functions: Iterable[Function],
    everything: Iterable[Function],
) -> Check:
    """GP5: a GPU is all its functions."""
    name = f"GPU {function.address} is whole"
    chosen = {one.address for one in functions}
    rest = rest_of_card(function, everything)
    left = [other for other in rest if other.address not in chosen]
    if left:
        told = ", ".join(
            f"its {other.config.class_name} {other.address} ({other.driver or 'no driver'})"
            for other in left
        )
        every = sorted({*chosen, *(other.address for other in left)})
        remedy = "functions = [" + ", ".join(f'"{address}"' for address in every) + "]"
        evidence = f"left on the host: {told}"
        return Check(host, name, State.MISSING, evidence, f"[devices.{device}: {remedy}]", False)
    with_it = ", ".join(f"{other.config.class_name} {other.address}" for other in rest)
    evidence = f"goes with {with_it}" if with_it else "has one function"
    return Check(host, name, State.FOUND, evidence, needed=False)


def _between_guests(host: str, function: Function) -> list[Check]:
    """What a GPU is between two guests, and what is known to go wrong with this very card."""
    said = statement(function)
    vendor = vendor_of(function)
    name = f"GPU {function.address} between guests"
    evidence = f"{vendor.name if vendor else 'a vendor not known'}: {said}"
    state = State.FOUND if said.resets else State.MISSING
    once = "[expect it to work once a boot of the host; suites/gpu tells]"
    return [
        Check(host, name, state, evidence, once, needed=False),
        *(
            Check(host, f"GPU {function.address}, as known", State.UNKNOWN, str(quirk), once, False)
            for quirk in said.quirks
            if quirk.devices
        ),
    ]
