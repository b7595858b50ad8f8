"""The contract between hil and a host's hypervisor and operating system.

One adapter a platform stands behind :class:`Platform`: ``linux.py`` (QEMU/KVM with
VFIO) and ``freebsd.py`` (bhyve); in time ``illumos.py``.  Its verbs are the
field's: read facts and functions, reserve and return, create and destroy guests,
read tables, faults and physical memory.  Suites ask this contract, never the OS.

What differs between platforms *by intent* is data that the adapter states
(:attr:`Platform.domains`, :attr:`Platform.features`), so that one test serves all.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from hil.deadline import Deadline
from hil.errors import HilError, LabError
from hil.iommu.faults import FaultRecord
from hil.iommu.memory import PhysicalMemory
from hil.iommu.tables import Tables
from hil.journal import Dialect, Journal, Kind
from hil.pci.address import Address
from hil.pci.budget import Windows
from hil.pci.config import ConfigSpace
from hil.pci.vectors import VectorLimits
from hil.platforms.pinning import Pinning
from hil.transport.base import ByteStream, Transport
from hil.transport.keys import KeyPair


class Phase(enum.Enum):
    """Where a function stands in the life of an assignment."""

    BOOT = "boot"
    IDLE = "idle"
    """Reserved (bound to the stub driver), assigned to nobody."""
    ASSIGNED = "assigned"
    DESTROYED = "destroyed"
    """Its guest is gone; still reserved."""
    RETURNED = "returned"


class Owner(enum.Enum):
    """Whose memory a function's DMA can reach, by its IOMMU table entry."""

    HOST = "host"
    """The host's own mappings: what its driver maps, or all of memory."""
    GUEST = "guest"
    """One guest's memory and nothing else."""
    NOBODY = "nobody"
    """No entry, or one that maps nothing: all DMA is blocked."""


class Feature(enum.Enum):
    """Something a platform or this host of it can do; tests ask for it by name."""

    IOMMU = "iommu"
    """DMA remapping is on and guests' DMA goes through it."""
    TABLES = "tables"
    """The IOMMU's tables can be read here."""
    FAULTS = "faults"
    """DMA faults are reported with the requester id."""
    PHYSICAL_MEMORY = "physical-memory"
    """Host physical memory can be read."""
    GUEST_MEMORY = "guest-memory"
    """A guest's physical memory can be read from the hypervisor's side."""
    EVENT_LOG = "event-log"
    """DMA faults come through a log in memory that wraps around (AMD-Vi)."""
    RELOAD = "reload"
    """The hypervisor's module can be unloaded and loaded while the host runs."""
    RAW_FRAMES = "raw-frames"
    """A program on the host can answer frames of its own making."""
    SRIOV = "sriov"
    TEMPLATES = "templates"
    """A booted guest can be saved, and others can continue it: see :class:`Template`."""
    ADDRESS_FORMS = "address-forms"
    """The hypervisor can be told in several ways which function it is."""
    NMI = "nmi"
    POWER_CYCLE = "power-cycle"
    LINE_INTERRUPTS = "line-interrupts"
    """Line interrupts (INTx) of a passed function reach its guest, as messages do."""
    PINNED_MEMORY = "pinned-memory"
    """How much memory its guests keep from being paged can be told: see :class:`Pinning`."""
    RESTARTS_AFTER_TRIPLE_FAULT = "restarts-after-triple-fault"
    """A guest whose CPU ends in a triple fault restarts by itself, as a machine would."""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host is.  All text is as the host gave it."""

    os: str
    """For example ``Debian GNU/Linux 12 (bookworm)``."""
    kernel: str
    hypervisor: str
    """For example ``QEMU 10.0.2 with KVM``."""
    cpu: str
    memory: int
    """Bytes."""
    iommu: str
    """``vt-d``, ``amd-vi`` or ``none``."""
    iommu_enabled: bool
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register, as the host sized it."""

    index: int
    address: int
    """Host physical address; 0 if unassigned."""
    size: int
    """Bytes."""
    memory: bool
    """False for an I/O port range."""
    prefetchable: bool = False
    wide: bool = False
    """64-bit."""


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function of a host at one moment."""

    address: Address
    vendor: int
    device: int
    """Ids by which drivers know it; a VF's own configuration space reads ffff for both."""
    config: ConfigSpace
    driver: str | None
    """The driver bound to it now; ``None`` if none."""
    reserved: bool
    """Bound to the platform's stub driver (vfio-pci, ppt)."""
    group: int | None
    """Isolation group; functions of one group travel together. ``None``: not isolated."""
    bars: tuple[Bar, ...]
    reset_methods: tuple[str, ...]
    """In the order the platform will try them: ``flr``, ``af_flr``, ``pm``, ``bus`` …"""
    physical_function: Address | None = None
    """For a VF, its PF."""
    virtual_functions: tuple[Address, ...] = ()
    total_vfs: int = 0
    interfaces: tuple[str, ...] = ()
    """Network interfaces or block devices that its driver made on the host."""
    in_use_as: str = ""
    """Non-empty if the host itself needs it: ``root disk``, ``management NIC``, ``console``."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Functions taken from the host's drivers, with what is needed to give them back."""

    addresses: tuple[Address, ...]
    previous_drivers: Mapping[Address, str | None]
    """Lacks functions that were reserved already: a run before has died, and which driver
    they had is not known."""


