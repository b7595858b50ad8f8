"""virtio-gpu: a display that QEMU emulates; no computing."""

from __future__ import annotations

from hil.gpu.vendor import Vendor

VIRTIO = Vendor(
    name="virtio-gpu",
    vendor=0x1AF4,
    # Of PCI; the display's own driver, virtio_gpu, sits on the virtio bus.
    drivers=("virtio-pci",),
    devices=(range(0x1050, 0x1051),),
    # One for changes of its configuration, one for each of two queues (vp_find_vqs() in
    # drivers/virtio/virtio_pci_common.c, which falls back to two, then to INTx).
    vectors=3,
)
