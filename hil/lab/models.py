"""The inventory: what a lab has, as frozen models.

An inventory is a TOML file with five kinds of tables, all keyed by name::

    [lab]                # name, kind
    [hosts.alpha]        # platform, address, user, key_file, danger …
    [devices.nic0]       # kind, host, functions or match, peer, vfs …
    [clusters.pair]      # devices that tests use all at once
    [images.linux]       # a guest image that the hosts have

The models only say what may be written; :mod:`hil.lab.load` reads files and
turns mistakes into messages, :mod:`hil.lab.check` compares with live hosts.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from hil.errors import InventoryError
from hil.pci.address import Address


class LabKind(enum.StrEnum):
    """What is real in a lab; every result says it."""

    PHYSICAL = "physical"
    EMULATED = "emulated"
    SIMULATED = "simulated"

    @property
    def disposable(self) -> bool:
        """Whether a run makes the lab for itself, in any variant, and can make it anew."""
        return self is not LabKind.PHYSICAL


def _address(value: object) -> Address:
    if not isinstance(value, str):
        raise ValueError("should be an address in a string, such as '0000:03:00.0'")  # noqa: TRY004
    try:
        return Address.parse(value)
    except InventoryError as error:
        raise ValueError(error.message) from None


def _serial(value: str) -> str:
    digits = re.sub(r"[-:]", "", value).lower()
    if not re.fullmatch(r"[0-9a-f]{16}", digits):
        raise ValueError("should be a PCIe serial number such as '00-1b-21-ff-ff-aa-bb-cc'")
    return digits


def _ids(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{4}", value):
        raise ValueError("should be two hexadecimal ids, as `lspci -n` prints them: '8086:10c9'")
    return value.lower()


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("should be a name: letters, digits, '.', '_' and '-', at most 64")
    return value


def _host_key(value: str) -> str:
    if value and not re.fullmatch(r"SHA256:\S+|[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( .*)?", value):
        raise ValueError("should be a line of a .pub file, 'ssh-ed25519 AAAA…', or 'SHA256:…'")
    return value


def _snapshot(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.:/-]*/[\w.:-]+@[\w.:-]+", value, re.ASCII):
        raise ValueError("should be a snapshot of a ZVOL such as 'zroot/vm/freebsd@ready'")
    return value


def _word(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]*", value):
        raise ValueError("should be a word of small letters, digits and '_'")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("should be an absolute path on the host")
    return value


#: Names of hosts, devices and images; they become parts of test ids and file names.
Name = Annotated[str, AfterValidator(_name)]
FunctionAddress = Annotated[Address, PlainValidator(_address)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Ids = Annotated[str, AfterValidator(_ids)]
SerialNumber = Annotated[str, AfterValidator(_serial)]
PlatformName = Literal["linux-vfio", "freebsd-bhyve"]
DeviceKind = Literal["nic", "nvme", "gpu", "edu", "usb", "other"]
#: ``pm``: a reset by the D3hot to D0 transition; ``vram``: memory of its own in a prefetchable
#: BAR, 1 MiB or more; ``compute``: a GPU whose vendor serves OpenCL; the rest are capabilities
#: by their usual names.
CapabilityName = Literal[
    "msi", "msix", "flr", "af_flr", "pm", "sriov", "acs", "ats", "vram", "compute"
]


#: Who has a cluster's devices: one guest, a guest for each, on each host a guest.
Shape = Literal["together", "apart", "by-host"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PowerSwitch(_Model):
    """What switches a host's power when it no longer answers."""

    driver: Literal["none", "ipmi", "redfish", "labgrid", "kept"]
    """``none``: a person; ``ipmi`` and ``redfish``: its management controller; ``labgrid``: an
    outlet of a power distribution unit, by one of labgrid's drivers; ``kept``: the host is what
    ``hil lab up`` keeps up on this machine."""
    address: str = Field(default="", max_length=255)
    """``ipmi``: host name or IP address; ``redfish``: ``https://…``; ``labgrid``: the unit's
    host name, or for some models a URL; ``kept``: the lab's ``--name``."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Empty: the usual one."""
    user: str = ""
    password_file: str = ""
    """Its first line is the password; ``~`` is the home of whoever runs hil."""
    system: str = ""
    """``redfish``: path of the system; empty: the only one."""
    ca_file: str = ""
    """``redfish``: certificates of authorities to trust; empty: the usual ones."""
    model: Annotated[str, AfterValidator(_word)] = ""
    """``labgrid``: as its NetworkPowerPort calls the unit."""
    index: str = ""
    """``labgrid``: which outlet."""


