"""A lab that is up: its hosts connected, each behind its platform."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hil.console.console import Console
from hil.deadline import Deadline
from hil.errors import HilError, InventoryError, LabError
from hil.guests.images import GuestImage, Loader
from hil.guests.os import guest_os
from hil.journal import run_lock
from hil.lab.check import check_against
from hil.lab.lease import Holder, Leases, OnWait, cards
from hil.lab.models import Lab, LabKind
from hil.lab.recover import put_back
from hil.lab.watch import Reach, Watch
from hil.pci.address import Address
from hil.platforms.contract import Function, Platform
from hil.transport.base import Transport

if TYPE_CHECKING:
    from hil.emulated.machine import EmulatedLab

Progress = Callable[[str], None]

#: Seconds for a physical host to answer, which may still be booting.
CONNECT = 300.0
#: How much slower than hardware an emulated host is, by what runs its instructions.
EMULATED_PACE = {"kvm": 2.0, "tcg": 4.0}
#: A simulated host takes no time but Python's, which may share a busy machine with others.
SIMULATED_PACE = 2.0


class HostDiedError(LabError):
    """A host answered and died before the lab was up."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(f"{watch.host} died while it was made ready: {watch.death}")
        self.watch = watch


@dataclass
class LiveLab:
    """A lab whose hosts answer."""

    lab: Lab
    platforms: Mapping[str, Platform]
    """By host name, in the inventory's order."""
    emulated: EmulatedLab | None = None
    """The machine below an emulated lab's one host."""
    leases: Mapping[str, Leases] = field(default_factory=dict)
    """What this run holds of each physical host, by name."""
    watches: Mapping[str, Watch] = field(default_factory=dict)
    """Over each host that is not this very machine, by name."""
    _devices: dict[str, tuple[Function, ...]] = field(default_factory=dict)

    def functions(self, device: str, deadline: Deadline) -> tuple[Function, ...]:
        """The functions of the inventory's ``device`` as its host has them now.

        The first call for a host compares all that the inventory says of it with what
        is there.

        Raises:
            InvalidFileError: see :func:`hil.lab.check.check_against`.
        """
        host = self.lab.devices[device].host
        platform = self.platforms[host]
        if device not in self._devices:
            self._devices.update(check_against(self.lab, host, platform.functions(deadline)))
        return tuple(platform.function(f.address, deadline) for f in self._devices[device])

    @property
    def pace(self) -> float:
        """How much slower than hardware it is."""
        if self.emulated is not None:
            return EMULATED_PACE.get(self.emulated.accelerator.name, max(EMULATED_PACE.values()))
        return _pace(self.lab)


