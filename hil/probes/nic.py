"""Network probes with base tools: the echo oracle and a blast of frames.

``ping -p PATTERN -s SIZE`` makes the guest's NIC read and write guest memory by DMA, and
compares each returned byte (ping(8)).
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hil.bench import BenchDevice, Peer
from hil.deadline import poll
from hil.errors import DeadlineExceeded, LabError, ProductError
from hil.guests.guest import Guest
from hil.transport.quoting import quote

#: ICMP payload sizes: around every power of two up to what an Ethernet frame carries.
SIZES = (16, 56, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1472)
#: ping compares only what follows its time stamp.
MINIMUM = 16


@dataclass(frozen=True, slots=True)
class Echo:
    """What ping said: packets sent and answered, and complaints about wrong bytes."""

    sent: int
    answered: int
    complaints: tuple[str, ...] = ()


def parse_ping(text: str) -> Echo:
    """The outcome from what ping printed (iputils, busybox and FreeBSD alike).

    Raises:
        LabError: there is no summary line in it.
    """
    match = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", text)
    if not match:
        raise LabError("ping printed no summary", seen=text)
    complaints = [
        line.strip()
        for line in text.splitlines()
        if re.search(r"wrong data byte|DUP!|truncated|corrupt", line, re.IGNORECASE)
    ]
    return Echo(int(match[1]), int(match[2]), tuple(complaints))


def join(guest: Guest, device: BenchDevice, index: int = 0) -> Peer:
    """Give both ends of the device's cable an address and wait for the link; the far end."""
    peer = device.peer
    if peer is None:
        raise LabError(f"{device} has no peer in the inventory")
    peer.configure()
    interface = guest.interface_of(device.address)
    guest.run(guest.os.configure_interface(interface, peer.address_for(index))).check()
    wait_for_link(guest, peer)
    return peer


def echo(
    guest: Guest, peer: Peer, *, sizes: Sequence[int] = SIZES, count: int = 2, tag: str = ""
) -> int:
    """Each size's pattern comes back unchanged, each packet once.  Returns packets sent.

    ``tag`` (up to 12 ASCII characters) stands in each payload, so that a packet can be
    told from every other guest's.

    Raises:
        ProductError: packets were lost, or came back with wrong bytes.
    """
    tag = tag or secrets.token_hex(4)
    planned = [max(size, MINIMUM) for size in sizes for _ in range(count)]
    pings = [
        guest.os.ping(peer.address, size=size, pattern=f"{tag:.12}{number:04d}".encode())
        for number, size in enumerate(planned)
    ]
    script = "\n".join(quote(ping) for ping in pings) + "\ntrue\n"
    result = guest.run(["sh", "-c", script], seconds=10 + 1.5 * len(pings)).check()
    answers = [
        parse_ping("PING" + part)
        for part in re.split(r"^PING", result.stdout, flags=re.MULTILINE)[1:]
    ]
    if len(answers) != len(pings):
        raise LabError(
            f"{len(pings)} pings gave {len(answers)} answers", seen=result.stdout + result.stderr
        )
    wrong: list[str] = []
    for number, (size, seen) in enumerate(zip(planned, answers, strict=True)):
        if not seen.sent == seen.answered == 1 or seen.complaints:
            came = "came back changed" if seen.answered else "did not come back"
            wrong.append(f"packet {number} of {size} bytes {came}")
            wrong += [f"    {line}" for line in seen.complaints[:5]]
    if wrong:
        raise ProductError(
            f"the NIC of guest {guest.name} lost or changed packets", seen="\n".join(wrong)
        )
    return sum(seen.sent for seen in answers)


def wait_for_link(guest: Guest, peer: Peer) -> None:
    """Wait until the first echo comes back.

    Raises:
        ProductError: none does, for 20 seconds.
    """
    command = guest.os.ping(peer.address, size=56)
    try:
        poll(
            lambda: guest.run(command, seconds=15).status == 0,
            guest.limit(20, f"the link to {peer.address}"),
            interval=0.1,
        )
    except DeadlineExceeded as error:
        raise ProductError(
            f"the NIC of guest {guest.name} gets no answer from {peer.address}",
            seen=error.message,
            hint=f"does {peer.interface} of {peer.host.name} have a link, and the other end of it?",
        ) from error


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets that a host's interface received and sent."""

    received: int
    sent: int


def counters(peer: Peer) -> Counters:
    """Of the peer's interface."""
    deadline = peer.host.limit(10, f"the counters of {peer.interface}")
    commands = (
        peer.system.received_frames(peer.interface),
        peer.system.sent_frames(peer.interface),
    )
    received, sent = (
        int(peer.host.platform.transport.run(command, deadline=deadline).check().stdout)
        for command in commands
    )
    return Counters(received, sent)


def nobody(peer: Peer) -> Peer:
    """An address on the same link that nobody has: for controls."""
    return Peer(peer.host, peer.interface, f"{peer.address.rpartition('.')[0]}.250")


@contextlib.contextmanager
def liar(peer: Peer) -> Iterator[Peer]:
    """On the peer's interface, an answerer of echoes that changes one byte: for controls."""
    address = f"{peer.address.rpartition('.')[0]}.251"
    with _on_peer(peer, "the answerer", peer.system.lie(peer.interface, address)):
        yield Peer(peer.host, peer.interface, address)


@contextlib.contextmanager
def blast(peer: Peer, destination_mac: str, *, payload: bytes) -> Iterator[None]:
    """The peer sends frames to ``destination_mac`` as fast as it can, whoever listens.

    It does not stop when the destination dies: that is the point.
    """
    command = peer.system.flood(peer.interface, destination_mac, payload)
    with _on_peer(peer, "the flood", command):
        yield


@contextlib.contextmanager
def _on_peer(peer: Peer, program: str, command: Sequence[str]) -> Iterator[None]:
    deadline = peer.host.limit(20, f"{program} on {peer.interface}")
    stream = peer.host.platform.transport.open_stream(command, deadline=deadline)
    try:
        first = stream.read()
        if not first.startswith(b"ready"):
            raise LabError(
                f"{program} does not run on the peer {peer.interface}",
                host=peer.host.name,
                seen=first.decode("utf-8", "replace"),
            )
        yield
    finally:
        stream.close()
