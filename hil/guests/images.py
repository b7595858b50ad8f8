"""Guest images as a host has them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from hil.errors import InventoryError


class Loader(enum.StrEnum):
    """What loads a guest's kernel under bhyve."""

    BHYVELOAD = "bhyveload"
    """FreeBSD's own loader, run on the host (bhyveload(8))."""
    UEFI = "uefi"
    """Firmware in the guest (``bootrom``)."""
    GRUB = "grub"
    """GRUB run on the host (the package grub2-bhyve)."""


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Files on the lab host from which a guest is booted.

    Paths are absolute paths *on the host*.  ``kernel`` and ``initrd`` are booted directly
    where the platform can; ``root`` is a disk image that any number of guests may share: none
    writes to it.
    """

    name: str
    os: str
    """``linux`` or ``freebsd``: which :class:`~hil.guests.os.GuestOS` speaks to it."""
    root: str = ""
    kernel: str = ""
    initrd: str = ""
    arguments: tuple[str, ...] = ()
    """Kernel command line words; for bhyveload, loader variables (``boot_verbose=YES``)."""
    snapshot: str = ""
    """bhyve: in place of ``root``, a ZVOL's snapshot (``zroot/vm/freebsd@ready``), cloned for
    each guest."""
    loader: Loader = Loader.BHYVELOAD
    bootrom: str = ""
    """The firmware, for :attr:`Loader.UEFI`."""
    grub_root: str = ""
    """GRUB's root device (``hd0,msdos1``) with its own grub.cfg, for :attr:`Loader.GRUB`
    without ``kernel``."""


def image_named(name: str, images: Mapping[str, GuestImage], host: str) -> GuestImage:
    """The image ``name`` of those that ``host`` has.

    Raises:
        InventoryError: it has none of that name.
    """
    if name not in images:
        raise InventoryError(
            f"host {host} has no guest image {name!r}",
            host=host,
            hint=f"it has: {', '.join(sorted(images)) or 'none'}",
        )
    return images[name]
