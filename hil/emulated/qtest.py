"""QEMU's devices and its VT-d with no guest at all, driven over the qtest protocol.

A program pokes configuration space, device registers and memory itself, in
microseconds; what it needs no kernel for, it should check here.  The protocol is
QEMU's ``system/qtest.c``: one command a line, one answer a line.

Debian's QEMU is built without ``accel=qtest``, and so without its ``clock_step``.
The server works with any accelerator, though: here the one CPU halts in a firmware
of four bytes, and with ``-icount sleep=off`` the virtual clock jumps to the next
timer whenever the CPU is idle.  A device's 100 ms are over at once.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from hil import transient
from hil.deadline import Deadline
from hil.errors import InventoryError, LabError
from hil.pci.address import Address
from hil.pci.config import ConfigSpace

_ECAM = 0xB0000000
_ECAM_SIZE = 256 << 20
_MMIO = range(0xE0000000, 0xFEB00000)
_RESET_VECTOR = 0xFFF0
_HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt
_FIRMWARE_SIZE = 64 << 10


class QTest:
    """A q35 machine without a running CPU; use it as a context manager.

    It is a :class:`~hil.iommu.memory.PhysicalMemory`.  Any error of the machine is a
    :class:`~hil.errors.LabError` with QEMU's own words.  Not safe to share between threads.

    Args:
        devices: the values of QEMU's ``-device`` options, in order.
        memory: bytes of RAM, from address 0; whole MiB, at most 2 GiB.
        options: further options of QEMU.
        binary: QEMU's program.
        timeout: seconds that any one command may take.
    """

    def __init__(
        self,
        devices: Sequence[str] = (),
        *,
        memory: int = 128 << 20,
        options: Sequence[str] = (),
        binary: str = "qemu-system-x86_64",
        timeout: float = 30.0,
    ) -> None:
        if shutil.which(binary) is None:
            raise LabError(f"{binary} is not installed", hint="install qemu-system-x86")
        if not 1 << 20 <= memory <= 2 << 30 or memory % (1 << 20):
            raise InventoryError(f"{memory} bytes of memory: must be 1 to 2048 whole MiB")
        self.memory = memory
        self._timeout = timeout
        self._next_mmio = _MMIO.start
        self._unread = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        # QEMU reads the firmware as it starts, and has read it once it answers
        with tempfile.TemporaryFile() as firmware:
            image = bytearray(_FIRMWARE_SIZE)
            image[_RESET_VECTOR : _RESET_VECTOR + len(_HALT)] = _HALT
            firmware.write(image)
            firmware.flush()
            self._process = self._start(binary, firmware.fileno(), devices, options)
            try:
                self._enable_ecam()
            except BaseException:
                self.close()
                raise

    def _start(
        self, binary: str, firmware: int, devices: Sequence[str], options: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        command = [
            *[binary, "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"],
            # the PIT's periodic timer would keep the jumping clock, and a core, busy
            *["-machine", "q35,kernel-irqchip=split,pit=off", "-accel", "tcg"],
            *["-icount", "shift=0,sleep=off", "-bios", f"/dev/fd/{firmware}"],
            *["-m", f"{self.memory >> 20}M", "-qtest", "stdio", "-qtest-log", "none"],
            *(word for device in devices for word in ("-device", device)),
            *options,
        ]
        return subprocess.Popen(
            transient.tied(command),
            pass_fds=[firmware],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
        )

    # -- life -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine and reap its process.  Safe to call twice."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()
        self._stderr.close()

    # -- the protocol -----------------------------------------------------------------

    def command(self, line: str) -> str:
        """Send one command of the protocol; returns what follows ``OK``.

        Raises:
            LabError: the machine refused it, or is gone.
            DeadlineExceeded: it gave no answer.
        """
        deadline = Deadline(self._timeout, f"an answer to qtest {line[:60]!r}")
        stdin = self._process.stdin
        assert stdin is not None
        try:
            _write_all(stdin.fileno(), line.encode("ascii") + b"\n", deadline)
        except (OSError, ValueError) as error:
            raise self._gone(line) from error
        while True:
            verdict, _, rest = self._line(line, deadline).partition(" ")
            if verdict == "OK":
                return rest
            if verdict != "IRQ":
                raise LabError(
                    f"qtest refused {line[:60]!r}", seen=f"{verdict} {rest}\n{self._errors()}"
                )

    def _line(self, command: str, deadline: Deadline) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._unread:
            try:
                ready, _, _ = select.select([stdout], [], [], deadline.remaining)
                more = os.read(stdout.fileno(), 1 << 20) if ready else None
            except (OSError, ValueError) as error:
                raise self._gone(command) from error
            if more is None:
                raise deadline.exceeded(self._errors())
            if not more:
                raise self._gone(command)
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("ascii", "replace")

    def _gone(self, command: str) -> LabError:
        return LabError(
            f"QEMU ended, asked for {command[:60]!r}",
            seen=self._errors(),
            hint="run the same options by hand; a device may be unknown to this QEMU",
        )

    def _errors(self) -> str:
        if self._stderr.closed:
            return ""
        # pread: QEMU writes at the same open file's position
        return os.pread(self._stderr.fileno(), 1 << 16, 0).decode("utf-8", "replace")

    # -- memory and device registers --------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """RAM from outside, as :meth:`hil.iommu.memory.PhysicalMemory.read`."""
        self._check_ram(address, length)
        if not length:
            return b""
        return base64.b64decode(self.command(f"b64read {address:#x} {length:#x}"))

    def write(self, address: int, data: bytes) -> None:
        """Write RAM from outside."""
        self._check_ram(address, len(data))
        if data:
            text = base64.b64encode(data).decode("ascii")
            self.command(f"b64write {address:#x} {len(data):#x} {text}")

    def fill(self, address: int, length: int, value: int = 0) -> None:
        """Set ``length`` bytes of RAM to ``value``."""
        self._check_ram(address, length)
        self.command(f"memset {address:#x} {length:#x} {value:#x}")

    def _check_ram(self, address: int, length: int) -> None:
        if address < 0 or length < 0 or address + length > self.memory:
            raise LabError(
                f"no memory at {address:#x} + {length:#x}",
                seen=f"the machine has {self.memory:#x} bytes",
            )

    def load(self, address: int, width: int) -> int:
        """One load of ``width`` bytes (1, 2, 4 or 8), as a CPU would do it."""
        return int(self.command(f"read{_letter(width)} {address:#x}"), 16)

    def store(self, address: int, width: int, value: int) -> None:
        """One store of ``width`` bytes (1, 2, 4 or 8), as a CPU would do it."""
        self.command(f"write{_letter(width)} {address:#x} {value:#x}")

    # -- PCI --------------------------------------------------------------------------

    def _enable_ecam(self) -> None:
        # PCIEXBAR of the Q35 host bridge (offset 0x60): 256 buses, enabled
        for offset, value in ((0x64, 0), (0x60, _ECAM | 1)):
            self.command(f"outl 0xcf8 {1 << 31 | offset:#x}")
            self.command(f"outl 0xcfc {value:#x}")

    def _config_address(self, address: Address, offset: int, width: int) -> int:
        if address.domain or not 0 <= offset <= 4096 - width:
            raise InventoryError(f"no register {offset:#x} of {address} on this machine")
        return _ECAM + (address.requester_id << 12) + offset

    def config(self, address: Address) -> ConfigSpace:
        """All 4096 bytes; :attr:`~hil.pci.config.ConfigSpace.absent` where no function is."""
        start = self._config_address(address, 0, 4096)
        return ConfigSpace(base64.b64decode(self.command(f"b64read {start:#x} 0x1000")))

    def config_load(self, address: Address, offset: int, width: int) -> int:
        """One load from configuration space."""
        return self.load(self._config_address(address, offset, width), width)

    def config_store(self, address: Address, offset: int, width: int, value: int) -> None:
        """One store to configuration space."""
        self.store(self._config_address(address, offset, width), width, value)

    def map_bar(self, address: Address, index: int = 0) -> int:
        """Size and place a memory BAR; returns its address.

        Raises:
            LabError: the function has no memory BAR there, or no room is left.
        """
        register = 0x10 + 4 * index
        self.config_store(address, register, 4, 0xFFFFFFFF)
        mask = self.config_load(address, register, 4)
        if not mask or mask & 1:
            raise LabError(f"{address} has no memory BAR {index}", seen=f"{mask:#010x}")
        size = 1 << 32 if mask & ~0xF == 0 else (~(mask & ~0xF) & 0xFFFFFFFF) + 1
        place = -(-self._next_mmio // size) * size
        if place + size > _MMIO.stop:
            raise LabError(f"no room for BAR {index} of {address}: {size:#x} bytes")
        self._next_mmio = place + size
        self.config_store(address, register, 4, place)
        if mask >> 1 & 3 == 2:
            self.config_store(address, register + 4, 4, 0)
        return place

    def enable(self, address: Address) -> None:
        """Let a function decode memory and master the bus."""
        command = self.config_load(address, 4, 2)
        self.config_store(address, 4, 2, command | 6)

    def open_bridge(self, address: Address, bus: int) -> None:
        """Give a bridge (a root port) the bus behind it and all of the memory window.

        Only one bridge at a time can have the window.
        """
        self.config_store(address, 0x18, 4, bus << 16 | bus << 8 | address.bus)
        first, last = _MMIO.start >> 16, (_MMIO.stop >> 16) - 1
        self.config_store(address, 0x20, 4, (last & 0xFFF0) << 16 | first & 0xFFF0)
        self.enable(address)


def _letter(width: int) -> str:
    return {1: "b", 2: "w", 4: "l", 8: "q"}[width]


def _write_all(descriptor: int, data: bytes, deadline: Deadline) -> None:
    # The answers are short, and QEMU reads all of a command before it answers: a
    # blocking write cannot lock both sides up.
    view = memoryview(data)
    while view:
        deadline.check()
        view = view[os.write(descriptor, view) :]
