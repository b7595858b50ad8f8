"""Parse a PCI function's configuration space, from whatever host it was read.

References are to the PCI Local Bus Specification 3.0 ("PCI") and the PCI Express Base
Specification 6.0 ("PCIe").  Nothing here trusts the bytes: a capability list that loops,
or points outside, ends there, and :attr:`ConfigSpace.problems` says so.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from hil.errors import LabError

SIZES = (64, 256, 4096)

_FIRST_CAPABILITY = 0x40
_FIRST_EXTENDED = 0x100

_CLASSES = {
    0x00: "unclassified device",
    0x01: "mass storage controller",
    0x02: "network controller",
    0x03: "display controller",
    0x04: "multimedia controller",
    0x05: "memory controller",
    0x06: "bridge",
    0x07: "communication controller",
    0x08: "system peripheral",
    0x09: "input device controller",
    0x0B: "processor",
    0x0C: "serial bus controller",
    0x0D: "wireless controller",
    0x10: "encryption controller",
    0x11: "signal processing controller",
    0x12: "processing accelerator",
    0xFF: "unassigned class",
}

_SUBCLASSES = {
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0104: "RAID controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0108: "NVM controller",
    0x0200: "Ethernet controller",
    0x0207: "InfiniBand controller",
    0x0300: "VGA controller",
    0x0302: "3D controller",
    0x0380: "display controller",
    0x0403: "audio device",
    0x0600: "host bridge",
    0x0601: "ISA bridge",
    0x0604: "PCI-to-PCI bridge",
    0x0700: "serial controller",
    0x0806: "IOMMU",
    0x0C03: "USB controller",
    0x0C05: "SMBus controller",
}

_INTERFACES = {
    0x010802: "NVMe controller",
    0x010601: "AHCI controller",
    0x0C0330: "xHCI controller",
}


class PortType(enum.IntEnum):
    """Device/Port Type of the PCI Express capability (PCIe 7.5.3.2)."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM_PORT = 5
    DOWNSTREAM_PORT = 6
    PCIE_TO_PCI_BRIDGE = 7
    PCI_TO_PCIE_BRIDGE = 8
    ROOT_COMPLEX_ENDPOINT = 9
    EVENT_COLLECTOR = 10
    UNKNOWN = -1

    @classmethod
    def _missing_(cls, _value: object) -> PortType:
        return cls.UNKNOWN


