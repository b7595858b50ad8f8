"""Network interfaces and a small IPv4 stack (ARP, ICMP echo), for the host and for guests.

Frames are real Ethernet frames.  Nothing waits here: an answer comes when its frame does, and
:class:`Echo` tells whether it has.
"""

from __future__ import annotations

import ipaddress
import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

BROADCAST = b"\xff" * 6
#: Echo requests that an answer is awaited for; older ones are given up.
_MOST_ECHOES = 1024
_HEADER = 14
_ARP, _IPV4 = b"\x08\x06", b"\x08\x00"
_ICMP, _ECHO_REPLY, _ECHO_REQUEST = 1, 0, 8


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@dataclass(frozen=True, slots=True)
class EchoReply:
    """What came back."""

    source: str
    ttl: int
    payload: bytes


class Echo:
    """An echo request that is under way."""

    def __init__(self) -> None:
        self.reply: EchoReply | None = None
        self.replies = 0
        """More than one is a duplicate."""
        self._came = threading.Event()

    def answer(self, reply: EchoReply) -> None:
        """An answer arrives."""
        self.replies += 1
        if self.reply is None:
            self.reply = reply
            self._came.set()

    def wait(self, seconds: float) -> EchoReply | None:
        """The answer; ``None`` if none comes in time.  The machine's lock must not be held."""
        self._came.wait(seconds)
        return self.reply


Listener = Callable[[bytes, bool], None]
"""Called with each frame of an interface, and whether it went out."""


class Interface:
    """An interface as ifconfig(8) shows it.

    Args:
        name: for example ``em0``.
        mac: its Ethernet address, empty if it has none.
        transmit: sends a frame on the medium; whether it went out.
    """

    def __init__(self, name: str, mac: bytes, transmit: Callable[[bytes], bool]) -> None:
        self.name = name
        self.mac = mac
        self.up = False
        self.mtu = 1500
        self.description = ""
        self.groups: list[str] = []
        self.addresses: list[ipaddress.IPv4Interface] = []
        self.members: list[Interface] = []
        """Of a bridge."""
        self.bridge: Interface | None = None
        self.received = self.sent = 0
        self.received_bytes = self.sent_bytes = 0
        self.stack: Stack | None = None
        self.on_up: Callable[[bool], None] = lambda _up: None
        self._transmit = transmit
        self._listeners: list[Listener] = []

    @property
    def is_bridge(self) -> bool:
        """Whether it joins others."""
        return "bridge" in self.groups

    @property
    def lock(self) -> AbstractContextManager[object]:
        """The lock of the machine that it belongs to."""
        return nullcontext() if self.stack is None else self.stack.lock

    def set_up(self, up: bool) -> None:
        """``ifconfig NAME up`` or ``down``."""
        if up != self.up:
            self.up = up
            self.on_up(up)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """See every frame (bpf(4)); returns how to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def send(self, frame: bytes) -> bool:
        """Send a frame; whether it went out."""
        with self.lock:
            return self.up and self._send(frame)

    def _send(self, frame: bytes) -> bool:
        if self.is_bridge:
            went = [member.send(frame) for member in self.members]
            return any(went)
        if not self._transmit(frame):
            return False
        self.sent += 1
        self.sent_bytes += len(frame)
        for listener in tuple(self._listeners):
            listener(frame, True)
        return True

    def receive(self, frame: bytes) -> None:
        """A frame comes from the medium."""
        with self.lock:
            if self.up:
                self._receive(frame)

    def _receive(self, frame: bytes) -> None:
        self.received += 1
        self.received_bytes += len(frame)
        for listener in tuple(self._listeners):
            listener(frame, False)
        if self.bridge is not None:
            self.bridge.forward(self, frame)
        elif self.stack is not None:
            self.stack.input(self, frame)

    def forward(self, source: Interface, frame: bytes) -> None:
        """As a bridge: to the other members, and to the host's own stack."""
        for member in self.members:
            if member is not source:
                member.send(frame)
        if self.up and self.stack is not None:
            self.received += 1
            self.received_bytes += len(frame)
            self.stack.input(self, frame)


