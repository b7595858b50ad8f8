"""Draws on a display *inside the guest*, by ``python3 -c`` over SSH; standard library only.

It is sent as text and installs nothing; the loop that serves it comes behind it.  Linux.
Sources: include/uapi/drm/drm.h and drm_mode.h (Documentation/gpu/drm-uapi.rst), linux/fb.h.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import glob
import mmap
import os
import struct
import subprocess
import threading
import time
import zlib
from typing import Any

SYSFS = "/sys/bus/pci/devices/"


def request(number: int, size: int) -> int:
    """A DRM ioctl that reads and writes ``size`` bytes: _IOWR('d', number, …)."""
    return 3 << 30 | size << 16 | ord("d") << 8 | number


def call(file: int, number: int, form: str, *values: Any) -> list[Any]:
    """One ioctl on a struct of this form; the struct as the kernel left it."""
    data = bytearray(struct.pack(form, *values))
    fcntl.ioctl(file, request(number, len(data)), data)
    return list(struct.unpack(form, data))


def array(kind: Any, count: int) -> Any:
    return (kind * max(count, 1))()


RESOURCES = "=4Q8I"
ENCODER = "=5I"
CONNECTOR = "=4Q12I"
CRTC = "=Q7I68s"
FB = "=7I"
DIRTY = "=4IQ"
CREATE = "=6IQ"
MAP = "=2IQ"
CONNECTED = 1
MODE = 68  # bytes of struct drm_mode_modeinfo


def size_of(mode: bytes) -> tuple[int, int]:
    """Width and height: hdisplay and vdisplay."""
    (width,) = struct.unpack_from("=H", mode, 4)
    (height,) = struct.unpack_from("=H", mode, 14)
    return width, height


class Drm:
    by, why = "drm", ""

    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.memory: Any = None
        counts = call(self.file, 0xA0, RESOURCES, *[0] * 12)[4:8]
        self.crtcs, connectors = (
            array(ctypes.c_uint32, counts[1]),
            array(ctypes.c_uint32, counts[2]),
        )
        addresses = [0, ctypes.addressof(self.crtcs), ctypes.addressof(connectors), 0]
        call(self.file, 0xA0, RESOURCES, *addresses, 0, counts[1], counts[2], 0, *[0] * 4)
        for connector in list(connectors)[: counts[2]]:
            if self.look(connector):
                return
        raise OSError("%s: nothing is connected to any of its %d outputs" % (path, counts[2]))

    def look(self, connector: int) -> bool:
        """Whether something is connected to the output; remembers its modes and encoders."""
        # With no room for modes the kernel looks anew at what is connected.
        first = call(self.file, 0xA7, CONNECTOR, *[0] * 8, connector, *[0] * 7)
        if first[11] != CONNECTED or not first[4]:
            return False
        modes = array(ctypes.c_char, first[4] * MODE)
        encoders = array(ctypes.c_uint32, first[6])
        pointers = [ctypes.addressof(encoders), ctypes.addressof(modes), 0, 0]
        counts = [first[4], 0, first[6], 0]
        got = call(self.file, 0xA7, CONNECTOR, *pointers, *counts, connector, *[0] * 7)
        self.connector = connector
        self.modes = [bytes(modes[at * MODE : (at + 1) * MODE]) for at in range(got[4])]
        self.encoders = list(encoders)[: got[6]]
        return bool(self.modes)

    def sizes(self) -> list[tuple[int, int]]:
        return sorted({size_of(mode) for mode in self.modes})

    def crtc(self) -> int:
        possible = 0
        for encoder in self.encoders:
            possible |= call(self.file, 0xA6, ENCODER, encoder, 0, 0, 0, 0)[3]
        for index, crtc in enumerate(self.crtcs):
            if possible >> index & 1:
                return int(crtc)
        raise OSError("no CRTC can drive the output")

    def show(self, width: int, height: int, pixels: bytes) -> None:
        mode = next((mode for mode in self.modes if size_of(mode) == (width, height)), None)
        if mode is None:
            raise OSError("the display has no mode %d x %d" % (width, height))
        made = call(self.file, 0xB2, CREATE, height, width, 32, 0, 0, 0, 0)
        handle, self.pitch, size = made[4:7]
        self.fb = call(self.file, 0xAE, FB, 0, width, height, self.pitch, 32, 24, handle)[0]
        offset = call(self.file, 0xB3, MAP, handle, 0, 0)[2]
        self.memory = mmap.mmap(self.file, size, offset=offset)
        self.width, self.height = width, height
        self.draw(pixels)
        connectors = (ctypes.c_uint32 * 1)(self.connector)
        address = ctypes.addressof(connectors)
        call(self.file, 0xA2, CRTC, address, 1, self.crtc(), self.fb, 0, 0, 0, 1, mode)
        self.flush()

    def draw(self, pixels: bytes) -> None:
        put_rows(self.memory, 0, self.pitch, pixels, self.width * 4)

    def flush(self) -> None:
        """Some devices look at the buffer only when told that it has changed."""
        try:
            call(self.file, 0xB1, DIRTY, self.fb, 0, 0, 0, 0)
        except OSError:
            pass  # ENOSYS: this driver's device reads the buffer all the time


class FrameBuffer:
    """A frame buffer of the kernel's, in the mode that it has."""

    by = "fb"

    def __init__(self, path: str, why: str) -> None:
        self.why = "drawn through %s: %s" % (path, why)
        self.file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.memory: Any = None
        variable, fixed = bytearray(160), bytearray(80)
        fcntl.ioctl(self.file, 0x4600, variable)  # FBIOGET_VSCREENINFO
        fcntl.ioctl(self.file, 0x4602, fixed)  # FBIOGET_FSCREENINFO
        self.width, self.height = struct.unpack_from("=II", variable)
        self.left, self.top, bits = struct.unpack_from("=III", variable, 16)
        (self.length,) = struct.unpack_from("=I", fixed, 24)
        (self.pitch,) = struct.unpack_from("=I", fixed, 48)
        reds = struct.unpack_from("=I", variable, 32)[0]
        if bits != 32 or reds != 16:
            raise OSError("%s has %d bits a pixel, red from bit %d on" % (path, bits, reds))

    def sizes(self) -> list[tuple[int, int]]:
        return [(self.width, self.height)]

    def show(self, width: int, height: int, pixels: bytes) -> None:
        if (width, height) != (self.width, self.height):
            raise OSError("the frame buffer has no mode %d x %d" % (width, height))
        self.memory = mmap.mmap(self.file, self.length)
        self.draw(pixels)

    def draw(self, pixels: bytes) -> None:
        first = self.top * self.pitch + self.left * 4
        put_rows(self.memory, first, self.pitch, pixels, self.width * 4)

    def flush(self) -> None:
        pass


