"""bochs-display: a frame buffer in a BAR that QEMU emulates; no computing."""

from __future__ import annotations

from hil.gpu.vendor import Vendor

BOCHS = Vendor(
    name="QEMU's bochs-display",
    vendor=0x1234,
    drivers=("bochs-drm",),
    devices=(range(0x1111, 0x1112),),
)
