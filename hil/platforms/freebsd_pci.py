"""FreeBSD's PCI functions: pciconf's text, and what the host itself needs of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hil.errors import InventoryError, LabError
from hil.pci.address import Address
from hil.pci.config import ConfigSpace
from hil.pci.reset import reset_facts
from hil.platforms.contract import Bar, Function
from hil.platforms.freebsd_text import (
    DeviceTree,
    lines_of,
    parse_devinfo,
    parse_sysctl,
    unknown,
)
from hil.platforms.freebsd_uses import (
    Interface,
    parse_camcontrol,
    parse_default_routes,
    parse_geom,
    parse_ifconfig,
    parse_mounts,
    parse_swapinfo,
    parse_zpool,
)

#: The driver that holds a function for bhyve.
STUB = "ppt"


@dataclass(frozen=True, slots=True)
class PciCapability:
    """A capability as ``pciconf -lc`` describes it."""

    identity: int
    offset: int
    extended: bool
    text: str
    """Its line after the ``=``, and the indented lines after it, joined by newlines."""


@dataclass(frozen=True, slots=True)
class PciEntry:
    """One function of ``pciconf -l``."""

    name: str
    """``em0``; ``none3`` where no driver ever took it.

    A name outlives its driver: ``pptN`` stays after a detach, after vmm is unloaded and after
    a failed ``devctl set driver``.  Whether the driver is attached, devinfo(8) tells.
    """
    address: Address
    class_code: int
    """24 bits: class, subclass, programming interface."""
    revision: int
    header_type: int
    vendor: int
    """Of a VF too, whose own configuration space reads ffff."""
    device: int
    subsystem_vendor: int
    subsystem_device: int
    bars: tuple[Bar, ...] = ()
    capabilities: tuple[PciCapability, ...] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)
    """``vendor``, ``device``, ``class``, ``subclass`` in words, with ``-v``."""
    other: tuple[str, ...] = ()
    """Lines of any other kind, such as errors with ``-e``, as printed."""

    @property
    def driver(self) -> str | None:
        """The name's driver: ``em`` of ``em0``; ``None`` of ``none0``."""
        driver = self.name.rstrip("0123456789")
        return None if driver == "none" else driver


_ENTRY = re.compile(r"(\S+)@(pci[\d:]+):\s+(class=.*)", re.ASCII)
_PAIR = re.compile(r"(\w+)=0x([0-9a-f]{1,8})", re.ASCII)
_BAR = re.compile(
    r"\s+bar\s+\[([0-9a-f]{2})\] = type (I/O Port|Memory|Prefetchable Memory), range +(\d+), "
    r"base (0x[0-9a-f]+|0), size +(-?\d+), (?:en|dis)abled\s*",
    re.ASCII,
)
_CAP = re.compile(r"\s+(e?cap) ([0-9a-f]{2,4})\[([0-9a-f]{2,3})\] = (.*)", re.ASCII)
_WORDS = re.compile(r"    (vendor|device|class|subclass)\s+= (.*)")
_INDENTED = re.compile(r"\s+\S.*")
#: cap.c and err.c go on with what they said below their ``=``.
_CONTINUED = " " * 17


def parse_pciconf(text: str) -> tuple[PciEntry, ...]:
    """``pciconf -l``, with any of ``-v``, ``-b``, ``-c`` and ``-e`` (usr.sbin/pciconf/pciconf.c).

    Releases before 12 print the ids as ``card=`` and ``chip=``; both forms are read.

    Raises:
        LabError: on a line that is neither a function nor indented below one.
    """
    drafts: list[_Draft] = []
    for line in lines_of(text):
        entry = _ENTRY.fullmatch(line)
        try:
            if entry:
                drafts.append(_Draft(entry[1], Address.parse(entry[2]), _ids(entry[3])))
                continue
            if not drafts or not _INDENTED.fullmatch(line):
                raise ValueError("neither a function nor a part of one")
            drafts[-1].take(line)
        except (ValueError, InventoryError) as error:
            why = error.message if isinstance(error, InventoryError) else error
            raise unknown("pciconf", line, why) from error
    return tuple(draft.entry() for draft in drafts)


