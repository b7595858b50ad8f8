"""A lab that is up: its hosts connected, each behind its platform."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hil.deadline import Deadline
from hil.errors import LabError
from hil.guests.images import GuestImage
from hil.lab.check import check_against
from hil.lab.lock import OnWait, hold
from hil.lab.models import Lab, LabKind
from hil.platforms.contract import Function, Platform
from hil.transport.base import Transport

if TYPE_CHECKING:
    from hil.emulated.machine import EmulatedLab

Progress = Callable[[str], None]


@dataclass
class LiveLab:
    """A lab whose hosts answer."""

    lab: Lab
    platforms: Mapping[str, Platform]
    """By host name, in the inventory's order."""
    emulated: EmulatedLab | None = None
    """The machine below an emulated lab's one host."""
    _devices: dict[str, tuple[Function, ...]] = field(default_factory=dict)

    def functions(self, device: str, deadline: Deadline) -> tuple[Function, ...]:
        """The functions of the inventory's ``device`` as its host has them now.

        The first call for a host compares all that the inventory says of it with what
        is there.

        Raises:
            InvalidInventoryError: see :func:`hil.lab.check.check_against`.
        """
        host = self.lab.devices[device].host
        platform = self.platforms[host]
        if device not in self._devices:
            self._devices.update(check_against(self.lab, host, platform.functions(deadline)))
        return tuple(platform.function(f.address, deadline) for f in self._devices[device])


@contextlib.contextmanager
def open_lab(
    lab: Lab,
    deadline: Deadline,
    *,
    run: str = "",
    wait: float = 600,
    iommu: bool = True,
    fresh: bool = False,
    faults: Sequence[str] = (),
    progress: Progress = lambda _: None,
    on_wait: OnWait | None = None,
) -> Iterator[LiveLab]:
    """Have ``lab`` up while the block runs.

    Args:
        lab: the inventory.
        deadline: for coming up, without the waiting for another run.
        run: the run's name, for whoever waits for the lab.
        wait: seconds to wait for another run to let go of the lab's hosts.
        iommu: an emulated or simulated lab only: with an IOMMU or without.
        fresh: an emulated lab only: boot it, rather than restore its saved state.
        faults: a simulated lab only: bugs of the past that its host has, by name.
        progress: told, one line at a time, what is being done.
        on_wait: see :func:`hil.lab.lock.hold`.

    Raises:
        LabError: a host cannot be reached, or another run holds it.
        InventoryError: keys, options or inventory are wrong.
    """
    with contextlib.ExitStack() as stack:
        if lab.kind is LabKind.EMULATED:
            from hil.emulated.machine import EmulatedLab

            machine = EmulatedLab.up(iommu=iommu, fresh=fresh, progress=progress, deadline=deadline)
            stack.callback(machine.close)
            yield live_emulated(lab, machine, deadline)
            return
        if lab.kind is LabKind.SIMULATED:
            progress(f"starting the simulated host {lab.name}")
            yield _simulated(lab, stack, iommu, faults, deadline)
            return
        stack.enter_context(hold(lab, run, Deadline(wait, f"the lab {lab.name}"), on_wait))
        platforms = {}
        for name in lab.hosts:
            progress(f"connecting to {name}")
            transport = connect(lab, name, deadline)
            stack.callback(transport.close)
            platforms[name] = platform_of(lab, name, transport)
        yield LiveLab(lab, platforms)


def live_emulated(lab: Lab, machine: EmulatedLab, deadline: Deadline) -> LiveLab:
    """The lab that ``machine`` is, once it is up."""
    from hil.platforms.linux import LinuxVfio

    (name,) = lab.hosts
    # An older QEMU lacks some device models; the machine says which and why.
    devices = {n: device for n, device in lab.devices.items() if n not in machine.missing}
    lab = dataclasses.replace(lab, devices=devices)
    platform = LinuxVfio(name, machine.ssh(deadline), images=images_of(lab), out_of_band=machine)
    return LiveLab(lab, {name: platform}, machine)


def _simulated(
    lab: Lab,
    stack: contextlib.ExitStack,
    iommu: bool,
    faults: Sequence[str],
    deadline: Deadline,
) -> LiveLab:
    """The lab whose one host is a model in this process, until ``stack`` ends."""
    from hil.simulated.host import SimulatedHost
    from hil.transport.ssh import SshTransport

    (name,) = lab.hosts
    host = SimulatedHost(lab.name, faults=faults, iommu=iommu).start()
    stack.callback(host.close)
    transport = SshTransport.connect(
        name,
        "127.0.0.1",
        port=host.port,
        key=host.key,
        host_key=host.host_key,
        deadline=deadline,
    )
    stack.callback(transport.close)
    return LiveLab(lab, {name: platform_of(lab, name, transport)})


def connect(lab: Lab, host: str, deadline: Deadline) -> Transport:
    """A root shell on a physical host.

    Raises:
        LabError: it cannot be reached, or its host key is not the known one.
        InventoryError: it does not take our key.
    """
    entry = lab.hosts[host]
    if entry.transport == "local":
        from hil.transport.local import LocalTransport

        return LocalTransport(host)
    from hil.transport.ssh import SshTransport

    return SshTransport.connect(
        host,
        entry.address,
        port=entry.port,
        user=entry.user,
        key_file=lab.file(entry.key_file),
        host_key=entry.host_key or None,
        known_hosts=lab.file(entry.known_hosts) if entry.known_hosts else None,
        deadline=deadline,
    )


def platform_of(lab: Lab, host: str, transport: Transport) -> Platform:
    """The adapter for what runs on ``host``."""
    entry = lab.hosts[host]
    if entry.platform == "linux-vfio":
        from hil.platforms.linux import LinuxVfio

        return LinuxVfio(host, transport, images=images_of(lab))
    raise LabError(f"{host}: hil has no adapter for the platform {entry.platform} yet")


def images_of(lab: Lab) -> tuple[GuestImage, ...]:
    """The lab's guest images as platforms take them."""
    return tuple(
        GuestImage(
            name=name,
            os=entry.os,
            root=entry.root,
            kernel=entry.kernel or "",
            initrd=entry.initrd or "",
            arguments=entry.arguments,
        )
        for name, entry in lab.images.items()
    )
