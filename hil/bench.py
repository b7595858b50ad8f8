"""A lab at work: live hosts, devices that can be reserved and returned, guests that are shared.

The inventory (:mod:`hil.lab.models`) says what a lab should have; a :class:`Bench` is what
is there.  It owns each change made to a host for a test, and takes all of them back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hil import events
from hil.deadline import Deadline
from hil.errors import HilError, InventoryError, LabError
from hil.guests.guest import Guest, GuestState
from hil.guests.os import GuestOS, guest_os
from hil.iommu.tables import Entry as TableEntry
from hil.journal import Entry, Undo
from hil.pci.address import Address
from hil.pci.budget import Windows
from hil.pci.config import ConfigSpace
from hil.pci.vectors import VectorLimits
from hil.platforms import pinning
from hil.platforms.contract import (
    Feature,
    Function,
    GuestSpec,
    HostFacts,
    Platform,
    Reservation,
    Template,
    TemplateLostError,
)
from hil.platforms.pinning import Pinning

GUEST_MEMORY = 256 << 20


class Shelf(Protocol):
    """Where a host's saved guest is kept from run to run."""

    def template(self, make: Callable[[str], Template], deadline: Deadline) -> Template:
        """The one that is kept; else what ``make`` saves at the path on the host it is given."""
        ...

    def forget(self) -> None:
        """It cannot be continued."""
        ...


@dataclass(eq=False)
class BenchHost:
    """A live host.

    ``pace`` is how much slower than hardware it is; every limit is multiplied by it.
    """

    name: str
    platform: Platform
    pace: float = 1.0
    danger: int = 1
    panic: Callable[[], str] = lambda: ""
    """What ended the host: its kernel's words on its console, or its silence; empty while it
    lives."""
    shelf: Shelf | None = None
    """None: every guest boots."""

    bound: Deadline | None = None
    """The test's own deadline, while one runs: no limit goes beyond it."""

    def limit(self, seconds: float, what: str) -> Deadline:
        """A deadline of this host's pace."""
        deadline = Deadline(seconds * self.pace, f"{what} on {self.name}")
        return deadline.bounded(self.bound)

    def facts(self) -> HostFacts:
        """What the host is."""
        return self.platform.facts(self.limit(20, "the facts"))

    def bar_windows(self) -> Windows | None:
        """Where its guests get their BARs; ``None`` where that is not known."""
        return self.platform.bar_windows(self.limit(20, "the windows for BARs"))

    def pinning(self) -> Pinning | None:
        """Memory for guests with devices, now; ``None`` where that is not known."""
        return self.platform.pinning(self.limit(20, "the memory for guests"))

    def vector_limits(self) -> VectorLimits | None:
        """Interrupt vectors for passed functions, now; ``None`` where that is not known."""
        return self.platform.vector_limits(self.limit(20, "the interrupt vectors"))

    def functions(self) -> tuple[Function, ...]:
        """All PCI functions of the host now."""
        return self.platform.functions(self.limit(30, "the list of functions"))

    def reserve(self, address: Address) -> Reservation:
        """Take one function from the host's driver; for tests of what is refused."""
        return self.platform.reserve([address], self.limit(30, f"the reservation of {address}"))


@dataclass(eq=False)
class Peer:
    """The far end of a NIC's cable: an interface that stays with a host."""

    host: BenchHost
    interface: str
    address: str
    """IPv4 address that suites give it, ``198.18.N.1`` (RFC 2544)."""
    _entry: Entry | None = field(default=None, init=False)
    """In the host's journal, while the interface has the address."""

    def configure(self) -> None:
        """Give the interface its address, beside those it has."""
        address = f"{self.address}/24"
        command = self.system.configure_interface(self.interface, address)
        platform = self.host.platform
        if self._entry is not None:
            result = platform.transport.run(command, deadline=self._limit())
        else:
            self._entry, result = platform.journal.change(
                Undo("address", (self.interface, address)), command, deadline=self._limit()
            )
        result.check()

    def restore(self) -> None:
        """Take the address away again."""
        if self._entry is not None:
            self.host.platform.journal.undo(self._entry, self._limit())
            self._entry = None

    @property
    def system(self) -> GuestOS:
        """What the host's own operating system is asked."""
        return guest_os(self.host.platform.system)

    def _limit(self) -> Deadline:
        return self.host.limit(20, f"the address of {self.interface}")

    def address_for(self, index: int) -> str:
        """An address on the same link for the ``index``-th guest, with its prefix length."""
        return f"{self.address.rpartition('.')[0]}.{10 + index}/24"


