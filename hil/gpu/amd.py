"""AMD's cards."""

from __future__ import annotations

from hil.gpu.vendor import Quirk, Vendor

AMD = Vendor(
    name="AMD",
    vendor=0x1002,
    drivers=("amdgpu", "radeon"),
    tool=("rocm-smi", "--showallinfo"),
    opencl="Debian: mesa-opencl-icd; AMD's own packages: rocm-opencl-runtime",
    quirks=(
        Quirk(
            "after a reset by FLR or bus its configuration space reads ff until the host reboots",
            "amd/MxGPU-Virtualization issue 25; bug catalogue 35",
            (range(0x740F, 0x7410), range(0x74A1, 0x74A2), range(0x75A3, 0x75A4)),
        ),
        Quirk(
            "Polaris, Vega and Navi work once: no reset that they promise brings their firmware "
            "back, and Linux hosts need a reset of the vendor's own (vendor-reset)",
            "gnif/vendor-reset, src/device-db.h",
            (
                *(range(0x67C0, 0x67E0), range(0x67E0, 0x6800), range(0x6980, 0x69A0)),
                *(range(0x6860, 0x6880), range(0x66A0, 0x66B0)),
                *(range(0x7310, 0x7320), range(0x7340, 0x7350), range(0x7360, 0x7363)),
            ),
        ),
    ),
)
