"""Network cards: e1000e, igb with its virtual functions, and cables between them.

Registers and descriptors are those of the 82574 and 82576 datasheets, as far as a driver needs
them to move frames: one legacy descriptor ring each way, filters by address, causes and vectors.
The PF's answer to a VF's reset stands in the VF's mailbox from the start.

A frame arrives at the far end at once.  Deliveries made while one is under way are queued, so
that no driver is called back out of its own call more than once.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hil.pci.address import Address
from hil.simulated.pci import SRIOV, Bar, DmaAborted, PciFunction

#: Registers, the same on both cards.
CTRL, STATUS, ICR, ICS, IMS, IMC, E1000E_IVAR = 0x00, 0x08, 0xC0, 0xC8, 0xD0, 0xD8, 0xE4
RCTL, TCTL = 0x100, 0x400
RX, TX = 0x2800, 0x3800
#: Offsets of a ring's registers from RX or TX.
BASE_LOW, BASE_HIGH, LENGTH, HEAD, TAIL = 0x00, 0x04, 0x08, 0x10, 0x18
RAL0, RAH0 = 0x5400, 0x5404
#: In a VF's mailbox: words 1 and 2 of the PF's answer to a reset (82576 7.10.3.2.1), its MAC.
VF_MAC_LOW, VF_MAC_HIGH = 0x804, 0x808
RECEIVED, TRANSMITTED = 0x4074, 0x4080
#: The 82576's interrupt registers, of its VFs too.
EICS, EIMS, EIMC, EICR, IVAR0, IVAR_MISC = 0x1520, 0x1524, 0x1528, 0x1580, 0x1700, 0x1740

RESET, LINK_UP = 1 << 26, 1 << 1
ENABLE, UNICAST_ALL, MULTICAST_ALL, BROADCAST = 1 << 1, 1 << 3, 1 << 4, 1 << 15
ADDRESS_VALID = 1 << 31
#: Causes of the 82574 (10.2.4.1): received, transmitted, link change; and its MSI-X causes.
CAUSE_TX, CAUSE_LINK, CAUSE_RX = 1 << 0, 1 << 2, 1 << 7
CAUSE_RXQ0, CAUSE_TXQ0, CAUSE_OTHER = 1 << 20, 1 << 22, 1 << 24
DONE, END_OF_PACKET = 1, 2
_BUFFER = 2048
_SHORTEST = 60


class End(Protocol):
    """Something at the end of a cable."""

    def receive(self, frame: bytes) -> None: ...


class Wire:
    """Delivers frames in order, never two at once."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._running = False

    def later(self, deliver: Callable[[], None]) -> None:
        """Deliver now, or after what is under way."""
        self._queue.append(deliver)
        if self._running:
            return
        self._running = True
        try:
            while self._queue:
                self._queue.popleft()()
        finally:
            self._running = False


