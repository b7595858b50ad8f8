"""A user-space driver that runs *inside the guest*, by ``python3 -c`` over SSH.

It is sent as text and installs nothing; standard library only.  It takes one JSON object
a line on standard input and answers one a line: ``{"ok": …}`` or ``{"error": "…"}``.

Registers are reached by mmap of sysfs ``resourceN``, interrupts of functions without a driver
through uio_pci_generic.  DMA memory is of huge pages, which stay where they are; their physical
addresses come from ``/proc/self/pagemap``.

Sources: Documentation/PCI/sysfs-pci.rst, Documentation/driver-api/uio-howto.rst and
Documentation/admin-guide/mm/pagemap.rst of Linux.
"""

from __future__ import annotations

import base64
import ctypes
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

SYSFS = "/sys/bus/pci/devices/"


def write_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def read_text(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


#: Bits of COMMAND (PCIe 7.5.1.1.3).
MEMORY, BUS_MASTER, INTX_DISABLE = 0x2, 0x4, 0x400

KINDS: Any = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}


class Device:
    """A function's registers, and its interrupts where no driver of the guest has them."""

    def __init__(self, address: str) -> None:
        self.path = SYSFS + address
        self.bars: dict[int, mmap.mmap] = {}
        self.events = -1
        self.command(0, MEMORY | BUS_MASTER)

    def command(self, clear: int, put: int) -> None:
        """Change bits of the COMMAND register."""
        with open(self.path + "/config", "r+b", buffering=0) as config:
            config.seek(4)
            (value,) = struct.unpack("<H", config.read(2))
            config.seek(4)
            config.write(struct.pack("<H", value & ~clear | put))

    def register(self, bar: int, offset: int, width: int) -> Any:
        if bar not in self.bars:
            with open("%s/resource%d" % (self.path, bar), "r+b", buffering=0) as file:
                self.bars[bar] = mmap.mmap(file.fileno(), 0)
        return KINDS[width].from_buffer(self.bars[bar], offset)

    def listen(self) -> None:
        """Count INTx by uio_pci_generic, for a function that has no driver."""
        subprocess.run(["modprobe", "uio_pci_generic"], check=True)
        write_text(self.path + "/driver_override", "uio_pci_generic")
        write_text("/sys/bus/pci/drivers_probe", os.path.basename(self.path))
        name = os.listdir(self.path + "/uio")[0]
        self.events = os.open("/dev/" + name, os.O_RDWR)
        self.seen = 0
        self.unmask()

    def unmask(self) -> None:
        # The driver masks at each interrupt, and leaves it to its user to open again.
        self.command(INTX_DISABLE, 0)

    def count(self, settle: float) -> int:
        """Interrupts since the last call, once none has come for ``settle`` seconds."""
        came = 0
        while select.select([self.events], [], [], settle)[0]:
            (total,) = struct.unpack("I", os.read(self.events, 4))
            came += total - self.seen
            self.seen = total
        return came

    def close(self) -> None:
        if self.events >= 0:
            os.close(self.events)
            write_text(self.path + "/driver_override", "\n")
            write_text(self.path + "/driver/unbind", os.path.basename(self.path))


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


def do_open(address: str) -> bool:
    if address not in devices:
        devices[address] = Device(address)
    return True


def do_close(address: str) -> bool:
    devices.pop(address).close()
    return True


def do_read(address: str, bar: int, offset: int, width: int) -> int:
    return int(devices[address].register(bar, offset, width).value)


def do_write(address: str, bar: int, offset: int, width: int, value: int) -> bool:
    devices[address].register(bar, offset, width).value = value
    return True


def do_wait(
    address: str, bar: int, offset: int, width: int, mask: int, value: int, seconds: float
) -> int:
    """Poll a register until ``register & mask == value``; tells the last value."""
    end = time.monotonic() + seconds
    while True:
        now = do_read(address, bar, offset, width)
        if now & mask == value:
            return now
        if time.monotonic() > end:
            raise OSError("register %#x stayed at %#x for %s s" % (offset, now, seconds))
        time.sleep(0.001)


def do_transfer(address: str, bar: int, writes: list[list[int]], wait: list[int]) -> int:
    """Register writes, then a wait, in one go: [[offset, width, value], …]."""
    for offset, width, value in writes:
        do_write(address, bar, offset, width, value)
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


def do_listen(address: str) -> bool:
    devices[address].listen()
    return True


def do_count(address: str, settle: float) -> int:
    return devices[address].count(settle)


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
