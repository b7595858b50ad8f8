"""A little I/O by the host's own driver, to show that a returned device works."""

from __future__ import annotations

from hil.bench import BenchDevice
from hil.deadline import poll
from hil.errors import DeadlineExceeded, LabError, ProductError
from hil.probes.nic import counters

# Neighbour discovery and multicast leave by the named interface, whatever the host's routes
# say: an address of the same host at the far end would be short-cut within the kernel.
_SEND = r"""
ip link set "$1" up && ip link set "$2" up && ping -6 -n -c 3 -i 0.2 -W 1 -I "$1" ff02::1 >/dev/null
"""
_DISK = r"""
dd if="$1" bs=64K count=16 iflag=direct status=none | sha256sum
"""


def check(device: BenchDevice) -> None:
    """The host's driver does I/O with the device, as far as one kind of device can.

    A NIC's frames arrive at its peer, a disk can be read twice alike; other kinds must at
    least answer configuration reads.

    Raises:
        ProductError: it does not, for 20 seconds.
    """
    function = device.look()
    if function.config.absent:
        raise ProductError(f"{device} does not answer on the host: all ones")
    if device.kind == "nic" and function.driver and device.peer is not None:
        _frames_arrive(device)
    elif device.kind == "nvme" and function.driver:
        _reads_alike(device)


def _interface(device: BenchDevice) -> str:
    deadline = device.host.limit(20, f"the host's interface of {device}")

    def look() -> str | None:
        names = device.look().interfaces
        return names[0] if names else None

    try:
        return poll(look, deadline, interval=0.1)
    except DeadlineExceeded as error:
        raise ProductError(f"the host's driver made no interface of {device}") from error


def _frames_arrive(device: BenchDevice) -> None:
    peer = device.peer
    if peer is None:
        raise LabError(f"{device} has no peer")
    interface = _interface(device)
    deadline = device.host.limit(20, f"frames from {device} on the host")
    before = counters(peer).received

    def try_once() -> bool:
        device.host.platform.transport.run(
            ["sh", "-c", _SEND, "hil", interface, peer.interface], deadline=deadline
        )
        return counters(peer).received > before

    try:
        poll(try_once, deadline)
    except DeadlineExceeded as error:
        raise ProductError(
            f"{device} does no I/O on the host: {peer.interface} has received nothing from "
            f"{interface}",
            host=device.host.name,
        ) from error


def _reads_alike(device: BenchDevice) -> None:
    deadline = device.host.limit(30, f"reads of {device} on the host")
    path = f"/dev/{_interface(device)}"
    transport = device.host.platform.transport
    hashes = {
        transport.run(["sh", "-c", _DISK, "hil", path], deadline=deadline).check().stdout
        for _ in range(2)
    }
    if len(hashes) != 1 or not all(hashes):
        raise ProductError(f"two reads of {path} on the host differ", seen="\n".join(hashes))