class Port:
    """A card's socket, and the switch between the functions that share it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.functions: list[Nic] = []
        self.far_end: End | None = None

    def plug(self, far_end: End | None) -> None:
        """Put a cable in, or pull it."""
        self.far_end = far_end
        for function in self.functions:
            function.link_changed()

    def send(self, sender: Nic, frame: bytes) -> None:
        """A function sends: to its siblings, and over the cable."""
        known = False
        for function in self.functions:
            if function is not sender and function.accepts(frame):
                known = known or function.owns(frame[:6])
                self.wire.later(lambda to=function: to.receive(frame))  # type: ignore[misc]
        far_end = self.far_end
        if far_end is not None and not known:
            self.wire.later(lambda: far_end.receive(frame))

    def receive(self, frame: bytes) -> None:
        """A frame comes over the cable."""
        for function in list(self.functions):
            if function.accepts(frame):
                function.receive(frame)


class Nic(PciFunction):
    """What the cards share.

    Args:
        kind: the template of its configuration space.
        address: where it is.
        mac: its Ethernet address, 6 bytes.
        port: the socket.
    """

    def __init__(self, kind: str, address: Address, mac: bytes, port: Port) -> None:
        serial = {}
        if kind == "e1000e":  # device serial number: an EUI-64 made of the MAC
            serial[0x144] = (mac[:3] + b"\xff\xff" + mac[3:])[::-1]
        super().__init__(kind, address, serial)
        self.mac = mac
        self.port = port
        port.functions.append(self)
        self._registers: dict[int, int] = {}
        self._cause = 0
        self._mask = 0
        self._vector_mask = 0
        self.reset_state()

    def reset_state(self) -> None:
        """All registers as after power-on; the EEPROM's address in RAL[0]."""
        self._registers = {
            RAL0: int.from_bytes(self.mac[:4], "little"),
            RAH0: int.from_bytes(self.mac[4:], "little") | ADDRESS_VALID,
        }
        self._cause = self._mask = self._vector_mask = 0

    @property
    def link(self) -> bool:
        """Whether there is a far end."""
        return self.port.far_end is not None

    def link_changed(self) -> None:
        """The cable went in or out."""
        self._interrupt(CAUSE_LINK)

    # -- registers ------------------------------------------------------------------------

    def bar_load(self, bar: int, offset: int, width: int) -> int:
        """A register of BAR 0; whole words only, as the cards want them."""
        if bar != 0:
            return 0
        at = self._register(offset & ~3)
        if at == STATUS:
            value = 0x80080781 | (LINK_UP if self.link else 0)
        elif at == ICR:
            value, self._cause = self._cause, 0
        elif at in (IMS, IMC):
            value = self._mask
        elif at in (EIMS, EIMC):
            value = self._vector_mask
        else:
            value = self._registers.get(at, 0)
        if width == 8:
            return value | self.bar_load(bar, (offset & ~3) + 4, 4) << 32
        return value >> 8 * (offset & 3) & (1 << 8 * width) - 1

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None:
        """A register write, with its effect."""
        if bar != 0 or offset & 3:
            return
        if width == 8:
            self.bar_store(bar, offset, 4, value & 0xFFFFFFFF)
            self.bar_store(bar, offset + 4, 4, value >> 32)
            return
        at = self._register(offset)
        if at == CTRL and value & RESET:
            self.reset_state()
        elif at == ICS:
            self._interrupt(value)
        elif at == IMS:
            self._mask |= value
        elif at == IMC:
            self._mask &= ~value
        elif at == EICS:
            self._vectors(value)
        elif at == EIMS:
            self._vector_mask |= value
        elif at == EIMC:
            self._vector_mask &= ~value
        elif at != STATUS:
            self._registers[at] = value
            if at == TX + TAIL:
                self._transmit()

    def _register(self, offset: int) -> int:
        """The register that an alias stands for."""
        return offset

    def _ring(self, ring: int) -> tuple[int, int]:
        """Address and number of descriptors."""
        get = self._registers.get
        base = get(ring + BASE_LOW, 0) & ~0xF | get(ring + BASE_HIGH, 0) << 32
        return base, get(ring + LENGTH, 0) // 16

    # -- interrupts -----------------------------------------------------------------------

    def _interrupt(self, cause: int) -> None:
        """Raise causes, as far as they are not masked."""
        raise NotImplementedError

    def _vectors(self, bits: int) -> None:
        """Raise vectors by their numbers (82576)."""
        for vector in range(25):
            if bits >> vector & 1 and self._vector_mask >> vector & 1:
                self.send_message(vector)

    # -- frames ---------------------------------------------------------------------------

    def owns(self, mac: bytes) -> bool:
        """Whether an address is one of its own."""
        for low in range(RAL0, RAL0 + 8 * 16, 8):
            high = self._registers.get(low + 4, 0)
            if high & ADDRESS_VALID:
                address = self._registers.get(low, 0) | (high & 0xFFFF) << 32
                if address == int.from_bytes(mac, "little"):
                    return True
        return False

    def accepts(self, frame: bytes) -> bool:
        """Whether its filters let a frame pass; without a driver, none."""
        control = self._registers.get(RCTL, 0)
        if not control & ENABLE:
            return False
        if frame[0] & 1:
            return True
        return bool(control & UNICAST_ALL) or self.owns(frame[:6])

    def _transmit(self) -> None:
        """Send what lies between head and tail of the ring."""
        base, count = self._ring(TX)
        if not count or not self._registers.get(TCTL, 0) & ENABLE:
            return
        frame = b""
        frames = []
        head = self._registers.get(TX + HEAD, 0) % count
        try:
            while head != self._registers[TX + TAIL] % count:
                at = base + 16 * head
                address, word = struct.unpack("<QQ", self.dma_read(at, 16))
                frame += self.dma_read(address, word & 0xFFFF)
                if word >> 24 & 1:  # EOP
                    frames.append(frame.ljust(_SHORTEST, b"\0"))
                    frame = b""
                if word >> 24 & 8:  # RS
                    self.dma_write(at + 12, bytes((word >> 32 & 0xFF | DONE,)))
                head = (head + 1) % count
                self._registers[TX + HEAD] = head
        except DmaAborted:
            pass  # the ring stops here; what was fetched before goes out
        for each in frames:
            self._registers[TRANSMITTED] = self._registers.get(TRANSMITTED, 0) + 1
            self.port.send(self, each)
        if frames:
            self._interrupt(CAUSE_TX | CAUSE_TXQ0)

    def receive(self, frame: bytes) -> None:
        """Write a frame into the driver's next buffers."""
        base, count = self._ring(RX)
        if not count:
            return
        frame = frame.ljust(_SHORTEST, b"\0")
        head = self._registers.get(RX + HEAD, 0) % count
        pieces = [frame[at : at + _BUFFER] for at in range(0, len(frame), _BUFFER)]
        room = (self._registers.get(RX + TAIL, 0) - head) % count
        if len(pieces) > room:
            return  # dropped: no descriptors
        try:
            for number, piece in enumerate(pieces):
                at = base + 16 * head
                (address,) = struct.unpack("<Q", self.dma_read(at, 8))
                self.dma_write(address, piece)
                status = DONE | (END_OF_PACKET if number == len(pieces) - 1 else 0)
                self.dma_write(at + 8, struct.pack("<HHBBH", len(piece), 0, status, 0, 0))
                head = (head + 1) % count
                self._registers[RX + HEAD] = head
        except DmaAborted:
            return
        self._registers[RECEIVED] = self._registers.get(RECEIVED, 0) + 1
        self._interrupt(CAUSE_RX | CAUSE_RXQ0)