@dataclass(frozen=True, slots=True)
class Template:
    """A guest that was booted without devices and saved; those that continue it need not boot.

    Made by :meth:`Machine.save`.  Guests that continue it find their devices by a rescan of
    the bus, as if these had been plugged in.
    """

    image: str
    memory: int
    """Bytes."""
    cpus: int
    path: str
    """On the host."""
    host_key: KeyPair = field(repr=False)
    """Of its SSH server: all that continue it have the same."""
    shell: str = ""
    """What waits for commands at its console: :attr:`hil.console.console.Console.shell`."""

    def fits(self, spec: GuestSpec) -> bool:
        """Whether a guest of this kind could continue it."""
        mine = (self.image, self.memory, self.cpus, ())
        return mine == (spec.image, spec.memory, spec.cpus, spec.arguments)


class TemplateLostError(LabError):
    """A saved guest cannot be continued."""


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A guest to be made.  ``devices`` are passed in this order."""

    name: str
    image: str
    """Name of an image that the host has (see :mod:`hil.guests.images`)."""
    memory: int = 256 << 20
    """Bytes."""
    cpus: int = 1
    devices: tuple[Address, ...] = ()
    arguments: tuple[str, ...] = ()
    """More kernel command line words, for a guest that the platform boots directly."""
    roms: Mapping[Address, str] = field(default_factory=dict, hash=False)
    """Option ROMs: files on the host, for the functions that are given one."""
    template: Template | None = None
    """Continue this one rather than boot."""
    form: str = ""
    """How the hypervisor is told which functions they are, one of
    :attr:`Platform.address_forms`; empty: as the platform chooses."""


class MachineState(enum.Enum):
    """A guest as its hypervisor sees it."""

    PREPARED = "prepared"
    """Made, its devices assigned, its first instruction not yet run."""
    RUNNING = "running"
    STOPPED = "stopped"
    """Powered off, or reset where the platform then stops."""
    CRASHED = "crashed"
    """The hypervisor process died or the guest ended in a triple fault or panic."""
    DESTROYED = "destroyed"


class Machine(Protocol):
    """A guest on the hypervisor's side: what a BMC would be to a host."""

    spec: GuestSpec

    @property
    def guest_addresses(self) -> Mapping[Address, Address]:
        """Where in the guest each passed function stands, by its address on the host."""
        ...

    def console(self, deadline: Deadline) -> ByteStream:
        """The serial console.  Opened once, before :meth:`start`."""
        ...

    def start(self, deadline: Deadline) -> None:
        """Run the guest's first instruction, or continue its template."""
        ...

    def save(self, path: str, deadline: Deadline) -> Template:
        """Stop it and keep its state in ``path`` on the host, a file or disk, to be continued.

        Raises:
            LabError: the platform has no :attr:`Feature.TEMPLATES`.
        """
        ...

    def state(self, deadline: Deadline) -> MachineState: ...

    def ssh(self, deadline: Deadline) -> Transport:
        """Log in at the guest's management NIC, by way of the host."""
        ...

    def reset(self, deadline: Deadline) -> None:
        """Press the reset button."""
        ...

    def nmi(self, deadline: Deadline) -> None: ...

    def kill(self, deadline: Deadline) -> None:
        """Kill the hypervisor's process at once (SIGKILL); what it held may stay held."""
        ...

    def destroy(self, deadline: Deadline) -> None:
        """End the guest and free all it held.  Safe to call twice, and after :meth:`kill`."""
        ...

    def read_physical(self, address: int, length: int, deadline: Deadline) -> bytes:
        """Guest physical memory, read from the hypervisor's side."""
        ...

    def search_physical(self, texts: Sequence[str], deadline: Deadline) -> list[tuple[int, ...]]:
        """For each text, guest physical addresses where it stands: from the hypervisor's side."""
        ...

    def failure(self) -> str:
        """What the hypervisor wrote to stderr, bounded."""
        ...


