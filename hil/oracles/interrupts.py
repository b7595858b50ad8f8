"""Do interrupts arrive once each, and stop when their owner is gone?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from hil.bench import BenchDevice
from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded, LabError, ProductError
from hil.guests.guest import Guest
from hil.probes import host_io

#: Requests of the disk check; each is its own interrupt at queue depth 1.
REQUESTS = 64


def check_each_once(counts: Sequence[Sequence[int]]) -> int:
    """``counts[n]`` are the events per vector after message ``n``: one, at vector ``n``.

    Returns the number of vectors.

    Raises:
        ProductError: with a line for each message that went wrong.
    """
    if not counts:
        raise ProductError("the device has no vectors to try")
    wrong = [
        f"message {number} was sent once; the vectors counted {list(row)}"
        for number, row in enumerate(counts)
        if list(row) != [int(n == number) for n in range(max(len(row), number + 1))]
    ]
    if wrong:
        raise ProductError(
            f"{len(wrong)} of {len(counts)} vectors counted wrong", seen="\n".join(wrong)
        )
    return len(counts)


def check_disk_interrupts(guest: Guest, device: BenchDevice) -> None:
    """The guest's disk driver gets an interrupt for each of a row of single requests.

    Raises:
        ProductError: fewer interrupts than requests: the driver had to poll.
    """
    disk = guest.disk_of(device.address)
    address = guest.address_of(device.address)
    before = guest.interrupts(address)
    guest.run(guest.os.disk_digest(disk, 4096, 0, REQUESTS)).check()
    came = sum(guest.interrupts(address).values()) - sum(before.values())
    if came < REQUESTS:
        raise ProductError(f"{REQUESTS} requests to {disk} made only {came} interrupts")


def check_silent(device: BenchDevice, seconds: float) -> None:
    """For ``seconds`` the host counts no interrupt of the device.

    Raises:
        ProductError: with the lines that counted.
    """
    platform = device.host.platform

    def count() -> dict[str, int]:
        deadline = device.host.limit(20, f"the interrupts of {device}")
        return dict(platform.interrupts(device.address, deadline))

    before = count()
    grown: list[str] = []

    def any_came() -> bool:
        now = count()
        grown[:] = [
            f"{name}: {before.get(name, 0)} before, {number} after"
            for name, number in now.items()
            if number > before.get(name, 0)
        ]
        return bool(grown)

    with contextlib.suppress(DeadlineExceeded):
        poll(any_came, Deadline(seconds, "silence"), interval=0.2)
    if grown:
        raise ProductError(
            f"the host counts interrupts on {device}, which nobody owns", seen="\n".join(grown)
        )


@contextlib.contextmanager
def busy_on_host(device: BenchDevice) -> Iterator[None]:
    """The host's own driver works the device: for controls."""
    stop = False

    def work() -> None:
        while not stop:
            host_io.check(device)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work)
        try:
            yield
        finally:
            stop = True
    if job.exception() is not None:
        raise LabError(f"{device} does not work on the host") from job.exception()
