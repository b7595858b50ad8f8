"""Drivers for the modelled devices, the same for the host's kernel and for guests.

A driver reaches its device by a :class:`Port` and has its rings and buffers in a
:class:`DmaMemory`; the addresses that it writes into the device are those its owner knows:
host physical in the host, guest physical in a guest.  What becomes of them is the IOMMU's
business.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hil.simulated import nic, nvme
from hil.simulated.memory import PAGE
from hil.simulated.pci import BUS_MASTER, COMMAND, MEMORY_DECODE


class Port(Protocol):
    """A device as its driver reaches it."""

    def config_read(self, offset: int, width: int) -> int: ...

    def config_write(self, offset: int, width: int, value: int) -> None: ...

    def bar_load(self, bar: int, offset: int, width: int) -> int: ...

    def bar_store(self, bar: int, offset: int, width: int, value: int) -> None: ...

    def enable_interrupts(self, handlers: Sequence[tuple[str, Callable[[], None]]]) -> int:
        """Give each vector, in order, a name (``rxq0``) and a handler; how many there are now.

        MSI-X if the device has it, else one MSI message, which then runs all handlers;
        0 if neither could be had.
        """
        ...

    def disable_interrupts(self) -> None: ...


class DmaMemory(Protocol):
    """Memory for rings and buffers."""

    def allocate(self, size: int) -> int:
        """Physically contiguous, page aligned, zeroed; its address as the owner sees it."""
        ...

    def release(self, address: int, size: int) -> None: ...

    def read(self, address: int, length: int) -> bytes: ...

    def write(self, address: int, data: bytes) -> None: ...


class DriverError(Exception):
    """The device does not do what its driver asks."""


def enable_device(port: Port) -> None:
    """Let it decode memory and master the bus (pci_enable_busmaster(9))."""
    command = port.config_read(COMMAND, 2)
    port.config_write(COMMAND, 2, command | MEMORY_DECODE | BUS_MASTER)


@dataclass(frozen=True, slots=True)
class NicVectors:
    """Which MSI-X vectors a NIC's driver has, and for what."""

    names: tuple[str, ...]
    receive: int
    """Vector of the receive queue."""
    other: int
    """Vector of the link and the like."""
    send: int | None = None
    """Vector of the send queue; ``None``: it interrupts nobody (82576) or the receiver (82574)."""

    @classmethod
    def of_freebsd(cls, queues: int) -> NicVectors:
        """As em(4) and igb(4) have them: a vector for each of ``queues``, then one more."""
        return cls((*(f"rxq{number}" for number in range(queues)), "aq"), 0, queues)


