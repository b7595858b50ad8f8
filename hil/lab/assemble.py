"""From hosts that answer to a bench: devices with live functions and the far ends of cables."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hil.bench import GUEST_MEMORY, Bench, BenchDevice, BenchHost, Peer, Screen, Shelf
from hil.deadline import Deadline
from hil.errors import LabError
from hil.lab.live import LiveLab
from hil.lab.models import Device

if TYPE_CHECKING:
    from hil.emulated.machine import EmulatedLab


def bench_of(live: LiveLab, deadline: Deadline) -> Bench:
    """A bench of all that ``live`` has; closing it does not close ``live``.

    Raises:
        InventoryError: a device is not on its host as the inventory says.
        LabError: a host does not answer.
    """
    lab = live.lab
    hosts = {
        name: BenchHost(
            name,
            platform,
            live.pace,
            lab.hosts[name].danger,
            functools.partial(_panic, live, name),
            _shelf_of(live),
        )
        for name, platform in live.platforms.items()
    }
    devices = {}
    for index, (name, device) in enumerate(lab.devices.items()):
        functions = live.functions(name, deadline)
        devices[name] = BenchDevice(
            name,
            device.kind,
            hosts[device.host],
            tuple(function.address for function in functions),
            peer=_peer(device, index, hosts, deadline),
            vfs=device.vfs,
            screen=_screen(name, device, live),
            guest_memory=device.guest_memory << 20,
            rom=device.rom or "",
        )
    image, entry = next(iter(lab.images.items()), ("linux", None))
    return Bench(
        lab.name,
        hosts,
        devices,
        image=image,
        guest_system=entry.os if entry else "linux",
    )


def _shelf_of(live: LiveLab) -> Shelf | None:
    """Where a boot takes many seconds, most guests continue one that was booted once."""
    if live.emulated is None:
        return None
    from hil.emulated.templates import Shelf as CacheShelf

    return CacheShelf(live.emulated, f"{GUEST_MEMORY} {sorted(live.lab.images.items())}")


def _screen(name: str, device: Device, live: LiveLab) -> Screen | None:
    """How the display of a device is seen, if it is."""
    capture = device.capture
    if capture is None:
        return None
    if capture.by == "v4l2":
        from hil.probes.capture import V4l2Screen

        return V4l2Screen(str(capture.device), capture.tolerance)
    return _Screenshots(name, live.emulated) if live.emulated is not None else None


@dataclass(frozen=True, slots=True)
class _Screenshots:
    """What an emulated display shows."""

    device: str
    machine: EmulatedLab
    tolerance: int = 0

    def capture(self, width: int, height: int, deadline: Deadline) -> bytes:  # noqa: ARG002
        """A picture in PNG, in the size that the display has now."""
        return self.machine.screenshot(self.device, deadline)


def _panic(live: LiveLab, host: str) -> str:
    if host in live.watches:
        return live.watches[host].death
    return live.emulated.panic if live.emulated is not None else ""


def _peer(
    device: Device, index: int, hosts: dict[str, BenchHost], deadline: Deadline
) -> Peer | None:
    if device.peer is None:
        return None
    host = hosts[device.peer.host or device.host]
    interface = device.peer.interface
    if device.peer.function is not None:
        function = host.platform.function(device.peer.function, deadline)
        if not function.interfaces:
            raise LabError(
                f"the peer {function.address} on {host.name} has no network interface",
                host=host.name,
                seen=f"its driver: {function.driver or 'none'}",
            )
        interface = function.interfaces[0]
    # RFC 2544's range for tests of network devices: one network a cable.
    return Peer(host, str(interface), f"198.18.{index}.1")
