"""Traffic while something else happens: a kill, a reset of a sibling."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from hil.bench import BenchDevice, Peer
from hil.deadline import Deadline, poll
from hil.errors import DeadlineExceeded, LabError
from hil.guests.guest import Guest
from hil.oracles.crosstalk import Pair, joined
from hil.oracles.dma import HostCanary
from hil.oracles.iommu import check_no_faults, new_faults, watch_faults
from hil.probes import nic

#: Frames that a guest must have received before it counts as being at full rate.
WARM = 500
#: Bytes of canary put where a killed guest's memory was.
FREED = 16 << 20


@contextlib.contextmanager
def full_rate(guest: Guest, device: BenchDevice, peer: Peer) -> Iterator[Callable[[], None]]:
    """The peer floods the guest's NIC; the block starts once the guest is receiving.

    The block gets a check that the peer has gone on sending ever since.
    """
    interface = guest.interface_of(device.address)
    payload = secrets.token_bytes(256)
    with nic.blast(peer, guest.mac_of(interface), payload=payload):
        before = guest.received(interface)
        poll(
            lambda: guest.received(interface) > before + WARM,
            guest.limit(30, f"{WARM} received frames"),
        )
        sent = nic.counters(peer).sent

        def still_sending() -> None:
            try:
                poll(
                    lambda: nic.counters(peer).sent >= sent + WARM,
                    peer.host.limit(20, f"{WARM} more frames of the peer"),
                )
            except DeadlineExceeded as error:
                raise LabError(
                    f"the peer {peer.interface} has stopped sending: nothing was put to the test",
                    seen=f"{nic.counters(peer).sent - sent} frames after the kill",
                ) from error

        yield still_sending


@contextlib.contextmanager
def canary_in_freed_memory(device: BenchDevice) -> Iterator[HostCanary]:
    """A canary made right after a guest's end: the host hands out what was freed last."""
    canary = HostCanary(device.host, FREED)
    try:
        yield canary
    finally:
        canary.close()


def check_nothing_arrives(
    device: BenchDevice, canaries: Sequence[HostCanary], seconds: float
) -> None:
    """For ``seconds`` no host memory changes and no DMA of the device is refused.

    Raises:
        ProductError: a canary changed, or the IOMMU recorded a fault.
    """
    platform = device.host.platform
    before = watch_faults(device.host)
    _let_pass(seconds, f"late DMA of {device}")
    for canary in canaries:
        canary.check_intact()
    after = platform.faults(device.host.limit(20, "the fault log"))
    check_no_faults(new_faults(before, after))


def _let_pass(seconds: float, what: str) -> None:
    """An observation has a length: this is the one place where time itself is waited for."""
    deadline = Deadline(seconds, what)
    while not deadline.expired:
        time.sleep(min(0.2, deadline.remaining))


def check_sibling_undisturbed(pair: Pair, *, resets: int = 3) -> None:
    """The second guest's packets all come back while the first one's function is reset.

    Raises:
        ProductError: packets were lost or changed, or the reset function does not work.
    """
    peers = joined(pair)
    done = threading.Event()

    def echo_on() -> None:
        while not done.is_set():
            nic.echo(pair.guests[1], peers[1], sizes=(512,) * 6, count=4)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(echo_on)
        try:
            for _ in range(resets):
                pair.guests[0].reset_function(pair.devices[0].address)
        finally:
            done.set()
        job.result()
    again = nic.join(pair.guests[0], pair.devices[0], 0)
    nic.echo(pair.guests[0], again, sizes=(512,))