class NicDriver:
    """Of the 82574, the 82576 and its VFs: one ring each way, polled by interrupts.

    Args:
        port: the card.
        memory: where the rings are.
        kind: ``e1000e``, ``igb`` or ``igbvf``.
        vectors: what its vectors are for.
    """

    RING = 64
    BUFFER = 2048
    _SIZE = 16 * RING + RING * BUFFER

    def __init__(
        self,
        port: Port,
        memory: DmaMemory,
        kind: str,
        vectors: NicVectors = NicVectors.of_freebsd(1),  # noqa: B008 - it is frozen
    ) -> None:
        self._port = port
        self._memory = memory
        self._kind = kind
        self._layout = vectors
        self.on_frame: Callable[[bytes], None] = lambda _frame: None
        self.received = self.sent = 0
        self._receive_ring = self._send_ring = 0
        self._next_receive = self._next_send = 0
        self._vectors = 0
        self.mac = b""

    # -- life -----------------------------------------------------------------------------

    def attach(self) -> None:
        """Reset the card, read its address, get vectors.  It moves no frames yet."""
        enable_device(self._port)
        receive = self._layout.receive
        self._vectors = self._port.enable_interrupts(
            [
                (name, self._receive if number == receive else _nothing)
                for number, name in enumerate(self._layout.names)
            ]
        )
        self._store(nic.CTRL, nic.RESET)
        places = (nic.RAL0, nic.RAH0)
        if self._kind == "igbvf":
            places = (nic.VF_MAC_LOW, nic.VF_MAC_HIGH)
        low, high = (self._load(place) for place in places)
        self.mac = (low | (high & 0xFFFF) << 32).to_bytes(6, "little")

    def detach(self) -> None:
        """Let the card go."""
        self.stop()
        self._port.disable_interrupts()

    @property
    def running(self) -> bool:
        """Whether frames can move."""
        return bool(self._receive_ring)

    @property
    def link(self) -> bool:
        """Whether the cable has a far end."""
        return bool(self._load(nic.STATUS) & nic.LINK_UP)

    def start(self) -> None:
        """Make the rings, and let frames come."""
        if self.running:
            return
        self._receive_ring = self._memory.allocate(self._SIZE)
        self._send_ring = self._memory.allocate(self._SIZE)
        self._next_receive = self._next_send = 0
        self._fill_receive_ring()
        for ring, at in ((nic.RX, self._receive_ring), (nic.TX, self._send_ring)):
            self._store(ring + nic.BASE_LOW, at & 0xFFFFFFFF)
            self._store(ring + nic.BASE_HIGH, at >> 32)
            self._store(ring + nic.LENGTH, 16 * self.RING)
            self._store(ring + nic.HEAD, 0)
            self._store(ring + nic.TAIL, 0)
        self._route_interrupts()
        self._store(nic.TCTL, nic.ENABLE)
        self._store(nic.RCTL, nic.ENABLE | nic.BROADCAST)
        self._store(nic.RX + nic.TAIL, self.RING - 1)

    def _fill_receive_ring(self) -> None:
        for index in range(self.RING):
            buffer = self._receive_ring + 16 * self.RING + index * self.BUFFER
            self._memory.write(self._receive_ring + 16 * index, struct.pack("<QQ", buffer, 0))

    def _route_interrupts(self) -> None:
        receive, other, send = self._layout.receive, self._layout.other, self._layout.send
        if self._kind == "e1000e":
            routes = 0x8 | receive | (0x8 | (receive if send is None else send)) << 8
            self._store(nic.E1000E_IVAR, routes | (0x8 | other) << 16)
            causes = nic.CAUSE_RXQ0 | nic.CAUSE_OTHER | nic.CAUSE_LINK
            causes |= 0 if send is None else nic.CAUSE_TXQ0
            self._store(nic.IMS, causes if self._vectors > 1 else nic.CAUSE_RX | nic.CAUSE_LINK)
        else:
            self._store(nic.IVAR0, 0x80 | receive | (0 if send is None else (0x80 | send) << 8))
            self._store(nic.IVAR_MISC, (0x80 | other) << 8)
            # every vector stays open: a message can be asked for by EICS
            self._store(nic.EIMS, 0x1FFFFFF)
            self._store(nic.IMS, nic.CAUSE_RX | nic.CAUSE_LINK)

    def stop(self) -> None:
        """No more frames; the card is quiet, and the rings are freed."""
        if not self.running:
            return
        self._store(nic.RCTL, 0)
        self._store(nic.TCTL, 0)
        self._store(nic.IMC, 0xFFFFFFFF)
        self._memory.release(self._receive_ring, self._SIZE)
        self._memory.release(self._send_ring, self._SIZE)
        self._receive_ring = self._send_ring = 0

    # -- frames ---------------------------------------------------------------------------

    def transmit(self, frame: bytes) -> bool:
        """Send a frame; whether the card has fetched it."""
        if not self.running:
            return False
        index = self._next_send
        buffer = self._send_ring + 16 * self.RING + index * self.BUFFER
        self._memory.write(buffer, frame)
        # end of packet, insert the checksum of the frame, report the status
        word = len(frame) | 0xB << 24
        self._memory.write(self._send_ring + 16 * index, struct.pack("<QQ", buffer, word))
        self._next_send = (index + 1) % self.RING
        self._store(nic.TX + nic.TAIL, self._next_send)
        done = self._memory.read(self._send_ring + 16 * index + 12, 1)[0] & nic.DONE
        self.sent += done
        return bool(done)

    def _receive(self) -> None:
        while self.running:
            at = self._receive_ring + 16 * self._next_receive
            length, status = struct.unpack("<HxxB", self._memory.read(at + 8, 5))
            if not status & nic.DONE:
                return
            buffer = self._receive_ring + 16 * self.RING + self._next_receive * self.BUFFER
            frame = self._memory.read(buffer, min(length, self.BUFFER))
            self._memory.write(at, struct.pack("<QQ", buffer, 0))
            self._store(nic.RX + nic.TAIL, self._next_receive)
            self._next_receive = (self._next_receive + 1) % self.RING
            self.received += 1
            self.on_frame(frame)

    def _load(self, register: int) -> int:
        return self._port.bar_load(0, register, 4)

    def _store(self, register: int, value: int) -> None:
        self._port.bar_store(0, register, 4, value)


def _nothing() -> None:
    pass