class E1000e(Nic):
    """An 82574.  As in QEMU, D3hot resets nothing although NoSoftRst says it would."""

    honest_power_reset = False

    def __init__(self, address: Address, mac: bytes, port: Port) -> None:
        super().__init__("e1000e", address, mac, port)

    def _interrupt(self, cause: int) -> None:
        self._cause |= cause
        allowed = cause & self._mask
        if not self.msix_enabled:
            if allowed:
                self.send_message(0)
            return
        routes = self._registers.get(E1000E_IVAR, 0)
        for bit, shift in ((CAUSE_RXQ0, 0), (CAUSE_TXQ0, 8), (CAUSE_OTHER, 16)):
            wanted = bit | (CAUSE_LINK if bit == CAUSE_OTHER else 0)
            if allowed & wanted and routes >> shift & 8:
                self.send_message(routes >> shift & 7)


class _Intel82576(Nic):
    """What an 82576 and its VFs share."""

    def _register(self, offset: int) -> int:
        if 0xC000 <= offset < 0xC040:
            return RX + offset - 0xC000
        if 0xE000 <= offset < 0xE040:
            return TX + offset - 0xE000
        return offset

    def _interrupt(self, cause: int) -> None:
        self._cause |= cause
        if not self.msix_enabled:
            if cause & self._mask:
                self.send_message(0)
            return
        routes = self._registers.get(IVAR0, 0)
        other = self._registers.get(IVAR_MISC, 0)
        for bits, route in (
            (CAUSE_RX, routes & 0xFF),
            (CAUSE_TX, routes >> 8 & 0xFF),
            (CAUSE_LINK, other >> 8 & 0xFF),
        ):
            if cause & bits and route & 0x80:
                self._vectors(1 << (route & 0x1F))


