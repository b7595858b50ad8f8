"""A socket in front of a byte stream, for libraries that talk to sockets only."""

from __future__ import annotations

import contextlib
import socket
import threading

from hil.errors import LabError
from hil.transport.base import ByteStream


def socket_pair_for(stream: ByteStream) -> socket.socket:
    """A connected socket whose bytes go to and come from ``stream``.

    Two threads pump.  Closing the socket closes the stream; the stream's end is
    the socket's end.
    """
    near, far = socket.socketpair()

    def inward() -> None:
        with contextlib.suppress(OSError, LabError):
            while chunk := stream.read():
                far.sendall(chunk)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def outward() -> None:
        with contextlib.suppress(OSError, LabError):
            while chunk := far.recv(65536):
                stream.write(chunk)
        stream.close()

    for pump in (inward, outward):
        threading.Thread(target=pump, name=f"hil-socket-{pump.__name__}", daemon=True).start()
    return near
