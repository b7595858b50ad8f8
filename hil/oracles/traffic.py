"""Traffic while something else happens: a kill, a reset of a sibling."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from hil.bench import BenchDevice, Peer
from hil.deadline import Deadline, poll
from hil.errors import ProductError
from hil.guests.guest import Guest
from hil.oracles.crosstalk import Pair
from hil.oracles.dma import HostCanary
from hil.oracles.iommu import check_no_faults, new_faults
from hil.probes import nic

#: Frames that a guest must have received before it counts as being at full rate.
WARM = 2000


@contextlib.contextmanager
def full_rate(guest: Guest, device: BenchDevice, peer: Peer) -> Iterator[None]:
    """The peer floods the guest's NIC; the block starts once the guest is receiving."""
    interface = guest.interface_of(device.address)
    payload = secrets.token_bytes(256)
    with nic.blast(peer, guest.mac_of(interface), payload=payload):
        before = guest.received(interface)
        poll(
            lambda: guest.received(interface) > before + WARM,
            guest.limit(30, f"{WARM} received frames"),
        )
        yield


def canary_in_freed_memory(device: BenchDevice) -> HostCanary:
    """A canary made right after a guest's end: the host hands out what was freed last."""
    return HostCanary(device.host, 64 << 20)


def check_nothing_arrives(
    device: BenchDevice, peer: Peer, canaries: Sequence[HostCanary], seconds: float
) -> None:
    """For ``seconds``, with the peer still sending, no host memory changes, no DMA is tried.

    Raises:
        ProductError: a canary changed, or the peer did not send at all.
    """
    faults_before = device.host.platform.faults(device.host.limit(20, "the fault log"))
    sent_before = nic.counters(peer).sent
    _let_pass(seconds, f"late DMA of {device}")
    for canary in canaries:
        canary.check_intact()
    if seconds and nic.counters(peer).sent <= sent_before:
        raise ProductError(f"the peer {peer.interface} did not send: nothing was put to the test")
    faults = device.host.platform.faults(device.host.limit(20, "the fault log"))
    check_no_faults(new_faults(faults_before, faults))


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
    peers = [
        nic.join(guest, device, index)
        for index, (guest, device) in enumerate(zip(pair.guests, pair.devices, strict=True))
    ]
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(nic.echo, pair.guests[1], peers[1], sizes=(512,) * 6, count=40)
        done = 0
        while done < resets:
            pair.guests[0].reset_function(pair.devices[0].address)
            done += 1
        if job.done():
            raise ProductError("the sibling's traffic ended before the last reset")
        job.result()
    again = nic.join(pair.guests[0], pair.devices[0], 0)
    nic.wait_for_link(pair.guests[0], again)
    nic.echo(pair.guests[0], again, sizes=(512,))
