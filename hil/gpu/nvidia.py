"""NVIDIA's cards."""

from __future__ import annotations

from hil.gpu.vendor import Quirk, Vendor

NVIDIA = Vendor(
    name="NVIDIA",
    vendor=0x10DE,
    drivers=("nvidia", "nouveau"),
    tool=("nvidia-smi", "-q"),
    opencl="Debian's non-free: nvidia-opencl-icd and nvidia-kernel-dkms",
    hiding=(
        "GeForce cards' drivers before R465 (2021) stopped where they knew the hypervisor "
        "(Windows: code 43; Linux: 'Unable to determine the device handle'); newer ones do not "
        "(NVIDIA/kubevirt-gpu-device-plugin, issue 2)"
    ),
    quirks=(
        Quirk(
            "a bus reset wedges it: the host must not use one",
            "Linux, drivers/pci/quirks.c, quirk_nvidia_no_bus_reset()",
            (range(0x2340, 0x2380), range(0x1EB8, 0x1EB9)),
        ),
        Quirk(
            "where a guest's driver falls back to INTx, its interrupts may never come",
            "bug catalogue 31",
        ),
    ),
)