class Host(_Model):
    """A machine whose devices are passed to guests."""

    platform: PlatformName
    transport: Literal["ssh", "local"] = "ssh"
    """``local``: hil runs on the lab host itself."""
    address: str = Field(default="", max_length=255)
    """Host name or IP address; needed for ``ssh`` on a physical host.  An emulated or simulated
    lab whose hosts have one stands as a physical one does: no run makes it."""
    port: int = Field(default=22, ge=1, le=65535)
    user: str = Field(default="root", min_length=1)
    key_file: str = "~/.ssh/id_ed25519"
    """Private key without passphrase; ``~`` is the home of whoever runs hil."""
    known_hosts: str = ""
    """File of host keys; empty: the user's ``~/.ssh/known_hosts``."""
    host_key: Annotated[str, AfterValidator(_host_key)] = ""
    """The one host key to accept, as in a ``.pub`` file, or its fingerprint as ssh-keygen(1)
    prints it; instead of ``known_hosts``."""
    danger: int = Field(default=1, ge=0, le=3)
    """Highest danger of the tests it may run: 0 none, 1 may wedge a device, 2 may hang or
    reboot the host, 3 may corrupt its memory (sacrificial hosts only)."""
    power: PowerSwitch | None = None
    """What can switch it off and on; empty: a person."""
    console: tuple[str, ...] = ()
    """A command here that prints what the host's serial console does, for as long as it runs;
    empty: nobody reads it, and a host that dies is known by its silence only."""
    model: str = Field(default="", pattern=r"^[a-z0-9.-]*$")
    """A simulated lab only: which simulated host it is, ``freebsd-15-intel``; empty: that of the
    lab's name."""
    shared: bool = False
    """Whether several runs may use it at a time, each with its own devices; then no test of a
    danger above 1 runs on it."""


class Match(_Model):
    """Identity of a card, which stays the same when the card moves to another slot."""

    id: Ids
    """``vendor:device`` in hexadecimal, as ``lspci -n`` prints it."""
    subsystem: Ids | None = None
    """``subvendor:subdevice``."""
    serial: SerialNumber | None = None
    """PCIe device serial number (extended capability 0003h), 16 hexadecimal digits."""


class Peer(_Model):
    """Where the far end of a NIC's cable is: one of the two fields, on ``host``."""

    host: Name | None = None
    """Empty: the host of the device."""
    interface: str | None = Field(default=None, min_length=1, max_length=15)
    function: FunctionAddress | None = None


class Capture(_Model):
    """How what a display shows is seen from outside."""

    by: Literal["screenshot", "v4l2"]
    """``screenshot``: the emulated lab's own; ``v4l2``: a capture device of the machine that
    runs hil, with the display's cable in it."""
    device: AbsolutePath | None = None
    """``v4l2``: ``/dev/video0``."""
    tolerance: int = Field(default=0, ge=0, le=64)
    """How far each of a pixel's three channels, 0 to 255, may be from what was drawn."""


class Device(_Model):
    """One or more functions that travel together."""

    kind: DeviceKind
    host: Name
    functions: tuple[FunctionAddress, ...] = ()
    match: Match | None = None
    """Finds the card; with ``functions``, checks that this card is at that address."""
    capabilities: tuple[CapabilityName, ...] = ()
    """What the first function has: tests are chosen by it before any host is up."""
    peer: Peer | None = None
    vfs: int = Field(default=0, ge=0, le=65535)
    """Virtual functions that suites may create."""
    scratch: bool = False
    """Whether what is stored on it may be overwritten."""
    capture: Capture | None = None
    """Its display can be seen."""
    guest_memory: int = Field(default=256, ge=64, le=1 << 20)
    """MiB of memory that a guest with it has: a GPU's driver wants thousands."""
    rom: AbsolutePath | None = None
    """A file on the host with the first function's option ROM, for tests that give it to guests."""
    known: tuple[str, ...] = ()
    """Ids of the catalogue: tests of these are known to find fault with the device, and are
    expected to."""
    areas: tuple[str, ...] | None = None
    """Areas (folders of suites, or files there: ``gpu/display``) whose tests of one device use it;
    empty: only tests of several devices do; ``None``: all."""


