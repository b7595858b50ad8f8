"""Guest images as a host has them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Files on the lab host from which a guest is booted.

    Paths are absolute paths *on the host*.  ``kernel`` and ``initrd`` are booted
    directly where the platform can; ``root`` is a read-only disk image that any number
    of guests may share.
    """

    name: str
    os: str
    """``linux`` or ``freebsd``: which :class:`~hil.guests.os.GuestOS` speaks to it."""
    root: str
    kernel: str = ""
    initrd: str = ""
    arguments: tuple[str, ...] = ()
    """Kernel command line words."""
