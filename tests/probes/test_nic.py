"""The network probes, on what pings of three systems print."""

from __future__ import annotations

import runpy
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import hil.probes
from hil.bench import BenchDevice, BenchHost, Peer
from hil.errors import LabError, ProductError
from hil.guests.guest import Guest
from hil.platforms.contract import GuestSpec
from hil.probes import host_io, nic
from hil.probes.nic import Echo, parse_ping
from tests.console.streams import ScriptedStream
from tests.fakes import (
    NIC,
    Answer,
    FakeMachine,
    FakeOS,
    FakePlatform,
    FakeTransport,
    function,
    silent,
)

# FreeBSD's is what a 13.2 guest with a passed NIC printed; the others are in the form of
# iputils 20221126 (ping/ping_common.c) and of busybox 1.35 (networking/ping.c).
FREEBSD = """\
PING 10.0.50.2 (10.0.50.2): 56 data bytes
64 bytes from 10.0.50.2: icmp_seq=0 ttl=255 time=12.689 ms
64 bytes from 10.0.50.2: icmp_seq=1 ttl=255 time=3.526 ms
64 bytes from 10.0.50.2: icmp_seq=2 ttl=255 time=2.133 ms
64 bytes from 10.0.50.2: icmp_seq=3 ttl=255 time=3.850 ms

--- 10.0.50.2 ping statistics ---
4 packets transmitted, 4 packets received, 0.0% packet loss
round-trip min/avg/max/stddev = 2.133/5.549/12.689/4.172 ms
"""
IPUTILS = """\
PATTERN: 0x61626364
PING 198.18.1.1 (198.18.1.1) 100(128) bytes of data.
108 bytes from 198.18.1.1: icmp_seq=1 ttl=64 time=1.07 ms

--- 198.18.1.1 ping statistics ---
1 packets transmitted, 1 received, 0% packet loss, time 0ms
rtt min/avg/max/mdev = 1.074/1.074/1.074/0.000 ms
"""
BUSYBOX = """\
PING 198.18.1.1 (198.18.1.1): 56 data bytes
64 bytes from 198.18.1.1: seq=0 ttl=64 time=0.611 ms

--- 198.18.1.1 ping statistics ---
1 packets transmitted, 1 packets received, 0% packet loss
round-trip min/avg/max = 0.611/0.611/0.611 ms
"""
WRONG = IPUTILS.replace(
    "time=1.07 ms\n", "time=1.07 ms\nwrong data byte #100 should be 0x61 but was 0x41\n#16\t61 62\n"
)
LOST = IPUTILS.replace("1 received, 0%", "0 received, +1 errors, 100%")
TWICE = IPUTILS.replace("1.07 ms\n", "1.07 ms\n108 bytes from 198.18.1.1: time=1.2 ms (DUP!)\n")
CUT = IPUTILS.replace("time=1.07 ms", "time=1.07 ms (truncated)")
NONE = IPUTILS.replace("1 packets transmitted, 1 received", "0 packets transmitted, 0 received")


@pytest.mark.parametrize(
    ("text", "sent", "answered", "complaints"),
    [
        (FREEBSD, 4, 4, 0),
        (IPUTILS, 1, 1, 0),
        (BUSYBOX, 1, 1, 0),
        (WRONG, 1, 1, 1),
        (LOST, 1, 0, 0),
        (TWICE, 1, 1, 1),
        (CUT, 1, 1, 1),
        (NONE, 0, 0, 0),
    ],
)
def test_pings_of_three_systems(text: str, sent: int, answered: int, complaints: int) -> None:
    echo = parse_ping(text)
    assert (echo.sent, echo.answered, len(echo.complaints)) == (sent, answered, complaints)
    assert parse_ping(text.replace("\n", "\r\n")) == echo


@given(st.text())
@example("connect: Network is unreachable")
def test_without_a_summary_nothing_is_believed(text: str) -> None:
    assume("transmitted" not in text)
    with pytest.raises(LabError, match="no summary"):
        parse_ping(text)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_summary_s_numbers(sent: int, answered: int) -> None:
    for words in ("received", "packets received"):
        assert parse_ping(f"x\n{sent} packets transmitted, {answered} {words}, y") == Echo(
            sent, answered
        )