@dataclass
class _Draft:
    name: str
    address: Address
    ids: dict[str, int]
    bars: list[Bar] = field(default_factory=list)
    capabilities: list[PciCapability] = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """One of the lines below a function."""
        bar, capability, words = _BAR.fullmatch(line), _CAP.fullmatch(line), _WORDS.fullmatch(line)
        if bar:
            self.bars.append(
                Bar(
                    index=(int(bar[1], 16) - 0x10) // 4,
                    address=int(bar[4], 16),
                    # Older releases print it as a signed int: 2 GiB is negative.
                    size=int(bar[5]) % (1 << 32) if bar[5][0] == "-" else int(bar[5]),
                    memory=bar[2] != "I/O Port",
                    prefetchable=bar[2] == "Prefetchable Memory",
                    wide=bar[3] == "64",
                )
            )
        elif capability:
            kind, identity, offset, rest = capability.groups()
            self.capabilities.append(
                PciCapability(int(identity, 16), int(offset, 16), kind == "ecap", rest.rstrip())
            )
        elif words:
            self.descriptions[words[1]] = words[2].strip().strip("'")
        elif line.lstrip().startswith("bar "):
            raise ValueError("a BAR in an unknown form")
        elif self.capabilities and line.startswith(_CONTINUED) and not self.other:
            last = self.capabilities[-1]
            self.capabilities[-1] = PciCapability(
                last.identity, last.offset, last.extended, f"{last.text}\n{line.strip()}"
            )
        else:
            self.other.append(line.strip())

    def entry(self) -> PciEntry:
        """The finished function."""
        return PciEntry(
            name=self.name,
            address=self.address,
            class_code=self.ids["class"],
            revision=self.ids["rev"],
            header_type=self.ids["hdr"],
            vendor=self.ids["vendor"],
            device=self.ids["device"],
            subsystem_vendor=self.ids["subvendor"],
            subsystem_device=self.ids["subdevice"],
            bars=tuple(self.bars),
            capabilities=tuple(self.capabilities),
            descriptions=self.descriptions,
            other=tuple(self.other),
        )


def _ids(text: str) -> dict[str, int]:
    ids = {name: int(value, 16) for name, value in _PAIR.findall(text)}
    if "chip" in ids:
        ids["vendor"], ids["device"] = ids["chip"] & 0xFFFF, ids["chip"] >> 16
        ids["subvendor"], ids["subdevice"] = ids["card"] & 0xFFFF, ids["card"] >> 16
    for name in ("class", "rev", "hdr", "vendor", "device", "subvendor", "subdevice"):
        if name not in ids:
            raise ValueError(f"no {name}=")
    return ids


def parse_config_dump(text: str) -> bytes:
    """``pciconf -r SELECTOR 0:0xfff``: the bytes, as :class:`ConfigSpace` takes them.

    Numbers are little-endian words of the width that they are printed in (readit in
    usr.sbin/pciconf/pciconf.c).  A function without extended configuration space reads
    ones there, and is cut to 256 bytes.

    Raises:
        LabError: there is something other than hexadecimal words of one width.
    """
    words = text.split()
    widths = {len(word) for word in words}
    if not words or len(widths) != 1 or not widths <= {2, 4, 8}:
        raise unknown("pciconf -r", text.strip()[:300] or "(nothing)")
    try:
        data = b"".join(bytes.fromhex(word)[::-1] for word in words)
    except ValueError as error:
        raise unknown("pciconf -r", text.strip(), error) from error
    if len(data) > 256 and data[256:260] == b"\xff" * 4:
        data = data[:256]
    return data


_BRIDGE = re.compile(r"bridge (pci[\d:]+) ([0-9a-f]{8})\s*", re.ASCII)


def parse_bridges(text: str) -> dict[Address, range]:
    """The buses behind each bridge, secondary to subordinate.

    A line is ``bridge pci0:0:8:0 00010100``: what ``pciconf -r`` printed of the bridge's bus
    numbers, register 0x18 (PCI bridge 3.2.5).

    Raises:
        LabError: a line is something else.
    """
    found = {}
    for line in lines_of(text):
        bridge = _BRIDGE.fullmatch(line)
        if bridge is None:
            raise unknown("pciconf -r of a bridge", line)
        _, secondary, subordinate, _ = int(bridge[2], 16).to_bytes(4, "little")
        found[Address.parse(bridge[1])] = range(secondary, subordinate + 1)
    return found