class Screen(Protocol):
    """What shows a device's display from outside of its guest."""

    @property
    def tolerance(self) -> int:
        """How far a channel of a pixel, 0 to 255, may be from what was drawn."""
        ...

    def capture(self, width: int, height: int, deadline: Deadline) -> bytes:
        """What it shows now, as an image file.

        Args:
            width: of the mode that was set, in pixels; a capture device is asked for it.
            height: likewise.
            deadline: for the capture.

        Raises:
            LabError: it cannot be seen.
        """
        ...


@dataclass(eq=False)
class BenchDevice:
    """An inventory's device, or a virtual function of one, as it is now.

    ``functions`` are the addresses that travel together; the first is the one that tests
    look at.
    """

    name: str
    kind: str
    host: BenchHost
    functions: tuple[Address, ...]
    peer: Peer | None = None
    vfs: int = 0
    parent: BenchDevice | None = None
    screen: Screen | None = None
    """How its display is seen, if it is."""
    guest_memory: int = GUEST_MEMORY
    """Bytes that a guest with it has at least: drivers of some cards need more than others."""
    rom: str = ""
    """A file on the host with its first function's option ROM."""
    reservation: Reservation | None = field(default=None, init=False)
    _config_as_reserved: ConfigSpace | None = field(default=None, init=False, repr=False)
    used: bool = field(default=False, init=False)
    """Whether the last thing that happened to it was the end of a guest that had it."""
    returned: bool = field(default=False, init=False)
    """Whether the last thing was its return to the host after that."""
    entry_in_guest: TableEntry | None = field(default=None, init=False, repr=False)
    """Its entry in the IOMMU's tables, where they can be read, in the last guest that had it."""

    @property
    def address(self) -> Address:
        """Its first function's address on the host."""
        return self.functions[0]

    @property
    def requester_id(self) -> int:
        """Of its first function."""
        return self.address.requester_id

    def look(self) -> Function:
        """Its first function now."""
        return self.host.platform.function(self.address, self.host.limit(20, f"a look at {self}"))

    def look_at_all(self) -> tuple[Function, ...]:
        """All its functions now."""
        deadline = self.host.limit(20, f"a look at {self}")
        return tuple(self.host.platform.function(a, deadline) for a in self.functions)

    def reserve(self) -> None:
        """Take it from the host's driver; nothing happens if that is done already."""
        if self.reservation is None:
            self.reservation = self.host.platform.reserve(
                self.functions, self.host.limit(30, f"the reservation of {self}")
            )
            self._config_as_reserved = self.look().config
            self.returned = False
            events.emit(events.PhaseReached(self.name, "reserved"))

    @property
    def config_as_reserved(self) -> ConfigSpace:
        """Of its first function, when it was taken from the host's driver the last time."""
        if self._config_as_reserved is None:
            raise LabError(f"{self} was never reserved", host=self.host.name)
        return self._config_as_reserved

    def give_back(self) -> None:
        """Return it to the host's driver; nothing happens if that is done already."""
        if self.reservation is not None:
            self.host.platform.give_back(
                self.reservation, self.host.limit(60, f"the return of {self}")
            )
            self.reservation = None
            self.used, self.returned = False, self.used
            events.emit(events.PhaseReached(self.name, "returned"))

    def note_entry(self) -> None:
        """Keep its entry in the IOMMU's tables as :attr:`entry_in_guest`: a guest has it."""
        platform = self.host.platform
        if Feature.TABLES in platform.features:
            tables = platform.tables(self.host.limit(20, f"the entry of {self}"))
            self.entry_in_guest = tables.entry(self.requester_id)

    @property
    def host_driver(self) -> str | None:
        """The host's own driver of its first function, whoever has it now."""
        if self.reservation is None:
            return self.look().driver
        try:
            return self.reservation.previous_drivers[self.address]
        except KeyError:
            raise LabError(
                f"which driver {self} had is not known: a run before has left it reserved",
                host=self.host.name,
                hint="give it back and look again",
            ) from None

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


Groups = Sequence[Sequence[BenchDevice]]
"""Devices, by the guest that is to have them; those of one guest are on one host."""


