"""What simulated hosts are made of: releases, processors, functions and cables, as data.

Addresses, BARs and interrupt lines of :func:`recorded` are those of the recorded host
(tests/recorded/freebsd-13.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hil.errors import InventoryError
from hil.pci.address import Address
from hil.simulated.memory import GIB, MIB


@dataclass(frozen=True, slots=True)
class Release:
    """A release of FreeBSD, as far as vmm behaves differently in it."""

    name: str
    """``13.2``, ``15.0`` …, or ``current``."""
    idle_in_host_domain: bool = False
    """Before r325039 a device that ppt holds for nobody is in the host's domain."""
    maps_before_assigning: bool = True
    """A failed assignment leaves the guest's memory mapped and its domain made (up to 15)."""
    switches_command: bool = False
    """ppt switches decoding and bus mastering on for a guest, and off again; before, COMMAND stays
    as the last owner left it (13.2, as recorded: an idle function decodes)."""
    nvme_disk: str = "nvd"
    """Driver that makes disks of NVMe namespaces: nda since 14."""


RELEASES = {
    release.name: release
    for release in (
        Release("11.0", idle_in_host_domain=True),
        Release("13.2"),
        Release("14.3", nvme_disk="nda"),
        Release("15.0", nvme_disk="nda", switches_command=True),
        Release("current", switches_command=True, maps_before_assigning=False, nvme_disk="nda"),
    )
}

VENDORS = ("intel", "amd")
#: Guests of a simulated lab that are no FreeBSD, by what its name ends in: Linux by grub-bhyve, and
#: by firmware.
GUESTS = ("linux", "linux-uefi")
#: Ends the name of a host with a second DMA engine, edu1, for clusters.
_CARDS = "cards"
#: Behind so many root ports functions may have I/O ports; the windows go down from 0x6000.
_WITH_PORTS = 6


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A function: which device, where, and what the firmware gave it."""

    name: str
    """For cables and tests; ``nic0``."""
    kind: str
    """A template of :mod:`hil.simulated.config_data`."""
    address: Address
    bars: Mapping[int, int] = field(default_factory=dict)
    """Addresses by BAR index."""
    irq: int = 0
    """The interrupt line that the firmware routed; 0 if the function has none."""
    mac: str = ""
    size: int = 0
    """Bytes of a disk, or of a GPU's memory."""
    bus: int = 0
    """Of a root port: the bus behind it."""
    windows: tuple[range, ...] = ()
    """Of a root port: the ranges of ports, memory and prefetchable memory that it passes on."""
    in_use: str = ""
    """What the host itself needs it for: ``root disk``, ``management NIC``."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A host."""

    name: str
    """For example ``freebsd-15.0-intel``."""
    release: Release
    vendor: str
    functions: tuple[FunctionSpec, ...]
    memory: int
    """Bytes."""
    hostname: str = "bhyvehost"
    cpus: int = 2
    cables: tuple[tuple[str, str], ...] = ()
    """Pairs of NICs that are joined, by name."""
    responders: Mapping[str, str] = field(default_factory=dict)
    """NICs whose far end only answers pings: its address and prefix, by the NIC's name."""
    iommu_ranges: tuple[tuple[int, int], ...] = ()
    """Requester ids that the ACPI table gives to the first unit; empty: all."""
    second_unit_bus: int = 0
    """Intel: the bus whose functions have a remapping unit of their own; 0: there is one unit."""
    loader_conf: Mapping[str, str] = field(default_factory=dict)
    """Kernel environment after boot."""
    boot_messages: tuple[str, ...] = ()
    """The boot's messages as recorded; empty: they are made from what attaches."""
    virtualizes: bool = True
    """Whether the processor has VMX or SVM."""
    has_iommu: bool = True
    """Whether the firmware lists remapping units."""
    vf_window: int = 0xC100_0000
    """Where the kernel puts the BARs of virtual functions."""


def _address(text: str) -> Address:
    return Address.parse(text)


def _in_use(wide: int, disk: int) -> tuple[FunctionSpec, FunctionSpec]:
    """The NIC and the disk that the host itself needs.

    Args:
        wide: address of the first of their BARs of 64 bits.
        disk: bytes.
    """
    net = FunctionSpec(
        "vtnet",
        "virtio-net",
        _address("00:02.0"),
        {0: 0x7120, 1: 0xC038_7000, 4: wide},
        22,
        mac="52:54:00:12:34:56",
        in_use="management NIC",
    )
    block = FunctionSpec(
        "vtblk",
        "virtio-blk",
        _address("00:03.0"),
        {0: 0x7000, 1: 0xC038_6000, 4: wide + 0x4000},
        23,
        size=disk,
        in_use="root disk",
    )
    return net, block


