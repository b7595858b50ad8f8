"""Which function is a GPU's, whose, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterable

from hil.gpu.amd import AMD
from hil.gpu.bochs import BOCHS
from hil.gpu.intel import INTEL
from hil.gpu.nvidia import NVIDIA
from hil.gpu.vendor import Vendor
from hil.gpu.virtio import VIRTIO
from hil.platforms.contract import Function

VENDORS: tuple[Vendor, ...] = (NVIDIA, AMD, INTEL, VIRTIO, BOCHS)

#: Base classes (PCI-SIG Code and ID Assignment, section 1): display, processing accelerator.
_CLASSES = (0x03, 0x12)


def is_gpu(function: Function) -> bool:
    """Whether it draws or computes, by its class code."""
    return function.config.class_code >> 16 in _CLASSES


def vendor_of(function: Function) -> Vendor | None:
    """What is known of a GPU's vendor; ``None`` of another's, and of what is no GPU."""
    return vendor_by_ids(function.vendor, function.device) if is_gpu(function) else None


def vendor_by_ids(vendor: int, device: int) -> Vendor | None:
    """What is known of the vendor of a GPU with these ids."""
    for known in VENDORS:
        if known.vendor == vendor and (
            not known.devices or any(device in ids for ids in known.devices)
        ):
            return known
    return None


def never_has(vendor: int, device: int) -> frozenset[str]:
    """Capabilities, by their names in inventories, that no GPU with these ids can have.

    Whatever its driver: of cards that nothing is known of, none.
    """
    known = vendor_by_ids(vendor, device)
    return frozenset() if known is None or known.opencl else frozenset({"compute"})


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