class NvmeDriver:
    """nvme: an admin queue and one I/O queue, one command at a time.

    Args:
        port: the controller.
        memory: where the queues are.
        vectors: names of its vectors: the admin queue's, the I/O queue's, and more.
    """

    ENTRIES = 16
    #: Most bytes that one command moves.
    CHUNK = 128 * 1024

    def __init__(
        self, port: Port, memory: DmaMemory, vectors: Sequence[str] = ("admin", "io0")
    ) -> None:
        self._port = port
        self._memory = memory
        self._vectors = vectors
        self.blocks = 0
        self.model = self.serial = ""
        self._area = 0
        self._size = 6 * PAGE + self.CHUNK
        self._tails = [0, 0]
        self._heads = [0, 0]
        self._phases = [1, 1]
        self._identity = 0

    def attach(self) -> None:
        """Enable the controller, find its namespace, make the I/O queue.

        Raises:
            DriverError: it does not come up.
        """
        enable_device(self._port)
        self._area = self._memory.allocate(self._size)
        self._store(nvme.CC, 0)
        self._store(nvme.AQA, (self.ENTRIES - 1) << 16 | (self.ENTRIES - 1))
        for register, at in ((nvme.ASQ, self._queue(0)), (nvme.ACQ, self._completions(0))):
            self._store(register, at & 0xFFFFFFFF)
            self._store(register + 4, at >> 32)
        self._port.enable_interrupts([(name, _nothing) for name in self._vectors])
        self._store(nvme.CC, 0x460000 | nvme.ENABLE)
        if not self._load(nvme.CSTS) & nvme.READY:
            raise DriverError("the controller does not get ready")
        self._command(0, nvme.IDENTIFY, self._data, cdw10=1)
        about = self._memory.read(self._data, 64)
        self.serial = about[4:24].decode("ascii", "replace").strip()
        self.model = about[24:64].decode("ascii", "replace").strip()
        self._command(0, nvme.IDENTIFY, self._data, cdw10=0)
        (self.blocks,) = struct.unpack("<Q", self._memory.read(self._data, 8))
        size = (self.ENTRIES - 1) << 16 | 1
        self._command(0, nvme.CREATE_CQ, self._completions(1), cdw10=size, cdw11=1 << 16 | 3)
        self._command(0, nvme.CREATE_SQ, self._queue(1), cdw10=size, cdw11=1 << 16 | 1)

    def detach(self) -> None:
        """Disable the controller and free the queues."""
        if self._area:
            self._store(nvme.CC, 0)
            self._port.disable_interrupts()
            self._memory.release(self._area, self._size)
            self._area = 0

    @property
    def size(self) -> int:
        """Bytes of the namespace."""
        return self.blocks * nvme.BLOCK

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk; whole blocks.

        Raises:
            DriverError: the controller reports an error, or does not answer.
        """
        parts = []
        for at in range(offset, offset + length, self.CHUNK):
            size = min(self.CHUNK, offset + length - at)
            self._blocks(nvme.READ, at, size)
            parts.append(self._memory.read(self._data, size))
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Bytes to the disk; whole blocks.

        Raises:
            DriverError: the controller reports an error, or does not answer.
        """
        for at in range(0, len(data), self.CHUNK):
            piece = data[at : at + self.CHUNK]
            self._memory.write(self._data, piece)
            self._blocks(nvme.WRITE, offset + at, len(piece))

    def _blocks(self, opcode: int, offset: int, length: int) -> None:
        pages = range(self._data + PAGE, self._data + length, PAGE)
        second = pages[0] if len(pages) == 1 else 0
        if len(pages) > 1:
            second = self._list
            self._memory.write(second, struct.pack(f"<{len(pages)}Q", *pages))
        start, count = offset // nvme.BLOCK, length // nvme.BLOCK
        self._command(
            1,
            opcode,
            self._data,
            second,
            cdw10=start & 0xFFFFFFFF,
            cdw11=start >> 32,
            cdw12=count - 1,
        )

    # -- queues: two pages each, then the page of the PRP list, then the data -----------------

    def _queue(self, number: int) -> int:
        return self._area + 2 * PAGE * number

    def _completions(self, number: int) -> int:
        return self._queue(number) + PAGE

    @property
    def _list(self) -> int:
        return self._area + 4 * PAGE

    @property
    def _data(self) -> int:
        return self._area + 6 * PAGE

    def _command(
        self,
        queue: int,
        opcode: int,
        first: int,
        second: int = 0,
        *,
        cdw10: int = 0,
        cdw11: int = 0,
        cdw12: int = 0,
    ) -> None:
        self._identity = (self._identity + 1) % 0x10000
        entry = struct.pack(
            "<BBHIQQQQIIIIII",
            *(opcode, 0, self._identity, 1 if queue or cdw10 == 0 else 0, 0, 0, first, second),
            *(cdw10, cdw11, cdw12, 0, 0, 0),
        )
        self._memory.write(self._queue(queue) + 64 * self._tails[queue], entry)
        self._tails[queue] = (self._tails[queue] + 1) % self.ENTRIES
        self._store(nvme.DOORBELLS + 8 * queue, self._tails[queue])
        status = self._completed(queue)
        if status:
            raise DriverError(f"NVMe command {opcode:#04x} ended with status {status:#x}")

    def _completed(self, queue: int) -> int:
        at = self._completions(queue) + 16 * self._heads[queue]
        identity, status = struct.unpack("<12xHH", self._memory.read(at, 16))
        if status & 1 != self._phases[queue] or identity != self._identity:
            raise DriverError("the controller completes no command")
        self._heads[queue] += 1
        if self._heads[queue] == self.ENTRIES:
            self._heads[queue] = 0
            self._phases[queue] ^= 1
        self._store(nvme.DOORBELLS + 8 * queue + 4, self._heads[queue])
        return int(status >> 1)

    def _load(self, register: int) -> int:
        return self._port.bar_load(0, register, 4)

    def _store(self, register: int, value: int) -> None:
        self._port.bar_store(0, register, 4, value)
