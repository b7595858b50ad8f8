"""What the simulated hosts' FreeBSDs say of themselves, as data by release and vendor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from hil.simulated.topology import MachineSpec

#: Memory that the kernel does not count in hw.physmem, in bytes; as recorded.
_TAKEN = 6442450944 - 6419927040


@dataclass(frozen=True, slots=True)
class Release:
    """A release's name for itself."""

    version: str
    """``uname -r``"""
    osreldate: int
    build: str
    """Between version and configuration in ``uname -v``."""
    ident: str = "GENERIC"


RELEASES: Mapping[str, Release] = {
    "11.0": Release("11.0-RELEASE", 1100122, "#0 r306211: Thu Sep 29 01:43:23 UTC 2016 "),
    "13.2": Release("13.2-RELEASE", 1302001, "releng/13.2-n254617-525ecfdad597 "),
    "14.3": Release("14.3-RELEASE", 1403000, "releng/14.3-n271432-8c9ce319fef7 "),
    "15.0": Release("15.0-RELEASE", 1500068, "releng/15.0-n280995-7aedc8de6446 "),
    "current": Release("16.0-CURRENT", 1600006, "#0 main-n281100-0b5a1f2c9d3e: "),
}
#: The kernel that the transcripts' host ran was built for the purpose.
RECORDED = Release("13.2-RELEASE", 1302001, "", "BHYVEHOST")

_MODELS = {
    "amd": "AMD EPYC Processor (with IBPB)",
    "intel": "Intel Xeon Processor (Skylake)",
}
_GEOM = """\
0 DISK vtbd0 {size} 512 hd 16 sc 63
1 PART vtbd0p2 {root} 512 i 2 o 35652096 ty freebsd-ufs
2 LABEL gpt/rootfs {root} 512 i 0 o 0
"""


def release_of(spec: MachineSpec) -> Release:
    """The release that a machine runs."""
    return RECORDED if spec.name.startswith("recorded-") else RELEASES[spec.release.name]


def settings(spec: MachineSpec) -> dict[str, str]:
    """Kernel variables that no model stands behind."""
    release = release_of(spec)
    disk = next((each.size for each in spec.functions if each.in_use == "root disk"), 0)
    return {
        "kern.ostype": "FreeBSD",
        "kern.osrelease": release.version,
        "kern.osreldate": str(release.osreldate),
        "kern.hostname": spec.hostname,
        "kern.securelevel": "-1",
        "kern.console": "ttyu0,/ttyu0,",
        "kern.geom.conftxt": _GEOM.format(size=disk, root=max(0, disk - 35652096)).rstrip("\n"),
        "kern.vm_guest": "generic",
        "hw.machine": "amd64",
        "hw.model": _MODELS[spec.vendor],
        "hw.physmem": str(spec.memory - _TAKEN),
        "hw.hv_vendor": "TCGTCGTCGTCG",
        "hw.pci.default_vgapci_unit": "-1",
        "hw.iommu.dmar.timeout": "1000000",
        "hw.iommu.dmar.batch_coalesce": "100",
        "hw.iommu.dmar.tbl_pagecnt": "0",
        "security.jail.jailed": "0",
        "vm.stats.vm.v_wire_count": "27500",
        "net.link.tap.up_on_open": "0",
        "debug.kdb.panic": "0",
        "debug.kdb.enter": "0",
    }


def loader_variables(acpi_root: int) -> dict[str, str]:
    """What the loader tells every kernel in its environment."""
    return {
        "acpi.oem": "BOCHS",
        "acpi.revision": "2",
        "acpi.rsdp": f"{acpi_root:#018x}",
        "currdev": "disk0p2:",
        "kernelname": "/boot/kernel/kernel",
        "loaddev": "disk0p2:",
        "smbios.system.maker": "QEMU",
        "vfs.root.mountfrom": "ufs:/dev/gpt/rootfs",
    }


def boot_messages(spec: MachineSpec, attached: Sequence[str]) -> list[str]:
    """The message buffer after boot, around what the devices said as they attached."""
    text = (resources.files(__package__) / "host_boot.txt").read_text("utf-8")
    head, between, after = re.split(r"@\w+\n", text)
    release = release_of(spec)
    values = {
        "version": release.version,
        "ident": release.ident,
        "memory": str(spec.memory),
        "megabytes": str(spec.memory >> 20),
    }
    lines = []
    for line in head.splitlines():
        mark, bar, rest = line.partition("|")
        if not bar or mark not in _MODELS:
            lines.append(line)
        elif mark == spec.vendor:
            lines.append(rest)
    filled = [re.sub(r"\{(\w+)\}", lambda found: values[found[1]], line) for line in lines]
    attached = [each for line in attached for each in (line, *_children(line, spec))]
    # Disks are found, and links come up, when all devices have attached.
    late = [line for line in attached if _LATE.match(line)]
    early = [line for line in attached if not _LATE.match(line)]
    links = [
        f"{found[1]}: link state changed to UP"
        for line in early
        if (found := re.match(r"((?:em|igb|ix)\d+): <", line))
    ]
    return [*filled, *early, *between.splitlines(), *late, *after.splitlines(), *links]


def _children(line: str, spec: MachineSpec) -> list[str]:
    """What the devices below a device say, which are no PCI functions."""
    name = line.partition(":")[0]
    if "<VirtIO PCI (legacy) Network adapter>" in line:
        mac = next(each.mac for each in spec.functions if each.kind == "virtio-net")
        rings = "txq=1, txd=256 rxq=1, rxd=128"
        return [
            f"vtnet0: <VirtIO Networking Adapter> on {name}",
            f"vtnet0: Ethernet address: {mac}",
            "vtnet0: netmap queues/slots: TX 1/256, RX 1/128",
            f"000.000063 [ 450] vtnet_netmap_attach{'':7}vtnet attached {rings}",
        ]
    if "<VirtIO PCI (legacy) Block adapter>" in line:
        size = next(each.size for each in spec.functions if each.kind == "virtio-blk")
        return [
            f"vtblk0: <VirtIO Block Adapter> on {name}",
            f"vtblk0: {size >> 20}MB ({size // 512} 512 byte sectors)",
        ]
    if "<PCI-ISA bridge>" in line:
        return [f"isa0: <ISA bus> on {name}"]
    if "AHCI SATA controller>" in line:
        return [
            f"{name}: AHCI v1.00 with 6 1.5Gbps ports, Port Multiplier not supported",
            *(f"ahcich{n}: <AHCI channel> at channel {n} on {name}" for n in range(6)),
        ]
    return []


_LATE = re.compile(r"nvd|nda|nvme\d+: (SET|FEATURE)")
