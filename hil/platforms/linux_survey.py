"""What a Linux host says of its PCI functions, and of what it uses them for.

Sources: Documentation/ABI/testing/sysfs-bus-pci of the Linux kernel, proc(5).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field

from hil.errors import HilError, LabError
from hil.pci.address import Address
from hil.pci.config import ConfigSpace
from hil.platforms.contract import Bar, Function

#: The driver that holds functions for guests.
STUB = "vfio-pci"

#: Prints all that :func:`parse_survey` reads, of the functions that match ``$1``.  One process
#: lists everything: a spawn costs milliseconds under emulation.
SURVEY = r"""
cd /sys/bus/pci/devices || exit 1
set -- ${1:-*}
stat -c 'size %n %s' $(printf '%s/config ' "$@")
echo "configs $(cat $(printf '%s/config ' "$@") | base64 -w 0)"
find $(printf '%s/ ' "$@") -maxdepth 1 -type l -printf 'link %h %f %l\n'
grep -sH '' $(printf '%s/vendor %s/device %s/resource %s/reset_method %s/sriov_totalvfs ' \
    $(for d in "$@"; do echo "$d $d $d $d $d"; done)) | sed 's/^/text /'
find /sys/class/net /sys/class/block -type l -printf 'interface %f %l\n'
for part in /sys/class/net/*/lower_* /sys/class/block/*/slaves/*; do
    [ -e "$part" ] && echo "part $part"
done
sed 's/^/mount /' /proc/mounts
sed 1d /proc/swaps | sed 's/^/swap /'
[ -n "$SSH_CONNECTION" ] && echo "ssh $SSH_CONNECTION"
ip -o addr 2>/dev/null | sed 's/^/addr /'
awk '$2 == "00000000" { print "default", $1 }' /proc/net/route
exit 0
"""

_PCI = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

#: ioport.h: IORESOURCE_* flags as sysfs prints them.
_IO, _MEM, _PREFETCH, _MEM_64 = 0x100, 0x200, 0x2000, 0x100000


@dataclass
class _Draft:
    config: bytes
    links: dict[str, str]
    resources: list[tuple[int, int, int]]
    ids: dict[str, int] = field(default_factory=dict)
    reset_methods: tuple[str, ...] = ()
    total_vfs: int = 0


def parse_survey(text: str, host: str = "") -> tuple[Function, ...]:
    """Functions from what the survey script printed.

    Raises:
        LabError: on a line that is none of the script's, which it shows.
    """
    survey = _Survey()
    # Not splitlines(): a mount point's name may hold what that takes for a line's end.
    for line in text.split("\n"):
        try:
            survey.take(line)
        except (ValueError, IndexError, KeyError) as error:
            raise LabError(
                f"cannot read a line of what {host or 'the host'} says of its PCI functions",
                host=host,
                seen=line[:300],
                hint=f"({error}) report it with this line",
            ) from error
    in_use = survey.in_use()
    functions = []
    for name, draft in sorted(survey.drafts.items()):
        own = tuple(sorted(survey.interfaces.get(name, ())))
        try:
            functions.append(_function(name, draft, own, in_use.get(name, "")))
        except (ValueError, HilError) as error:
            raise LabError(
                f"cannot make sense of what {host or 'the host'} says of {name[:60]!r}",
                host=host,
                seen=str(error)[:1000],
            ) from error
    return tuple(functions)


class _Survey:
    """What the lines of a survey have told so far, by names of functions, interfaces and disks."""

    def __init__(self) -> None:
        self.drafts: dict[str, _Draft] = {}
        self.interfaces: dict[str, list[str]] = {}
        """Network interfaces and disks of each function."""
        self._sizes: dict[str, int] = {}
        self._addresses: list[tuple[str, str]] = []
        self._mounted: dict[str, str] = {}
        self._management: set[str] = set()
        self._disks: list[tuple[str, str]] = []
        self._layers: list[tuple[str, str]] = []
        self._ssh_address = ""

    def take(self, line: str) -> None:
        """One line.

        Raises:
            ValueError, IndexError, KeyError: it is none of the script's.
        """
        kind, _, rest = line.partition(" ")
        if kind == "size":
            path, _, size = rest.rpartition(" ")
            self._sizes[path.removesuffix("/config")] = int(size)
        elif kind == "configs":
            data = base64.b64decode(rest, validate=True)
            for name, length in self._sizes.items():
                self.drafts[name] = _Draft(data[:length], {}, [])
                data = data[length:]
        elif kind == "link":
            where, name, target = rest.split(" ", 2)
            self.drafts[where.rstrip("/")].links[name] = target
        elif kind == "text":
            _take_text(self.drafts, rest)
        elif kind == "interface":
            name, target = rest.split(" ", 1)
            found = _PCI.findall(target)
            if found:
                # A multipath NVMe's path device nvme0c1n1 serves the disk nvme0n1.
                name = re.sub(r"^(nvme\d+)c\d+(n\d+)$", r"\1\2", name)
                self.interfaces.setdefault(found[-1], []).append(name)
        elif kind in ("mount", "swap"):
            device, where = [*rest.split(), ""][:2]
            if device.startswith("/dev/"):
                use = "swap" if kind == "swap" else where
                _use_disk(self._mounted, device.removeprefix("/dev/"), f"disk mounted at {use}")
        elif kind == "part":
            # /sys/class/net/br0/lower_eth0, /sys/class/block/dm-0/slaves/sda3
            words = rest.split("/")
            parts = {"net": self._layers, "block": self._disks}[words[3]]
            parts.append((words[4], words[-1].removeprefix("lower_")))
        elif kind == "ssh":
            self._ssh_address = rest.split()[2]
        elif kind == "addr":
            words = rest.split()
            self._addresses.append((words[1], words[3].partition("/")[0]))
        elif kind == "default":
            self._management.add(rest.strip())
        elif line.strip():
            raise ValueError("no such kind of line")

    def in_use(self) -> dict[str, str]:
        """What the host itself uses functions as, by their names."""
        management = set(self._management)
        management |= {name for name, at in self._addresses if at == self._ssh_address}
        for _ in self._layers:  # a VLAN on a bridge on a bond …
            management |= {lower for upper, lower in self._layers if upper in management}
        mounted = dict(self._mounted)
        for upper, lower in self._disks:
            # LVM, RAID, encryption: what it carries is not asked, it is in use.
            _use_disk(mounted, lower, f"disk below {upper}")
        found = {}
        for address, names in self.interfaces.items():
            uses = [mounted[name] for name in names if name in mounted]
            uses += ["management NIC" for name in names if name in management]
            if uses:
                found[address] = "root disk" if "disk mounted at /" in uses else uses[-1]
        return found


def _use_disk(uses: dict[str, str], name: str, use: str) -> None:
    """Note what a disk or partition is for, the first use of it that is told."""
    uses.setdefault(name, use)
    # A partition of a multipath NVMe stands below no PCI function; its disk does.
    partition = re.fullmatch(r"(nvme\d+n\d+)p\d+", name)
    if partition:
        uses.setdefault(partition[1], use)


def _take_text(drafts: dict[str, _Draft], text: str) -> None:
    """One line of grep -H: ``0000:01:00.0/resource:0x… 0x… 0x…``."""
    name, _, rest = text.partition("/")
    attribute, _, value = rest.partition(":")
    draft = drafts[name]
    if attribute == "resource":
        start, end, flags = (int(word, 16) for word in value.split())
        draft.resources.append((start, end, flags))
    elif attribute in ("vendor", "device"):
        draft.ids[attribute] = int(value, 16)
    elif attribute == "reset_method":
        draft.reset_methods = tuple(value.split())
    elif attribute == "sriov_totalvfs":
        draft.total_vfs = int(value)
    else:
        raise ValueError(f"no attribute {attribute}")


def _function(name: str, draft: _Draft, interfaces: tuple[str, ...], in_use: str) -> Function:
    def link(key: str) -> str:
        return draft.links.get(key, "").rpartition("/")[2]

    config = ConfigSpace(draft.config)
    driver = link("driver") or None
    # Bridges have only two BARs, and the lines after the sixth are ROM and SR-IOV.
    count = 6 if config.header_type == 0 else 2
    bars = tuple(
        Bar(
            index=index,
            address=start,
            size=end - start + 1,
            memory=bool(flags & _MEM),
            prefetchable=bool(flags & _PREFETCH),
            wide=bool(flags & _MEM_64),
        )
        for index, (start, end, flags) in enumerate(draft.resources[:count])
        if flags & (_IO | _MEM)
    )
    vfs = [key for key in draft.links if re.fullmatch(r"virtfn\d+", key)]
    return Function(
        address=Address.parse(name),
        vendor=draft.ids.get("vendor", config.vendor),
        device=draft.ids.get("device", config.device),
        config=config,
        driver=driver,
        reserved=driver == STUB,
        group=int(link("iommu_group")) if link("iommu_group") else None,
        bars=bars,
        reset_methods=draft.reset_methods,
        physical_function=Address.parse(link("physfn")) if link("physfn") else None,
        virtual_functions=tuple(
            Address.parse(link(key)) for key in sorted(vfs, key=lambda key: int(key[6:]))
        ),
        total_vfs=draft.total_vfs,
        interfaces=interfaces,
        in_use_as=in_use,
    )