@runtime_checkable
class LetInByConsole(Protocol):
    """A :class:`Machine` whose guest needs something typed before :meth:`Machine.ssh` answers."""

    def let_in(self, at_console: Callable[[Sequence[str]], str]) -> None:
        """Have SSH answer in the guest, until its next boot.  Safe to call twice.

        Args:
            at_console: runs a command as root on the guest's console and returns what it
                printed.
        """
        ...


@runtime_checkable
class GivesEvidence(Protocol):
    """A :class:`Machine` that knows more of a guest which does not come up."""

    def evidence(self, deadline: Deadline) -> Mapping[str, str]:
        """Texts for a report, by title.  What cannot be had is left out."""
        ...


@runtime_checkable
class TellsItsEnd(Protocol):
    """A :class:`Machine` that knows more of its hypervisor's end than its guest's console shows."""

    def why_ended(self) -> HilError | None:
        """Why the hypervisor's process failed; ``None`` while it runs, or was told to end."""
        ...


@runtime_checkable
class CountsRestarts(Protocol):
    """A :class:`Machine` that hears of its guest's restarts."""

    def restarts(self) -> int:
        """How often the guest has restarted since it was made, for whatever reason."""
        ...


class Canary(Protocol):
    """Host memory, filled with a known pattern, that nothing may change."""

    def changes(self, deadline: Deadline) -> tuple[str, ...]:
        """One line for each changed page; empty if all is intact."""
        ...

    def spoil(self, offset: int, data: bytes, deadline: Deadline) -> None:
        """Change it on purpose: the control that proves that :meth:`changes` sees it."""
        ...

    def close(self, deadline: Deadline) -> None: ...