class Tap(Interface):
    """tap(4): the far end is a process, bhyve's virtio-net."""

    def __init__(self, name: str, mac: bytes) -> None:
        super().__init__(name, mac, self._to_process)
        self.groups = ["tap"]
        self.far_end: Callable[[bytes], None] | None = None
        """Takes what the host sends; ``None`` while no process has it open."""

    def _to_process(self, frame: bytes) -> bool:
        if self.far_end is None:
            return False
        self.far_end(frame)
        return True


@dataclass(slots=True)
class _Waiting:
    interface: Interface
    frames: list[bytes] = field(default_factory=list)


class Stack:
    """ARP and ICMP echo over a machine's interfaces.

    Args:
        lock: the machine's; one of its own if there is none.
    """

    def __init__(self, lock: AbstractContextManager[object] | None = None) -> None:
        self.lock = threading.RLock() if lock is None else lock
        self.interfaces: dict[str, Interface] = {}
        self._neighbours: dict[ipaddress.IPv4Address, bytes] = {}
        self._waiting: dict[ipaddress.IPv4Address, _Waiting] = {}
        self._echoes: dict[tuple[int, int], Echo] = {}
        self._next_identifier = 0x4000

    def add(self, interface: Interface) -> Interface:
        """A new interface."""
        interface.stack = self
        self.interfaces[interface.name] = interface
        return interface

    def remove(self, name: str) -> None:
        """An interface goes."""
        interface = self.interfaces.pop(name)
        interface.up = False
        if interface.bridge is not None:
            interface.bridge.members.remove(interface)
        for member in interface.members:
            member.bridge = None

    # -- out ------------------------------------------------------------------------------

    def route(self, destination: ipaddress.IPv4Address) -> Interface | None:
        """The interface on whose network an address is."""
        for interface in self.interfaces.values():
            if interface.up and any(destination in own.network for own in interface.addresses):
                return interface
        return None

    def new_identifier(self) -> int:
        """For a series of echo requests."""
        self._next_identifier = self._next_identifier % 0xFFFF + 1
        return self._next_identifier

    def echo(
        self, destination: str, identifier: int, sequence: int, payload: bytes, ttl: int = 64
    ) -> Echo | None:
        """Send an ICMP echo request; ``None``: there is no route."""
        with self.lock:
            return self._echo(
                ipaddress.IPv4Address(destination), identifier, sequence, payload, ttl
            )

    def _echo(
        self,
        address: ipaddress.IPv4Address,
        identifier: int,
        sequence: int,
        payload: bytes,
        ttl: int,
    ) -> Echo | None:
        if any(address == own.ip for each in self.interfaces.values() for own in each.addresses):
            echo = Echo()
            echo.answer(EchoReply(str(address), ttl, payload))
            return echo
        interface = self.route(address)
        if interface is None:
            return None
        echo = self._echoes[identifier, sequence & 0xFFFF] = Echo()
        while len(self._echoes) > _MOST_ECHOES:
            del self._echoes[next(iter(self._echoes))]
        own = next(each.ip for each in interface.addresses if address in each.network)
        body = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, identifier, sequence & 0xFFFF) + payload
        self._send(interface, own, address, _with_checksum(body), ttl)
        return echo

    def _send(
        self,
        interface: Interface,
        source: ipaddress.IPv4Address,
        destination: ipaddress.IPv4Address,
        icmp: bytes,
        ttl: int,
    ) -> None:
        header = struct.pack(
            "!BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(icmp), 0, 0, ttl, _ICMP, 0, source.packed, destination.packed),
        )
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        tail = interface.mac + _IPV4 + header + icmp
        neighbour = self._neighbours.get(destination)
        if any(destination == own.network.broadcast_address for own in interface.addresses):
            neighbour = BROADCAST
        if neighbour is not None:
            interface.send(neighbour + tail)
            return
        waiting = self._waiting.setdefault(destination, _Waiting(interface))
        waiting.frames = [*waiting.frames, tail][-4:]
        request = _arp(1, interface.mac, source, bytes(6), destination)
        interface.send(BROADCAST + interface.mac + _ARP + request)

    # -- in -------------------------------------------------------------------------------

    def input(self, interface: Interface, frame: bytes) -> None:
        """A frame for this machine, or for everybody."""
        if len(frame) < _HEADER:
            return
        if frame[:6] not in (interface.mac, BROADCAST) and not frame[0] & 1:
            return
        if frame[12:14] == _ARP and len(frame) >= 42:
            self._arp_input(interface, frame[14:42])
        elif frame[12:14] == _IPV4 and len(frame) >= 34 and frame[14] >> 4 == 4:
            self._ip_input(interface, frame[6:12], frame[14:])

    def _arp_input(self, interface: Interface, packet: bytes) -> None:
        (operation,) = struct.unpack_from("!H", packet, 6)
        sender_mac, sender = packet[8:14], ipaddress.IPv4Address(packet[14:18])
        target = ipaddress.IPv4Address(packet[24:28])
        if not any(target == own.ip for own in interface.addresses):
            return
        self._neighbours[sender] = sender_mac
        if operation == 1:
            reply = _arp(2, interface.mac, target, sender_mac, sender)
            interface.send(sender_mac + interface.mac + _ARP + reply)
        waiting = self._waiting.pop(sender, None)
        for tail in waiting.frames if waiting else ():
            interface.send(sender_mac + tail)

    def _ip_input(self, interface: Interface, sender: bytes, packet: bytes) -> None:
        start = (packet[0] & 0xF) * 4
        (total,) = struct.unpack_from("!H", packet, 2)
        source = ipaddress.IPv4Address(packet[12:16])
        destination = ipaddress.IPv4Address(packet[16:20])
        icmp = packet[start:total]
        ours = any(destination == own.ip for own in interface.addresses)
        if packet[9] != _ICMP or not ours or len(icmp) < 8 or checksum(packet[:start]):
            return
        if checksum(icmp):
            return
        kind, _, _, identifier, sequence = struct.unpack_from("!BBHHH", icmp)
        if kind == _ECHO_REQUEST:
            self._neighbours.setdefault(source, sender)
            reply = _with_checksum(bytes((_ECHO_REPLY, 0, 0, 0)) + icmp[4:])
            self._send(interface, destination, source, reply, 64)
        elif kind == _ECHO_REPLY and (identifier, sequence) in self._echoes:
            answer = EchoReply(str(source), packet[8], icmp[8:])
            self._echoes[identifier, sequence].answer(answer)

    def set_neighbour(self, address: ipaddress.IPv4Address, mac: bytes) -> None:
        """``arp -S``."""
        self._neighbours[address] = mac

    def forget_neighbour(self, address: ipaddress.IPv4Address) -> None:
        """``arp -d``."""
        self._neighbours.pop(address, None)

    def forget_neighbours(self) -> None:
        """Empty the ARP table."""
        self._neighbours.clear()


