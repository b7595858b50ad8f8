"""A user-space driver that runs *inside the guest*, by ``python3 -c`` over SSH.

It is sent as text and installs nothing; standard library only.  It takes one JSON object
a line on standard input and answers one a line: ``{"ok": …}`` or ``{"error": "…"}``.

Functions are driven through VFIO without an IOMMU (the guest has none): the kernel gives
registers, configuration space and interrupts by file descriptor.  DMA memory is locked and
its physical addresses come from ``/proc/self/pagemap``.

Sources: include/uapi/linux/vfio.h; Documentation/admin-guide/mm/pagemap.rst of Linux.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import json
import mmap
import os
import select
import struct
import subprocess
import sys
import time
from typing import Any

PAGE = 4096
HUGE = 2 << 20
MAP_HUGETLB = 0x40000

VFIO = 0x3B << 8
SET_IOMMU, GET_STATUS, SET_CONTAINER = VFIO | 102, VFIO | 103, VFIO | 104
GET_DEVICE, GET_IRQ_INFO, SET_IRQS = VFIO | 106, VFIO | 109, VFIO | 110
DEVICE_RESET = VFIO | 111
NOIOMMU = 8
INTX, MSI, MSIX = 0, 1, 2
DATA_NONE, DATA_EVENTFD, ACTION_TRIGGER, ACTION_UNMASK = 1, 4, 32, 16
CONFIG_REGION = 7
SYSFS = "/sys/bus/pci/devices/"


def write_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def read_text(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


class Device:
    """One function, taken from its driver and held through VFIO."""

    def __init__(self, address: str) -> None:
        self.address = address
        subprocess.run(["modprobe", "vfio-pci"], check=False)
        unsafe = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
        write_text(unsafe, "1")
        path = SYSFS + address
        write_text(path + "/driver_override", "vfio-pci")
        if os.path.exists(path + "/driver"):
            write_text(path + "/driver/unbind", address)
        write_text("/sys/bus/pci/drivers_probe", address)
        group = os.path.basename(os.readlink(path + "/iommu_group"))
        self.container = os.open("/dev/vfio/vfio", os.O_RDWR)
        self.group = os.open("/dev/vfio/noiommu-" + group, os.O_RDWR)
        fcntl.ioctl(self.group, SET_CONTAINER, struct.pack("i", self.container))
        fcntl.ioctl(self.container, SET_IOMMU, NOIOMMU)
        # With a mutable buffer, ioctl returns what the kernel returned: the descriptor.
        self.fd: int = fcntl.ioctl(self.group, GET_DEVICE, bytearray(address.encode() + b"\0"))
        self.events: list[int] = []
        self.index = 0
        command = struct.unpack("<H", self.read(CONFIG_REGION, 4, 2))[0]
        self.write(CONFIG_REGION, 4, struct.pack("<H", command | 0x6))

    def read(self, region: int, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, (region << 40) + offset)

    def write(self, region: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.fd, data, (region << 40) + offset)

    def vectors(self, index: int) -> int:
        info = bytearray(struct.pack("4I", 16, 0, index, 0))
        fcntl.ioctl(self.fd, GET_IRQ_INFO, info)
        return int(struct.unpack("4I", info)[3])

    def open_vectors(self, index: int, count: int) -> None:
        self.close_vectors()
        self.events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        head = struct.pack("5I", 20 + 4 * count, DATA_EVENTFD | ACTION_TRIGGER, index, 0, count)
        fcntl.ioctl(self.fd, SET_IRQS, head + struct.pack("%di" % count, *self.events))
        self.index = index

    def close_vectors(self) -> None:
        if self.events:
            none = struct.pack("5I", 20, DATA_NONE | ACTION_TRIGGER, self.index, 0, 0)
            fcntl.ioctl(self.fd, SET_IRQS, none)
        for event in self.events:
            os.close(event)
        self.events = []

    def counts(self, settle: float) -> list[int]:
        """Events since the last call, by vector, once none has come for ``settle`` s."""
        counts = [0] * len(self.events)
        while True:
            ready, _, _ = select.select(self.events, [], [], settle)
            if not ready:
                return counts
            for event in ready:
                counts[self.events.index(event)] += os.eventfd_read(event)

    def close(self) -> None:
        self.close_vectors()
        for fd in (self.fd, self.group, self.container):
            os.close(fd)
        path = SYSFS + self.address
        write_text(path + "/driver_override", "\n")
        write_text(path + "/driver/unbind", self.address)
        write_text("/sys/bus/pci/drivers_probe", self.address)


class Memory:
    """Physically contiguous, locked memory of 2 MiB pages."""

    def __init__(self, size: int) -> None:
        count = -(-size // HUGE)
        self.size = count * HUGE
        path = "/proc/sys/vm/nr_hugepages"
        free = [
            line for line in read_text("/proc/meminfo").splitlines() if "HugePages_Free" in line
        ]
        missing = count - int(free[0].split()[1])
        if missing > 0:
            write_text(path, str(int(read_text(path)) + missing))
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB
        self.map = mmap.mmap(-1, self.size, flags)
        for at in range(0, self.size, HUGE):
            self.map[at] = 0
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.pages: list[int] = []
        with open("/proc/self/pagemap", "rb") as file:
            for at in range(0, self.size, HUGE):
                file.seek((start + at) // PAGE * 8)
                (entry,) = struct.unpack("<Q", file.read(8))
                if not entry >> 63 or not entry & ((1 << 55) - 1):
                    raise OSError("pagemap tells no physical address")
                self.pages.append((entry & ((1 << 55) - 1)) * PAGE)


devices: dict[str, Device] = {}
memories: list[Memory] = []


def bar_read(device: str, bar: int, offset: int, width: int) -> int:
    data = devices[device].read(bar, offset, width)
    if len(data) != width:
        raise OSError("short read of BAR %d at %#x" % (bar, offset))
    return int.from_bytes(data, "little")


def bar_write(device: str, bar: int, offset: int, width: int, value: int) -> None:
    devices[device].write(bar, offset, value.to_bytes(width, "little"))


def do_open(address: str) -> bool:
    if address not in devices:
        devices[address] = Device(address)
    return True


def do_close(address: str) -> bool:
    devices.pop(address).close()
    return True


def do_reset(address: str) -> bool:
    fcntl.ioctl(devices[address].fd, DEVICE_RESET)
    return True


def do_read(address: str, bar: int, offset: int, width: int) -> int:
    return bar_read(address, bar, offset, width)


def do_write(address: str, bar: int, offset: int, width: int, value: int) -> bool:
    bar_write(address, bar, offset, width, value)
    return True


def do_wait(
    address: str, bar: int, offset: int, width: int, mask: int, value: int, seconds: float
) -> int:
    """Poll a register until ``register & mask == value``; tells the last value."""
    end = time.monotonic() + seconds
    while True:
        now = bar_read(address, bar, offset, width)
        if now & mask == value:
            return now
        if time.monotonic() > end:
            raise OSError("register %#x stayed at %#x for %s s" % (offset, now, seconds))
        time.sleep(0.001)


def do_transfer(address: str, bar: int, writes: list[list[int]], wait: list[int]) -> int:
    """Register writes, then a wait, in one go: [[offset, width, value], …]."""
    for offset, width, value in writes:
        bar_write(address, bar, offset, width, value)
    return do_wait(address, bar, *wait)


def do_allocate(size: int) -> dict[str, Any]:
    memories.append(Memory(size))
    return {"id": len(memories) - 1, "size": memories[-1].size, "pages": memories[-1].pages}


def do_fill(memory: int, offset: int, data: str) -> bool:
    raw = base64.b64decode(data)
    memories[memory].map[offset : offset + len(raw)] = raw
    return True


def do_dump(memory: int, offset: int, length: int) -> str:
    return base64.b64encode(memories[memory].map[offset : offset + length]).decode()


def do_vectors(address: str, index: int) -> int:
    return devices[address].vectors(index)


def do_open_vectors(address: str, index: int, count: int) -> bool:
    devices[address].open_vectors(index, count)
    return True


def do_counts(address: str, settle: float) -> list[int]:
    return devices[address].counts(settle)


def do_unmask(address: str) -> bool:
    data = struct.pack("5I", 20, DATA_NONE | ACTION_UNMASK, INTX, 0, 1)
    fcntl.ioctl(devices[address].fd, SET_IRQS, data)
    return True


def main() -> None:
    commands: dict[str, Any] = {
        name[3:]: value for name, value in globals().items() if name.startswith("do_")
    }
    print(json.dumps({"ok": sorted(commands)}), flush=True)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            name = request.pop("do")
            answer = {"ok": commands[name](**request)}
        except Exception as error:  # told to the other side, which raises it there
            answer = {"error": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