class Platform(ABC):
    """A host's hypervisor and operating system."""

    name: str
    """``linux-vfio``, ``freebsd-bhyve`` …"""

    system: str = "linux"
    """The host's own operating system, as :func:`hil.guests.os.guest_os` takes it."""

    host: str
    """The host's name in the inventory."""

    transport: Transport

    @property
    @abstractmethod
    def features(self) -> frozenset[Feature]:
        """What this host can do, tried out once."""

    @property
    @abstractmethod
    def domains(self) -> Mapping[Phase, Owner]:
        """Whose memory a function can reach at each phase, by this platform's design."""

    lazy_iommu = False
    """Whether DMA passes untranslated until the first assignment since boot switches the IOMMU on;
    :attr:`domains` says what holds from then on."""

    one_host_domain = False
    """Whether all functions that the host has are in one domain, rather than in one each."""

    @property
    def masters_while_idle(self) -> bool:
        """Whether a reserved function's bus mastering stays as its last guest left it.

        Then nothing but the IOMMU's tables keeps its DMA from memory while nobody owns it.
        """
        return False

    peer_to_peer = False
    """Whether a guest's devices can reach one another's BARs by DMA, as far as the hypervisor is
    concerned: it maps these for them.  If not, such DMA is refused like any other outside of
    the guest's memory."""

    def bar_windows(self, deadline: Deadline) -> Windows | None:
        """Where guests of this host get their BARs; ``None`` where that is not known."""
        deadline.check()
        return None

    def pinning(self, deadline: Deadline) -> Pinning | None:
        """Memory for guests with devices, now; ``None`` where that is not known."""
        deadline.check()
        return None

    def vector_limits(self, deadline: Deadline) -> VectorLimits | None:
        """Interrupt vectors for passed functions, now; ``None`` where that is not known."""
        deadline.check()
        return None

    @property
    def address_forms(self) -> tuple[str, ...]:
        """Ways to tell this host's hypervisor which function is meant, by name."""
        return ()

    stub_driver: str
    """Name of the driver that holds a reserved function."""

    dialect: Dialect
    """The base tools and folders of the host's journal and leases."""

    undo_kinds: tuple[Kind, ...]
    """How each change that the adapter makes to a host is undone.  ``address`` is one of them:
    interface and address with its prefix length."""

    journal: Journal
    """Where it records each change before it makes it."""

    # facts
    @abstractmethod
    def facts(self, deadline: Deadline) -> HostFacts: ...

    @abstractmethod
    def functions(self, deadline: Deadline) -> tuple[Function, ...]:
        """Every PCI function of the host, by address."""

    @abstractmethod
    def function(self, address: Address, deadline: Deadline) -> Function:
        """One function.  Raises :class:`~hil.errors.LabError` if the host has none there."""

    @abstractmethod
    def read_config(self, address: Address, deadline: Deadline) -> ConfigSpace: ...

    @abstractmethod
    def write_config(
        self, address: Address, offset: int, value: bytes, deadline: Deadline
    ) -> None: ...

    @abstractmethod
    def reset(self, address: Address, deadline: Deadline, method: str = "") -> None:
        """Reset the function as the platform does between two owners, or by one ``method``.

        Raises:
            ProductError: the function has no reset, or it did not succeed.
        """

    # reserve and return
    @abstractmethod
    def reserve(self, addresses: Sequence[Address], deadline: Deadline) -> Reservation:
        """Bind functions to the stub driver.

        Raises:
            InventoryError: the host needs one itself, or one is a bridge.
            RefusalError: the host's driver did not let go, or the stub did not take it.
        """

    @abstractmethod
    def give_back(self, reservation: Reservation, deadline: Deadline) -> None:
        """Return functions to the drivers they had.  Safe to run twice.

        Raises:
            RefusalError: a guest holds one still.
            ProductError: a driver did not come back.
        """

    @abstractmethod
    def create_vfs(self, address: Address, count: int, deadline: Deadline) -> tuple[Address, ...]:
        """Virtual functions of a PF, which must have none yet."""

    @abstractmethod
    def remove_vfs(self, address: Address, deadline: Deadline) -> None:
        """Remove all VFs of a PF.  Raises RefusalError while a guest holds one."""

    @abstractmethod
    def replug(self, address: Address, deadline: Deadline) -> None:
        """Have the kernel forget a function and find it again, as if it was pulled and put back.

        The host's own driver has it then, if it has one.

        Raises:
            ProductError: the kernel would not let it go, or did not find it again.
        """

    def reload(self, deadline: Deadline) -> None:
        """Unload the hypervisor's module, with the stub driver in it, and load it again.

        No guest exists.  What was reserved is so again, or is with no driver; whoever reserved
        it gives it back.

        Raises:
            LabError: :attr:`Feature.RELOAD` is missing.
            ProductError: the module, or the host, did not come back.
        """
        deadline.check()
        raise LabError(f"the hypervisor of {self.host} cannot be reloaded")

    # guests
    @abstractmethod
    def create_guest(self, spec: GuestSpec, deadline: Deadline) -> Machine:
        """A guest with its devices assigned, not yet started; destroys what a failure left.

        Raises:
            RefusalError: the hypervisor refused, with its words; its class says whose fault
                that is.
        """

    @abstractmethod
    def guests(self, deadline: Deadline) -> tuple[str, ...]:
        """Names of the guests that exist on the host, ours and others."""

    # the IOMMU, memory, interrupts
    @abstractmethod
    def tables(self, deadline: Deadline) -> Tables:
        """The tables of the host's IOMMUs now, all units together.

        Raises:
            LabError: they cannot be read here: :attr:`Feature.TABLES` is missing.
            ProductError: DMA remapping is off.
        """

    @abstractmethod
    def iommu_in_use(self, deadline: Deadline) -> bool:
        """Whether the hypervisor says that it uses the IOMMU now."""

    @abstractmethod
    def faults(self, deadline: Deadline) -> tuple[FaultRecord, ...]:
        """All DMA faults the host has recorded since boot, oldest first.

        Hosts limit the rate of these lines: presence counts, number does not.
        """

    def clear_faults(self, deadline: Deadline) -> None:
        """Have the IOMMU record faults that are to come, where its records may be full.

        Nothing is to do where the host's kernel reads and clears them, as most do.
        :meth:`faults` may tell less from then on.
        """
        deadline.check()

    @abstractmethod
    def physical_memory(self, deadline: Deadline) -> PhysicalMemory: ...

    @abstractmethod
    def canary(self, size: int, deadline: Deadline) -> Canary: ...

    @abstractmethod
    def interrupts(self, address: Address, deadline: Deadline) -> Mapping[str, int]:
        """Count of each of the function's interrupt lines or vectors on the host."""

    @abstractmethod
    def footprint(self, deadline: Deadline) -> Mapping[str, int]:
        """Counts of what only assignments and guests make: domains, processes, files."""

    @abstractmethod
    def kernel_log(self, deadline: Deadline) -> str: ...