def _with_checksum(icmp: bytes) -> bytes:
    blank = icmp[:2] + b"\0\0" + icmp[4:]
    return blank[:2] + struct.pack("!H", checksum(blank)) + blank[4:]


def _arp(
    operation: int,
    sender_mac: bytes,
    sender: ipaddress.IPv4Address,
    target_mac: bytes,
    target: ipaddress.IPv4Address,
) -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + sender_mac + sender.packed + target_mac + target.packed


class Responder:
    """A far end that answers ARP and echoes for one address: the recorded host's was QEMU's."""

    def __init__(self, address: str, send: Callable[[bytes], None]) -> None:
        self._stack = Stack()
        self._interface = Interface("responder", bytes.fromhex("525500000002"), self._out)
        self._interface.addresses = [ipaddress.IPv4Interface(address)]
        self._interface.up = True
        self._stack.add(self._interface)
        self._send = send

    def _out(self, frame: bytes) -> bool:
        if frame[12:14] == _IPV4:  # slirp's echoes say 255
            header = frame[14:22] + b"\xff" + frame[23:24] + b"\0\0" + frame[26:34]
            frame = (
                frame[:14]
                + header[:10]
                + struct.pack("!H", checksum(header))
                + header[12:]
                + frame[34:]
            )
        self._send(frame)
        return True

    def receive(self, frame: bytes) -> None:
        """As the end of a cable."""
        self._interface.receive(frame)
