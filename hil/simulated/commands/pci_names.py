"""What pciconf -v calls the modelled functions: share/misc/pci_vendors, and pciconf's classes."""

from __future__ import annotations

from collections.abc import Mapping

VENDORS: Mapping[int, str] = {
    0x1022: "Advanced Micro Devices, Inc. [AMD]",
    0x1275: "Network Appliance Corporation",
    0x1AF4: "Red Hat, Inc.",
    0x1B36: "Red Hat, Inc.",
    0x8086: "Intel Corporation",
}

DEVICES: Mapping[tuple[int, int], str] = {
    (0x1022, 0x1419): "Family 15h (Models 10h-1fh) I/O Memory Management Unit",
    (0x1AF4, 0x1000): "Virtio network device",
    (0x1AF4, 0x1001): "Virtio block device",
    (0x1AF4, 0x1005): "Virtio RNG",
    (0x1AF4, 0x1050): "Virtio 1.0 GPU",
    (0x1B36, 0x000C): "QEMU PCIe Root port",
    (0x1B36, 0x0010): "QEMU NVM Express Controller",
    (0x8086, 0x10C9): "82576 Gigabit Network Connection",
    (0x8086, 0x10CA): "82576 Virtual Function",
    (0x8086, 0x10D3): "82574L Gigabit Network Connection",
    (0x8086, 0x2918): "82801IB (ICH9) LPC Interface Controller",
    (0x8086, 0x2922): "82801IR/IO/IH (ICH9R/DO/DH) 6 port SATA Controller [AHCI mode]",
    (0x8086, 0x2930): "82801I (ICH9 Family) SMBus Controller",
    (0x8086, 0x29C0): "82G33/G31/P35/P31 Express DRAM Controller",
    (0x8086, 0x7000): "82371SB PIIX3 ISA [Natoma/Triton II]",
}

CLASSES: Mapping[int, str] = {
    0x00: "old", 0x01: "mass storage", 0x02: "network", 0x03: "display", 0x04: "multimedia",
    0x05: "memory", 0x06: "bridge", 0x07: "simple comms", 0x08: "base peripheral",
    0x09: "input device", 0x0A: "docking station", 0x0B: "processor", 0x0C: "serial bus",
    0x0D: "wireless", 0x0E: "intelligent I/O controller", 0x0F: "satellite communication",
    0x10: "encrypt/decrypt", 0x11: "dasp",
}  # fmt: skip

SUBCLASSES: Mapping[tuple[int, int], str] = {
    (0x00, 0x00): "non-VGA display device", (0x00, 0x01): "VGA-compatible display device",
    (0x01, 0x00): "SCSI", (0x01, 0x01): "ATA", (0x01, 0x06): "SATA", (0x01, 0x08): "NVM",
    (0x02, 0x00): "ethernet", (0x03, 0x00): "VGA", (0x06, 0x00): "HOST-PCI",
    (0x06, 0x01): "PCI-ISA", (0x06, 0x04): "PCI-PCI", (0x08, 0x06): "IOMMU",
    (0x0C, 0x03): "USB", (0x0C, 0x05): "SMBus",
}  # fmt: skip
