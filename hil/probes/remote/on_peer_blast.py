"""Sends Ethernet frames without end; runs *on the peer*, by ``python3 -c`` over SSH.

Arguments: interface, destination MAC, payload in hexadecimal.  Ends when its standard
input does.  EtherType 0x88B5 is for local experiments (IEEE 802, RFC 7042).
"""

import os
import select
import socket
import struct
import sys


def main() -> None:
    interface, destination, payload = sys.argv[1:4]
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind((interface, 0))
    source = sender.getsockname()[4]
    data = bytes.fromhex(payload)
    head = bytes.fromhex(destination.replace(":", "")) + source + b"\x88\xb5"
    print("ready", flush=True)
    number = 0
    while True:
        for _ in range(64):
            body = struct.pack(">Q", number) + data
            try:
                sender.send(head + body.ljust(1486, data[-1:] or b"\0"))
            except OSError:  # the queue is full, or the link is down for a moment
                select.select([], [], [], 0.0005)
            number += 1
        # A breath for the others on this host's processors; some ten thousand frames a second.
        if select.select([0], [], [], 0.002)[0] and not os.read(0, 65536):
            return


if __name__ == "__main__":
    main()
