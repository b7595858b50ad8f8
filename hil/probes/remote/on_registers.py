"""Reads, or writes and reads, one register of a PCI function by mmap of its sysfs resource.

Runs *on a Linux host or guest*, by ``python3 -c``.  Arguments: address, BAR, offset, width in
bytes, and optionally the value to write.  Prints the value read.
"""

import ctypes
import mmap
import struct
import sys

address, bar, offset, width = sys.argv[1], *map(int, sys.argv[2:5])
base = "/sys/bus/pci/devices/" + address
# A function that no driver uses may sleep in D3hot, where its registers do not answer.
with open(base + "/power/control", "r+") as power:
    power.write("on")
with open(base + "/config", "r+b", buffering=0) as config:
    config.seek(4)
    (command,) = struct.unpack("<H", config.read(2))
    config.seek(4)
    config.write(struct.pack("<H", command | 2))
    kind = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}[width]
    with open("%s/resource%d" % (base, bar), "r+b", buffering=0) as file:
        page = mmap.mmap(file.fileno(), 4096, offset=offset & ~4095)
        register = kind.from_buffer(page, offset & 4095)
        if len(sys.argv) > 5:
            register.value = int(sys.argv[5])
        print(register.value)
        del register
        page.close()
    config.seek(4)
    config.write(struct.pack("<H", command))
with open(base + "/power/control", "r+") as power:
    power.write("auto")