def _pace(lab: Lab) -> float:
    """How much slower than hardware a lab is that says nothing of its accelerator."""
    match lab.provenance:
        case LabKind.EMULATED:
            return max(EMULATED_PACE.values())
        case LabKind.SIMULATED:
            return SIMULATED_PACE
        case LabKind.PHYSICAL:
            return 1.0


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
        faults: a simulated lab only: bugs of the past that its hosts have, by name; of one of
            several hosts, ``HOST:NAME``.
        progress: told, one line at a time, what is being done.
        on_wait: told of each card that is waited for, with its host, who holds it, and
            seconds waited.

    Raises:
        HostDiedError: a host was reached, and then died.
        LabError: a host cannot be reached, another run holds what this one needs of it, or
            what a dead run left of it cannot be put back.
        ExceptionGroup: at the end, something could not be put back.
        InventoryError: keys, options or inventory are wrong.
    """
    watches: dict[str, Watch] = {}
    with contextlib.ExitStack() as stack:
        try:
            yield _open(
                lab, deadline, stack, watches, run, wait, iommu, fresh, faults, progress, on_wait
            )
        except HilError as error:
            if dead := next((watch for watch in watches.values() if watch.death), None):
                raise HostDiedError(dead) from error
            raise


def _open(
    lab: Lab,
    deadline: Deadline,
    stack: contextlib.ExitStack,
    watches: dict[str, Watch],
    run: str,
    wait: float,
    iommu: bool,
    fresh: bool,
    faults: Sequence[str],
    progress: Progress,
    on_wait: OnWait | None,
) -> LiveLab:
    """See :func:`open_lab`.  ``watches`` gets them as they begin; ``stack`` ends all."""

    def watch(platform: Platform, reach: Reach, console: Console | None, pace: float) -> None:
        boot_id = guest_os(platform.system).boot_id()
        found = Watch(platform.host, platform.transport, reach, boot_id, console=console, pace=pace)
        stack.callback(found.close)
        watches[platform.host] = found

    if lab.kind is LabKind.EMULATED:
        machine = machine_of(lab, deadline, iommu=iommu, fresh=fresh, progress=progress)
        stack.callback(machine.close)
        live = live_emulated(lab, machine, deadline)
        (name,) = live.platforms
        way = functools.partial(_connect_emulated, name, machine)
        watch(live.platforms[name], way, machine.console, live.pace)
        live.watches = watches
        return live
    if lab.kind is LabKind.SIMULATED:
        simulated: dict[str, Platform] = {}
        for name, faulty in _faults_by_host(lab, faults).items():
            progress(f"starting the simulated host {lab.hosts[name].model or lab.name}")
            platform, reach, serial = _simulated(lab, name, stack, iommu, faulty, deadline)
            watch(platform, reach, serial, SIMULATED_PACE)
            simulated[name] = platform
        return LiveLab(lab, simulated, watches=watches)
    platforms: dict[str, Platform] = {}
    leases: dict[str, Leases] = {}
    waiting = Deadline(wait, f"the lab {lab.name}")
    # In the same order for all inventories, so that two runs do not wait for each other.
    for name in sorted(lab.hosts, key=lambda host: (lab.hosts[host].address.lower(), host)):
        progress(f"connecting to {name}")
        transport = connect(lab, name, deadline.within(CONNECT, f"{name} to answer"))
        stack.callback(transport.close)
        platforms[name] = platform_of(lab, name, transport)
        if lab.hosts[name].transport != "local":
            console = _console(lab, name, deadline)
            if console is not None:
                stack.callback(console.close)
            watch(platforms[name], functools.partial(connect, lab, name), console, _pace(lab))
        leases[name] = _hold(lab, platforms[name], stack, run, waiting, deadline, on_wait)
    return LiveLab(
        lab,
        {name: platforms[name] for name in lab.hosts},
        leases={name: leases[name] for name in lab.hosts},
        watches=watches,
    )


#: Seconds for what a run has left unreturned at its end.
_AT_THE_END = 120


def _hold(
    lab: Lab,
    platform: Platform,
    stack: contextlib.ExitStack,
    run: str,
    waiting: Deadline,
    deadline: Deadline,
    on_wait: OnWait | None,
) -> Leases:
    """Lease what the lab has of a physical host, and put back what dead runs left of it."""
    host, journal = platform.host, platform.journal

    def tell(card: str, who: Holder | None, waited: float) -> None:
        if on_wait is not None:
            on_wait(f"{card} of {host}", who, waited)

    leases = Leases.take(
        platform.transport,
        platform.dialect,
        _cards(lab, host, platform.functions(deadline)),
        Holder.this_process(run),
        waiting,
        run=journal.run,
        on_wait=tell,
    )
    stack.callback(leases.close)
    journal.lease = run_lock(platform.dialect, journal.run)
    stack.callback(lambda: journal.close(Deadline(_AT_THE_END, f"the last undos on {host}")))
    put_back(platform, deadline, leases.names)
    return leases


def _cards(lab: Lab, host: str, functions: Sequence[Function]) -> tuple[str, ...]:
    """The cards of ``host`` that a run with ``lab`` leases: all, but where runs share the host."""
    endpoints = [f for f in functions if f.config.header_type == 0]
    if not lab.hosts[host].shared:
        return cards(functions, [f.address for f in endpoints])
    wanted: list[Address] = []
    for found in check_against(lab, host, functions).values():
        wanted += [function.address for function in found]
    for device in lab.devices.values():
        peer = device.peer
        if peer is not None and (peer.host or device.host) == host:
            wanted += [
                f.address
                for f in endpoints
                if f.address == peer.function or peer.interface in f.interfaces
            ]
    return cards(functions, wanted)


def _console(lab: Lab, host: str, deadline: Deadline) -> Console | None:
    """The serial console of a physical host, read by the command that its owner gave, if any."""
    from hil.transport.local import LocalTransport

    if not lab.hosts[host].console:
        return None
    stream = LocalTransport(host).open_stream(lab.hosts[host].console, deadline=deadline)
    return Console(f"the console of {host}", stream)


def machine_of(
    lab: Lab,
    deadline: Deadline,
    *,
    iommu: bool = True,
    fresh: bool = False,
    progress: Progress = lambda _: None,
) -> EmulatedLab:
    """Bring up the machine that an emulated ``lab`` is; see :func:`open_lab`."""
    if lab.host_image:
        from hil.emulated.host_image import FreebsdLab
        from hil.emulated.image_store import disk_of

        disks = disk_of(lab.host_image), disk_of(lab.guest_image)
        return FreebsdLab.boot(*disks, iommu=iommu, progress=progress, deadline=deadline)
    from hil.emulated.machine import EmulatedLab

    return EmulatedLab.up(iommu=iommu, fresh=fresh, progress=progress, deadline=deadline)


def live_emulated(lab: Lab, machine: EmulatedLab, deadline: Deadline) -> LiveLab:
    """The lab that ``machine`` is, once it is up."""
    from hil.platforms.linux import LinuxVfio

    (name,) = lab.hosts
    # An older QEMU lacks some device models; the machine says which and why.
    devices = {n: device for n, device in lab.devices.items() if n not in machine.missing}
    lab = dataclasses.replace(lab, devices=devices)
    transport = machine.ssh(deadline)
    platform: Platform
    if lab.host_image:
        platform = platform_of(lab, name, transport)
    else:
        platform = LinuxVfio(name, transport, images=images_of(lab), out_of_band=machine)
    return LiveLab(lab, {name: platform}, machine)


def _connect_emulated(host: str, machine: EmulatedLab, deadline: Deadline) -> Transport:
    """Another connection than that of :meth:`EmulatedLab.ssh`."""
    from hil.transport import keys
    from hil.transport.ssh import SshTransport

    return SshTransport.connect(
        host,
        "127.0.0.1",
        port=machine.ssh_port,
        key_file=machine.key_file,
        host_key=machine.host_key,
        key_exchange=keys.KEY_EXCHANGE,
        deadline=deadline,
    )


def _faults_by_host(lab: Lab, faults: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The bugs of each simulated host: ``HOST:FAULT`` is for one, ``FAULT`` for all.

    Raises:
        InventoryError: the lab has no such host.
    """
    named = [fault.rpartition(":") for fault in faults]
    for fault, (host, colon, _) in zip(faults, named, strict=True):
        if colon and host not in lab.hosts:
            raise InventoryError(
                f"the lab {lab.name!r} has no host {host!r}, which is to have a bug",
                seen=fault,
                hint=f"it has: {', '.join(lab.hosts)}",
            )
    return {
        name: tuple(fault for host, _, fault in named if host in ("", name)) for name in lab.hosts
    }