def lab(host: FakeTransport | None = None) -> tuple[BenchDevice, Peer]:
    platform = FakePlatform(function(NIC, interfaces=["eth1"]))
    platform.transport = host or FakeTransport()
    where = BenchHost("lab1", platform, pace=0.02)
    peer = Peer(where, "eth2", "198.18.1.1")
    return BenchDevice("nic0", "nic", where, (NIC,), peer=peer), peer


def guest(answer: Callable[[tuple[str, ...], bytes], Answer]) -> Guest:
    spec = GuestSpec("g1", "linux", devices=(NIC,))
    return Guest(FakeMachine(spec, silent(), FakeTransport(answer)), FakeOS(), pace=0.02)


def pings(command: tuple[str, ...]) -> int:
    return command[-1].count("ping -n")


def test_an_echo_passes_when_each_packet_comes_back() -> None:
    sizes: list[str] = []

    def answer(command: tuple[str, ...], _stdin: bytes) -> Answer:
        words = command[-1].split()
        sizes.extend(words[i + 1] for i, word in enumerate(words) if word == "-s")
        return 0, IPUTILS * pings(command), ""

    assert nic.echo(guest(answer), lab()[1], sizes=(1, 64, 1472), count=2) == 6
    assert sizes == ["16", "16", "64", "64", "1472", "1472"]


@pytest.mark.parametrize("bad", [WRONG, LOST, TWICE, CUT, NONE])
def test_an_echo_fails_by_a_single_bad_packet(bad: str) -> None:
    def answer(command: tuple[str, ...], _stdin: bytes) -> Answer:
        return 0, IPUTILS * 2 + bad + IPUTILS * (pings(command) - 3), ""

    with pytest.raises(ProductError, match="lost or changed packets") as caught:
        nic.echo(guest(answer), lab()[1], sizes=(64, 1472), count=2)
    assert "packet 2 of 1472 bytes" in caught.value.seen


def test_a_missing_answer_is_not_taken_for_a_good_one() -> None:
    with pytest.raises(LabError, match="2 pings gave 1 answers"):
        nic.echo(guest(lambda *_: (0, IPUTILS, "")), lab()[1], sizes=(64,), count=2)


def test_each_packet_has_a_pattern_of_its_own() -> None:
    seen: list[bytes] = []

    def answer(command: tuple[str, ...], _stdin: bytes) -> Answer:
        words = command[-1].split()
        seen.extend(bytes.fromhex(words[i + 1]) for i, word in enumerate(words) if word == "-p")
        return 0, IPUTILS * pings(command), ""

    nic.echo(guest(answer), lab()[1], sizes=(64,) * 5, tag="TAGGED-TAG-LONG")
    assert len(set(seen)) == len(seen) == 10
    assert all(pattern.startswith(b"TAGGED-TAG-L") and len(pattern) == 16 for pattern in seen)


def test_the_far_end_is_joined_and_waited_for() -> None:
    device, peer = lab()
    tries = iter([1, 1, 0])

    def answer(command: tuple[str, ...], _stdin: bytes) -> Answer:
        if command[0] == "ping":
            return next(tries), "", ""
        return 0, "eth0\n", ""

    assert nic.join(guest(answer), device) is peer
    assert [entry.undo.kind for entry in peer.host.platform.journal.outstanding] == ["address"]
    peer.restore()
    assert not peer.host.platform.journal.outstanding
    device.peer = None
    with pytest.raises(LabError, match="has no peer"):
        nic.join(guest(answer), device)


def test_addresses_for_controls_are_on_the_same_link() -> None:
    _, peer = lab()
    assert nic.nobody(peer).address == "198.18.1.250"
    host = FakeTransport()
    host.streams.append(ScriptedStream([b"ready\n"]))
    _, peer = lab(host)
    with nic.liar(peer) as liar:
        assert liar.address == "198.18.1.251"
    assert host.commands[-1][-2:] == ("eth2", "198.18.1.251")


def test_a_program_that_does_not_run_on_the_peer_is_the_lab_s() -> None:
    host = FakeTransport()
    stream = ScriptedStream([b"Traceback: Operation not permitted\n"])
    host.streams.append(stream)
    blast = nic.blast(lab(host)[1], "52:54:00:11:00:00", payload=b"\xab")
    with pytest.raises(LabError, match="does not run on the peer") as caught, blast:
        pytest.fail("it does not run")
    assert "not permitted" in caught.value.seen
    assert stream._closed


