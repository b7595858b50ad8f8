"""Intel's graphics, in processors and on cards."""

from __future__ import annotations

from hil.gpu.vendor import Quirk, Vendor

INTEL = Vendor(
    name="Intel",
    vendor=0x8086,
    drivers=("i915", "xe"),
    tool=("intel_gpu_top", "-L"),
    opencl="Debian: intel-opencl-icd",
    quirks=(
        Quirk(
            "graphics in the processor use memory that firmware reserved, and a table of "
            "firmware's (OpRegion): the hypervisor must give a guest both",
            "FreeBSD, usr.sbin/bhyve/amd64/pci_gvt-d.c; QEMU, docs/igd-assign.txt",
        ),
    ),
)