def _recorded_functions(vendor: str) -> tuple[FunctionSpec, ...]:
    wide = 0xE0_2000_0000 if vendor == "amd" else 0x8_0000_0000
    amd = (FunctionSpec("iommu", "amd-iommu", _address("00:01.0")),) if vendor == "amd" else ()
    return (
        FunctionSpec("host-bridge", "host-bridge", _address("00:00.0")),
        *amd,
        *_in_use(wide, 6361093 * 512),
        FunctionSpec(
            "em0",
            "e1000e",
            _address("00:05.0"),
            {0: 0xC036_0000, 1: 0xC034_0000, 2: 0x7100, 3: 0xC038_0000},
            21,
            mac="52:54:00:aa:00:05",
        ),
        FunctionSpec(
            "igb0",
            "igb",
            _address("00:06.0"),
            {0: 0xC032_0000, 1: 0xC030_0000, 2: 0x70E0, 3: wide + 0x4C000},
            22,
            mac="52:54:00:aa:00:06",
        ),
        FunctionSpec("nvme0", "nvme", _address("00:07.0"), {0: wide + 0x48000}, 23, size=64 * MIB),
        FunctionSpec(
            "port8",
            "root-port",
            _address("00:08.0"),
            {0: 0xC038_5000},
            20,
            bus=1,
            windows=(
                range(0x6000, 0x7000),
                range(0xC000_0000, 0xC020_0000),
                range(wide - 512 * MIB, wide) if vendor == "amd" else range(0),
            ),
        ),
        FunctionSpec("edu0", "edu", _address("00:09.0"), {0: 0xC020_0000}, 21),
        FunctionSpec("lpc", "lpc", _address("00:1f.0")),
        FunctionSpec("ahci", "ahci", _address("00:1f.2"), {4: 0x70C0, 5: 0xC038_4000}, 16),
        FunctionSpec("smbus", "smbus", _address("00:1f.3"), {4: 0x7080}, 16),
        FunctionSpec(
            "em1",
            "e1000e",
            _address("01:00.0"),
            {0: 0xC002_0000, 1: 0xC000_0000, 2: 0x6000, 3: 0xC004_0000},
            20,
            mac="52:54:00:aa:00:08",
        ),
    )


#: The order in which the recorded host's IVHD lists requester ids.
_RECORDED_RANGES = (
    *((n, n) for n in (0x0, 0x8, 0x10, 0x18, 0x28, 0x30, 0x38, 0x40)),
    (0x100, 0x1FF),
    (0x48, 0x48),
    *((n, n) for n in range(0xB0, 0xC0, 2)),
    *((n, n) for n in (0xF8, 0xFA, 0xFB)),
)


def recorded(release: str = "13.2", vendor: str = "amd") -> MachineSpec:
    """The machine that the transcripts were recorded on; with ``intel`` it has no VMX.

    Raises:
        InventoryError: there is no such release or vendor.
    """
    return MachineSpec(
        name=f"recorded-{release}-{vendor}",
        release=release_named(release),
        vendor=_vendor(vendor),
        functions=_recorded_functions(vendor),
        memory=6 * GIB,
        responders={"em0": "10.0.50.2/24", "igb0": "10.0.60.2/24", "em1": "10.0.70.2/24"},
        iommu_ranges=_RECORDED_RANGES,
        loader_conf={"hw.vmm.amdvi.enable": "1"},
        virtualizes=vendor == "amd",
    )


