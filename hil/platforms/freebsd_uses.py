"""Disks and networks of a FreeBSD host: what tells which functions the host needs itself.

Parsers, one a command, as in :mod:`hil.platforms.freebsd_text`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hil.platforms.freebsd_text import lines_of, unknown


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``mount -p``."""

    device: str
    """``/dev/gpt/rootfs``, ``zroot/ROOT/default``, ``host:/path`` …"""
    where: str
    kind: str
    """``ufs``, ``zfs`` …"""


def parse_mounts(text: str) -> tuple[Mount, ...]:
    r"""``mount -p``: lines as in fstab(5), blanks in names as ``\040``.

    Raises:
        LabError: on a line of fewer than three words.
    """
    found = []
    for line in lines_of(text):
        words = line.split()
        if len(words) < 3:
            raise unknown("mount -p", line)
        found.append(Mount(*words[:3]))
    return tuple(found)


def parse_swapinfo(text: str) -> tuple[str, ...]:
    """``swapinfo``: devices swapped to, ``/dev/gpt/swap``."""
    words = (line.split()[0] for line in lines_of(text))
    return tuple(word for word in words if word.startswith("/"))


_GEOM = re.compile(r"(\d{1,3}) (\S+) (.+?) (\d+) (\d+)(?: .*)?", re.ASCII)


def parse_geom(text: str) -> dict[str, tuple[str, ...]]:
    """``sysctl -n kern.geom.conftxt``: for every provider, the disks that it lies on.

    Each line is ``LEVEL CLASS NAME SIZE SECTOR …``; a level's providers lie on the nearest
    line above of the level before (sys/geom/geom_dump.c, g_conftxt_geom).  A mirror stands
    once below each of its disks.  Names are those below ``/dev``; a disk lies on itself.

    Raises:
        LabError: on a line of another form, or one that lies on nothing.
    """
    on: dict[str, list[str]] = {}
    path: list[str] = []
    for line in lines_of(text):
        match = _GEOM.fullmatch(line)
        if match is None or int(match[1]) > len(path):
            raise unknown("sysctl kern.geom.conftxt", line)
        del path[int(match[1]) :]
        path.append(match[3])
        disks = on.setdefault(match[3], [])
        if path[0] not in disks:
            disks.append(path[0])
    return {name: tuple(disks) for name, disks in on.items()}


def parse_zpool(text: str) -> dict[str, tuple[str, ...]]:
    """``zpool status -LP``: the devices of each pool, ``/dev/ada0p3``."""
    pools: dict[str, list[str]] = {}
    pool = ""
    for line in lines_of(text):
        words = line.split()
        if words[0] == "pool:" and len(words) == 2:
            pool = words[1]
            pools[pool] = []
        elif words[0].startswith("/dev/") and pool:
            pools[pool].append(words[0])
    return {name: tuple(devices) for name, devices in pools.items()}


_BUS = re.compile(r"(scbus-?\d+) on (\S+) bus \d+:\s*", re.ASCII)
_PERIPHERAL = re.compile(r"<.*>\s+at (scbus-?\d+) target \S+ lun \S+ \((.*)\)\s*", re.ASCII)


def parse_camcontrol(text: str) -> dict[str, str]:
    """``camcontrol devlist -v``: for every peripheral (``ada0``) its bus's device (``ahcich0``).

    Raises:
        LabError: on a line that is neither a bus nor a device.
    """
    buses: dict[str, str] = {}
    found: dict[str, str] = {}
    for line in lines_of(text):
        bus = _BUS.fullmatch(line)
        device = _PERIPHERAL.fullmatch(line)
        if bus:
            buses[bus[1]] = bus[2]
        elif device:
            for name in filter(None, device[2].split(",")):
                found[name] = buses.get(device[1], "")
        else:
            raise unknown("camcontrol devlist", line)
    return found


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface, as ``ifconfig -a`` shows it."""

    name: str
    flags: tuple[str, ...]
    """``UP``, ``RUNNING`` …"""
    addresses: tuple[str, ...] = ()
    """IPv4 and IPv6, without prefix length or scope."""
    ether: str = ""
    groups: tuple[str, ...] = ()
    """``bridge``, ``tap`` …; a real card's is in none unless somebody put it there."""
    parts: tuple[str, ...] = ()
    """A bridge's members, a lagg's ports, a VLAN's parent."""
    description: str = ""


_INTERFACE = re.compile(r"([^\s:]+): flags=[0-9a-fA-Fx]+<([^>]*)>.*")


def parse_ifconfig(text: str) -> tuple[Interface, ...]:
    """``ifconfig -a`` (sbin/ifconfig): attributes of no use here are passed over.

    Raises:
        LabError: on a line that is neither an interface nor indented below one.
    """
    found: list[dict[str, list[str]]] = []
    for line in lines_of(text):
        head = _INTERFACE.fullmatch(line)
        words = line.split()
        if head:
            found.append({"name": [head[1]], "flags": [w for w in head[2].split(",") if w]})
        elif not line[0].isspace() or not found:
            raise unknown("ifconfig", line)
        elif words[0] in ("inet", "inet6") and len(words) > 1:
            address = re.split("[%/]", words[1])[0]
            found[-1].setdefault("addresses", []).append(address)
        elif words[0] in ("member:", "laggport:") and len(words) > 1:
            found[-1].setdefault("parts", []).append(words[1])
        elif words[0] == "ether" and len(words) > 1:
            found[-1]["ether"] = [words[1]]
        elif words[0] == "groups:":
            found[-1]["groups"] = words[1:]
        elif words[0] == "description:":
            found[-1]["description"] = [line.strip().removeprefix("description:").strip()]
        elif "parent interface:" in line:
            parent = line.partition("parent interface:")[2].split()[:1]
            found[-1].setdefault("parts", []).extend(p for p in parent if p != "<none>")
    return tuple(
        Interface(
            name=one["name"][0],
            flags=tuple(one["flags"]),
            addresses=tuple(one.get("addresses", ())),
            ether="".join(one.get("ether", ())),
            groups=tuple(one.get("groups", ())),
            parts=tuple(one.get("parts", ())),
            description="".join(one.get("description", ())),
        )
        for one in found
    )


def parse_default_routes(text: str) -> tuple[str, ...]:
    """``netstat -rn``: interfaces of default routes, each once."""
    column = None
    found: list[str] = []
    for line in lines_of(text):
        words = line.split()
        if "Netif" in words:
            column = words.index("Netif")
        elif column is not None and words[0] == "default" and len(words) > column:
            found.append(words[column])
    return tuple(dict.fromkeys(found))
