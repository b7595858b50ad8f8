"""Reads inventories, and says what is wrong with them: all of it at once."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hil.errors import InventoryError
from hil.lab import document, secrets
from hil.lab.document import InvalidFileError, Problem, bounded, key_of, nearest
from hil.lab.models import (
    Capture,
    Cluster,
    Device,
    Host,
    ImageEntry,
    Inventory,
    Lab,
    LabKind,
    LabSection,
    Peer,
)
from hil.pci.address import Address

T = TypeVar("T")

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
    try:
        inventory = document.parse(Inventory, text, source)
    except InvalidFileError as error:
        more = _contradictions(_Sections(**document.right_parts(Inventory, text)))
        raise InvalidFileError(source, [*error.problems, *more], text=text) from None
    if problems := _contradictions(_Sections(**dict(inventory))):
        raise InvalidFileError(source, problems, text=text)
    kind = inventory.lab.kind
    return Lab(
        name=inventory.lab.name,
        kind=LabKind.PHYSICAL if _stands(inventory.hosts) else kind,
        real=kind,
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


def _stands(hosts: Mapping[str, Host | None]) -> bool:
    """Whether a lab is there already, whatever is real in it."""
    return any(host is not None and host.address for host in hosts.values())


@dataclass(frozen=True, slots=True)
class _Sections:
    """An inventory; ``None`` stands for what is wrong by itself, of which nothing more is said."""

    lab: LabSection | None
    hosts: Mapping[str, Host | None]
    devices: Mapping[str, Device | None]
    clusters: Mapping[str, Cluster | None]
    images: Mapping[str, ImageEntry | None]

    def may_be(self, kind: LabKind) -> bool:
        """Whether the lab is of this kind, as far as is known."""
        return self.lab is None or self.lab.kind is kind


def _contradictions(found: _Sections) -> list[Problem]:
    """Mistakes that no single key shows."""
    problems = [*_hosts(found), *_images(found), *_devices(found), *_clusters(found)]
    return problems or _shapes(found)


def _hosts(found: _Sections) -> Iterator[Problem]:
    physical = found.lab is not None and found.lab.kind is LabKind.PHYSICAL
    for name, host in _right(found.hosts):
        key = key_of(("hosts", name))
        if physical and host.transport == "ssh" and not host.address:
            text = (
                "missing; a host of a physical lab is reached at an address, or transport 'local'"
            )
            yield Problem(f"{key}.address", text)
        if not (physical or host.address) and _stands(found.hosts):
            text = "missing; other hosts of the lab have one, and no run makes a part of a lab"
            yield Problem(f"{key}.address", text)
        if physical and host.power is not None and host.power.driver == "kept":
            text = "what hil lab up keeps is no hardware: the lab's kind is emulated, or simulated"
            yield Problem(f"{key}.power.driver", text, bounded(host.power.driver))
        if host.power is not None:
            for missing in _NEEDED[host.power.driver]:
                if not getattr(host.power, missing):
                    text = f"missing; the driver {host.power.driver} needs it"
                    yield Problem(f"{key}.power.{missing}", text)
        if host.model and not found.may_be(LabKind.SIMULATED):
            text = "only a host of a simulated lab has one"
            yield Problem(f"{key}.model", text, bounded(host.model))
        if host.shared and host.danger > 1:
            text = "a shared host may run nothing above 1: it would take other runs' host away"
            yield Problem(f"{key}.danger", text, bounded(host.danger))
        if host.host_key and host.known_hosts:
            yield Problem(f"{key}.host_key", "give this or known_hosts, not both")


def _images(found: _Sections) -> Iterator[Problem]:
    for name, image in _right(found.images):
        key = key_of(("images", name))
        if (image.root is None) == (image.snapshot is None):
            yield Problem(f"{key}.root", "give either root or snapshot")
        if image.loader == "uefi" and image.bootrom is None:
            yield Problem(f"{key}.bootrom", 'missing; loader "uefi" needs the firmware')
        if image.loader == "grub" and image.kernel is None and image.grub_root is None:
            yield Problem(f"{key}.grub_root", "missing; GRUB needs this or kernel")


def _devices(found: _Sections) -> Iterator[Problem]:
    owners: dict[tuple[str, Address], str] = {}
    for name, device in _right(found.devices):
        key = key_of(("devices", name))
        yield from _unknown_host(f"{key}.host", device.host, found)
        if not device.functions and device.match is None:
            text = "missing; name the device's functions here, or its identity in match"
            yield Problem(f"{key}.functions", text)
        for index, address in enumerate(device.functions):
            owner = owners.setdefault((device.host, address), name)
            where = f"{key}.functions[{index}]"
            if owner != name:
                owner = key_of(("devices", owner))
                text = f"already a function of {owner}; a function has one device"
                yield Problem(where, text, bounded(address.bdf))
            elif address in device.functions[:index]:
                yield Problem(where, "listed twice", bounded(address.bdf))
    for name, device in _right(found.devices):
        key = key_of(("devices", name))
        yield from _capture(f"{key}.capture", device.capture, found)
        if device.peer is not None:
            yield from _peer(f"{key}.peer", device.peer, device.host, found, owners)


def _peer(
    key: str,
    peer: Peer,
    device_host: str,
    found: _Sections,
    owners: Mapping[tuple[str, Address], str],
) -> Iterator[Problem]:
    if peer.host is not None:
        yield from _unknown_host(f"{key}.host", peer.host, found)
    if (peer.interface is None) == (peer.function is None):
        yield Problem(key, "give either interface or function")
    host = peer.host or device_host
    if peer.function and (host, peer.function) in owners:
        owner = key_of(("devices", owners[host, peer.function]))
        text = f"belongs to {owner}; a peer stays with its host and is never passed"
        yield Problem(f"{key}.function", text, bounded(peer.function.bdf))


def _clusters(found: _Sections) -> Iterator[Problem]:
    for name, cluster in _right(found.clusters):
        for index, member in enumerate(cluster.devices):
            where = f"{key_of(('clusters', name))}.devices[{index}]"
            if member not in found.devices:
                text = f"no such device{nearest(member, found.devices)}"
                yield Problem(where, text, bounded(member))
            elif member in cluster.devices[:index]:
                yield Problem(where, "listed twice", bounded(member))


def _shapes(found: _Sections) -> list[Problem]:
    """Shapes that a cluster cannot have, if all its devices are right."""
    problems = []
    devices = dict(_right(found.devices))
    for name, cluster in _right(found.clusters):
        if not devices.keys() >= set(cluster.devices):
            continue
        hosts = {devices[member].host for member in cluster.devices}
        for index, shape in enumerate(cluster.shapes):
            if (shape == "together" and len(hosts) > 1) or (shape == "by-host" and len(hosts) == 1):
                where = f"{key_of(('clusters', name))}.shapes[{index}]"
                text = f"cannot be formed: its devices are on {', '.join(sorted(hosts))}"
                problems.append(Problem(where, text, bounded(shape)))
    return problems


def _capture(key: str, capture: Capture | None, found: _Sections) -> Iterator[Problem]:
    if capture is None:
        return
    if capture.by == "screenshot" and not found.may_be(LabKind.EMULATED):
        text = "only an emulated lab makes screenshots; name a capture device: by = 'v4l2'"
        yield Problem(f"{key}.by", text)
    elif capture.by == "v4l2" and capture.device is None:
        yield Problem(f"{key}.device", "missing; such as '/dev/video0' of this machine")


def _unknown_host(key: str, host: str, found: _Sections) -> Iterator[Problem]:
    if host not in found.hosts:
        known = ", ".join(key_of((name,)) for name in found.hosts)
        text = f"no such host{nearest(host, found.hosts)}; the lab has: {known}"
        yield Problem(key, text, bounded(host))


def _right(section: Mapping[str, T | None]) -> Iterator[tuple[str, T]]:
    """The entries of a section that are right by themselves."""
    return ((name, entry) for name, entry in section.items() if entry is not None)