def _lab_functions(vendor: str, *, cards: bool = False) -> tuple[FunctionSpec, ...]:
    amd = (FunctionSpec("iommu", "amd-iommu", _address("00:01.0")),) if vendor == "amd" else ()
    behind: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("nic0", "igb", {"mac": "52:54:00:68:69:00"}),
        ("peer0", "igb", {"mac": "52:54:00:68:69:01"}),
        ("nvme0", "nvme", {"size": 256 * MIB}),
        ("edu0", "edu", {}),
        ("nic1", "e1000e", {"mac": "52:54:00:68:69:02"}),
        ("gpu0", "virtio-gpu", {"size": 256 * MIB}),
        *((("edu1", "edu", dict[str, Any]()),) if cards else ()),
    )
    functions = [
        FunctionSpec("host-bridge", "host-bridge", _address("00:00.0")),
        *amd,
        *_in_use(0xC039_0000, 16 * GIB),
        FunctionSpec("lpc", "lpc", _address("00:1f.0")),
        FunctionSpec("ahci", "ahci", _address("00:1f.2"), {4: 0x70C0, 5: 0xC038_4000}, 16),
        FunctionSpec("smbus", "smbus", _address("00:1f.3"), {4: 0x7080}, 16),
    ]
    for index, (name, kind, more) in enumerate(behind):
        bus = index + 1
        window = 0xC400_0000 + index * 16 * MIB
        port = Address(0, 0, 0x10, index)
        functions.append(
            FunctionSpec(
                f"port{bus}",
                "root-port",
                port,
                {0: 0xC040_0000 + 4096 * index},
                16 + index,
                bus=bus,
                windows=(
                    range(0x6000 - 0x1000 * index, 0x7000 - 0x1000 * index)
                    if index < _WITH_PORTS
                    else range(0),
                    range(window, window + 16 * MIB),
                    range(0x8_0000_0000, 0x8_1000_0000) if kind == "virtio-gpu" else range(0),
                ),
            )
        )
        functions.append(
            FunctionSpec(
                name,
                kind,
                Address(0, bus, 0, 0),
                _behind_port(kind, window, index),
                16 + index,
                **more,
            )
        )
    return tuple(functions)


def _behind_port(kind: str, window: int, index: int) -> dict[int, int]:
    ports = 0x6000 - 0x1000 * index
    if kind in ("igb", "e1000e"):
        return {0: window, 1: window + 0x2_0000, 2: ports, 3: window + 0x4_0000}
    if kind == "virtio-gpu":
        # its memory is above 4 GiB
        return {1: window, 2: 0x8_0000_0000, 4: window + 0x1_0000}
    return {0: window}


def lab(release: str = "15.0", vendor: str = "intel", *, cards: bool = False) -> MachineSpec:
    """What the suites want: SR-IOV with a peer on a cable, NVMe, edu, a second NIC, a GPU.

    Each is alone behind a root port, in the order of the emulated lab.  With ``cards`` there is
    a second edu behind them.

    Raises:
        InventoryError: there is no such release or vendor.
    """
    known = release_named(release)
    return MachineSpec(
        name=f"freebsd-{known.name}-{vendor}" + (f"-{_CARDS}" if cards else ""),
        release=known,
        vendor=_vendor(vendor),
        functions=_lab_functions(vendor, cards=cards),
        memory=3 * GIB,
        cables=(("nic0", "peer0"),),
        responders={"nic1": "10.0.50.2/24"},
        second_unit_bus=6,
        loader_conf={
            "vmm_load": "YES",
            **({"hw.vmm.amdvi.enable": "1"} if vendor == "amd" else {}),
        },
    )


def release_named(name: str) -> Release:
    """A release that is modelled; ``15`` stands for the newest 15.

    Raises:
        InventoryError: there is none.
    """
    for known, release in RELEASES.items():
        if name in (known, known.split(".")[0]):
            return release
    raise InventoryError(f"no simulated release {name!r}", seen=" ".join(RELEASES))


def _vendor(name: str) -> str:
    if name not in VENDORS:
        raise InventoryError(f"no simulated processor {name!r}", seen=" ".join(VENDORS))
    return name


def spec_named(text: str) -> MachineSpec:
    """The lab's host for a text such as ``freebsd-15-intel``, or ``recorded-13.2-amd``.

    ``freebsd-15-intel-cards`` has a second DMA engine.  What else comes after that says which
    guests a lab has, and makes no other host.

    Raises:
        InventoryError: it is not of this form, or names nothing that is modelled.
    """
    parts = text.split("-", 3)
    cards = parts[0] == "freebsd" and parts[3:] == [_CARDS]
    if parts[3:] and (cards or parts[3] in GUESTS):
        parts.pop()
    if len(parts) != 3 or parts[0] not in ("freebsd", "recorded"):
        raise InventoryError(
            f"no simulated host {text!r}",
            seen=" ".join(f"freebsd-{name}-{vendor}" for name in RELEASES for vendor in VENDORS),
            hint="freebsd-RELEASE-VENDOR, for example freebsd-15-intel",
        )
    if parts[0] == "recorded":
        return recorded(parts[1], parts[2])
    return lab(parts[1], parts[2], cards=cards)