LINK_SPEEDS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
"""Link speed encodings, in GT/s (PCIe 7.5.3.6)."""


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability; ``data`` runs from its id byte to the next capability or the end."""

    id: int
    offset: int
    data: bytes
    version: int = 0
    """Of an extended capability; 0 for others."""


@dataclass(frozen=True, slots=True)
class BarRegister:
    """A base address register as its bits say, without its size (PCI 6.2.5.1)."""

    index: int
    value: int
    """All address bits, of both registers if it is 64-bit."""
    memory: bool
    wide: bool
    prefetchable: bool
    raw: int
    """The register itself, 32 or (wide) 64 bits."""


@dataclass(frozen=True, slots=True)
class Msi:
    """MSI (PCIe 7.7.1)."""

    offset: int
    enabled: bool
    vectors: int
    """Messages that the function can send."""
    vectors_enabled: int
    wide: bool
    """64-bit message address."""
    maskable: bool
    """Has mask and pending bits per vector."""
    address: int
    data: int


@dataclass(frozen=True, slots=True)
class Msix:
    """MSI-X (PCIe 7.7.2)."""

    offset: int
    enabled: bool
    masked: bool
    """Function Mask."""
    vectors: int
    """Entries of the table."""
    table_bar: int
    table_offset: int
    pba_bar: int
    pba_offset: int


@dataclass(frozen=True, slots=True)
class Pcie:
    """PCI Express (PCIe 7.5.3).  Payload and read request sizes are in bytes."""

    offset: int
    version: int
    type: PortType
    flr: bool
    """Function Level Reset Capability."""
    transactions_pending: bool
    max_payload_supported: int
    max_payload: int
    max_read_request: int
    device_control: int
    device_status: int
    link_speed: float
    """GT/s; 0 without a link, as for root complex endpoints and most virtual functions."""
    link_width: int
    max_link_speed: float
    max_link_width: int


@dataclass(frozen=True, slots=True)
class PowerManagement:
    """Power management (PCIe 7.5.2)."""

    offset: int
    state: int
    """0 to 3: D0 to D3hot."""
    no_soft_reset: bool
    """Set: going from D3hot to D0 does not reset the function."""
    pme_enabled: bool


@dataclass(frozen=True, slots=True)
class AdvancedFeatures:
    """Conventional PCI Advanced Features (PCI-SIG ECN, 27 July 2006)."""

    offset: int
    flr: bool
    transactions_pending: bool


@dataclass(frozen=True, slots=True)
class Sriov:
    """Single Root I/O Virtualization (PCIe 9.3.3)."""

    offset: int
    enabled: bool
    """VF Enable."""
    memory_enabled: bool
    """VF MSE."""
    initial: int
    total: int
    number: int
    """NumVFs."""
    first_offset: int
    """First VF Offset, in requester ids."""
    stride: int
    """VF Stride, in requester ids."""
    device_id: int
    page_size: int
    """System Page Size, in bytes."""
    bars: tuple[int, ...]
    """VF BAR0 to VF BAR5, raw."""

    def requester_ids(self, physical_function: int) -> tuple[int, ...]:
        """Requester ids of the VFs that are enabled now (PCIe 9.2.1.2)."""
        if not self.enabled:
            return ()
        first = physical_function + self.first_offset
        return tuple((first + self.stride * n) & 0xFFFF for n in range(self.number))


_ACS_BITS = (
    "source validation",
    "translation blocking",
    "P2P request redirect",
    "P2P completion redirect",
    "upstream forwarding",
    "P2P egress control",
    "direct translated P2P",
    "I/O request blocking",
)


@dataclass(frozen=True, slots=True)
class Acs:
    """Access Control Services (PCIe 7.7.11): raw registers, and the names of their bits."""

    offset: int
    capability: int
    control: int

    @property
    def supported(self) -> tuple[str, ...]:
        """Names of the controls that the function has."""
        return bit_names(self.capability, _ACS_BITS)

    @property
    def enabled(self) -> tuple[str, ...]:
        """Names of the controls that are on."""
        return bit_names(self.control, _ACS_BITS)


@dataclass(frozen=True, slots=True)
class Ats:
    """Address Translation Services (PCIe 10.5.1)."""

    offset: int
    enabled: bool
    queue_depth: int
    """Invalidate Queue Depth, 1 to 32."""


@dataclass(frozen=True)
class ConfigSpace:
    """A function's configuration space.

    Args:
        data: 64 bytes (what an unprivileged reader gets), 256 or 4096.

    Raises:
        LabError: ``data`` has another length.
    """

    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) not in SIZES:
            raise LabError(
                f"configuration space of {len(self.data)} bytes: must be 64, 256 or 4096",
                seen=self.data[:64].hex(" ", 4),
                hint="read it as root; an unprivileged reader gets the first 64 bytes",
            )

    # raw access; offsets are the class's own, always inside the first 64 bytes
    def _u8(self, offset: int) -> int:
        return self.data[offset]

    def _u16(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 2], "little")

    def _u32(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 4], "little")

    @property
    def absent(self) -> bool:
        """Whether no function answered: all ones (PCIe 2.3.2).

        The vendor id alone does not tell: a virtual function's own reads ffff
        (PCIe 9.3.4.1.1), and its identity is the physical function's.
        """
        return self.data[:64] == b"\xff" * 64

    @property
    def vendor(self) -> int:
        """Vendor ID; 0xffff in a virtual function too (PCIe 9.3.4.1.1)."""
        return self._u16(0x00)

    @property
    def device(self) -> int:
        """Device ID."""
        return self._u16(0x02)

    @property
    def command(self) -> int:
        """COMMAND register."""
        return self._u16(0x04)

    @property
    def status(self) -> int:
        """STATUS register."""
        return self._u16(0x06)

    @property
    def revision(self) -> int:
        """Revision ID."""
        return self._u8(0x08)

    @property
    def class_code(self) -> int:
        """24 bits: base class, subclass, programming interface."""
        return self._u32(0x08) >> 8

    @property
    def class_name(self) -> str:
        """The class in words, as narrow as is known here."""
        code = self.class_code
        return (
            _INTERFACES.get(code)
            or _SUBCLASSES.get(code >> 8)
            or _CLASSES.get(code >> 16)
            or f"class {code:06x}"
        )

    @property
    def header_type(self) -> int:
        """Header layout, without the multi-function bit: 0 device, 1 bridge, 2 CardBus."""
        return self._u8(0x0E) & 0x7F

    @property
    def multifunction(self) -> bool:
        """Whether the device may have functions beside this one."""
        return bool(self._u8(0x0E) & 0x80)

    @property
    def subsystem_vendor(self) -> int:
        """Subsystem Vendor ID; for a bridge from its capability 0x0d, else 0."""
        return self._subsystem(0x2C, 4)

    @property
    def subsystem_device(self) -> int:
        """Subsystem ID; for a bridge from its capability 0x0d, else 0."""
        return self._subsystem(0x2E, 6)

    def _subsystem(self, offset: int, in_capability: int) -> int:
        if self.header_type == 0:
            return self._u16(offset)
        capability = self.capability(0x0D)
        return _get16(capability.data, in_capability) if capability else 0

    @property
    def interrupt_line(self) -> int:
        """Interrupt Line, which software wrote."""
        return self._u8(0x3C)

    @property
    def interrupt_pin(self) -> int:
        """0 none, 1 to 4: INTA to INTD."""
        return self._u8(0x3D)

    @property
    def buses(self) -> tuple[int, int, int] | None:
        """A bridge's primary, secondary and subordinate bus; ``None`` if no bridge."""
        if self.header_type != 1:
            return None
        return self._u8(0x18), self._u8(0x19), self._u8(0x1A)

    @property
    def raw_bars(self) -> tuple[int, ...]:
        """The base address registers as they are: six, or a bridge's two, or none."""
        count = {0: 6, 1: 2}.get(self.header_type, 0)
        return tuple(self._u32(0x10 + 4 * index) for index in range(count))

    @property
    def bars(self) -> tuple[BarRegister, ...]:
        """The base address registers, a 64-bit pair as one.

        A register that is all zero is listed too: it may be an unassigned 32-bit BAR.
        """
        return tuple(_bars(self.raw_bars))

    @property
    def rom(self) -> int:
        """Expansion ROM base address register, raw."""
        return self._u32({0: 0x30, 1: 0x38}[self.header_type]) if self.header_type < 2 else 0

    # capabilities
    @cached_property
    def _walked(self) -> tuple[tuple[Capability, ...], tuple[Capability, ...], tuple[str, ...]]:
        problems: list[str] = []
        if self.absent:
            return (), (), ("no function answers: all ones",)
        if self.header_type > 2:
            problems.append(f"unknown header type {self.header_type:#04x}")
        plain = _capabilities(self, problems)
        extended = _extended_capabilities(self.data, problems)
        return plain, extended, tuple(problems)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """Capabilities in the order of their list (PCIe 7.5.1.1.11)."""
        return self._walked[0]

    @property
    def extended_capabilities(self) -> tuple[Capability, ...]:
        """Extended capabilities in the order of their list (PCIe 7.6.3)."""
        return self._walked[1]

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the header and the capability lists; empty if nothing."""
        return self._walked[2]

    def capability(self, identity: int) -> Capability | None:
        """The first capability with this id."""
        return next((c for c in self.capabilities if c.id == identity), None)

    def extended_capability(self, identity: int) -> Capability | None:
        """The first extended capability with this id."""
        return next((c for c in self.extended_capabilities if c.id == identity), None)

    @property
    def msi(self) -> Msi | None:
        """MSI, if the function has it."""
        found = self.capability(0x05)
        if found is None or len(found.data) < 10:
            return None
        control = _get16(found.data, 2)
        wide = bool(control & 0x80)
        return Msi(
            offset=found.offset,
            enabled=bool(control & 1),
            vectors=1 << (control >> 1 & 7),
            vectors_enabled=1 << (control >> 4 & 7),
            wide=wide,
            maskable=bool(control & 0x100),
            address=_get64(found.data, 4) if wide else _get32(found.data, 4),
            data=_get16(found.data, 12 if wide else 8),
        )

    @property
    def msix(self) -> Msix | None:
        """MSI-X, if the function has it."""
        found = self.capability(0x11)
        if found is None or len(found.data) < 12:
            return None
        control, table, pba = struct.unpack_from("<HII", found.data, 2)
        return Msix(
            offset=found.offset,
            enabled=bool(control & 0x8000),
            masked=bool(control & 0x4000),
            vectors=(control & 0x7FF) + 1,
            table_bar=table & 7,
            table_offset=table & ~7,
            pba_bar=pba & 7,
            pba_offset=pba & ~7,
        )

    @property
    def pcie(self) -> Pcie | None:
        """PCI Express, if the function has it."""
        found = self.capability(0x10)
        if found is None or len(found.data) < 12:
            return None
        flags, capabilities, control, status = struct.unpack_from("<HIHH", found.data, 2)
        link = _get32(found.data, 12)
        link_status = _get16(found.data, 18)
        return Pcie(
            offset=found.offset,
            version=flags & 0xF,
            type=PortType(flags >> 4 & 0xF),
            flr=bool(capabilities & 1 << 28),
            transactions_pending=bool(status & 1 << 5),
            max_payload_supported=128 << (capabilities & 7),
            max_payload=128 << (control >> 5 & 7),
            max_read_request=128 << (control >> 12 & 7),
            device_control=control,
            device_status=status,
            link_speed=LINK_SPEEDS.get(link_status & 0xF, 0.0),
            link_width=link_status >> 4 & 0x3F,
            max_link_speed=LINK_SPEEDS.get(link & 0xF, 0.0),
            max_link_width=link >> 4 & 0x3F,
        )

    @property
    def power_management(self) -> PowerManagement | None:
        """Power management, if the function has it."""
        found = self.capability(0x01)
        if found is None or len(found.data) < 6:
            return None
        control = _get16(found.data, 4)
        return PowerManagement(
            offset=found.offset,
            state=control & 3,
            no_soft_reset=bool(control & 8),
            pme_enabled=bool(control & 0x100),
        )

    @property
    def advanced_features(self) -> AdvancedFeatures | None:
        """Advanced Features of a conventional PCI function, if it has them."""
        found = self.capability(0x13)
        if found is None or len(found.data) < 6:
            return None
        capabilities, _control, status = found.data[3:6]
        return AdvancedFeatures(
            offset=found.offset,
            # FLR is only to be used where Transactions Pending is there too (ECN, 2.2)
            flr=capabilities & 3 == 3,
            transactions_pending=bool(status & 1),
        )

    @property
    def sriov(self) -> Sriov | None:
        """SR-IOV, if the function has it: then it is a physical function."""
        found = self.extended_capability(0x0010)
        if found is None or len(found.data) < 0x3C:
            return None
        control = _get16(found.data, 0x08)
        initial, total, number = struct.unpack_from("<HHH", found.data, 0x0C)
        first_offset, stride, _, device_id = struct.unpack_from("<HHHH", found.data, 0x14)
        return Sriov(
            offset=found.offset,
            enabled=bool(control & 1),
            memory_enabled=bool(control & 8),
            initial=initial,
            total=total,
            number=number,
            first_offset=first_offset,
            stride=stride,
            device_id=device_id,
            page_size=_get32(found.data, 0x20) << 12,
            bars=struct.unpack_from("<6I", found.data, 0x24),
        )

    @property
    def acs(self) -> Acs | None:
        """Access Control Services, if the function has them."""
        found = self.extended_capability(0x000D)
        if found is None or len(found.data) < 8:
            return None
        capability, control = struct.unpack_from("<HH", found.data, 4)
        return Acs(found.offset, capability, control)

    @property
    def ats(self) -> Ats | None:
        """Address Translation Services, if the function has them."""
        found = self.extended_capability(0x000F)
        if found is None or len(found.data) < 8:
            return None
        capability, control = struct.unpack_from("<HH", found.data, 4)
        # a depth field of 0 means 32 (PCIe 10.5.1.2)
        return Ats(found.offset, bool(control & 0x8000), capability & 0x1F or 32)

    @property
    def serial_number(self) -> int | None:
        """Device Serial Number, an EUI-64 (PCIe 7.9.3)."""
        found = self.extended_capability(0x0003)
        return _get64(found.data, 4) if found and len(found.data) >= 12 else None


# -- lists of capabilities ------------------------------------------------------------


def _capabilities(config: ConfigSpace, problems: list[str]) -> tuple[Capability, ...]:
    data = config.data[:256]
    if not config.status & 0x10 or config.header_type > 2:
        return ()
    pointer = data[0x14 if config.header_type == 2 else 0x34] & 0xFC
    if len(data) < 256:
        if pointer:
            problems.append("capabilities not read: only the first 64 bytes are here")
        return ()
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    while pointer:
        if pointer < _FIRST_CAPABILITY:
            problems.append(f"capability pointer {pointer:#04x} points into the header")
            break
        if pointer in seen:
            problems.append(f"capability list loops back to {pointer:#04x}")
            break
        if data[pointer] == 0xFF:
            problems.append(f"capability at {pointer:#04x} reads ff")
            break
        seen.add(pointer)
        found.append((data[pointer], pointer))
        pointer = data[pointer + 1] & 0xFC
    return tuple(
        Capability(identity, offset, data[offset : _end(offset, seen, 256)])
        for identity, offset in found
    )


def _extended_capabilities(data: bytes, problems: list[str]) -> tuple[Capability, ...]:
    if len(data) < 4096 or _get32(data, _FIRST_EXTENDED) in (0, 0xFFFFFFFF):
        return ()
    found: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    pointer = _FIRST_EXTENDED
    while pointer:
        if pointer < _FIRST_EXTENDED:
            problems.append(f"extended capability pointer {pointer:#05x} points below 0x100")
            break
        if pointer in seen:
            problems.append(f"extended capability list loops back to {pointer:#05x}")
            break
        header = _get32(data, pointer)
        if header == 0xFFFFFFFF:
            problems.append(f"extended capability at {pointer:#05x} reads ffffffff")
            break
        seen.add(pointer)
        # id 0 with a next pointer: a null capability, which holds a place only (PCIe 7.6.3)
        if header & 0xFFFF:
            found.append((header & 0xFFFF, header >> 16 & 0xF, pointer))
        pointer = header >> 20 & 0xFFC
    return tuple(
        Capability(identity, offset, data[offset : _end(offset, seen, 4096)], version)
        for identity, version, offset in found
    )


def _end(offset: int, starts: set[int], limit: int) -> int:
    return min((start for start in starts if start > offset), default=limit)


def _bars(raw: tuple[int, ...]) -> Iterator[BarRegister]:
    index = 0
    while index < len(raw):
        low = raw[index]
        if low & 1:
            yield BarRegister(index, low & ~3, False, False, False, low)
        else:
            wide = low >> 1 & 3 == 2 and index + 1 < len(raw)
            whole = low | (raw[index + 1] << 32 if wide else 0)
            yield BarRegister(index, whole & ~0xF, True, wide, bool(low & 8), whole)
            index += wide
        index += 1


def _get16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _get32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _get64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def bit_names(value: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the bits that are set; bits without a name are left out."""
    return tuple(name for bit, name in enumerate(names) if name and value >> bit & 1)