class Igb(_Intel82576):
    """An 82576's physical function."""

    def __init__(self, address: Address, mac: bytes, port: Port) -> None:
        super().__init__("igb", address, mac, port)
        self.virtual_functions: list[IgbVf] = []

    # -- SR-IOV (PCIe 9.3.3) ----------------------------------------------------------------

    def _after_write(self, offset: int, width: int, value: int, power_before: int) -> None:
        super()._after_write(offset, width, value, power_before)
        sriov = self.extended_capability(SRIOV)
        if sriov and offset <= sriov + 8 < offset + width:
            enabled = bool(self.peek(sriov + 8, 2) & 1)
            if enabled and not self.virtual_functions:
                self._make_vfs(sriov)
            elif not enabled:
                self._drop_vfs()
            self.fabric.bars_moved()
        elif sriov <= offset < sriov + 0x40:
            self.fabric.bars_moved()

    def _make_vfs(self, sriov: int) -> None:
        first, stride = self.peek(sriov + 0x14, 2), self.peek(sriov + 0x16, 2)
        for number in range(self.peek(sriov + 0x10, 2)):
            identity = self.requester_id + first + number * stride
            mac = self.mac[:3] + bytes((0x10 | number,)) + self.mac[4:]
            vf = IgbVf(Address.from_requester_id(identity), mac, self, number)
            self.virtual_functions.append(vf)
            self.fabric.add(vf)

    def _drop_vfs(self) -> None:
        for vf in self.virtual_functions:
            self.port.functions.remove(vf)
            self.fabric.remove(vf)
        self.virtual_functions.clear()

    def _reset_config(self) -> None:
        super()._reset_config()
        self._drop_vfs()

    @property
    def vf_memory_enabled(self) -> bool:
        """Whether the VFs' BARs answer (VF MSE)."""
        return bool(self.peek(self.extended_capability(SRIOV) + 8, 2) & 8)

    def vf_bar(self, index: int) -> tuple[int, int]:
        """Address and size of the first VF's BAR ``index``; size 0 if there is none."""
        at = self.extended_capability(SRIOV) + 0x24 + 4 * index
        wide = self._reset_bytes[at] & 6 == 4
        width = 8 if wide else 4
        mask = int.from_bytes(self._writable[at : at + width], "little") & ~0xF
        return self.peek(at, width) & mask, mask & -mask


class IgbVf(_Intel82576):
    """A VF: what it has of its own; BARs and ids are its physical function's."""

    def __init__(self, address: Address, mac: bytes, physical: Igb, number: int) -> None:
        self.physical = physical
        self.number = number
        super().__init__("igbvf", address, mac, physical.port)

    def reset_state(self) -> None:
        """As a card's, with the address where a VF looks for it."""
        super().reset_state()
        self._registers[VF_MAC_LOW] = int.from_bytes(self.mac[:4], "little")
        self._registers[VF_MAC_HIGH] = int.from_bytes(self.mac[4:], "little")

    @property
    def vendor(self) -> int:
        return self.physical.vendor

    @property
    def device(self) -> int:
        return self.physical.peek(self.physical.extended_capability(SRIOV) + 0x1A, 2)

    @property
    def bars(self) -> tuple[Bar, ...]:
        found = []
        for index in (0, 3):
            address, size = self.physical.vf_bar(index)
            decoded = self.physical.vf_memory_enabled and self.power_state == 0
            place = address + self.number * size if address else 0
            found.append(Bar(index, place, size, True, index == 3, index == 3, decoded))
        return tuple(found)
