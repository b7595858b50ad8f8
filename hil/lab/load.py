"""Reads inventories, and says what is wrong with them: all of it at once."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hil.errors import InventoryError
from hil.lab import document, secrets
from hil.lab.document import InvalidFileError, Problem, bounded, key_of, nearest
from hil.lab.models import Capture, ImageEntry, Inventory, Lab, LabKind
from hil.pci.address import Address

#: The labs that need no file of the user's: they are part of hil.
BUILT_IN = {
    "emulated": Path(__file__).with_name("emulated.toml"),
    "simulated-pair": Path(__file__).with_name("simulated-pair.toml"),
}
#: The simulated labs, all with the devices of one inventory: releases and processor vendors,
#: and, after them, the image of their guests if it is not ``freebsd``.
SIMULATED = tuple(
    f"freebsd-{release}-{vendor}{guests}"
    for release in ("13.2", "14", "15", "current")
    for vendor in ("intel", "amd")
    for guests in ("", *(("-linux", "-linux-uefi") if release == "15" else ()))
)
_SIMULATED = Path(__file__).with_name("simulated.toml")
_HOST_IMAGE = "emulated:"


def load(lab: str) -> Lab:
    """The lab with the name or inventory file ``lab``.

    The names in :data:`BUILT_IN` and :data:`SIMULATED` are built in.  ``emulated:IMAGE`` is the
    emulated lab with the user's FreeBSD as its host, a file or an image of
    :mod:`hil.emulated.image_store`; ``emulated:IMAGE,GUEST`` has another for guests.  What
    ends in ``.toml`` or has a slash is a file; any other word is looked for as ``WORD.toml``
    in ``./labs`` and in ``$XDG_CONFIG_HOME/hil/labs``.

    Raises:
        InventoryError: the file is missing, unreadable or not TOML.
        InvalidFileError: it is TOML, but not a right inventory.
    """
    if lab.startswith(_HOST_IMAGE):
        return _with_host_image(*lab.removeprefix(_HOST_IMAGE).split(",", 1))
    if lab in SIMULATED:
        found = parse(_read(_SIMULATED), _SIMULATED)
        image = "-".join(lab.split("-")[3:]) or "freebsd"
        return dataclasses.replace(found, name=lab, images={image: found.images[image]})
    path = _find(lab)
    found = parse(_read(path), path)
    secrets.remember(found)
    return found


def _with_host_image(host: str, guest: str = "") -> Lab:
    """The emulated lab, its host from the image ``host`` and its guests from ``guest``."""
    from hil.emulated.host_image import SNAPSHOT
    from hil.emulated.image_store import disk_of

    disks = [disk_of(image).path for image in (host, guest or host)]
    lab = load("emulated")
    what = Path(host).name.partition(".qcow2")[0]
    return dataclasses.replace(
        lab,
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", f"emulated-{what}")[:64],
        hosts={
            name: entry.model_copy(update={"platform": "freebsd-bhyve"})
            for name, entry in lab.hosts.items()
        },
        images={"freebsd": ImageEntry(os="freebsd", snapshot=SNAPSHOT)},
        host_image=str(disks[0]),
        guest_image=str(disks[1]),
    )


def parse(text: str, source: Path) -> Lab:
    """The lab that the TOML ``text`` describes; ``source`` is its file, for messages."""
    inventory = document.parse(Inventory, text, source)
    if problems := _contradictions(inventory):
        raise InvalidFileError(source, problems, text=text)
    return Lab(
        name=inventory.lab.name,
        kind=inventory.lab.kind,
        hosts=inventory.hosts,
        devices=inventory.devices,
        images=inventory.images,
        source=source,
        clusters=inventory.clusters,
    )


def _folders() -> list[Path]:
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return [Path("labs"), Path(config).expanduser() / "hil" / "labs"]


def known_labs() -> tuple[str, ...]:
    """Names that :func:`load` takes: the built-in lab and the inventories found."""
    found = {path.stem for folder in _folders() for path in folder.glob("*.toml")}
    return tuple(sorted(found | set(BUILT_IN) | set(SIMULATED)))


def _find(lab: str) -> Path:
    if lab in BUILT_IN:
        return BUILT_IN[lab]
    if "/" in lab or lab.endswith(".toml"):
        return Path(lab)
    candidates = [folder / f"{lab}.toml" for folder in _folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    places = " nor ".join(str(candidate) for candidate in candidates)
    raise InventoryError(
        f"there is no lab {bounded(lab)}: neither {places} exists{nearest(lab, known_labs())}",
        hint=f"name a file (--lab path/to/lab.toml) or one of: {', '.join(known_labs())}",
    )


def _read(path: Path) -> str:
    hint = f"name an existing file, or one of: {', '.join(known_labs())}"
    return document.read(path, "the inventory", hint=hint)


#: Keys that a power driver cannot do without.
_NEEDED = {
    "none": (),
    "ipmi": ("address", "user", "password_file"),
    "redfish": ("address", "user", "password_file"),
    "labgrid": ("address", "model", "index"),
    "kept": ("address",),
}


def _contradictions(inventory: Inventory) -> list[Problem]:
    """Mistakes that no single key shows."""
    problems = []
    kind = inventory.lab.kind
    for name, host in inventory.hosts.items():
        key = key_of(("hosts", name))
        if kind is LabKind.PHYSICAL and host.transport == "ssh" and not host.address:
            text = (
                "missing; a host of a physical lab is reached at an address, or transport 'local'"
            )
            problems.append(Problem(f"{key}.address", text))
        if host.power is not None:
            for missing in _NEEDED[host.power.driver]:
                if not getattr(host.power, missing):
                    text = f"missing; the driver {host.power.driver} needs it"
                    problems.append(Problem(f"{key}.power.{missing}", text))
        if host.model and kind is not LabKind.SIMULATED:
            text = "only a host of a simulated lab has one"
            problems.append(Problem(f"{key}.model", text, bounded(host.model)))
        if host.shared and host.danger > 1:
            text = "a shared host may run nothing above 1: it would take other runs' host away"
            problems.append(Problem(f"{key}.danger", text, bounded(host.danger)))
        if host.host_key and host.known_hosts:
            problems.append(Problem(f"{key}.host_key", "give this or known_hosts, not both"))
    for name, image in inventory.images.items():
        key = key_of(("images", name))
        if (image.root is None) == (image.snapshot is None):
            problems.append(Problem(f"{key}.root", "give either root or snapshot"))
        if image.loader == "uefi" and image.bootrom is None:
            problems.append(Problem(f"{key}.bootrom", 'missing; loader "uefi" needs the firmware'))
        if image.loader == "grub" and image.kernel is None and image.grub_root is None:
            problems.append(Problem(f"{key}.grub_root", "missing; GRUB needs this or kernel"))
    owners: dict[tuple[str, Address], str] = {}
    for name, device in inventory.devices.items():
        key = key_of(("devices", name))
        problems += _unknown_host(f"{key}.host", device.host, inventory.hosts)
        if not device.functions and device.match is None:
            text = "missing; name the device's functions here, or its identity in match"
            problems.append(Problem(f"{key}.functions", text))
        for index, address in enumerate(device.functions):
            owner = owners.setdefault((device.host, address), name)
            where = f"{key}.functions[{index}]"
            if owner != name:
                text = f"already a function of devices.{owner}; a function has one device"
                problems.append(Problem(where, text, bounded(address.bdf)))
            elif address in device.functions[:index]:
                problems.append(Problem(where, "listed twice", bounded(address.bdf)))
    for name, device in inventory.devices.items():
        problems += _capture(f"{key_of(('devices', name))}.capture", device.capture, kind)
        if device.peer is None:
            continue
        key = f"{key_of(('devices', name))}.peer"
        peer_host = device.peer.host or device.host
        problems += _unknown_host(f"{key}.host", peer_host, inventory.hosts, device.peer.host)
        if (device.peer.interface is None) == (device.peer.function is None):
            problems.append(Problem(key, "give either interface or function"))
        if device.peer.function and (peer_host, device.peer.function) in owners:
            owner = owners[peer_host, device.peer.function]
            text = f"belongs to devices.{owner}; a peer stays with its host and is never passed"
            problems.append(Problem(f"{key}.function", text, bounded(device.peer.function.bdf)))
    for name, cluster in inventory.clusters.items():
        for index, member in enumerate(cluster.devices):
            where = f"{key_of(('clusters', name))}.devices[{index}]"
            if member not in inventory.devices:
                text = f"no such device{nearest(member, inventory.devices)}"
                problems.append(Problem(where, text, bounded(member)))
            elif member in cluster.devices[:index]:
                problems.append(Problem(where, "listed twice", bounded(member)))
    return problems or _shapes(inventory)


def _shapes(inventory: Inventory) -> list[Problem]:
    """Shapes that a cluster of an inventory, right but for these, cannot have."""
    problems = []
    for name, cluster in inventory.clusters.items():
        hosts = {inventory.devices[member].host for member in cluster.devices}
        for index, shape in enumerate(cluster.shapes):
            if (shape == "together" and len(hosts) > 1) or (shape == "by-host" and len(hosts) == 1):
                where = f"{key_of(('clusters', name))}.shapes[{index}]"
                found = f"its devices are on {', '.join(sorted(hosts))}"
                problems.append(Problem(where, f"cannot be formed: {found}", bounded(shape)))
    return problems


def _capture(key: str, capture: Capture | None, kind: LabKind) -> list[Problem]:
    if capture is None:
        return []
    if capture.by == "screenshot" and kind is not LabKind.EMULATED:
        text = "only an emulated lab makes screenshots; name a capture device: by = 'v4l2'"
        return [Problem(f"{key}.by", text)]
    if capture.by == "v4l2" and capture.device is None:
        return [Problem(f"{key}.device", "missing; such as '/dev/video0' of this machine")]
    return []


def _unknown_host(
    key: str, host: str, hosts: Mapping[str, object], written: str | None = "yes"
) -> list[Problem]:
    if host in hosts or written is None:
        return []
    text = f"no such host{nearest(host, hosts)}; the lab has: {', '.join(hosts)}"
    return [Problem(key, text, bounded(host))]
