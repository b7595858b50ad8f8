"""A FreeBSD host's physical memory, and memory of it that nothing may change.

Base tools only.  ``/dev/mem`` gives root all of memory and every device's registers (mem(4);
refused at ``kern.securelevel`` 1 and up, and in jails); canary memory is a disk of the kernel's
own memory (md(4), ``-t malloc``).
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Sequence

from hil.deadline import Deadline
from hil.errors import LabError
from hil.iommu.memory import PhysicalMemory
from hil.journal import RUN, Entry, Journal, Undo
from hil.platforms import canary
from hil.platforms.freebsd_undo import MEMORY_DISK
from hil.transport.base import Result, Transport

PAGE = 4096
_SECTOR = 512
_ACPI_HEADER = 36
#: Each further argument is a range: first unit and number of units.
_READ = r"""
unit=$1; shift
for range in "$@"; do
    dd if=/dev/mem bs="$unit" skip="${range%:*}" count="${range#*:}" status=none || exit
done
"""
#: No firmware has more tables, nor a table as long.
_ACPI_TABLES, _ACPI_LENGTH = 512, 1 << 20


class DevMemory:
    """A :class:`~hil.iommu.memory.PhysicalMemory` through ``/dev/mem``.

    Args:
        transport: a root shell on the host.
        deadline: for all that is read through this.
        unit: bytes of one access, at a multiple of itself.
    """

    def __init__(self, transport: Transport, deadline: Deadline, unit: int = PAGE) -> None:
        self._transport = transport
        self._deadline = deadline
        self._unit = unit

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at a physical ``address``; LabError if the kernel refuses."""
        first, count = self._units(address, length)
        command = ["dd", "if=/dev/mem", f"bs={self._unit}", f"skip={first}", f"count={count}"]
        return self._read([*command, "status=none"], [(address, length)])[0]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """What :meth:`read` gives for each of some addresses and lengths, by one command."""
        units = [":".join(map(str, self._units(*span))) for span in ranges]
        return self._read(["sh", "-c", _READ, "hil", str(self._unit), *units], ranges)

    def _units(self, address: int, length: int) -> tuple[int, int]:
        """Number of the first access to a range, and of all."""
        first = address // self._unit
        return first, (address + length - 1) // self._unit - first + 1

    def _read(self, command: Sequence[str], ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        sizes = [self._units(*span)[1] * self._unit for span in ranges]
        result = self._transport.run(command, deadline=self._deadline, limit=sum(sizes) + 1)
        found, at = [], 0
        for (address, length), size in zip(ranges, sizes, strict=True):
            start = at + address % self._unit
            data = result.out[start : start + length]
            if len(data) != length:
                raise self._refused(address, length, result)
            found.append(data)
            at += size
        if result.status != 0:
            raise self._refused(*ranges[-1], result)
        return found

    def _refused(self, address: int, length: int, result: Result) -> LabError:
        return LabError(
            f"physical memory {address:#x}+{length:#x} cannot be read on {self._transport.name}",
            host=self._transport.name,
            command=result.command,
            seen=result.stderr,
            hint="root needs /dev/mem: not in a jail, and sysctl kern.securelevel below 1",
        )

    def write(self, address: int, data: bytes) -> None:
        """``data`` to a physical ``address``, a multiple of its length, in one access."""
        command = ["dd", "of=/dev/mem", f"bs={len(data)}", f"oseek={address // len(data)}"]
        command += ["conv=notrunc", "status=none"]
        self._transport.run(command, stdin=data, deadline=self._deadline).check(
            hint="root needs /dev/mem: not in a jail, and sysctl kern.securelevel below 1"
        )


class ReadAhead:
    """Memory read by the 64 KiB, each block once: for a walk over tables, which stand together.

    It shows each block as it was first read: make one for each walk.  Only for RAM; a block that
    holds some has no registers in it, for these are mapped in larger pieces.
    """

    def __init__(self, transport: Transport, deadline: Deadline) -> None:
        self._source = DevMemory(transport, deadline, unit=canary.BLOCK)
        self._blocks: dict[int, bytes] = {}

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes at a physical ``address``; LabError if the kernel refuses."""
        first, last = address // canary.BLOCK, (address + length - 1) // canary.BLOCK
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing:
            start, count = missing[0], missing[-1] - missing[0] + 1
            blocks = self._source.read(start * canary.BLOCK, count * canary.BLOCK)
            for at in range(count):
                found = blocks[at * canary.BLOCK : (at + 1) * canary.BLOCK]
                self._blocks.setdefault(start + at, found)
        data = b"".join(self._blocks[number] for number in range(first, last + 1))
        return data[address - first * canary.BLOCK :][:length]


def device_registers(transport: Transport, deadline: Deadline) -> DevMemory:
    """Devices' registers, 8 bytes at a time.

    The kernel copies them to the reader as it copies memory (sys/amd64/amd64/mem.c): so short
    a piece by one 64-bit access, which remapping units take (VT-d specification 11.2); a
    long one perhaps byte by byte, which they need not.
    """
    return DevMemory(transport, deadline, unit=8)


def acpi_table(memory: PhysicalMemory, root: int, signature: str) -> bytes | None:
    """The first ACPI table with this signature, ``None`` if the firmware has none.

    Args:
        memory: the host's.
        root: address of the root system description pointer, ``sysctl -n machdep.acpi_root``.
        signature: ``DMAR``, ``IVRS``.

    Raises:
        LabError: memory cannot be read, or holds no ACPI tables there (ACPI 6.5, 5.2.5 to 5.2.8).
    """
    pointer = memory.read(root, _ACPI_HEADER)
    if pointer[:8] != b"RSD PTR ":
        raise LabError(f"there are no ACPI tables at {root:#x}", seen=pointer.hex())
    extended = struct.unpack_from("<Q", pointer, 24)[0] if pointer[15] >= 2 else 0
    start = extended or struct.unpack_from("<I", pointer, 16)[0]
    width = 8 if extended else 4
    for address in _pointers(_table(memory, start), width):
        if memory.read(address, 4) == signature.encode("ascii"):
            return _table(memory, address)
    return None


def _pointers(table: bytes, width: int) -> list[int]:
    body = table[_ACPI_HEADER:][: _ACPI_TABLES * width]
    return [
        int.from_bytes(body[at : at + width], "little")
        for at in range(0, len(body) - width + 1, width)
    ]


def _table(memory: PhysicalMemory, address: int) -> bytes:
    (length,) = struct.unpack("<I", memory.read(address + 4, 4))
    if not _ACPI_HEADER <= length <= _ACPI_LENGTH:
        raise LabError(f"the ACPI table at {address:#x} says that it has {length} bytes")
    return memory.read(address, length)


class MdCanary:
    """A malloc-backed md(4) disk; see :class:`hil.platforms.contract.Canary`.

    Made by :meth:`fill`, of copies of the block of :mod:`hil.platforms.canary`.
    """

    def __init__(
        self, transport: Transport, journal: Journal, made: Entry, block: bytes, blocks: int
    ) -> None:
        self._transport = transport
        self._journal = journal
        self._made = made
        self._disk = made.undo.arguments[0]
        self._block = block
        self._blocks = blocks

    @classmethod
    def fill(
        cls, transport: Transport, journal: Journal, size: int, deadline: Deadline
    ) -> MdCanary:
        """``size`` bytes (rounded up to 64 KiB) of the kernel's memory."""
        block, blocks = canary.blocks(size)
        name = f"md{secrets.randbelow(90000) + 10000}"
        command = ["mdconfig", "-a", "-t", "malloc", "-o", "reserve"]
        command += ["-s", f"{blocks * canary.BLOCK >> 10}k", "-u", name]
        entry, result = journal.change(
            Undo(MEMORY_DISK.name, (name,)), command, deadline=deadline, guard=RUN
        )
        if result.status != 0:
            journal.forget(entry)
            result.check(hint="has the host so much free memory?")
        made = cls(transport, journal, entry, block, blocks)
        try:
            made._write(0, block * blocks, canary.BLOCK, deadline)
        except BaseException:
            made.close(Deadline(20, f"the end of {name}"))
            raise
        return made

    def changes(self, deadline: Deadline) -> tuple[str, ...]:
        """One line for each changed page, with its first wrong byte."""
        whole = self._block * self._blocks
        script = 'dd if="$1" bs=65536 status=none | sha256 -q'
        command = ["sh", "-c", script, "hil", f"/dev/{self._disk}"]
        seen = self._transport.run(command, deadline=deadline).check().stdout.strip()
        if seen == hashlib.sha256(whole).hexdigest():
            return ()
        return _changes(whole, self._read(0, len(whole), canary.BLOCK, deadline)) or (
            f"its sum was {seen} and it then read right",
        )

    def spoil(self, offset: int, data: bytes, deadline: Deadline) -> None:
        """Change it on purpose."""
        first, last = offset // _SECTOR, (offset + len(data) - 1) // _SECTOR
        sectors = bytearray(self._read(first, (last - first + 1) * _SECTOR, _SECTOR, deadline))
        start = offset - first * _SECTOR
        sectors[start : start + len(data)] = data
        self._write(first, bytes(sectors), _SECTOR, deadline)

    def close(self, deadline: Deadline) -> None:
        """Free the memory."""
        self._transport.run(["mdconfig", "-d", "-u", self._disk], deadline=deadline).check()
        self._journal.forget(self._made)

    def _read(self, first: int, length: int, unit: int, deadline: Deadline) -> bytes:
        command = ["dd", f"if=/dev/{self._disk}", f"bs={unit}", f"skip={first}"]
        command += [f"count={length // unit}", "status=none"]
        return self._transport.run(command, deadline=deadline, limit=length + 1).check().out

    def _write(self, first: int, data: bytes, unit: int, deadline: Deadline) -> None:
        command = ["dd", f"of=/dev/{self._disk}", f"obs={unit}", f"oseek={first}"]
        command += ["conv=notrunc", "status=none"]
        self._transport.run(command, stdin=data, deadline=deadline).check()


def _changes(expected: bytes, seen: bytes) -> tuple[str, ...]:
    """One line for each page that differs, with its first wrong byte."""
    changes = []
    for at in range(0, len(expected), PAGE):
        was, now = expected[at : at + PAGE], seen[at : at + PAGE]
        if was != now:
            index = next(
                (n for n, pair in enumerate(zip(was, now, strict=False)) if pair[0] != pair[1]),
                None,
            )
            changes.append(
                f"page {at // PAGE} cannot be read"
                if index is None
                else canary.changed(at // PAGE, at + index, was[index], now[index])
            )
    return tuple(changes)