def test_the_host_s_own_frames_arrive_or_do_not() -> None:
    counts = iter([5, 0, 5, 0])  # received and sent, before and after the first try

    def answer(command: tuple[str, ...], _stdin: bytes) -> Answer:
        return (0, f"{next(counts, 9)}\n", "") if command[0] == "cat" else (0, "", "")

    host_io.check(lab(FakeTransport(answer))[0])
    with pytest.raises(ProductError, match="eth2 has received nothing from eth1"):
        host_io.check(lab(FakeTransport(lambda *_: (0, "7\n", "")))[0])


# ---- the programs that run on the peer, as functions --------------------------------

_liar: dict[str, Any] = runpy.run_path(
    str(Path(hil.probes.__file__).with_name("remote") / "on_peer_liar.py")
)
answer: Callable[[bytes, bytes, bytes], bytes | None] = _liar["answer"]
checksum: Callable[[bytes], int] = _liar["checksum"]
OWN, THEIRS = bytes.fromhex("525400110001"), bytes.fromhex("525400110000")
OWN_ADDRESS, THEIR_ADDRESS = socket.inet_aton("198.18.1.251"), socket.inet_aton("198.18.1.10")


def test_checksum_is_rfc_1071_s() -> None:
    # The RFC's own example, and an IP header that is widely used as one.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF ^ 0xDDF2
    assert checksum(bytes.fromhex("450000730000400040110000c0a80001c0a800c7")) == 0xB861


@given(st.binary(max_size=200))
def test_what_carries_its_checksum_sums_to_nothing(data: bytes) -> None:
    data += bytes(len(data) % 2)
    assert checksum(data + struct.pack("!H", checksum(data))) == 0


def request(
    payload: bytes, *, kind: int = 8, to: bytes = OWN_ADDRESS, options: bytes = b""
) -> bytes:
    icmp = struct.pack("!BBHHH", kind, 0, 0, 7, 1) + payload
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    length = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | length, 0, length * 4 + len(icmp), 1, 0, 64, 1, 0)
    head += THEIR_ADDRESS + to + options
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return OWN + THEIRS + b"\x08\0" + head + icmp


@given(st.binary(min_size=1, max_size=1472), st.sampled_from([b"", bytes(4), bytes(40)]))
def test_the_liar_answers_with_one_byte_changed_and_a_right_checksum(
    payload: bytes, options: bytes
) -> None:
    # Ethernet pads short frames: what lies behind the packet is no part of it.
    frame = request(payload, options=options)
    reply = answer(frame + bytes(max(0, 60 - len(frame))), OWN, OWN_ADDRESS)
    assert reply is not None
    assert reply[:14] == THEIRS + OWN + b"\x08\0"
    start = 14 + 20 + len(options)
    header, icmp = reply[14:start], reply[start:]
    assert header[12:20] == OWN_ADDRESS + THEIR_ADDRESS
    assert checksum(header) == 0
    assert checksum(icmp + bytes(len(icmp) % 2)) == 0
    assert icmp[0] == 0
    assert icmp[4:8] == struct.pack("!HH", 7, 1)
    wrong = [a for a, b in zip(icmp[8:], payload, strict=True) if a != b]
    assert len(wrong) == 1


def test_the_liar_tells_who_has_the_address() -> None:
    question = bytes.fromhex("0001080006040001") + THEIRS + THEIR_ADDRESS + bytes(6) + OWN_ADDRESS
    reply = answer(b"\xff" * 6 + THEIRS + b"\x08\x06" + question + bytes(18), OWN, OWN_ADDRESS)
    assert reply == (
        THEIRS
        + OWN
        + b"\x08\x06"
        + bytes.fromhex("0001080006040002")
        + OWN
        + OWN_ADDRESS
        + THEIRS
        + THEIR_ADDRESS
    )


@pytest.mark.parametrize(
    "frame",
    [
        request(b"x" * 30, kind=0),
        request(b"x" * 30, to=THEIR_ADDRESS),
        request(b""),
        request(b"x" * 30)[:40],
        b"",
        bytes(60),
    ],
)
def test_the_liar_answers_nothing_else(frame: bytes) -> None:
    assert answer(frame, OWN, OWN_ADDRESS) is None


@given(st.data())
def test_no_frame_ends_the_liar(data: st.DataObject) -> None:
    frame = bytearray(request(data.draw(st.binary(max_size=80))))
    for _ in range(data.draw(st.integers(0, 6))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    del frame[data.draw(st.integers(0, len(frame))) :]
    reply = answer(bytes(frame), OWN, OWN_ADDRESS)
    assert reply is None or reply[6:12] == OWN