class GuestPool:
    """Guests of one bench: made, shared between tests, and always destroyed.

    A shared guest is kept for the next test that asks for the same devices.  Whoever needs a
    device that another guest holds gets that guest destroyed first.

    On a host with a shelf, one guest is booted without devices and saved, and the others
    continue it, but for those that are to be booted ``cold``: with their devices there from the
    start.
    """

    def __init__(self, image: str, os: str = "linux") -> None:
        self.image = image
        self._templates: dict[str, Template] = {}
        self._os = os
        self._numbers = itertools.count(1)
        self._guests: list[Guest] = []
        self._shared: dict[tuple[str, ...], Guest] = {}
        self._holders: dict[Guest, tuple[BenchDevice, ...]] = {}
        self._deaths: list[str] = []
        self.remove_vfs: Callable[[BenchDevice], None] = lambda _: None
        """Takes a device's VFs away, which a bench makes."""

    def shared(
        self, *devices: BenchDevice, host: BenchHost | None = None, cold: bool = False
    ) -> Guest:
        """A ready guest with exactly these devices, the one of the test before if it is well.

        One that was booted cold serves whoever asks.
        """
        key = (_host_of(devices, host).name, *(device.name for device in devices))
        guest = self._shared.get(key)
        continued = guest is not None and guest.machine.spec.template is not None
        if guest is not None and not (cold and continued) and self._is_well(guest):
            return guest
        self._shared[key] = guest = self.fresh(*devices, host=host, cold=cold)
        return guest

    def fresh(
        self,
        *devices: BenchDevice,
        host: BenchHost | None = None,
        memory: int = GUEST_MEMORY,
        cold: bool = False,
        form: str = "",
        roms: bool = False,
    ) -> Guest:
        """A ready guest that no test has used.

        ``roms``: each device is given its option ROM, if the inventory names one.
        """
        guest = self.prepare(*devices, host=host, memory=memory, cold=cold, form=form, roms=roms)
        try:
            guest.boot()
            for device in devices:
                device.note_entry()
        except TemplateLostError as error:
            guest.destroy()
            self._boot_from_here_on(_host_of(devices, host), error)
            return self.fresh(*devices, host=host, memory=memory, cold=True, form=form, roms=roms)
        except HilError:
            guest.destroy()
            raise
        return guest

    def _boot_from_here_on(self, host: BenchHost, error: HilError) -> None:
        events.emit(events.Evidence("why guests boot from here on", error.explain().encode()))
        if host.shelf is not None:
            host.shelf.forget()
        host.shelf = None

    def fresh_each(self, *devices: BenchDevice) -> dict[Guest, BenchDevice]:
        """A ready guest for each device, all of them alive together."""
        return {self.fresh(device): device for device in devices}

    def form(self, *groups: Sequence[BenchDevice]) -> dict[Guest, tuple[BenchDevice, ...]]:
        """A shared guest for each group of devices, all of them alive together.

        Raises:
            InventoryError: a host has no memory for all of them; with what would fit.
        """
        self._check_memory(groups)
        return {self.shared(*group): tuple(group) for group in groups}

    def memory_left(self, host: BenchHost, groups: Groups) -> Pinning | None:
        """What a host has for guests with these devices; ``None`` where that is not known.

        What guests have that hold one of the devices counts as free: they serve again, or are
        destroyed first.
        """
        found = host.pinning()
        if found is None:
            return None
        held = {guest for group in groups for device in group for guest in self._holds(device)}
        theirs = sum(guest.machine.spec.memory + found.besides for guest in held)
        return dataclasses.replace(found, free=found.free + theirs)

    def _check_memory(self, groups: Groups) -> None:
        """Said before the first starts: a host that runs out of memory may kill something else."""
        for host, mine in by_host(groups):
            found = self.memory_left(host, mine)
            if found is None:
                continue  # then the hypervisor will say it
            planned = pinning.plan(memory_wanted(mine), found)
            if not planned.fits:
                raise InventoryError(
                    f"{host.name} has no memory for the guest with {', '.join(planned.missing)}",
                    host=host.name,
                    seen=planned.describe(),
                    hint=planned.advice(),
                )

    def prepare(
        self,
        *devices: BenchDevice,
        host: BenchHost | None = None,
        memory: int = GUEST_MEMORY,
        cold: bool = False,
        form: str = "",
        roms: bool = False,
    ) -> Guest:
        """A guest with its devices assigned, its first instruction not yet run."""
        where = _host_of(devices, host)
        template = None if cold else self._template_of(where)
        for device in devices:
            self.release(device)
            device.reserve()
            device.used = False
        spec = GuestSpec(
            name=self._name(devices),
            image=self.image,
            memory=memory_for(devices, memory),
            devices=tuple(address for device in devices for address in device.functions),
            roms={device.address: device.rom for device in devices if roms and device.rom},
            form=form,
        )
        if template is not None and template.fits(spec):
            spec = dataclasses.replace(spec, template=template)
        machine = where.platform.create_guest(spec, where.limit(60, f"guest {spec.name}"))
        guest = Guest(
            machine,
            guest_os(self._os),
            pace=where.pace,
            bound=lambda: where.bound,
            on_destroy=self._forget,
        )
        self._guests.append(guest)
        self._holders[guest] = devices
        return guest

    def provide(self, host: BenchHost) -> None:
        """Have now what guests on this host continue; else the first that continues it waits."""
        self._template_of(host)

    def _template_of(self, host: BenchHost) -> Template | None:
        if host.shelf is None or Feature.TEMPLATES not in host.platform.features:
            return None
        if host.name not in self._templates:
            make = functools.partial(self._save_guest, host)
            limit = host.limit(300, "the saved guest")
            self._templates[host.name] = host.shelf.template(make, limit)
        return self._templates[host.name]

    def _save_guest(self, host: BenchHost, path: str) -> Template:
        guest = self.fresh(host=host, cold=True)
        try:
            return guest.save(path)
        finally:
            guest.destroy()

    def with_devices(self, host: BenchHost) -> tuple[Guest, ...]:
        """Guests of a host that have devices, oldest first."""
        return tuple(g for g, held in self._holders.items() if held and held[0].host is host)

    def release(self, device: BenchDevice) -> None:
        """Have nobody hold the device: destroy its guest, take away its VFs and their guests."""
        for guest in self._holds(device):
            guest.destroy()
        self.remove_vfs(device)

    def after_guest(self, device: BenchDevice) -> None:
        """Bring the device to where a guest that had it has just been destroyed.

        Where that is so already, and nothing happened to the device since, nothing is done.
        """
        if not (device.used and device.reservation is not None and not self._holds(device)):
            self.shared(device).destroy()

    def after_return(self, device: BenchDevice) -> None:
        """Bring the device to where it was given back after a guest had it.

        Where that is so already, and nothing happened to the device since, nothing is done.
        """
        if not device.returned:
            self.after_guest(device)
            device.give_back()

    def _holds(self, device: BenchDevice) -> list[Guest]:
        return [guest for guest, held in self._holders.items() if device in held]

    def give_back(self, device: BenchDevice) -> None:
        """:meth:`release` the device, and return it to the host."""
        self.release(device)
        device.give_back()

    def drop(self, guest: Guest) -> None:
        """Never share this guest again: a test failed with it."""
        if guest.state is not GuestState.DESTROYED:
            guest.destroy()

    def deaths(self) -> tuple[str, ...]:
        """How guests died that nobody told to, one sentence each; see :meth:`forget_deaths`."""
        return (*self._deaths, *filter(None, (guest.died() for guest in self.living)))

    def forget_deaths(self) -> None:
        """Those of guests that were destroyed until now are nobody's concern any more."""
        self._deaths.clear()

    @property
    def living(self) -> tuple[Guest, ...]:
        """Guests not yet destroyed, oldest first."""
        return tuple(self._guests)

    def close(self) -> None:
        """Destroy every guest, each one tried whatever the others did."""
        failures = []
        for guest in reversed(self.living):
            try:
                guest.destroy()
            except HilError as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("guests could not be destroyed", failures)

    def _forget(self, guest: Guest) -> None:
        for device in self._holders.pop(guest, ()):
            device.used = guest.booted
        if guest in self._guests:
            self._guests.remove(guest)
        if words := guest.died():
            self._deaths.append(words)
        for key in [k for k, g in self._shared.items() if g is guest]:
            del self._shared[key]

    def _is_well(self, guest: Guest) -> bool:
        """Ready, silent about trouble, and its shell answers; else it is destroyed."""
        troubled = guest.state is not GuestState.READY or guest.console.log.notices
        if not troubled and not guest.signs_of_death():
            try:
                guest.run(["true"], seconds=10).check()
            except HilError:
                pass
            else:
                return True
        known = len(self._deaths)
        guest.destroy()
        del self._deaths[known:]  # it died while nobody used it
        return False

    def _name(self, devices: Sequence[BenchDevice]) -> str:
        names = "-".join(device.name for device in devices) or "plain"
        return f"{names[:30]}-{next(self._numbers)}"


