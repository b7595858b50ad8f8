"""A little I/O by the host's own driver, to show that a returned device works."""

from __future__ import annotations

from hil.bench import BenchDevice
from hil.deadline import poll
from hil.errors import DeadlineExceeded, LabError, ProductError
from hil.guests.os import guest_os
from hil.probes.nic import counters

#: Bytes and number of the blocks that are read of a disk.
BLOCK, BLOCKS = 65536, 16


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
    system = guest_os(device.host.platform.system)

    def try_once() -> bool:
        for command in (peer.system.link_up(peer.interface), system.announce(interface)):
            device.host.platform.transport.run(command, deadline=deadline)
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
    command = guest_os(device.host.platform.system).disk_digest(path, BLOCK, 0, BLOCKS)
    hashes = {transport.run(command, deadline=deadline).check().stdout for _ in range(2)}
    if len(hashes) != 1 or not all(hashes):
        raise ProductError(f"two reads of {path} on the host differ", seen="\n".join(hashes))
