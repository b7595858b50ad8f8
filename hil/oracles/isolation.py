"""Virtual functions of one card: does each get its own frames and no other's?"""

from __future__ import annotations

from hil.bench import BenchDevice
from hil.deadline import poll
from hil.errors import LabError, ProductError
from hil.oracles.crosstalk import Pair
from hil.probes import nic

FRAMES = 500
#: Neighbour discovery, router solicitations and the like may come at any time.
NOISE = 20


def take_vfs_away(vf: BenchDevice) -> None:
    """Ask the platform to remove all VFs of the card that ``vf`` belongs to."""
    if vf.parent is None:
        raise LabError(f"{vf} is no virtual function")
    deadline = vf.host.limit(20, f"the end of the VFs of {vf.parent}")
    vf.host.platform.remove_vfs(vf.parent.address, deadline)


def check_unicast_is_private(pair: Pair, *, broadcast: bool = False) -> None:
    """Of a flood to the first VF's address the first guest gets plenty, the second nothing.

    ``broadcast`` floods everybody instead: the control.

    Raises:
        ProductError: the second guest received them too.
    """
    (first, second), (one, two) = pair.guests, pair.devices
    peer = nic.join(first, one, 0)
    nic.join(second, two, 1)
    own, other = first.interface_of(one.address), second.interface_of(two.address)
    destination = "ff:ff:ff:ff:ff:ff" if broadcast else first.mac_of(own)
    before = first.received(own), second.received(other)
    with nic.blast(peer, destination, payload=b"hil isolation"):
        poll(
            lambda: first.received(own) > before[0] + FRAMES,
            first.limit(20, f"{FRAMES} frames at {one}"),
        )
    strayed = second.received(other) - before[1]
    if strayed > NOISE:
        raise ProductError(
            f"guest {second.name} received {strayed} frames for {destination}, "
            f"the address of guest {first.name}"
        )