def _simulated(
    lab: Lab,
    name: str,
    stack: contextlib.ExitStack,
    iommu: bool,
    faults: Sequence[str],
    deadline: Deadline,
) -> tuple[Platform, Reach, Console]:
    """A host of a lab that is a model in this process, until ``stack`` ends."""
    from hil.simulated.host import SimulatedHost
    from hil.transport.ssh import SshTransport

    model = lab.hosts[name].model or lab.name
    host = SimulatedHost(model, faults=faults, iommu=iommu).start()
    stack.callback(host.close)
    console = Console(f"the console of {name}", host.console)
    stack.callback(console.close)

    def reach(deadline: Deadline) -> Transport:
        return SshTransport.connect(
            name,
            "127.0.0.1",
            port=host.port,
            key=host.key.load(),
            host_key=host.host_key,
            deadline=deadline,
        )

    transport = reach(deadline)
    stack.callback(transport.close)
    return platform_of(lab, name, transport), reach, console


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

        return LinuxVfio(host, transport, images=images_of(lab), shared=entry.shared)
    from hil.platforms.freebsd import FreebsdBhyve

    return FreebsdBhyve(host, transport, images=images_of(lab), shared=entry.shared)


def images_of(lab: Lab) -> tuple[GuestImage, ...]:
    """The lab's guest images as platforms take them."""
    return tuple(
        GuestImage(
            name=name,
            os=entry.os,
            root=entry.root or "",
            snapshot=entry.snapshot or "",
            kernel=entry.kernel or "",
            initrd=entry.initrd or "",
            arguments=entry.arguments,
            loader=Loader(entry.loader or ("bhyveload" if entry.os == "freebsd" else "grub")),
            bootrom=entry.bootrom or "",
            grub_root=entry.grub_root or "",
        )
        for name, entry in lab.images.items()
    )