def put_rows(memory: Any, first: int, pitch: int, pixels: bytes, row: int) -> None:
    if pitch == row:
        memory[first : first + len(pixels)] = pixels
        return
    for at in range(0, len(pixels), row):
        memory[first : first + row] = pixels[at : at + row]
        first += pitch


def nodes(address: str, name: str) -> list[str]:
    """Device files of a function, by the folder of sysfs that its driver made."""
    found: list[str] = []
    for depth in ("", "*/"):  # virtio-gpu's driver is on a device of its own below the function
        found += glob.glob(SYSFS + address + "/" + depth + name)
    return [os.path.basename(path) for path in found]


def load_driver(address: str) -> None:
    """No daemon loads modules in a small guest."""
    for depth in ("", "*/"):
        for path in glob.glob(SYSFS + address + "/" + depth + "modalias"):
            with open(path) as file:
                subprocess.run(["modprobe", "-q", file.read().strip()])


display: Any = None


def do_open(address: str) -> dict[str, Any]:
    """Find the display of a function, waiting for its driver for some seconds."""
    global display
    if not os.path.isdir(SYSFS + address):
        raise OSError("there is no PCI function %s" % address)
    end = time.monotonic() + 15
    load_driver(address)
    while True:
        for name in nodes(address, "drm/card[0-9]*"):
            display = Drm("/dev/dri/" + name)
            break
        else:
            for name in nodes(address, "graphics/fb[0-9]*"):
                display = FrameBuffer("/dev/" + name, "its driver makes no /dev/dri/card")
        if display is not None:
            return {"by": display.by, "why": display.why, "modes": display.sizes()}
        if time.monotonic() > end:
            driver = os.path.basename(os.path.realpath(SYSFS + address + "/driver"))
            raise OSError("no driver made a display of %s (driver: %s)" % (address, driver))
        time.sleep(0.05)
        load_driver(address)


picture = b""


def do_show(width: int, height: int, data: str) -> bool:
    global picture
    picture = zlib.decompress(base64.b64decode(data))
    if len(picture) != width * height * 4:
        raise OSError("%d bytes are no picture of %d x %d" % (len(picture), width, height))
    display.show(width, height, picture)
    return True


def do_keep_drawing() -> bool:
    """Draw without end, from a thread; answers once a picture has been drawn."""
    negative = bytes(picture).translate(bytes(range(255, -1, -1)))
    begun = threading.Event()

    def draw() -> None:
        while True:
            for pixels in (negative, picture):
                display.draw(pixels)
                display.flush()
                begun.set()

    threading.Thread(target=draw, daemon=True).start()
    if not begun.wait(20):
        raise OSError("nothing was drawn within 20 s")
    return True
