"""Two guests made at the same moment for one device: exactly one may have it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hil.bench import Bench, BenchDevice
from hil.errors import ProductError, RefusalError
from hil.platforms.contract import GuestSpec, Machine


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who was made, and how the others were refused."""

    made: tuple[str, ...]
    refusals: tuple[str, ...]


def two_guests(lab: Bench, device: BenchDevice | None) -> Outcome:
    """Make two guests at once, tell what came of it, and destroy what was made."""
    host = device.host if device is not None else lab.host
    devices = device.functions if device is not None else ()
    specs = [
        GuestSpec(name=f"racer-{letter}", image=lab.guests.image, devices=devices)
        for letter in "ab"
    ]

    machines: list[Machine] = []

    def make(spec: GuestSpec) -> tuple[str, str]:
        deadline = host.limit(60, f"guest {spec.name}")
        try:
            machines.append(host.platform.create_guest(spec, deadline))
        except RefusalError as error:
            return "", error.explain()
        return spec.name, ""

    try:
        with ThreadPoolExecutor(2) as pool:
            answers: Sequence[tuple[str, str]] = list(pool.map(make, specs))
    finally:
        for machine in machines:
            machine.destroy(host.limit(20, "the end of a racer"))
    return Outcome(
        tuple(name for name, _ in answers if name), tuple(text for _, text in answers if text)
    )


def check_one_won(outcome: Outcome) -> None:
    """Exactly one was made, and the other was told that the device is busy."""
    if len(outcome.made) != 1:
        raise ProductError(
            f"{len(outcome.made)} guests have the device, not one",
            seen="\n".join(outcome.refusals),
        )
    if "busy" not in outcome.refusals[0].lower():
        raise ProductError(
            "the loser was not told that the device is busy", seen=outcome.refusals[0]
        )
