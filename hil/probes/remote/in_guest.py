"""A user-space driver that runs *inside the guest*, by ``python3 -c`` over SSH.

It is sent as text and installs nothing; standard library only.  It takes one JSON object
a line on standard input and answers one a line: ``{"ok": …}`` or ``{"error": "…"}``.

On Linux registers are reached by mmap of sysfs ``resourceN``, interrupts of functions without a
driver through uio_pci_generic.  DMA memory is of huge pages, which stay where they are; their
physical addresses come from ``/proc/self/pagemap``.

On FreeBSD registers are reached by mmap of ``/dev/mem``.  DMA memory is what the loader was told to
keep from the kernel (``hw.physmem``), and where that is (``hil.dma``, ``0xSTART:0xSIZE``).

Sources: Documentation/PCI/sysfs-pci.rst, Documentation/driver-api/uio-howto.rst and
Documentation/admin-guide/mm/pagemap.rst of Linux; pciconf(8), mem(4) and loader.conf(5) of FreeBSD.
"""

from __future__ import annotations

import array
import base64
import ctypes
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

FREEBSD = sys.platform.startswith("freebsd")


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
    """A function's registers."""

    def __init__(self) -> None:
        self.bars: dict[int, Any] = {}
        self.command(0, MEMORY | BUS_MASTER)

    def command(self, clear: int, put: int) -> None:
        """Change bits of the COMMAND register."""
        raise NotImplementedError

    def map(self, bar: int) -> Any:
        """A BAR's registers, mapped."""
        raise NotImplementedError

    def memory(self, bar: int) -> Any:
        """A BAR, mapped once."""
        if bar not in self.bars:
            self.bars[bar] = self.map(bar)
        return self.bars[bar]

    def register(self, bar: int, offset: int, width: int) -> Any:
        return KINDS[width].from_buffer(self.memory(bar), offset)

    def listen(self) -> None:
        """Count the interrupts of a function that has no driver."""
        raise OSError("this system gives no program the interrupts of a function")

    def count(self, settle: float) -> int:  # noqa: ARG002 - for those that can
        """Interrupts since the last call, once none has come for ``settle`` seconds."""
        raise OSError("nobody listens")

    def close(self) -> None:
        pass


class LinuxDevice(Device):
    def __init__(self, address: str) -> None:
        self.path = SYSFS + address
        self.events = -1
        super().__init__()

    def command(self, clear: int, put: int) -> None:
        with open(self.path + "/config", "r+b", buffering=0) as config:
            config.seek(4)
            (value,) = struct.unpack("<H", config.read(2))
            config.seek(4)
            config.write(struct.pack("<H", value & ~clear | put))

    def map(self, bar: int) -> Any:
        with open("%s/resource%d" % (self.path, bar), "r+b", buffering=0) as file:
            return mmap.mmap(file.fileno(), 0)

    def listen(self) -> None:
        """Count INTx by uio_pci_generic."""
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