def physical_functions(entries: Iterable[PciEntry]) -> tuple[Address, ...]:
    """Those that have virtual functions now, of what ``pciconf -lc`` printed."""
    return tuple(
        entry.address
        for entry in entries
        if any("IOV enabled" in capability.text for capability in entry.capabilities)
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """What was asked of a host, each as its command printed it; empty where it was not asked.

    Only ``pciconf`` and ``configs`` must be there; without the rest less is known of what
    the host itself needs.
    """

    pciconf: str
    """``pciconf -lvbce``"""
    configs: Mapping[Address, bytes]
    """``pciconf -r`` of each, by :func:`parse_config_dump`."""
    devinfo: str = ""
    """``devinfo``, without ``-v``: attached devices only."""
    mounts: str = ""
    """``mount -p``"""
    swap: str = ""
    """``swapinfo``"""
    zpool: str = ""
    """``zpool status -LP``"""
    geom: str = ""
    """``sysctl -n kern.geom.conftxt``"""
    camcontrol: str = ""
    """``camcontrol devlist -v``"""
    ifconfig: str = ""
    """``ifconfig -a``"""
    routes: str = ""
    """``netstat -rn``"""
    console: str = ""
    """``sysctl kern.console hw.pci.default_vgapci_unit``"""
    ssh_connection: str = ""
    """``$SSH_CONNECTION``: client's address and port, host's address and port."""
    host: str = ""


def functions(survey: Survey) -> tuple[Function, ...]:
    """Every PCI function of the host, by address.

    A function that has gone between two commands (it has no configuration space) is left out.

    Raises:
        LabError: on a line of any text that is none of its command's.
    """
    entries = parse_pciconf(survey.pciconf)
    tree = parse_devinfo(survey.devinfo)
    used = _Used(survey, entries, tree)
    spaces: dict[Address, ConfigSpace] = {}
    for entry in entries:
        data = survey.configs.get(entry.address)
        try:
            if data:
                spaces[entry.address] = ConfigSpace(data)
        except LabError as error:
            raise LabError(
                f"cannot make sense of what {survey.host or 'the host'} says of {entry.name}",
                host=survey.host,
                seen=str(error)[:1000],
            ) from error
    known = {entry.address for entry in entries}
    physical = {vf: pf for vf, pf in virtual_functions(spaces) if vf in known}
    found = []
    for entry in sorted(entries, key=lambda one: one.address):
        config = spaces.get(entry.address)
        if config is None:
            continue
        attached = entry.driver if not tree.parents or entry.name in tree.parents else None
        own = used.made_by.get(entry.name, ())
        found.append(
            Function(
                address=entry.address,
                vendor=entry.vendor,
                device=entry.device,
                config=config,
                driver=attached,
                reserved=attached == STUB,
                group=None,
                bars=entry.bars,
                reset_methods=_reset_methods(config),
                physical_function=physical.get(entry.address),
                virtual_functions=tuple(
                    sorted(vf for vf, pf in physical.items() if pf == entry.address)
                ),
                total_vfs=config.sriov.total if config.sriov else 0,
                interfaces=tuple(sorted(own)),
                in_use_as=used.by_name.get(entry.name, "") if attached else "",
            )
        )
    return tuple(found)


def _reset_methods(config: ConfigSpace) -> tuple[str, ...]:
    """What FreeBSD will try and what promises to reset: FLR, else D3hot and back.

    Neither ppt nor devctl(8) uses the Advanced Features' reset (sys/dev/pci/pci.c,
    pci_reset_child; sys/amd64/vmm/io/ppt.c).  FreeBSD goes through D3hot even where
    NoSoftRst says that this resets nothing; then it is not listed.
    """
    return tuple(method for method in reset_facts(config).methods if method != "af_flr")


def virtual_functions(spaces: Mapping[Address, ConfigSpace]) -> Iterator[tuple[Address, Address]]:
    """Pairs of a VF and its PF, by the arithmetic of SR-IOV (PCIe 9.2.1.2)."""
    for address, config in spaces.items():
        if config.sriov is None:
            continue
        for requester_id in config.sriov.requester_ids(address.requester_id):
            vf = Address.from_requester_id(requester_id, address.domain)
            if vf != address:
                yield vf, address


# ---- what the host itself needs --------------------------------------------------

#: Network interfaces that are not called as the device which they belong to.
_RENAMED = {"mce": "mlx5_core", "mlxen": "mlx4_core"}


class _Used:
    """Which functions the host needs itself, and what their drivers made."""

    def __init__(self, survey: Survey, entries: Iterable[PciEntry], tree: DeviceTree) -> None:
        self._tree = tree
        self._entries = tuple(entries)
        self._functions = {entry.name for entry in self._entries}
        self._buses = parse_camcontrol(survey.camcontrol)
        self._geom = parse_geom(survey.geom)
        #: Why the host needs a function, by the function's name.
        self.by_name: dict[str, str] = {}
        #: Interfaces and disks, by the name of the function that has them.
        self.made_by: dict[str, list[str]] = {}
        disks = {disk for on in self._geom.values() for disk in on} | {
            name for name in self._buses if not name.startswith(("pass", "xpt", "ses"))
        }
        self._disks = {disk: self._function_of(self._disk_device(disk, disks)) for disk in disks}
        links = parse_ifconfig(survey.ifconfig)
        self._links = {link.name: self._function_of(_link_device(link.name)) for link in links}
        for made, function in (*self._disks.items(), *self._links.items()):
            if function:
                self.made_by.setdefault(function, []).append(made)
        self._note_disks(survey)
        self._note_management(survey, links)
        self._note_console(survey.console)

    def _function_of(self, device: str) -> str:
        """The function that a device hangs on, itself included; empty if on none."""
        return next((name for name in self._tree.line(device) if name in self._functions), "")

    def _disk_device(self, disk: str, disks: set[str]) -> str:
        """The newbus device that a disk belongs to."""
        bus = self._buses.get(disk, "")
        if bus:
            return bus.replace("umass-sim", "umass")
        if disk.startswith("vtbd"):
            return disk.replace("vtbd", "vtblk")
        unit = disk.removeprefix("nvd")
        if unit.isdigit():
            # nvd(4) counts namespaces, nvme(4) controllers, each from 0 as they come: as long
            # as there is one namespace a controller, the numbers are the same.
            namespaces = {name[3:] for name in disks if re.fullmatch(r"nvd\d+", name)}
            controllers = {n[4:] for n in self._tree.parents if re.fullmatch(r"nvme\d+", n)}
            return f"nvme{unit}" if namespaces == controllers else ""
        return disk

    def _note_disks(self, survey: Survey) -> None:
        pools = parse_zpool(survey.zpool)
        uses: list[tuple[str, str]] = []
        for mount in parse_mounts(survey.mounts):
            use = "root disk" if mount.where == "/" else f"disk mounted at {mount.where}"
            devices = pools.get(mount.device.partition("/")[0], (mount.device,))
            if mount.device.startswith("/dev/"):
                devices = (mount.device,)
            uses += [(device, use) for device in devices]
        uses += [(device, "swap") for device in parse_swapinfo(survey.swap)]
        uses += [(dev, f"disk of the pool {name}") for name, devs in pools.items() for dev in devs]
        # The root disk first: of several uses of one function, the first is told.
        for device, use in sorted(uses, key=lambda one: one[1] != "root disk"):
            if not device.startswith("/dev/"):
                continue
            name = device.removeprefix("/dev/")
            for disk in self._geom.get(name, (_whole_disk(name),)):
                if disk.startswith("md"):
                    continue
                function = self._disks.get(disk) or self._function_of(disk)
                self._note((function,) if function else self._suspects(0x01), use, bool(function))

    def _note_management(self, survey: Survey, links: tuple[Interface, ...]) -> None:
        words = survey.ssh_connection.split()
        here = re.split("%", words[2])[0] if len(words) == 4 else ""
        management = set(parse_default_routes(survey.routes))
        management |= {link.name for link in links if here and here in link.addresses}
        by_name = {link.name: link for link in links}
        for _ in links:  # a VLAN on a bridge on a lagg …
            for name in tuple(management):
                management |= set(by_name[name].parts) if name in by_name else set()
        for name in sorted(management):
            function = self._links.get(name)
            link = by_name.get(name)
            if function:
                self._note((function,), "management NIC", known=True)
            elif link is not None and link.ether and not link.parts and not link.groups:
                self._note(self._suspects(0x02), "management NIC", known=False)

    def _note_console(self, text: str) -> None:
        values = parse_sysctl(text)
        # "ttyu0,/ttyu0,ttyv0,": those in use, then those there are (sys/kern/kern_cons.c).
        for console in values.get("kern.console", "").partition("/")[0].split(","):
            device = ""
            if console.startswith("ttyu"):
                device = console.replace("ttyu", "uart")
            elif console.startswith("ttyv"):
                device = f"vgapci{values.get('hw.pci.default_vgapci_unit', '').strip()}"
            function = self._function_of(device)
            if function:
                self._note((function,), "console", known=True)

    def _suspects(self, base_class: int) -> tuple[str, ...]:
        """Functions of a class with a driver, whose disks or interfaces are not known."""
        return tuple(
            entry.name
            for entry in self._entries
            if entry.class_code >> 16 == base_class
            and entry.driver not in (None, STUB)
            and entry.name not in self.made_by
        )

    def _note(self, names: Iterable[str], use: str, known: bool) -> None:
        for name in names:
            self.by_name.setdefault(name, use if known else f"perhaps {use}")


def _whole_disk(name: str) -> str:
    """The disk of a partition by its name alone: ``ada0p3``, ``da0s1a``."""
    match = re.match(r"[a-z]+\d+", name)
    return match[0] if match else name


def _link_device(name: str) -> str:
    driver = name.rstrip("0123456789")
    return _RENAMED.get(driver, driver) + name[len(driver) :]
