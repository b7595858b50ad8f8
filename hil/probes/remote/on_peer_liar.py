"""Answers ARP and ICMP echo for one IPv4 address, and changes a byte of each answer.

Runs *on the peer*, by ``python3 -c`` over SSH.  Arguments: interface, IPv4 address.  Ends
when its standard input does.  It is a control: proof that the echo oracle compares.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack("!%dH" % (len(data) // 2), data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def answer(frame: bytes, own_mac: bytes, own_address: bytes) -> bytes | None:
    if len(frame) < 42:  # shorter than an ARP packet, or than an echo request with no data
        return None
    source = frame[6:12]
    kind = frame[12:14]
    if kind == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == own_address:
        body = frame[14:20] + b"\0\2" + own_mac + own_address + frame[22:32]
        return source + own_mac + kind + body
    if kind != b"\x08\0" or frame[23] != 1 or frame[30:34] != own_address:
        return None
    start = 14 + (frame[14] & 15) * 4
    end = 14 + struct.unpack("!H", frame[16:18])[0]
    if frame[start : start + 1] != b"\x08":
        return None
    payload = bytearray(frame[start + 4 : end])
    if len(payload) < 5:  # identifier and number only: no data to change
        return None
    payload[-1] ^= 0x20
    icmp = b"\0\0" + struct.pack("!H", checksum(b"\0\0\0\0" + payload)) + payload
    header = bytearray(frame[14:start])
    header[12:16], header[16:20] = frame[30:34], frame[26:30]
    return source + own_mac + kind + bytes(header) + icmp


def main() -> None:
    interface, address = sys.argv[1:3]
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    port.bind((interface, 0))
    # The address is nobody's, so frames come to this MAC only after our ARP answer.
    own_mac = port.getsockname()[4]
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([port.fileno(), 0], [], [])
        if 0 in ready and not os.read(0, 65536):
            return
        if port.fileno() in ready:
            frame, where = port.recvfrom(65536)
            if where[2] != socket.PACKET_OUTGOING:
                reply = answer(frame, own_mac, socket.inet_aton(address))
                if reply is not None:
                    port.send(reply)


if __name__ == "__main__":
    main()
