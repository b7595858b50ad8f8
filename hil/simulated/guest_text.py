r"""What a FreeBSD guest of bhyve prints on its console from the loader to its end.

Taken from recorded consoles (tests/recorded/freebsd-13.2); what depends on the guest is
filled in.  The loader's own text follows ``stand/userboot``; the shutdown's
``sbin/shutdown/shutdown.c`` and ``sys/kern/kern_shutdown.c``.

Text here has ``\n`` line ends: the console's terminal makes them ``\r\n``.  The kernel's
lines bypass the terminal's output modes and always end in ``\r\n``.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from hil.simulated.guest_image import GuestImage

_LOADER = """\
Consoles: userboot\x20\x20

FreeBSD/amd64 User boot lua, Revision 1.2
Loading /boot/defaults/loader.conf
Loading /boot/device.hints
Loading /boot/loader.conf
Loading kernel...
/boot/kernel/kernel text=0xb60b8 text=0x5523a0 text=0xda9d4 data=0x140 \
data=0xf9658+0x3059a8 0x8+0xc0900+0x8+0xbf5a9
Loading configured modules...
can't find '/etc/hostid'
can't find '/boot/entropy'

\rBooting [/boot/kernel/kernel]...\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20\x20
"""


def loader_output() -> bytes:
    """What bhyveload prints on its console, to the line before the kernel's first."""
    return _LOADER.replace("\n", "\r\n").encode()


class Voice(enum.Enum):
    """Who prints a line on the console."""

    KERNEL = "kernel"
    """It also stands in dmesg, and ends in CR LF whatever the terminal's modes are."""
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class Line:
    voice: Voice
    text: str


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What of a boot log depends on the guest.

    ``routes``, ``devices`` and ``late`` are lines of the kernel; ``network`` is what rc prints
    of each interface.
    """

    image: GuestImage
    memory: int
    """Bytes."""
    cpus: int
    interfaces: Sequence[str]
    routes: Sequence[str]
    devices: Sequence[str]
    late: Sequence[str]
    network: Sequence[Line]


def boot_log(facts: BootFacts) -> Iterator[Line]:
    """The lines from the kernel's first to the one before getty's banner."""
    available = facts.memory * 934 // 1000  # as of the 512 MiB in the recording
    values = {
        "release": facts.image.release,
        "kernel": facts.image.kernel,
        "hostname": facts.image.hostname,
        "memory": f"{facts.memory} ({facts.memory >> 20} MB)",
        "available": f"{available} ({available >> 20} MB)",
        "interfaces": " ".join(("lo0", *facts.interfaces)),
        "date": clock(),
    }
    parts = {"@routes@": facts.routes, "@devices@": facts.devices, "@late@": facts.late}
    text = files("hil.simulated").joinpath("guest_boot.txt").read_text("utf-8")
    for line in text.splitlines():
        if line == "@network@":
            yield from facts.network
        elif line in parts:
            yield from (Line(Voice.KERNEL, part) for part in parts[line])
        elif line.startswith("| "):
            yield Line(Voice.PROCESS, Template(line[2:]).substitute(values))
        else:
            yield Line(Voice.KERNEL, Template(line).substitute(values))
            if line.startswith("Event timer") and "LAPIC" in line and facts.cpus > 1:
                yield Line(
                    Voice.KERNEL,
                    f"FreeBSD/SMP: Multiprocessor System Detected: {facts.cpus} CPUs",
                )


def clock() -> str:
    """The time, in the form of date(1) in UTC."""
    return time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime())


def stamp() -> str:
    """Now, as syslogd(8) writes it in RFC 5424's form."""
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{seconds}.{int(now % 1 * 1e6):06d}+00:00"


def banner(hostname: str) -> str:
    """What getty(8) prints before its prompt; it sends CR LF, of which the terminal makes more."""
    return f"\r\nFreeBSD/amd64 ({hostname}) (ttyu0)\r\n\r\n"


def logged_in(hostname: str, pid: int) -> str:
    """What login(1) and the shell's start-up print."""
    return (
        f"{stamp()} {hostname} login {pid} - - login on ttyu0 as root\r\n"
        f"{stamp()} {hostname} login {pid} - - ROOT LOGIN (root) ON ttyu0\r\n"
        "\x1b7\x1b[r\x1b[999;999H\x1b[6n\x1b8resizewin: timeout reading from terminal\n"
    )


def prompt(hostname: str) -> str:
    """Root's csh prompt."""
    return f"root@{hostname}:~ # "


def shutdown_notice(hostname: str, pid: int, what: str) -> str:
    """What shutdown(8) prints; ``what``: ``power-down``, ``reboot`` or ``halt``."""
    blank = " " * 79
    return (
        f"{blank}\r\n"
        f"\a*** FINAL System shutdown message from root@{hostname} ***\a                   \r\n"
        "\r\n"
        f"{'System going down IMMEDIATELY':<79}\r\n"
        f"\r\n{blank}\r\n"
        f"{stamp()} {hostname} shutdown {pid} - - {what} by root: \r\n"
        "\r\nSystem shutdown time has arrived\a\a\r\n"
    )


RC_SHUTDOWN = "Writing entropy file: .\nWriting early boot entropy file: .\n.\n"


def sync_lines(uptime: float) -> tuple[str, ...]:
    """The kernel's last words before it ends in any orderly way."""
    minutes, seconds = divmod(int(uptime), 60)
    return (
        "Waiting (max 60 seconds) for system process `vnlru' to stop... done",
        "Waiting (max 60 seconds) for system process `syncer' to stop... ",
        "Syncing disks, vnodes remaining... 0 done",
        "All buffers synced.",
        f"Uptime: {f'{minutes}m' if minutes else ''}{seconds}s",
    )


POWERING_OFF = "acpi0: Powering system off"
HALTED = ("", "The operating system has halted.", "Please press any key to reboot.", "")

#: A non-maskable interrupt, which nobody had asked for.
NMI = (
    "NMI/cpu0 ... going to debugger",
    "KDB: enter: watchdog timeout",
    "[ thread pid 11 tid 100003 ]",
    "Stopped at      acpi_cpu_c1+0x6: popq    %rbp",
)

_FRAME = 0xFFFFFE00102E5000


def panic_lines(reason: str, pid: int, where: Sequence[str]) -> tuple[str, ...]:
    """A panic that ends in the debugger; ``where``: functions of the backtrace, inmost first."""
    trace = ["db_trace_self_wrapper", "vpanic", "panic", *where]
    return (
        f"panic: {reason}",
        "cpuid = 0",
        f"time = {int(time.time())}",
        "KDB: stack backtrace:",
        *(
            f"{name}() at {name}+0x{0x2B + 0x1C * depth:x}/frame {_FRAME + 0x50 * depth:#x}"
            for depth, name in enumerate(trace)
        ),
        "KDB: enter: panic",
        f"[ thread pid {pid} tid 100062 ]",
        "Stopped at      kdb_enter+0x37: movq    $0,0x759bee(%rip)",
    )


#: What follows the lines of a panic, with no line end: the debugger waits for a command.
DEBUGGER = "db> "