def memory_for(devices: Iterable[BenchDevice], least: int = GUEST_MEMORY) -> int:
    """Bytes of memory of a guest with these devices, some of which may want more than ``least``."""
    return max([least, *(device.guest_memory for device in devices)])


def names_of(devices: Iterable[BenchDevice]) -> str:
    """What a guest with these devices is called before it has a name: ``edu0+gpu1``."""
    return "+".join(device.name for device in devices)


def by_host(groups: Groups) -> Iterator[tuple[BenchHost, Groups]]:
    """Each host with the groups of devices whose guests it is to have.

    Raises:
        InventoryError: devices of one group are on several hosts.
    """
    for host in dict.fromkeys(_host_of(group, None) for group in groups):
        yield host, [group for group in groups if group[0].host is host]


def memory_wanted(groups: Groups) -> dict[str, int]:
    """Bytes of memory of each group's guest, by :func:`names_of` its devices."""
    return {names_of(group): memory_for(group) for group in groups}


def _host_of(devices: Sequence[BenchDevice], host: BenchHost | None) -> BenchHost:
    hosts = {device.host for device in devices} | ({host} if host else set())
    if len(hosts) != 1:
        raise InventoryError("the devices of one guest must be on one host")
    return hosts.pop()


class Bench:
    """All that is live of a lab.

    Args:
        closer: called last by :meth:`close`; ends what brought the hosts up.
    """

    def __init__(
        self,
        name: str,
        hosts: Mapping[str, BenchHost],
        devices: Mapping[str, BenchDevice],
        *,
        image: str = "linux",
        guest_system: str = "linux",
        closer: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.hosts = hosts
        self.devices = devices
        self.guests = GuestPool(image, guest_system)
        self.guests.remove_vfs = self.remove_vfs
        self._closer = closer
        self._vfs: dict[str, tuple[BenchDevice, ...]] = {}

    @property
    def host(self) -> BenchHost:
        """The only or the first host."""
        return next(iter(self.hosts.values()))

    def device(self, name: str) -> BenchDevice:
        """A device by its inventory name."""
        try:
            return self.devices[name]
        except KeyError:
            raise InventoryError(
                f"lab {self.name} has no device {name!r}",
                hint=f"it has: {', '.join(self.devices) or 'none'}",
            ) from None

    def make_vfs(self, device: BenchDevice, count: int) -> tuple[BenchDevice, ...]:
        """Virtual functions of a PF that is on the host, each a device of its own."""
        if self._vfs.get(device.name):
            if len(self._vfs[device.name]) == count:
                return self._vfs[device.name]
            self.remove_vfs(device)
        self.guests.give_back(device)
        addresses = device.host.platform.create_vfs(
            device.address, count, device.host.limit(30, f"the VFs of {device}")
        )
        self._vfs[device.name] = tuple(
            BenchDevice(
                f"{device.name}.vf{index}",
                device.kind,
                device.host,
                (address,),
                peer=device.peer,
                parent=device,
            )
            for index, address in enumerate(addresses)
        )
        return self._vfs[device.name]

    def remove_vfs(self, device: BenchDevice) -> None:
        """Take the VFs away again; their guests are destroyed first."""
        for vf in self._vfs.get(device.name, ()):
            self.guests.give_back(vf)
        if self._vfs.pop(device.name, None):
            device.host.platform.remove_vfs(
                device.address, device.host.limit(30, f"the end of the VFs of {device}")
            )

    @contextlib.contextmanager
    def vfs(self, device: BenchDevice, count: int) -> Iterator[tuple[BenchDevice, ...]]:
        """VFs for the length of a block."""
        made = self.make_vfs(device, count)
        try:
            yield made
        finally:
            self.remove_vfs(device)

    def bind(self, bound: Deadline | None) -> None:
        """Let no operation on a host or in a guest take longer than a test may."""
        for host in self.hosts.values():
            host.bound = bound

    def in_use(self, device: BenchDevice) -> bool:
        """Whether it is reserved, or has VFs."""
        return device.reservation is not None or bool(self._vfs.get(device.name))

    def settle(self) -> None:
        """Destroy every guest, take every VF away, return every device."""
        failures: list[Exception] = []
        steps: list[Callable[[], None]] = [self.guests.close]
        steps += [functools.partial(self.remove_vfs, self.device(name)) for name in self._vfs]
        steps += [device.peer.restore for device in self.devices.values() if device.peer]
        steps += [device.give_back for device in self.devices.values()]
        for act in steps:
            try:
                act()
            except (HilError, ExceptionGroup) as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("the lab could not be put back as it was", failures)

    def close(self) -> None:
        """Put all back and end what brought the hosts up, whatever fails on the way."""
        try:
            self.settle()
        finally:
            self._closer()
