"""Which function is a GPU's, whose, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterable

from hil.gpu.amd import AMD
from hil.gpu.intel import INTEL
from hil.gpu.nvidia import NVIDIA
from hil.gpu.vendor import Vendor
from hil.gpu.virtio import VIRTIO
from hil.platforms.contract import Function

VENDORS: tuple[Vendor, ...] = (NVIDIA, AMD, INTEL, VIRTIO)

#: Base classes (PCI-SIG Code and ID Assignment, section 1): display, processing accelerator.
_CLASSES = (0x03, 0x12)


def is_gpu(function: Function) -> bool:
    """Whether it draws or computes, by its class code."""
    return function.config.class_code >> 16 in _CLASSES


def vendor_of(function: Function) -> Vendor | None:
    """What is known of a GPU's vendor; ``None`` of another's, and of what is no GPU."""
    for vendor in VENDORS if is_gpu(function) else ():
        if function.vendor == vendor.vendor and (
            not vendor.devices or any(function.device in ids for ids in vendor.devices)
        ):
            return vendor
    return None


def rest_of_card(function: Function, everything: Iterable[Function]) -> tuple[Function, ...]:
    """The other functions of its slot, as a card's audio and USB; a VF is a card by itself."""
    if function.physical_function is not None:
        return ()
    place = (function.address.domain, function.address.bus, function.address.device)
    return tuple(
        other
        for other in everything
        if (other.address.domain, other.address.bus, other.address.device) == place
        and other.address != function.address
        and other.physical_function is None
    )