class ImageEntry(_Model):
    """A guest image that every host of the lab has; see :class:`hil.guests.images.GuestImage`.

    All paths are absolute paths on the host.
    """

    os: Literal["linux", "freebsd"] = "linux"
    root: AbsolutePath | None = None
    """The root disk, which guests only read or have copied; this or ``snapshot``."""
    snapshot: Annotated[str, AfterValidator(_snapshot)] | None = None
    """bhyve: a snapshot of a ZVOL, ``zroot/vm/freebsd@ready``, of which each guest gets a clone."""
    kernel: AbsolutePath | None = None
    initrd: AbsolutePath | None = None
    arguments: tuple[str, ...] = ()
    """More words for the kernel's command line; for bhyveload, loader variables ``NAME=VALUE``."""
    loader: Literal["bhyveload", "uefi", "grub"] | None = None
    """bhyve: what loads it; empty: bhyveload for FreeBSD, grub for Linux."""
    bootrom: AbsolutePath | None = None
    """bhyve: the firmware of ``loader = "uefi"``."""
    grub_root: str | None = Field(default=None, pattern=r"^[a-z0-9,]+$")
    """bhyve: GRUB's root device (``hd0,msdos1``), where its grub.cfg is; in place of ``kernel``."""


class Cluster(_Model):
    """Devices that tests use all at once, in every topology that they can form."""

    devices: tuple[Name, ...] = Field(min_length=2)
    shapes: tuple[Shape, ...] = ()
    """The topologies that tests form of it; empty: all that it can form."""


class LabSection(_Model):
    """The ``[lab]`` table."""

    name: Name
    kind: LabKind


class Inventory(_Model):
    """A whole inventory file."""

    lab: LabSection
    hosts: Mapping[Name, Host] = Field(min_length=1)
    devices: Mapping[Name, Device] = Field(default_factory=dict)
    clusters: Mapping[Name, Cluster] = Field(default_factory=dict)
    images: Mapping[Name, ImageEntry] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Topology:
    """Which guest has which devices of a cluster."""

    cluster: str
    shape: Shape
    """``together``: all in one guest; ``apart``: a guest for each; ``by-host``: on each host a
    guest with its devices."""
    guests: tuple[tuple[str, ...], ...]
    """Names of devices, for each guest; those of one guest are on one host."""

    @property
    def devices(self) -> tuple[str, ...]:
        """All of them, guest by guest."""
        return tuple(name for guest in self.guests for name in guest)

    def __str__(self) -> str:
        return f"{self.cluster}-{self.shape}"


@dataclass(frozen=True)
class Lab:
    """A lab whose inventory has been read and found right."""

    name: str
    kind: LabKind
    """How it is come by: ``physical`` is one that stands, which runs reach, lease and put back;
    the others each run makes for itself."""
    hosts: Mapping[str, Host]
    devices: Mapping[str, Device]
    images: Mapping[str, ImageEntry]
    source: Path
    """The inventory's file."""
    host_image: str = ""
    """An emulated lab whose host is the user's: its disk image, an absolute path."""
    guest_image: str = ""
    """The disk image of that host's guests."""
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    real: LabKind | None = None
    """What is real in it, where that is not what :attr:`kind` says."""

    @property
    def provenance(self) -> LabKind:
        """What is real in it: every result says it."""
        return self.real or self.kind

    def devices_of(self, host: str) -> dict[str, Device]:
        """The devices of ``host`` by name, in the inventory's order."""
        return {name: device for name, device in self.devices.items() if device.host == host}

    def topologies(self, cluster: str) -> tuple[Topology, ...]:
        """Every way in which guests are to have the devices of ``cluster``, all at once."""
        names = self.clusters[cluster].devices
        hosts: dict[str, list[str]] = {}
        for name in names:
            hosts.setdefault(self.devices[name].host, []).append(name)
        each_host = tuple(tuple(found) for found in hosts.values())
        whole = Topology(cluster, "together" if len(hosts) == 1 else "by-host", each_host)
        apart = Topology(cluster, "apart", tuple((name,) for name in names))
        possible = (apart,) if whole.guests == apart.guests else (whole, apart)
        wanted = self.clusters[cluster].shapes
        return tuple(form for form in possible if not wanted or form.shape in wanted)

    def file(self, path: str) -> Path:
        """A path written in the inventory: ``~`` expanded, relative to the inventory's file."""
        try:
            return self.source.parent / Path(path).expanduser()
        except RuntimeError:
            raise InventoryError(
                f"{self.source}: there is no home directory for {path}",
                hint="write the path in full",
            ) from None
