"""A function's configuration space in words: registers and capabilities, each by its name."""

from __future__ import annotations

from collections.abc import Iterator

from hil.pci.config import Acs, BarRegister, Capability, ConfigSpace, PortType, bit_names

CAPABILITY_NAMES = {
    0x01: "Power Management",
    0x02: "AGP",
    0x03: "VPD",
    0x04: "Slot ID",
    0x05: "MSI",
    0x06: "CompactPCI hot swap",
    0x07: "PCI-X",
    0x08: "HyperTransport",
    0x09: "Vendor specific",
    0x0A: "Debug port",
    0x0D: "Bridge subsystem id",
    0x10: "PCI Express",
    0x11: "MSI-X",
    0x12: "SATA",
    0x13: "Advanced Features",
    0x14: "Enhanced Allocation",
    0x15: "Flattening Portal Bridge",
}
"""Names of capabilities by id (PCI-SIG Code and ID Assignment, section 2)."""

EXTENDED_NAMES = {
    0x0001: "Advanced Error Reporting",
    0x0002: "Virtual Channel",
    0x0003: "Device Serial Number",
    0x0004: "Power Budgeting",
    0x000B: "Vendor specific",
    0x000D: "Access Control Services",
    0x000E: "Alternative Routing-ID Interpretation",
    0x000F: "Address Translation Services",
    0x0010: "SR-IOV",
    0x0011: "MR-IOV",
    0x0012: "Multicast",
    0x0013: "Page Request",
    0x0015: "Resizable BAR",
    0x0016: "Dynamic Power Allocation",
    0x0017: "TPH Requester",
    0x0018: "Latency Tolerance Reporting",
    0x0019: "Secondary PCI Express",
    0x001B: "PASID",
    0x001D: "Downstream Port Containment",
    0x001E: "L1 PM Substates",
    0x001F: "Precision Time Measurement",
    0x0023: "Designated vendor specific",
    0x0024: "VF Resizable BAR",
    0x0025: "Data Link Feature",
    0x0026: "Physical Layer 16.0 GT/s",
    0x0027: "Lane Margining",
    0x002A: "Physical Layer 32.0 GT/s",
    0x002E: "Data Object Exchange",
}
"""Names of extended capabilities by id (PCI-SIG Code and ID Assignment, section 3)."""

COMMAND_BITS = (
    "I/O",
    "memory",
    "bus master",
    "special cycles",
    "write and invalidate",
    "VGA palette snoop",
    "parity response",
    "",
    "SERR",
    "fast back-to-back",
    "INTx disable",
)
"""Names of the COMMAND register's bits, from bit 0 (PCIe 7.5.1.1.3)."""

STATUS_BITS = (
    "immediate readiness",
    "",
    "",
    "INTx pending",
    "capabilities",
    "66 MHz",
    "",
    "fast back-to-back",
    "master data parity error",
    "",
    "",
    "signaled target abort",
    "received target abort",
    "received master abort",
    "signaled system error",
    "detected parity error",
)
"""Names of the STATUS register's bits, from bit 0 (PCIe 7.5.1.1.4)."""


def describe(config: ConfigSpace) -> str:
    """The registers and capabilities, one ``name: value`` a line, in a stable order."""
    return "\n".join(f"{name}: {value}" for name, value in registers(config))


def registers(config: ConfigSpace) -> Iterator[tuple[str, str]]:
    """Names and values of all that :func:`describe` shows.  Each name comes once."""
    if config.absent:
        yield "function", "absent (all ones)"
        return
    yield "vendor", f"{config.vendor:04x}"
    yield "device", f"{config.device:04x}"
    yield "subsystem", f"{config.subsystem_vendor:04x}:{config.subsystem_device:04x}"
    yield "revision", f"{config.revision:02x}"
    yield "class", f"{config.class_code:06x} ({config.class_name})"
    kind = f"{config.header_type}" + (", multi-function" if config.multifunction else "")
    yield "header type", kind
    yield "COMMAND", _with_names(config.command, COMMAND_BITS)
    yield "STATUS", _with_names(config.status, STATUS_BITS)
    if config.buses:
        yield "buses", "primary {:02x}, secondary {:02x}, subordinate {:02x}".format(*config.buses)
    for bar in config.bars:
        yield f"BAR{bar.index}", _bar_text(bar)
    yield "expansion ROM", f"{config.rom:#010x}"
    yield "interrupt", f"line {config.interrupt_line}, pin {config.interrupt_pin}"
    yield from _capability_registers(config)
    for number, problem in enumerate(config.problems):
        yield f"problem {number}", problem


def _capability_registers(config: ConfigSpace) -> Iterator[tuple[str, str]]:
    for capability in config.capabilities:
        name = CAPABILITY_NAMES.get(capability.id, f"capability {capability.id:02x}")
        yield f"{name} [{capability.offset:02x}]", _capability_text(config, capability)
    for capability in config.extended_capabilities:
        name = EXTENDED_NAMES.get(capability.id, f"extended capability {capability.id:04x}")
        text = _extended_text(config, capability)
        yield f"{name} [{capability.offset:03x}]", f"version {capability.version}{text}"


def _capability_text(config: ConfigSpace, capability: Capability) -> str:
    view: object = {
        0x01: config.power_management,
        0x05: config.msi,
        0x10: config.pcie,
        0x11: config.msix,
        0x13: config.advanced_features,
    }.get(capability.id)
    text = _view_text(view, capability)
    return text.removeprefix(", ") if text else "present"


def _extended_text(config: ConfigSpace, capability: Capability) -> str:
    serial = config.serial_number
    if capability.id == 0x0003 and serial is not None:
        return f", {serial:016x}"
    view: object = {0x000D: config.acs, 0x000F: config.ats, 0x0010: config.sriov}.get(capability.id)
    if isinstance(view, Acs) and view.offset == capability.offset:
        supported, enabled = (", ".join(bits) or "none" for bits in (view.supported, view.enabled))
        return f", supported {supported}; enabled {enabled}"
    return _view_text(view, capability)


#: Fields that are addresses or register values, and so read better in hexadecimal.
_HEX = {
    "address", "data", "table_offset", "pba_offset", "device_control", "device_status",
    "device_id", "bars",
}  # fmt: skip


def _view_text(view: object, capability: Capability) -> str:
    """``, field value`` for each field of a typed view of this very capability."""
    fields = getattr(type(view), "__dataclass_fields__", {})
    if not fields or getattr(view, "offset", None) != capability.offset:
        return ""
    parts = []
    for name in fields:
        if name == "offset":
            continue
        value = getattr(view, name)
        words = name.replace("_", " ")
        if isinstance(value, bool):
            parts.append(f"{words} {'yes' if value else 'no'}")
        elif isinstance(value, PortType):
            parts.append(value.name.lower().replace("_", " "))
        elif isinstance(value, tuple):
            parts.append(f"{words} {' '.join(f'{item:#x}' for item in value)}")
        else:
            parts.append(f"{words} {value:#x}" if name in _HEX else f"{words} {value}")
    return ", " + ", ".join(parts)


def _with_names(value: int, names: tuple[str, ...]) -> str:
    listed = ", ".join(bit_names(value, names))
    return f"{value:04x}" + (f" ({listed})" if listed else "")


def _bar_text(bar: BarRegister) -> str:
    if not bar.memory:
        return f"I/O {bar.value:#x}"
    kind = ("64-bit" if bar.wide else "32-bit") + (" prefetchable" if bar.prefetchable else "")
    return f"memory {bar.value:#x} {kind}"