def told(*command: str) -> str:
    """What a command prints; its error, if it fails."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
    )
    if result.returncode != 0:
        raise OSError("%s: %s" % (" ".join(command), result.stderr.strip()))
    return str(result.stdout)


class FreebsdDevice(Device):
    def __init__(self, address: str) -> None:
        domain, bus, rest = address.split(":")
        device, function = rest.split(".")
        numbers = tuple(int(part, 16) for part in (domain, bus, device, function))
        self.selector = "pci%d:%d:%d:%d" % numbers
        super().__init__()

    def command(self, clear: int, put: int) -> None:
        value = int(told("pciconf", "-r", "-h", self.selector, "4"), 16)
        told("pciconf", "-w", "-h", self.selector, "4", hex(value & ~clear | put))

    def map(self, bar: int) -> Any:
        # "    bar   [10] = type Memory, range 32, base 0xc0360000, size 131072, enabled"
        label = "[%x]" % (0x10 + 4 * bar)
        for line in told("pciconf", "-lb", self.selector).splitlines():
            words = line.replace(",", " ").split()
            if words[:2] == ["bar", label] and "Memory" in words:
                base = int(words[words.index("base") + 1], 16)
                return map_memory(base, int(words[words.index("size") + 1]))
        raise OSError("%s has no memory BAR %d" % (self.selector, bar))


def map_memory(base: int, size: int) -> Any:
    file = os.open("/dev/mem", os.O_RDWR)
    try:
        return mmap.mmap(file, size, offset=base)
    finally:
        os.close(file)


class LinuxMemory:
    """Physically contiguous, locked memory of 2 MiB pages."""

    def __init__(self, size: int) -> None:
        import fcntl

        path = "/proc/sys/vm/nr_hugepages"
        with open(path) as lock:  # other agents in this guest count and take pages too
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.take(size, path)

    def take(self, size: int, path: str) -> None:
        count = -(-size // HUGE)
        self.size = count * HUGE
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


class FreebsdMemory:
    """2 MiB pages that the kernel leaves alone; whole 2 MiB pages one after the other.

    A page is this process's while it has a file locked: agents may run side by side.
    """

    def __init__(self, size: int) -> None:
        import fcntl

        count = -(-size // HUGE)
        try:
            start, length = (int(word, 16) for word in told("kenv", "-q", "hil.dma").split(":"))
        except (OSError, ValueError):
            raise OSError(
                "no memory is kept for DMA: the loader was not told hw.physmem and hil.dma"
            ) from None
        self.locks: list[int] = []
        for page in range(length // HUGE):
            lock = os.open("/var/run/hil-dma.%d" % page, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                self.release()
                continue
            self.locks.append(lock)
            if len(self.locks) == count:
                self.size = count * HUGE
                first = start + (page + 1 - count) * HUGE
                self.map = map_memory(first, self.size)
                self.pages = [first + index * HUGE for index in range(count)]
                return
        self.release()
        raise OSError("the memory kept for DMA, %#x bytes, has no %#x left" % (length, size))

    def release(self) -> None:
        """Give back the pages taken so far: what follows is not next to them."""
        for lock in self.locks:
            os.close(lock)
        self.locks = []


devices: dict[str, Device] = {}
memories: list[Any] = []


def do_open(address: str) -> bool:
    if address not in devices:
        devices[address] = FreebsdDevice(address) if FREEBSD else LinuxDevice(address)
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
    memories.append(FreebsdMemory(size) if FREEBSD else LinuxMemory(size))
    return {"id": len(memories) - 1, "size": memories[-1].size, "pages": memories[-1].pages}


def do_fill(memory: int, offset: int, data: str) -> bool:
    raw = base64.b64decode(data)
    memories[memory].map[offset : offset + len(raw)] = raw
    return True


def do_dump(memory: int, offset: int, length: int) -> str:
    return base64.b64encode(memories[memory].map[offset : offset + length]).decode()


def words(tag: int, start: int, length: int) -> Any:
    """8-byte words of the pattern in hil.oracles.pattern: a tag of 24 bits, an address of 40."""
    head = tag << 40
    return array.array("Q", range(head + start, head + start + length, 8))


def do_mark(address: str, bar: int, offset: int, length: int, tag: int) -> bool:
    """Fill memory in a BAR with the pattern of ``tag``, each word with its offset in the BAR."""
    memory = devices[address].memory(bar)
    for at in range(offset, offset + length, PAGE):
        memory[at : at + PAGE] = words(tag, at, PAGE).tobytes()
    return True


def do_search(address: str, bar: int, offset: int, length: int, tag: int) -> list[list[int]]:
    """Where the pattern of ``tag`` stands in a BAR: [[found at, meant for, bytes], …]."""
    memory = devices[address].memory(bar)
    needle = tag.to_bytes(3, "little")
    found: list[list[int]] = []
    for at in range(offset, offset + length, PAGE):
        page = memory[at : at + PAGE]
        if needle in page:
            for index, word in enumerate(array.array("Q", page)):
                if word >> 40 == tag:
                    place, meant = at + 8 * index, word & (1 << 40) - 1
                    if found and [found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]] == [
                        place,
                        meant,
                    ]:
                        found[-1][2] += 8
                    else:
                        found.append([place, meant, 8])
    return found[:10000]


def do_put(address: str, bar: int, offset: int, data: str) -> bool:
    raw = base64.b64decode(data)
    devices[address].memory(bar)[offset : offset + len(raw)] = raw
    return True


def do_get(address: str, bar: int, offset: int, length: int) -> str:
    return base64.b64encode(devices[address].memory(bar)[offset : offset + length]).decode()


def do_listen(address: str) -> bool:
    devices[address].listen()
    return True


def do_count(address: str, settle: float) -> int:
    return devices[address].count(settle)
