"""Read a Linux host's physical memory and device registers over a shell.

Kernels refuse RAM through ``/dev/mem`` (CONFIG_STRICT_DEVMEM), but root can read it
through the direct map in ``/proc/kcore``, an ELF core file whose program headers carry
the physical address of each piece of RAM (fs/proc/kcore.c, proc(5)).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hil.deadline import Deadline
from hil.errors import LabError
from hil.transport.base import Transport

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1
#: kcore's p_paddr of address space that is not RAM (vmalloc, modules).
_NO_PHYSICAL = (1 << 64) - 1
_HEADERS = 65536


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of RAM and where it lies in the core file.  All in bytes."""

    physical: int
    length: int
    offset: int


def parse_core_headers(data: bytes) -> tuple[Segment, ...]:
    """RAM segments from the first bytes of ``/proc/kcore`` (ELF-64, little endian).

    Raises:
        LabError: the bytes are not such a file.
    """
    if len(data) < _ELF_HEADER.size or data[:6] != b"\x7fELF\x02\x01":
        raise LabError("/proc/kcore is not a 64-bit little-endian ELF file", seen=data[:16].hex())
    header = _ELF_HEADER.unpack_from(data)
    start, size, count = header[5], header[9], header[10]
    segments = []
    for index in range(count):
        at = start + index * size
        if size < _PROGRAM_HEADER.size or at + size > len(data):
            raise LabError(f"program header {index} of {count} of /proc/kcore is cut off")
        kind, _, offset, _, physical, _, length, _ = _PROGRAM_HEADER.unpack_from(data, at)
        if kind == _PT_LOAD and physical != _NO_PHYSICAL:
            segments.append(Segment(physical, length, offset))
    return tuple(sorted(segments, key=lambda segment: segment.physical))


class KcoreMemory:
    """A :class:`~hil.iommu.memory.PhysicalMemory` through ``/proc/kcore``."""

    def __init__(self, transport: Transport, deadline: Deadline) -> None:
        self._transport = transport
        self._deadline = deadline
        headers = _dd(transport, "/proc/kcore", 0, _HEADERS, deadline)
        self._segments = parse_core_headers(headers)

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at a physical ``address``; LabError if it is not RAM."""
        for segment in self._segments:
            inside = address - segment.physical
            if inside >= 0 and inside + length <= segment.length:
                offset = segment.offset + inside
                data = _dd(self._transport, "/proc/kcore", offset, length, self._deadline)
                if len(data) == length:
                    return data
        raise LabError(
            f"physical memory {address:#x}+{length:#x} cannot be read on {self._transport.name}",
            host=self._transport.name,
            hint="it is no RAM, or the kernel is locked down (cat /sys/kernel/security/lockdown)",
        )


def read_device_memory(
    transport: Transport, address: int, length: int, deadline: Deadline
) -> bytes:
    """Registers at a physical ``address`` through ``/dev/mem`` (mem(4)).

    Raises:
        LabError: the kernel refuses, as it does for claimed regions unless it was booted
            with ``iomem=relaxed``.
    """
    data = _dd(transport, "/dev/mem", address, length, deadline)
    if len(data) != length:
        raise LabError(
            f"device registers at {address:#x} cannot be read through /dev/mem",
            host=transport.name,
            hint="boot the host with iomem=relaxed to let root read remapping registers",
        )
    return data


def _dd(transport: Transport, path: str, offset: int, length: int, deadline: Deadline) -> bytes:
    command = ["dd", f"if={path}", "bs=64K", f"skip={offset}", f"count={length}"]
    command += ["iflag=skip_bytes,count_bytes,fullblock", "status=none"]
    return transport.run(command, deadline=deadline).out
